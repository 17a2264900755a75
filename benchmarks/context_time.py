"""How long the choice of files takes, beside ``git ls-files`` and one ``git grep`` of the same tree.

    python benchmarks/context_time.py [--files 200 5000 100000] [--rounds 7]

Trees are generated: source files of about 50 lines in nested packages. Cold: nothing kept. Same task: kept in memory or
on disk. Medians; both sides take turns in one run.
"""

from __future__ import annotations

import argparse
import random
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from necrocode.agent_runner import TaskContext
from necrocode.agent_runner._clock import Deadline
from necrocode.agent_runner._git import Author, FileChange, Git, Repository
from necrocode.agent_runner.generation.context_cache import ContextCache
from necrocode.agent_runner.steps.context import choose_context

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

BUDGET_TOKENS = 16_000
_VERBS = "load save parse render send receive merge split count check draw move open close read write".split()  # noqa: SIM905
_NOUNS = "invoice order user session token cache page report ledger route queue worker schema field event".split()  # noqa: SIM905


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, nargs="+", default=[200, 5000, 100_000])
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    print(
        "files    git (checkout)  git (tree)    cold   x checkout  x tree    same task: disk   x cold   memory   x cold"
    )
    for files in arguments.files:
        with tempfile.TemporaryDirectory() as folder:
            print(_row(Path(folder), files, arguments.rounds), flush=True)


def _row(folder: Path, files: int, rounds: int) -> str:
    git = Git(folder / "home")
    git.prepare()
    repository, commit = _generated(folder / "repository", git, files)
    task = TaskContext(
        task_id="1",
        spec_name="time",
        title="Rounding of invoice totals is wrong",
        description="`render_invoice` shows a wrong total when the ledger is merged. See parse_ledger in worker_7.py.",
        repo_url="/none",
    )

    def chosen(cache: ContextCache | None) -> None:
        with repository.objects() as objects:
            choose_context(
                task, repository, objects, commit, budget_tokens=BUDGET_TOKENS, deadline=Deadline(600), cache=cache
            )

    in_memory = ContextCache(folder / "cache")
    chosen(in_memory)
    ways: dict[str, Callable[[], None]] = {
        "checkout": lambda: _bare(repository, ()),
        "tree": lambda: _bare(repository, (commit,)),
        "cold": lambda: chosen(None),
        "disk": lambda: chosen(ContextCache(folder / "cache")),
        "memory": lambda: chosen(in_memory),
    }
    taken: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, work in ways.items():
            began = time.perf_counter()
            work()
            taken[way].append(1000 * (time.perf_counter() - began))
    middle = {way: statistics.median(times) for way, times in taken.items()}
    cold = middle["cold"]
    return (
        f"{files:>6} {middle['checkout']:>12.0f} ms {middle['tree']:>8.0f} ms {cold:>6.0f} ms"
        f" {cold / middle['checkout']:>8.2f}"
        f" {cold / middle['tree']:>10.2f} {middle['disk']:>12.0f} ms {middle['disk'] / cold:>8.2f}"
        f" {middle['memory']:>7.0f} ms {middle['memory'] / cold:>7.2f}"
    )


def _bare(repository: Repository, tree: tuple[str, ...]) -> None:
    repository.run(*(("ls-tree", "-r", "--name-only", *tree) if tree else ("ls-files",)))
    repository.run("grep", "-n", "-I", "-F", "-e", "invoice", *tree, "--")


def _generated(path: Path, git: Git, files: int) -> tuple[Repository, str]:
    subprocess.run(["git", "init", "--quiet", "-b", "main", str(path)], check=True)
    repository = Repository(git, path)
    subprocess.run(
        [
            "git",
            "-C",
            str(path),
            "-c",
            "user.name=b",
            "-c",
            "user.email=b@example.com",
            "commit",
            "-qm",
            "0",
            "--allow-empty",
        ],
        check=True,
    )
    base = repository.run("rev-parse", "HEAD").decode().strip()
    author = Author("b", "b@example.com", 0)
    commit = repository.write_commit(base, _sources(files), ref="refs/heads/all", message="all", author=author)
    repository.run("repack", "-adq")
    repository.run("reset", "--hard", "--quiet", commit)
    return repository, commit


def _sources(files: int) -> Iterator[FileChange]:
    choose = random.Random(7)
    for number in range(files):
        noun = choose.choice(_NOUNS)
        lines = [
            f'"""The {noun}s of part {number}."""',
            "",
            f"from package_{number % 97} import {choose.choice(_NOUNS)}",
            "",
        ]
        for _ in range(6):
            verb, other = choose.choice(_VERBS), choose.choice(_NOUNS)
            lines += [
                "",
                f"def {verb}_{other}({noun}, limit={choose.randrange(99)}):",
                f'    """{verb} the {other}."""',
            ]
            lines += [f"    value_{step} = {noun}.{choose.choice(_VERBS)}({step})" for step in range(3)]
            lines += [f"    return value_{choose.randrange(3)}", ""]
        path = f"package_{number % 97}/part_{number // 97 % 31}/{noun}_{number}.py"
        yield FileChange(path, content="\n".join(lines).encode())


if __name__ == "__main__":
    main()
