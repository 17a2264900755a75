"""How many edits come out right, how many are refused, how many come out wrong; and how long a thousand take.

``python benchmarks/edits.py`` reads the shared data (``NECROCODE_SHARED``). Beside ours: ``git apply``, also with the
two options that forgive the most, and the plain way to do search/replace: exact text, first place.
"""

from __future__ import annotations

import gzip
import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from _measure import median_ratio

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from necrocode.agent_runner import RunnerError
from necrocode.agent_runner.generation.edit_formats import parse_answer
from tests.support.edit_renderers import block_of, diff_of, hunks
from tests.support.edited_files import edited
from tests.support.shared import SHARED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROUNDS = 9
EDITS, FILES = 1_000, 253
RECOUNT = ("--recount", "--unidiff-zero")
Texts = dict[str, str]


class Case(NamedTuple):
    """One answer to one state of the files."""

    before: Texts
    after: Texts | None
    """What is right; None where the only right thing is a refusal."""
    diff: str
    answer: str
    """What ours is given: the diff, or another format with the same edits."""
    pairs: tuple[tuple[str, str, str], ...] = ()
    """(path, search, replace), for the plain way; none where it has no form for the answer."""


def main() -> None:
    folder = Path(tempfile.mkdtemp(prefix="necrocode-benchmark-"))
    try:
        table(folder)
        times(folder)
    finally:
        shutil.rmtree(folder)


# --- right, refused, wrong -------------------------------------------------------------------------------------------


def table(folder: Path) -> None:
    columns: dict[str, Callable[[Case], str]] = {
        "ours": ours,
        "git apply": lambda case: git_apply(case, folder / "tree"),
        f"git apply {' '.join(RECOUNT)}": lambda case: git_apply(case, folder / "tree", *RECOUNT),
        "exact, first place": naive,
    }
    print("| answers | cases | right thing | " + " | ".join(columns) + " |")
    print("|---|---|---|" + "---|" * len(columns))
    for name, cases in corpora().items():
        wanted = "refusal" if cases[0].after is None else "applied"
        cells = [cell(Counter(map(column, cases))) for column in columns.values()]
        print(f"| {name} | {len(cases)} | {wanted} | {' | '.join(cells)} |", flush=True)


def cell(counts: Counter[str]) -> str:
    if counts["-"]:
        return "-"
    return " · ".join(f"{counts[kind]} {kind}" for kind in ("right", "refused", "wrong") if counts[kind])


def judged(case: Case, result: dict[str, bytes] | None) -> str:
    """What a result is; a refusal is right where nothing else is."""
    if result is None:
        return "right" if case.after is None else "refused"
    wanted = None if case.after is None else {path: text.encode() for path, text in case.after.items()}
    return "right" if result == wanted else "wrong"


def ours(case: Case) -> str:
    try:
        files = {path: text.encode() for path, text in case.before.items()}
        return judged(case, edited(files, parse_answer(case.answer).changes))
    except RunnerError:
        return judged(case, None)


def git_apply(case: Case, tree: Path, *options: str) -> str:
    if not case.diff:
        return "-"
    shutil.rmtree(tree, ignore_errors=True)
    for path, text in case.before.items():
        file = tree / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(text.encode())
    tree.mkdir(exist_ok=True)
    command = ["git", "apply", "--whitespace=nowarn", *options]
    done = subprocess.run(command, cwd=tree, input=case.diff.encode(), capture_output=True, check=False)
    if done.returncode:
        return judged(case, None)
    found = (file for file in tree.rglob("*") if file.is_file())
    return judged(case, {file.relative_to(tree).as_posix(): file.read_bytes() for file in found})


def naive(case: Case) -> str:
    if not case.pairs:
        return "-"
    files = dict(case.before)
    for path, search, replace in case.pairs:
        if search not in files[path]:
            return judged(case, None)
        files[path] = files[path].replace(search, replace, 1)
    return judged(case, {path: text.encode() for path, text in files.items()})


# --- the cases -------------------------------------------------------------------------------------------------------


