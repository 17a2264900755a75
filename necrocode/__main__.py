"""The ``necrocode`` command, and ``python -m necrocode``: nothing here is slow to import, so that Ctrl-C finds it."""

from __future__ import annotations

import signal
import sys

_INTERRUPTED = 130


def main() -> int:
    """Run the command line; the exit code, whenever Ctrl-C comes."""
    try:
        from necrocode.cli import main as command  # noqa: PLC0415  a part of what may be interrupted

        return command()
    except KeyboardInterrupt:
        return _INTERRUPTED
    finally:
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # the rest has nothing to tell of it


if __name__ == "__main__":
    sys.exit(main())
