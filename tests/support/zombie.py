"""A runner as a process of its own, which a test stops in the middle of a run and wakes up again.

``python -m tests.support.zombie STATE_DIR REPOSITORY`` stops itself (SIGSTOP) when its model is asked, and prints the
run's result as JSON.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from necrocode.agent_runner import RunnerResult
from tests.support.bench import GOOD_ANSWER, Bench

LEASE_SECONDS = 3.0
_ENDS_WITHIN_SECONDS = 60


class Zombie:
    """The process; ``wake`` gives what its run came to."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def wake(self) -> RunnerResult:
        self._process.send_signal(signal.SIGCONT)
        output, _ = self._process.communicate(timeout=_ENDS_WITHIN_SECONDS)
        return RunnerResult.model_validate_json(output)


@contextmanager
def stopped_while_it_asks(bench: Bench) -> Iterator[Zombie]:
    """A runner over the bench that was stopped when it had asked its model, and will get its answer at once."""
    arguments = [str(bench.state_dir), str(bench.repository)]
    process = subprocess.Popen([sys.executable, "-m", __name__, *arguments], stdout=subprocess.PIPE, text=True)
    try:
        _, status = os.waitpid(process.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status), "the runner ended before it asked its model"
        yield Zombie(process)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()


def main(state_dir: str, repository: str) -> None:
    def answer(_messages: object) -> str:
        signal.raise_signal(signal.SIGSTOP)
        return GOOD_ANSWER

    bench = Bench(Path(repository), Path(state_dir))
    result = bench.run(answer, lease_seconds=LEASE_SECONDS, runner_id="zombie")
    sys.stdout.write(result.model_dump_json())


if __name__ == "__main__":
    main(*sys.argv[1:])
