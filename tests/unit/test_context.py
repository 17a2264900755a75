"""What the model is shown: chosen from real trees of real repositories."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from necrocode.agent_runner._clock import Deadline
from necrocode.agent_runner._git import Author, FileChange, GitError, Repository
from necrocode.agent_runner.generation import tree_files, tree_search
from necrocode.agent_runner.generation.context_cache import ContextCache, context_key
from necrocode.agent_runner.generation.excerpts import lines_of
from necrocode.agent_runner.generation.pieces import Context, Piece, estimate_tokens
from necrocode.agent_runner.generation.shown_files import fenced, rendered
from necrocode.agent_runner.generation.tree_search import search
from necrocode.agent_runner.steps.context import choose_context
from tests.support.clocks import FakeClock
from tests.support.contexts import FILLER, ContextBench, Files, large, shown, task
from tests.support.repositories import commit_files, git


@pytest.fixture
def bench(tmp_path: Path) -> ContextBench:
    return ContextBench(tmp_path)


@pytest.fixture
def select(bench: ContextBench) -> Callable[..., Context]:
    return bench.select_from


Select = Callable[..., Context]


# --- small repositories


def test_a_small_repository_is_shown_whole_without_a_map(select: Select) -> None:
    context = select({"b.py": "b", "a.py": "a"}, description="anything")
    assert context.paths == ("a.py", "b.py")
    assert context.paths_left_out == 0
    assert {piece.kind for piece in context.pieces} == {"whole"}
    assert context.whole_paths == {"a.py", "b.py"}
    assert context.part_paths == frozenset()


def test_related_files_come_first_then_named_ones_then_the_nearest_by_their_words(select: Select) -> None:
    files = {
        "z/related.py": "x",
        "named.py": "y",
        "near.py": "def parse_invoice_total(): pass",
        "far.py": "def something_else(): pass",
    }
    context = select(files, description="Mend the invoice total; see named.py", related_files=["z/related.py"])
    assert shown(context) == ["z/related.py", "named.py", "near.py", "far.py"]
    reasons = [piece.why for piece in context.pieces]
    assert reasons == ["related_files", "named in the task", "shares words with the task", "the repository is small"]


def test_camel_case_and_snake_case_words_meet(select: Select) -> None:
    files = {"a.py": "class Unrelated: pass", "one.py": "class HTTPServerError: pass"}
    assert shown(select(files, description="http_server_error"))[0] == "one.py"


def test_japanese_words_meet(select: Select) -> None:
    files = {"a.py": "# 利用者を登録する", "one.py": "# 請求書の合計を計算する"}
    assert shown(select(files, description="請求書の合計が違う"))[0] == "one.py"


def test_binary_foreign_and_huge_files_are_listed_but_not_shown(
    select: Select, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tree_files, "MAX_SHOWN_FILE_BYTES", 100)
    files: Files = {"binary.dat": b"\0\1", "sjis.txt": "日本".encode("cp932"), "huge.txt": "x" * 101, "a.py": "a"}
    context = select(files, related_files=["binary.dat", "missing.py"])
    assert shown(context) == ["a.py"]
    assert len(context.paths) == len(files)
    assert context.missing == ("missing.py",)


def test_lock_files_and_vendored_code_are_listed_but_shown_only_when_named(select: Select) -> None:
    files: Files = {"package-lock.json": "{}", "vendor/lib.py": "x", "a.py": "a"}
    assert shown(select(files, description="x")) == ["a.py"]


def test_a_byte_order_mark_is_not_shown(select: Select) -> None:
    assert select({"a.py": "\ufeffx"}).pieces[0].text == "x"


def test_an_empty_repository_gives_an_empty_context(bench: ContextBench) -> None:
    repository = bench.has({"a": "a"})
    git(repository.path, "rm", "-q", "a")
    git(repository.path, "commit", "-qm", "none left")
    assert bench.select() == Context((), 0, ())


def test_a_path_that_is_part_of_another_word_is_not_named(select: Select) -> None:
    context = select({"a.py": "x"}, description="see beta.py and a.pyc")
    assert [piece.why for piece in context.pieces] == ["the repository is small"]


def test_symlinks_submodules_and_names_that_are_no_text_are_never_shown(bench: ContextBench) -> None:
    repository = bench.has({"a.py": "a"})
    (repository.path / "link.py").symlink_to("/etc/passwd")
    git(repository.path, "add", "link.py")
    git(repository.path, "update-index", "--add", "--cacheinfo", f"160000,{'1' * 40},module")
    (repository.path / "caf\udce9.py").write_bytes(b"x")
    git(repository.path, "add", "--", "caf\udce9.py")
    (repository.path / "new\nline.py").write_text("x")
    git(repository.path, "add", "--", "new\nline.py")
    git(repository.path, "commit", "-qm", "odd")
    context = bench.select(description="link.py module")
    assert context.paths == ("a.py",)
    assert shown(context) == ["a.py"]


@pytest.mark.parametrize("name", ['quo"te.py', "spa ce.py", "-dash.py", "日本.py", "a:b.py", ":(top)x.py"])
def test_files_with_odd_names_are_shown(bench: ContextBench, name: str) -> None:
    repository = bench.has({"a.py": "a"})
    commit = repository.run("rev-parse", "HEAD").decode().strip()
    (repository.path / name).write_text("def parse_invoice(): pass\n")
    git(repository.path, "--literal-pathspecs", "add", "--", name)
    git(repository.path, "commit", "-qm", "odd")
    assert commit
    assert name in shown(bench.select(description="parse_invoice"))


# --- larger ones


BILLING = f'''"""Billing."""

import math

{FILLER}
class Ledger(Base):
    """Holds entries."""

    limit = 3

    def unrelated(self):
        return 1

    def invoice_total(self, rows):
        """The total."""
        return sum(row.amount for row in rows)

{FILLER}'''


def test_of_large_files_the_telling_parts_are_shown_with_what_they_are_in(select: Select) -> None:
    context = select(
        large(**{"src/billing.py": BILLING}), 1500, description="`invoice_total` ignores the ledger's limit"
    )
    text = "\n".join(piece.text for piece in context.pieces if piece.path == "src/billing.py")
    assert "def invoice_total(self, rows):" in text
    assert "class Ledger(Base):" in text
    assert "import math" in text
    assert "src/billing.py" in context.part_paths
    assert context.tokens <= 1500


def test_excerpts_are_exactly_the_lines_that_they_say(select: Select) -> None:
    files = large(**{"src/billing.py": BILLING, "src/crlf.py": BILLING.replace("\n", "\r\n")})
    context = select(files, 3000, description="`invoice_total` is wrong in the ledger")
    excerpts = [piece for piece in context.pieces if piece.kind == "excerpt"]
    assert len({piece.path for piece in excerpts}) > 1
    for piece in excerpts:
        text = files[piece.path]
        assert isinstance(text, str)
        lines = lines_of(text)
        assert piece.text == "".join(lines[piece.start_line - 1 : piece.end_line])
        assert piece.line_count == len(lines)


@pytest.mark.parametrize("budget", [1, 60, 200, 700, 2000, 6000, 12_000])
def test_the_budget_holds_for_all_that_the_prompt_says_of_the_repository(select: Select, budget: int) -> None:
    files = large(**{"src/billing.py": BILLING, "docs/請求.md": "請求書の合計。" * 300, "a.py": "x\n"})
    context = select(
        files, budget, description="請求書 invoice_total ledger, see a.py", related_files=["src/other_1.py"]
    )
    assert context.tokens <= budget
    assert estimate_tokens(rendered(context)) <= max(budget, 20)


def test_the_same_input_gives_the_same_context(bench: ContextBench) -> None:
    bench.has(large(**{"src/billing.py": BILLING}))
    first, second = (bench.select(2000, description="invoice_total of the ledger") for _ in range(2))
    assert first == second


def test_the_map_names_what_is_not_shown(select: Select) -> None:
    context = select(large(**{"src/billing.py": BILLING}), 1500, description="invoice_total")
    assert [piece.kind for piece in context.pieces].count("map") == 1
    assert context.pieces[-1].kind == "map"
    names = [line for line in context.pieces[-1].text.split("\n") if line and not line.startswith(" ")]
    assert "src/other_3.py" in names
    assert context.paths_in_map == len(names)
    assert context.paths_left_out == 9 - len(set(names) | set(shown(context)))
    assert context.paths == ()


def test_the_map_goes_on_with_the_files_that_share_words(select: Select) -> None:
    files: Files = {f"a/b/c/invoice_{number}.py": "def invoice(): pass\n" * 40 for number in range(45)}
    files |= {f"{number}.txt": "x" for number in range(300)}
    drawn = select(files, 3000, description="the invoice").pieces[-1]
    names = [line for line in drawn.text.split("\n") if line and not line.startswith(" ")]
    others = [place for place, name in enumerate(names) if not name.startswith("a/b/c/")]
    assert names
    assert not others or others[0] > 30


def test_a_file_that_is_shown_whole_is_not_in_the_map(select: Select) -> None:
    context = select(large(**{"src/m.py": "def invoice_total(): pass\n"}), 1500, description="invoice_total")
    assert "src/m.py" in context.whole_paths
    assert "src/m.py" not in context.pieces[-1].text


def test_a_line_of_a_stack_trace_is_shown(select: Select) -> None:
    line = FILLER.split("\n").index("def filler_77(value):") + 2
    trace = f'Traceback:\n  File "/home/me/site-packages/src/other_5.py", line {line}, in go\nValueError: no'
    context = select(large(), 1500, description=trace)
    assert any(p.path == "src/other_5.py" and p.start_line <= line <= p.end_line for p in context.pieces)


def test_a_dotted_module_and_the_code_under_a_named_test_are_found(select: Select) -> None:
    files = large(
        **{
            "src/pkg/engine.py": FILLER,
            "tests/test_brakes.py": "def test_stop(): assert halts\n",
            "src/brakes.py": FILLER,
        }
    )
    reasons = {p.path: p.why for p in select(files, 3000, description="pkg.engine fails; test_stop fails").pieces}
    assert "pkg.engine is named in the task" in reasons["src/pkg/engine.py"]
    assert "tested by tests/test_brakes.py" in reasons["src/brakes.py"]


def test_what_the_nearest_file_imports_is_raised(select: Select) -> None:
    files = large(
        **{"src/shop.py": "from src.helper_x import go\n\ndef invoice_total(): go()\n", "src/helper_x.py": FILLER}
    )
    reasons = {p.path: p.why for p in select(files, 3000, description="invoice_total is wrong").pieces}
    assert "imported by src/shop.py" in reasons["src/helper_x.py"]


def test_tests_and_documents_stand_behind_the_code(select: Select) -> None:
    body = "def invoice_total(): pass\n"
    context = select(
        {"docs/a.md": body, "src/m.py": body, "tests/test_x.py": body, **large()}, 3000, description="invoice_total"
    )
    assert shown(context)[0] == "src/m.py"


# --- limits


class LateClock(FakeClock):
    """A second passes at each look."""

    def monotonic(self) -> float:
        self.seconds += 1
        return self.seconds


def test_when_the_time_is_over_what_is_known_is_used_and_it_is_said(bench: ContextBench) -> None:
    bench.has(large(**{"src/billing.py": BILLING}))
    context = bench.select(2000, description="invoice_total and filler", seconds=5, clock=LateClock())
    assert any("time for choosing" in note for note in context.notes)
    assert context.tokens <= 2000


def test_a_search_that_finds_too_much_is_cut_and_it_is_said(
    bench: ContextBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tree_search, "MAX_SEARCH_BYTES", 2000)
    bench.has(large())
    context = bench.select(2000, description="filler value")
    assert any("search" in note for note in context.notes)


def test_a_tree_of_very_many_files_is_chosen_from(bench: ContextBench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("necrocode.agent_runner.generation.candidates.MAX_FILES_RANKED_BY_NAME", 100)
    repository = bench.has({"src/invoice.py": "def invoice_total(): pass\n"})
    base = repository.run("rev-parse", "HEAD").decode().strip()
    many = [FileChange(f"d{number % 50}/f{number}.txt", content=b"x") for number in range(3000)]
    repository.write_commit(base, many, ref="refs/heads/many", message="m", author=Author("a", "a@b", 0))
    context = bench.select(3000, tree="refs/heads/many", description="invoice_total")
    assert shown(context)[0] == "src/invoice.py"
    assert context.tokens <= 3000
    assert context.paths_left_out > 2000


def test_words_are_found_where_git_has_no_perl_expressions(
    bench: ContextBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = bench.has({"a.py": "def readLine(): pass\n", "b.py": "x"})
    grep = tree_search._grep

    def without_pcre(repository: Repository, tree: str, pattern: tuple[str, str], *limits: Any) -> tuple[bytes, bool]:
        if pattern[0] == "-P":
            raise GitError("no", output="fatal: cannot use Perl-compatible regexes when not compiled with USE_LIBPCRE")
        return grep(repository, tree, pattern, *limits)

    monkeypatch.setattr(tree_search, "_grep", without_pcre)
    found = search(repository, "HEAD", ["line", "lines", "日本"], seconds=30)
    assert found.hits("a.py") == [(1, b"line")]


# --- what was chosen before


def choose(repository: Repository, cache: ContextCache | None, description: str = "x") -> Context:
    with repository.objects() as objects:
        return choose_context(
            task(description), repository, objects, "HEAD", budget_tokens=1000, deadline=Deadline(60), cache=cache
        )


def test_a_choice_is_kept_on_disk_and_in_memory(bench: ContextBench, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = bench.has({"a.py": "x = 1\n"})
    folder = bench.folder / "cache"
    cache = ContextCache(folder)
    first = choose(repository, cache)

    def none(*_: object, **__: object) -> Context:
        raise AssertionError("chosen again")

    monkeypatch.setattr("necrocode.agent_runner.steps.context.select_context", none)
    assert choose(repository, cache) == first
    assert choose(repository, ContextCache(folder)) == first
    assert [file.stat().st_mode & 0o777 for file in folder.iterdir()] == [0o600]


@pytest.mark.parametrize("damage", [b"", b"{}", b"\xff\xfe", b"0" * 64 + b"\n{}", None])
def test_a_damaged_file_is_as_if_it_were_not_there(bench: ContextBench, damage: bytes | None) -> None:
    repository = bench.has({"a.py": "x = 1\n"})
    folder = bench.folder / "cache"
    first = choose(repository, ContextCache(folder))
    (file,) = folder.iterdir()
    content = file.read_bytes()
    file.write_bytes(content.replace(b"x = 1", b"x = 2") if damage is None else damage)
    assert choose(repository, ContextCache(folder)) == first
    assert file.read_bytes() == content


def test_another_tree_task_or_budget_is_another_choice(bench: ContextBench) -> None:
    repository = bench.has({"a.py": "x = 1\n"})
    cache = ContextCache(bench.folder / "cache")
    first = choose(repository, cache)
    commit_files(repository.path, {"a.py": "x = 2\n"})
    assert choose(repository, cache) != first
    keys = {context_key(task("a"), "t", 1), context_key(task("b"), "t", 1), context_key(task("a"), "t", 2)}
    assert len(keys) == 3


def test_a_folder_that_cannot_be_written_hinders_nothing(bench: ContextBench) -> None:
    repository = bench.has({"a.py": "x = 1\n"})
    (bench.folder / "file").write_text("")
    assert shown(choose(repository, ContextCache(bench.folder / "file" / "cache"))) == ["a.py"]


def test_a_choice_made_in_haste_is_not_kept(tmp_path: Path) -> None:
    cache = ContextCache(tmp_path / "cache")
    cache.put("k", Context((), 0, (), notes=("late",)))
    assert cache.get("k") is None


def test_old_choices_are_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("necrocode.agent_runner.generation.context_cache._MOST_ON_DISK", 3)
    cache = ContextCache(tmp_path)
    for number in range(6):
        cache.put(str(number), Context((str(number),), 0, ()))
    assert len(list(tmp_path.iterdir())) == 3


# --- how it is told


@pytest.mark.parametrize(("text", "tokens"), [("", 0), ("abcd", 1), ("abcde", 2), ("日本", 2), ("abcd日本", 3)])
def test_tokens_are_estimated_by_script(text: str, tokens: int) -> None:
    assert estimate_tokens(text) == tokens


def test_parts_are_told_with_their_lines_and_the_file_is_said_to_be_larger() -> None:
    pieces = (
        Piece("a.py", "one\n", "w", "excerpt", 1, 1, 50),
        Piece("a.py", "seven\neight\n", "w", "excerpt", 7, 8, 50),
        Piece("", "b.py\n", "w", "map"),
    )
    text = rendered(Context((), 3, pieces))
    assert "Parts of a.py, which has 50 lines; the others are not shown:" in text
    assert "Line 1 of a.py\n```\none\n```" in text
    assert "Lines 7-8 of a.py\n```\nseven\neight\n```" in text
    assert "b.py" in text
    assert "... and 3 more files" in text
    assert "File: a.py" not in text


def test_a_fence_is_longer_than_any_in_the_text() -> None:
    assert fenced("a\n````\nb\n") == "`````\na\n````\nb\n`````"
    assert fenced("") == "```\n```"
    assert fenced("no newline") == "```\nno newline\n```"
