"""What a sandbox costs: ``true`` and a pytest suite behind each that this machine has, against the bare commands.

``python benchmarks/sandbox.py [ROUNDS]``. Goals: a start at most 25 ms over the bare one, a suite at most 1.1 times.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from _measure import median_ratio, side_by_side

from necrocode.agent_runner._clock import Deadline
from necrocode.agent_runner.sandbox.confined import ConfinedSandbox, Confinement, Policy
from necrocode.agent_runner.sandbox.ladder import working_confinement
from necrocode.agent_runner.sandbox.limits import Limits
from necrocode.agent_runner.sandbox.plain import PlainSandbox

if TYPE_CHECKING:
    from collections.abc import Callable

    from necrocode.agent_runner import Sandbox

FILES, CASES = 10, 20
SUITE = f"{sys.executable} -m pytest -q -p no:cacheprovider"
CASE = """
def test_{number}(tmp_path):
    (tmp_path / "file").write_text(str(sum(range(20_000))))
    assert (tmp_path / "file").read_text()
"""


def main() -> int:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    with tempfile.TemporaryDirectory() as folder:
        checkout, root = Path(folder, "checkout"), Path(folder, "layers")
        checkout.mkdir()
        for number in range(FILES):
            text = "".join(CASE.format(number=case) for case in range(CASES))
            (checkout / f"test_{number}.py").write_text(text)
        sandboxes = found_sandboxes(root)
        for command in ("true", SUITE):
            subjects = {"bare": partial(bare, command, checkout)}
            subjects |= {name: partial(held, sandbox, command, checkout) for name, sandbox in sandboxes.items()}
            report(command, subjects, rounds)
    return 0


def found_sandboxes(root: Path) -> dict[str, Sandbox]:
    sandboxes: dict[str, Sandbox] = {"none": PlainSandbox(root)}
    for wall in ("sandlock", "bwrap"):
        found = working_confinement(wall, root)
        if isinstance(found, Confinement):
            sandboxes[wall] = ConfinedSandbox(root, found, Policy(root, Limits()))
        else:
            print(f"{wall}: {found}")
    return sandboxes


def bare(command: str, checkout: Path) -> None:
    subprocess.run(["sh", "-c", command], cwd=checkout, check=True, capture_output=True)


def held(sandbox: Sandbox, command: str, checkout: Path) -> None:
    result = sandbox.run_tests([command], checkout, tree="", environment={}, fail_fast=True, deadline=Deadline(600))
    if not result.success:
        raise SystemExit(f"{command} failed:\n{result.commands[0].output}")


def report(command: str, subjects: dict[str, Callable[[], object]], rounds: int) -> None:
    seconds = side_by_side(subjects, rounds)
    print(f"`{command}`, medians of {rounds} rounds")
    for name, times in seconds.items():
        middle = statistics.median(times)
        over = statistics.median(ours - theirs for ours, theirs in zip(times, seconds["bare"], strict=True))
        ratio = median_ratio(seconds, name, "bare")
        least = min(times) - min(seconds["bare"])  # on a machine with other work, what it takes itself
        print(f"  {name:10} {middle * 1e3:8.1f} ms   {over * 1e3:+7.1f} ms (least {least * 1e3:+.1f})   x{ratio:.2f}")


if __name__ == "__main__":
    sys.exit(main())
