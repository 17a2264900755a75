"""How often the place of the real fix is among what the model would be shown, beside plain BM25 on whole files.

    python benchmarks/context_recall.py --mirrors DIR [--items FILE] [--budget 8000 16000 32000]

"bm25" ranks all text files, "bm25 code" only source files that are no tests. The items are real issues with the files
and lines that their fix touched. Nothing of an item but its issue's text is given to the selection. The two halves
(items at even and odd places) tell whether a gain holds beyond single items.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import re
import tempfile
from collections import Counter
from math import log
from pathlib import Path
from typing import TYPE_CHECKING, Any

from necrocode.agent_runner import TaskContext
from necrocode.agent_runner._git import Git, Repository
from necrocode.agent_runner.generation.context import select_context
from necrocode.agent_runner.generation.pieces import estimate_tokens

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

SHARED = Path(os.environ.get("NECROCODE_SHARED") or Path(__file__).resolve().parents[2] / "shared")
ITEMS = SHARED / "data" / "localization" / "swebench_lite_dev.jsonl.gz"
Shown = dict[str, set[int]]
_ANY = re.compile("")
_CODE = re.compile(r"^(?!.*(?:^|/)(?:tests?|testing|docs?|examples?)/)(?!.*(?:^|/)test_[^/]*$).*\.py$")
_WORD = re.compile(r"[A-Za-z][a-z]*|[0-9]+")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--mirrors", type=Path, required=True, help="a folder of repositories, owner+name or owner/name"
    )
    parser.add_argument("--items", type=Path, default=ITEMS)
    parser.add_argument("--budget", type=int, nargs="+", default=[8000, 16_000, 32_000], help="tokens")
    parser.add_argument("--verbose", action="store_true", help="a line for each item")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        git = Git(Path(home))
        git.prepare()
        rows = list(_measured(arguments, git))
    for name, part in (("all", rows), ("even places", rows[::2]), ("odd places", rows[1::2])):
        print(f"\n{len(part)} items, {name}: gold file shown / all gold lines shown")
        for budget in arguments.budget:
            told = (f"{way} {_sum(part, way, budget)}" for way in ("bm25", "bm25 code", "selected"))
            print(f"  {budget:>6} tokens   {'   '.join(told)}")


def _measured(arguments: argparse.Namespace, git: Git) -> Iterator[dict[tuple[str, int], tuple[bool, bool]]]:
    with gzip.open(arguments.items, "rt") as lines:
        items = [json.loads(line) for line in lines]
    for item in items:
        repository = _mirror(arguments.mirrors, item["repo"], git)
        row: dict[tuple[str, int], tuple[bool, bool]] = {}
        baseline = list(_ranked_whole_files(repository, item, _ANY))
        code = list(_ranked_whole_files(repository, item, _CODE))
        for budget in arguments.budget:
            row["bm25", budget] = _hits(_filled(baseline, budget), item)
            row["bm25 code", budget] = _hits(_filled(code, budget), item)
            row["selected", budget] = _hits(_selected(repository, item, budget), item)
        if arguments.verbose:
            print(
                item["id"],
                *(f"{way}@{budget}:{'+' if a else '-'}{'+' if b else '-'}" for (way, budget), (a, b) in row.items()),
            )
        yield row


def _mirror(folder: Path, name: str, git: Git) -> Repository:
    plain = name.replace("/", "+")
    for place in (folder / plain / "repo", folder / plain, folder / f"{plain}.git", folder / name):
        if (place / "HEAD").is_file():
            return Repository(git, place, bare=True)
        if (place / ".git").exists():
            return Repository(git, place)
    raise SystemExit(f"no repository for {name} in {folder}")


def _selected(repository: Repository, item: dict[str, Any], budget: int) -> Shown:
    title, _, text = item["issue"].strip().partition("\n")
    task = TaskContext(task_id="1", spec_name="recall", title=title[:500], description=text, repo_url="/none")
    with repository.objects() as objects:
        context = select_context(task, repository, objects, item["base_commit"], budget_tokens=budget)
    assert context.tokens <= budget, (item["id"], context.tokens, budget)  # noqa: S101  the promise
    shown: Shown = {}
    for piece in context.pieces:
        if piece.path:
            shown.setdefault(piece.path, set()).update(range(piece.start_line, piece.end_line + 1))
    return shown


def _ranked_whole_files(
    repository: Repository, item: dict[str, Any], kind: re.Pattern[str]
) -> Iterator[tuple[str, str]]:
    """The text files of the tree of a kind, by BM25 over their words, best first."""
    texts: dict[str, str] = {}
    with repository.objects() as objects:
        for path, (entry, size) in repository.files(item["base_commit"]).items():
            content = objects.blob(entry.oid) if entry.is_file and size <= 1_000_000 and kind.search(path) else b"\0"  # noqa: PLR2004
            if b"\0" not in content:
                texts[path] = content.decode(errors="replace")
    documents = {path: Counter(_words(f"{path} {text}")) for path, text in texts.items()}
    average = sum(map(Counter.total, documents.values())) / len(documents)
    wanted = set(_words(item["issue"]))
    holders = Counter(word for counts in documents.values() for word in wanted.intersection(counts))

    def score(path: str) -> float:
        counts = documents[path]
        norm = 1.2 * (0.25 + 0.75 * counts.total() / average)
        return sum(
            log(1 + (len(documents) - holders[word] + 0.5) / (holders[word] + 0.5))
            * counts[word]
            * 2.2
            / (counts[word] + norm)
            for word in wanted.intersection(counts)
        )

    for path in sorted(documents, key=lambda path: (-score(path), path)):
        yield path, texts[path]


def _filled(ranked: Iterable[tuple[str, str]], budget: int) -> Shown:
    shown: Shown = {}
    for path, text in ranked:
        cost = estimate_tokens(text)
        if cost > budget:
            continue
        budget -= cost
        shown[path] = set(range(1, text.count("\n") + 2))
    return shown


def _hits(shown: Shown, item: dict[str, Any]) -> tuple[bool, bool]:
    lines = all(
        set(range(hunk["start_line"], hunk["end_line"] + 1)) <= shown.get(hunk["file"], set())
        for hunk in item["gold_hunks"]
    )
    return any(path in shown for path in item["gold_files"]), lines


def _words(text: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(text)]


def _sum(rows: list[dict[tuple[str, int], tuple[bool, bool]]], way: str, budget: int) -> str:
    files, lines = zip(*(row[way, budget] for row in rows), strict=True)
    return f"{sum(files)}/{sum(lines)}"


if __name__ == "__main__":
    main()
