"""What a workspace costs beside the git commands that do the same: ``python benchmarks/allocation.py``.

``--files 221 5000`` sizes of the generated repositories, ``--rounds 9``, ``--failures 0`` (allocations to count
failures in, by 8 callers at once). Both sides have the same remote on the same disk and are measured in turn; ratios
are medians over rounds.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from _measure import median_ratio, side_by_side
from run_overhead import git, make_repository

from necrocode.agent_runner import LocalRepoPool, RunnerError, SlotAllocation
from necrocode.agent_runner._git import Git

if TYPE_CHECKING:
    from collections.abc import Callable

PARALLEL = 8
CHURN = 12


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, nargs="+", default=[221, 5_000])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--failures", type=int, default=0)
    arguments = parser.parse_args()
    for size in arguments.files:
        with tempfile.TemporaryDirectory(prefix="necrocode-benchmark-") as folder:
            print(f"\n{size} files (medians of {arguments.rounds} rounds)")
            report(size, Path(folder), arguments.rounds, arguments.failures)


def report(size: int, folder: Path, rounds: int, failures: int) -> None:
    origin = make_repository(folder / "origin", size)
    warm(origin, folder / "warm", rounds)
    cold(origin, folder / "cold", rounds)
    churn(origin, folder / "churn")
    parallel(origin, folder / "parallel", max(3, rounds // 3))
    if failures:
        print(f"{'failures':<44}{failed(origin, folder / 'failures', failures):8} of {failures}")


@dataclass
class Ours:
    """A pool of its own."""

    origin: Path
    folder: Path
    slots: int = 1

    def __post_init__(self) -> None:
        self.pool = LocalRepoPool(self.folder / "pool", Git(self.folder / "git"), pool_size=self.slots)
        self.held: list[SlotAllocation] = []
        self.release_seconds: list[float] = []

    def allocate(self) -> SlotAllocation:
        slot = self.pool.allocate_slot(str(self.origin), "benchmark")
        self.held.append(slot)
        return slot

    def release(self) -> None:
        for slot in self.held:
            start = time.perf_counter()
            self.pool.release_slot(slot.slot_id, lease_token=slot.lease_token)
            self.release_seconds.append(time.perf_counter() - start)
        self.held = []


def dirty(checkout: Path) -> None:
    """What a task leaves: a changed file, a new one, an ignored-looking folder."""
    (checkout / "d000/f0.py").write_text(f"x = {time.monotonic_ns()}\n", encoding="utf-8")
    (checkout / "build").mkdir(exist_ok=True)
    (checkout / "build/out.o").write_text("x", encoding="utf-8")


def line(what: str, seconds: dict[str, list[float]], name: str, base: str, note: str = "") -> None:
    ours, theirs = (statistics.median(seconds[key]) * 1000 for key in (name, base))
    ratio = median_ratio(seconds, name, base)
    print(f"{what:<44}{ours:8.1f} ms  against {theirs:8.1f} ms {base:<28}{ratio:6.2f}  {note}")


def warm(origin: Path, folder: Path, rounds: int) -> None:
    ours = Ours(origin, folder / "ours")
    bare = folder / "bare"
    subprocess.run(["git", "clone", "--quiet", str(origin), str(bare)], check=True)
    trees = folder / "trees"
    numbers = count()

    def reset() -> None:
        git(bare, "reset", "--quiet", "--hard")
        git(bare, "clean", "-ffdxq")
        git(bare, "switch", "--quiet", "-C", f"task-{next(numbers)}", "origin/main")

    def bare_warm() -> None:
        dirty(bare)
        start = time.perf_counter()
        git(bare, "fetch", "--quiet")
        fetched.append(time.perf_counter() - start)
        start = time.perf_counter()
        reset()
        plain.append(time.perf_counter() - start)

    def ours_warm() -> None:
        ours.release()
        dirty(ours.pool.root / "x" if not slots else slots[-1].slot_path)
        start = time.perf_counter()
        slots.append(ours.allocate())
        mine.append(time.perf_counter() - start)

    def worktree() -> None:
        start = time.perf_counter()
        git(bare, "worktree", "add", "--quiet", "--detach", str(trees / str(next(numbers))), "origin/main")
        added.append(time.perf_counter() - start)

    fetched: list[float] = []
    plain: list[float] = []
    mine: list[float] = []
    added: list[float] = []
    slots = [ours.allocate()]
    side_by_side({"bare": bare_warm, "ours": ours_warm, "worktree": worktree}, rounds)
    seconds = {
        "ours": mine[1:],
        "reset + clean + switch": plain[1:],
        "fetch + reset + clean + switch": [one + two for one, two in zip(fetched, plain, strict=True)][1:],
        "worktree add": added[1:],
    }
    goal = statistics.median(plain[1:]) * 1.2 + 0.010
    note = f"goal ≤ 1.2 × + 10 ms: {statistics.median(mine[1:]) / goal:.2f} of it"
    line("warm allocation, fetch included", seconds, "ours", "reset + clean + switch", note)
    line("warm allocation", seconds, "ours", "fetch + reset + clean + switch")
    line("warm allocation", seconds, "ours", "worktree add", "goal ≤ 0.25 from 5 000 files up")
    print(f"{'release':<44}{statistics.median(ours.release_seconds) * 1000:8.1f} ms  goal ≤ 50 ms")


def cold(origin: Path, folder: Path, rounds: int) -> None:
    """A new slot in a pool whose mirror is there, against a new worktree of a clone; both fetch first."""
    ours = Ours(origin, folder / "ours", slots=1000)
    ours.allocate()
    bare = folder / "bare"
    subprocess.run(["git", "clone", "--quiet", "--bare", str(origin), str(bare)], check=True)
    numbers = count()

    def worktree() -> None:
        git(bare, "fetch", "--quiet")
        git(bare, "worktree", "add", "--quiet", "--detach", str(folder / f"tree-{next(numbers)}"), "HEAD")

    seconds = side_by_side({"ours": ours.allocate, "fetch + worktree add": worktree}, rounds)
    line("cold allocation, fetch included", seconds, "ours", "fetch + worktree add", "goal ≤ 1.15")
    slot, tree = (disk(path) for path in (ours.held[-1].slot_path, folder / "tree-0"))
    print(f"{'disk of a slot':<44}{slot / tree:8.3f} of a worktree's; goal ≤ 1.03")


def disk(path: Path) -> int:
    return int(subprocess.run(["du", "-s", str(path)], check=True, capture_output=True).stdout.split()[0])


def churn(origin: Path, folder: Path) -> None:
    ours = Ours(origin, folder)
    ours.allocate()
    seconds = []
    for _ in range(CHURN):
        dirty(ours.held[0].slot_path)
        ours.release()
        start = time.perf_counter()
        ours.allocate()
        seconds.append(time.perf_counter() - start)
    first, last = (statistics.median(part) for part in (seconds[:3], seconds[-3:]))
    print(f"{f'{CHURN} allocate and release cycles, last : first':<44}{last / first:8.2f}  goal ≤ 1.5")


def parallel(origin: Path, folder: Path, rounds: int) -> None:
    numbers = count()

    def fresh(run: Callable[[Ours], object]) -> Callable[[], None]:
        def measured() -> None:
            ours = Ours(origin, folder / str(next(numbers)), slots=PARALLEL + 1)
            ours.allocate()  # the mirror, which is not what this is about
            start = time.perf_counter()
            run(ours)
            times[run].append(time.perf_counter() - start)
            shutil.rmtree(ours.folder)

        times[run] = []
        return measured

    def together(ours: Ours) -> None:
        with ThreadPoolExecutor(PARALLEL) as threads:
            list(threads.map(lambda _: ours.allocate(), range(PARALLEL)))

    def one_by_one(ours: Ours) -> None:
        for _ in range(PARALLEL):
            ours.allocate()

    times: dict[Callable[[Ours], object], list[float]] = {}
    side_by_side({"together": fresh(together), "one by one": fresh(one_by_one)}, rounds)
    seconds = {"together": times[together][1:], "one by one": times[one_by_one][1:]}
    line(f"{PARALLEL} cold allocations at once", seconds, "together", "one by one", "goal ≤ 0.75 on 2 cores")


def failed(origin: Path, folder: Path, number: int) -> int:
    ours = Ours(origin, folder, slots=PARALLEL)

    def one(_: int) -> int:
        try:
            slot = ours.pool.allocate_slot(str(origin), "benchmark", timeout_seconds=60)
            dirty(slot.slot_path)
            ours.pool.release_slot(slot.slot_id, lease_token=slot.lease_token)
        except RunnerError:
            return 1
        return 0

    with ThreadPoolExecutor(PARALLEL) as threads:
        return sum(threads.map(one, range(number)))


if __name__ == "__main__":
    main()
