"""``python -m necrocode`` is the ``necrocode`` command."""

import sys

from necrocode.cli import main

if __name__ == "__main__":
    sys.exit(main())