def rows(name: str) -> list[dict[str, Any]]:
    with gzip.open(SHARED / "data" / "edits" / name, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def corpora() -> dict[str, list[Case]]:
    commits = [row for row in rows("commits.jsonl.gz") if "symlink" not in row["categories"]]
    by_id = {row["id"]: row for row in commits}
    patches = [row for row in rows("commits_apply_patch.jsonl.gz") if row["id"] in by_id]
    changed = list(changed_files(commits))
    return {
        "real commits, git's diffs": [Case(row["before"], row["after"], row["diff"], row["diff"]) for row in commits],
        "real commits, patch envelopes": [
            Case(by_id[row["id"]]["before"], by_id[row["id"]]["after"], "", row["patch"]) for row in patches
        ],
        "changed files, search/replace": [case(old, new) for old, new in changed],
        "... blanks after the searched lines": [case(old, new, with_trailing_blanks) for old, new in changed],
        "... searched and new lines without indentation": [
            case(old, new, without_indentation) for old, new in changed if not has_odd_blanks(old + new)
        ],
        "... searched with typographic quotes and dashes": [
            case(old, new, with_typographic_signs) for old, new in changed if not is_about_signs(old, new)
        ],
        "... of a file with CRLF, answered with LF": [
            case(old, new)._replace(
                before={"a.txt": old.replace("\n", "\r\n")}, after={"a.txt": new.replace("\n", "\r\n")}
            )
            for old, new in changed
            if "\r" not in old + new
        ],
        "diffs with wrong line numbers and counts": [
            Case({"a.txt": old}, {"a.txt": new}, (diff := with_wrong_numbers(old, new)), diff) for old, new in changed
        ],
        "impossible: a line that the hunk names is gone": list(with_line_gone(changed)),
        "ambiguous: all is there twice, wrong line numbers": [
            Case({"a.txt": old + old}, None, (diff := with_wrong_numbers(old, new)), diff, pairs_of(old, new))
            for old, new in changed
            if is_inside(old, new)
        ],
    }


def changed_files(commits: list[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    """The texts before and after of each changed file, where both end with a line break and are not trivial."""
    for row in commits:
        for path, old in row["before"].items():
            new = row["after"].get(path)
            if new is None or new == old or not (old.endswith("\n") and new.endswith("\n")):
                continue
            if all(re.search(r"\S", "".join(hunk.side("-"))) for hunk in hunks(old, new, must_be_unique=True)):
                yield old, new


def as_it_is(signed: str, _: list[str]) -> str:
    return signed[1:]


def case(old: str, new: str, shape: Callable[[str, list[str]], str] = as_it_is) -> Case:
    """A search/replace answer of one file, its lines shaped as some models would write them."""
    blocks, pairs = [], []
    for hunk in hunks(old, new, context=1, must_be_unique=True):
        lines = [line for _, line in hunk.rows]
        shaped = [(sign, shape(f"{sign}{line}", lines)) for sign, line in hunk.rows]
        sides = [[line for mark, line in shaped if mark in {" ", sign}] for sign in "-+"]
        blocks.append(block_of("a.txt", *sides))
        pairs.append(("a.txt", *map("".join, sides)))
    return Case({"a.txt": old}, {"a.txt": new}, "", "\n".join(blocks), tuple(pairs))


def with_trailing_blanks(signed: str, _: list[str]) -> str:
    return signed[1:] if signed[0] == "+" else f"{signed[1:-1]}  \n"


def without_indentation(signed: str, lines: list[str]) -> str:
    depths = [len(line) - len(line.lstrip(" \t")) for line in lines if line.strip()]
    return signed[1 + min(depths, default=0) :] if signed[1:].strip() else signed[1:]


def with_typographic_signs(signed: str, _: list[str]) -> str:
    signs = str.maketrans({"'": "\u2019", '"': "\u201d", "-": "\u2013"})
    return signed[1:] if signed[0] == "+" else signed[1:].translate(signs)


def has_odd_blanks(text: str) -> bool:
    """Whether a line is made of blanks alone, or tabs and blanks are mixed."""
    return re.search(r"(?m)^[ \t]+$|^ +\t|^\t+ ", text) is not None


def is_about_signs(old: str, new: str) -> bool:
    """Whether lines that go and lines that come would be the same but for these signs."""
    rows = [row for hunk in hunks(old, new, context=0) for row in hunk.rows]
    sides = [{re.sub(r"\s+", "", line) for mark, line in rows if mark == sign} for sign in "-+"]
    return bool(sides[0] & sides[1])


def with_wrong_numbers(old: str, new: str) -> str:
    diff = diff_of("a.txt", old, new, must_be_unique=True)
    return re.sub(r"(?m)^@@ -(\d+),(\d+) \+(\d+),(\d+) @@", r"@@ -1\1,1\2 +1\3,2\4 @@", diff)


def pairs_of(old: str, new: str) -> tuple[tuple[str, str, str], ...]:
    return tuple(("a.txt", "".join(hunk.side("-")), "".join(hunk.side("+"))) for hunk in hunks(old, new))


def is_inside(old: str, new: str) -> bool:
    """Whether the file's last line takes no part: a hunk over the seam of a file's two copies would have one place."""
    return bool(hunks(old, new)) and len(old.splitlines()) > 30  # noqa: PLR2004  enough for hunks that end before the end


def with_line_gone(changed: list[tuple[str, str]]) -> Iterator[Case]:
    for old, new in changed:
        named = (line for hunk in hunks(old, new, must_be_unique=True) for line in hunk.side("-"))
        line = next((line for line in named if line.strip() and old.count(line) == 1), None)
        if line is not None:
            diff = diff_of("a.txt", old, new, must_be_unique=True)
            yield Case({"a.txt": old.replace(line, "", 1)}, None, diff, diff, case(old, new).pairs)


# --- time ------------------------------------------------------------------------------------------------------------


def times(folder: Path) -> None:
    """A thousand edits of 253 files, read from disk and written back, by ours and by ``git apply``."""
    chosen = a_thousand_edits()
    count = sum(len(hunks(*pair)) for pair in chosen.values())
    diff = "".join(diff_of(path, *pair) for path, pair in chosen.items())
    seconds: dict[str, list[float]] = {"ours": [], "git": []}
    for number in range(ROUNDS + 1):
        for name, apply in (("ours", by_ours), ("git", by_git)):
            lay_out(chosen, folder / name)
            start = time.perf_counter()
            apply(folder / name, diff)
            if number:  # the first round warms caches
                seconds[name].append(time.perf_counter() - start)
    ratio = median_ratio(seconds, "ours", "git")
    milliseconds = {name: statistics.median(values) * 1000 for name, values in seconds.items()}
    print(f"\n{count} edits of {len(chosen)} files: ours {milliseconds['ours']:.0f} ms,"
          f" git apply {milliseconds['git']:.0f} ms, ratio {ratio:.2f}")  # fmt: skip


def a_thousand_edits() -> dict[str, tuple[str, str]]:
    """The largest of the real files with edits spread evenly over each: every one changes one line."""
    texts = sorted({old for old, _ in changed_files(rows("commits.jsonl.gz"))}, key=lambda text: -text.count("\n"))
    chosen: dict[str, tuple[str, str]] = {}
    for number, old in enumerate(texts[:FILES]):
        lines = old.splitlines(keepends=True)
        count = EDITS * (number + 1) // FILES - EDITS * number // FILES
        for at in range(count):
            place = len(lines) * at // count
            lines[place] = f"{lines[place].rstrip()} changed\n"
        chosen[f"d{number % 10}/f{number}.txt"] = (old, "".join(lines))
    return chosen


def lay_out(files: dict[str, tuple[str, str]], tree: Path) -> None:
    for path, (old, _) in files.items():
        file = tree / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(old.encode())


def by_git(tree: Path, diff: str) -> None:
    subprocess.run(["git", "apply", "-"], cwd=tree, input=diff.encode(), check=True, capture_output=True)


def by_ours(tree: Path, diff: str) -> None:
    changes = parse_answer(diff).changes
    before = {change.file_path: (tree / change.file_path).read_bytes() for change in changes}
    for path, content in edited(before, changes).items():
        (tree / path).write_bytes(content)


if __name__ == "__main__":
    main()
