"""The test step over real repositories, real git and real tests: unittest, for it starts fast, and pytest."""

from __future__ import annotations

import base64
import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from necrocode.agent_runner import (
    ImplementationResult,
    RunnerConfig,
    TamperedTestsError,
    TaskContext,
    TestExecutionError,
    TestResult,
)
from necrocode.agent_runner._clock import Deadline
from necrocode.agent_runner._git import Author, FileChange, Git, Repository
from necrocode.agent_runner._process import HeadAndTail
from necrocode.agent_runner._redact import Redactor
from necrocode.agent_runner.sandbox.plain import PlainSandbox
from necrocode.agent_runner.steps.run_tests import (
    TestPlan,
    failure_text,
    plan_tests,
    refuse_tampering,
    run_tests,
    test_warnings,
)
from necrocode.agent_runner.verdict.feedback import failure_feedback
from necrocode.agent_runner.verdict.test_run import masked_output
from necrocode.agent_runner.workspace import Workspace
from tests.support.repositories import BROKEN_CALC, FIXED_CALC, git, make_repository

KEY = "s3cr3t-0123456789"
COMMAND = "python3 -m unittest"
TESTS = """\
import unittest
from calc import add


class CalcTest(unittest.TestCase):
    def test_add(self):
        self.assertEqual(add(1, 2), 3)

    def test_zero(self):
        self.assertEqual(add(1, 0), 1)
"""
WEAK_TESTS = TESTS.replace("add(1, 2), 3", "1, 1")
FILES: dict[str, str | bytes] = {"calc.py": BROKEN_CALC, "test_calc.py": TESTS}
FAILING, PASSING = "test_calc.CalcTest.test_add", "test_calc.CalcTest.test_zero"


class Bench:
    """A workspace at its base, and changes to it."""

    def __init__(self, workspace: Workspace, state_dir: Path) -> None:
        self.workspace = workspace
        self.state_dir = state_dir
        self.notes: list[str] = []
        self.troubles: list[str] = []
        self.seconds = 60.0
        self.redactor = Redactor((KEY,))
        self._rounds = 0

    def task(self, *commands: str, **options: Any) -> TaskContext:
        place = {"repo_url": str(self.workspace.path), "test_commands": commands}
        return TaskContext(task_id="1", spec_name="s", title="t", description="d", **(place | options))

    def sandbox(self) -> PlainSandbox:
        return PlainSandbox(self.state_dir / "layers")

    def plan(self, *commands: str, **settings: Any) -> TestPlan:
        return plan_tests(
            self.task(*commands),
            self.workspace,
            self.sandbox(),
            config=RunnerConfig(state_dir=self.state_dir, **settings),
            redactor=self.redactor,
            deadline=Deadline(self.seconds),
            on_note=self.notes.append,
            on_trouble=self.troubles.append,
        )

    def change(self, **files: str | None) -> ImplementationResult:
        """A commit with these files; ``tests__x__py`` is ``tests/x.py``. None removes one."""
        changes = []
        for name, text in files.items():
            path = re.sub("__([a-z]+)$", r".\1", name).replace("__", "/")
            changes.append(FileChange(path, content=None if text is None else text.encode()))
        self._rounds += 1
        ref = f"refs/necrocode/runs/r/{self._rounds}"
        base, objects = self.workspace.base_commit, self.workspace.objects
        commit = self.workspace.repository.write_commit(
            base, changes, ref=ref, message="m", author=Author("a", "a@b", 0)
        )
        paths = tuple(sorted(change.path for change in changes))
        return ImplementationResult(base_commit=base, commit=commit, ref=ref, tree=objects.tree_of(commit), files=paths)

    def run(self, change: ImplementationResult, plan: TestPlan, **options: Any) -> TestResult:
        return run_tests(
            self.task(*plan.commands, **options),
            self.workspace,
            change,
            self.sandbox(),
            environment={},
            redactor=self.redactor,
            deadline=Deadline(self.seconds),
            plan=plan,
        )


@contextmanager
def opened(path: Path, tmp_path: Path, **options: Any) -> Iterator[Bench]:
    home = Git(tmp_path / "git-home")
    home.prepare()
    repository = Repository(home, path)
    with repository.objects() as objects:
        workspace = Workspace(repository, objects, "slot", git(path, "rev-parse", "HEAD"), None, **options)
        yield Bench(workspace, tmp_path / "state")


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    git(make_repository(tmp_path / "repo", FILES), "checkout", "--quiet", "--detach")
    with opened(tmp_path / "repo", tmp_path) as bench:
        yield bench


def base_trees(bench: Bench) -> str:
    return bench.workspace.objects.tree_of(bench.workspace.base_commit)


# --- the verdict


def test_a_fix_is_told_by_its_cases_and_bound_to_both_trees(bench: Bench) -> None:
    change = bench.change(calc__py=FIXED_CALC)
    result = bench.run(change, bench.plan(COMMAND))
    verdict = result.verdict
    assert result.success
    assert verdict is not None
    assert (verdict.basis, verdict.fixed.names, verdict.passed) == ("cases", (FAILING,), 2)
    assert (verdict.base_tree, verdict.tree) == (base_trees(bench), change.tree)
    assert verdict.base_tree != verdict.tree == result.tree
    assert [command.command for command in result.commands] == [COMMAND]
    assert test_warnings(result) == ()


def test_what_breaks_anew_is_run_twice_and_told(bench: Bench) -> None:
    result = bench.run(bench.change(calc__py="def add(a, b):\n    return a + b if b else 7\n"), bench.plan(COMMAND))
    assert result.verdict is not None
    assert not result.success
    assert (result.verdict.newly_broken.names, result.verdict.fixed.names) == ((PASSING,), (FAILING,))
    rerun = result.commands[0].rerun
    assert rerun is not None
    assert [case.name for case in rerun.failing] == [PASSING]
    assert failure_text(result).startswith(f"The tests failed: `{COMMAND}` exited with 1")


def test_what_failed_before_is_not_run_again(bench: Bench) -> None:
    plan = bench.plan(COMMAND)
    result = bench.run(bench.change(notes__md="x"), plan)
    assert not result.success
    assert result.commands[0].rerun is None
    assert result.verdict is not None
    assert result.verdict.pre_existing.names == (FAILING,)
    accepted = bench.run(bench.change(notes__md="x"), replace(plan, pass_rule="no-new-failures"))
    assert accepted.success
    assert accepted.pass_rule == "no-new-failures"
    assert test_warnings(accepted) == (f"Failing as before the change: {FAILING}.",)


FLAKY = """\
import pathlib, unittest

MARK = pathlib.Path({mark!r})


class FlakyTest(unittest.TestCase):
    def test_sometimes(self):
        MARK.write_text(MARK.read_text() + "x")
        self.assertNotEqual(len(MARK.read_text()), {failing})
"""


def test_a_flaky_case_counts_as_passed_and_is_told(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    mark.write_text("")
    files: dict[str, str | bytes] = {"a.py": "", "test_f.py": FLAKY.format(mark=str(mark), failing=2)}
    with opened(make_repository(tmp_path / "repo", files), tmp_path) as bench:
        plan = bench.plan(COMMAND, "echo after")
        result = bench.run(bench.change(a__py="x = 1\n"), plan)
    assert mark.read_text() == "xxx"
    assert result.success
    assert [command.exit_code for command in result.commands] == [1, 0]
    assert result.commands[0].rerun is not None
    assert result.commands[0].rerun.exit_code == 0
    assert result.verdict is not None
    assert result.verdict.flaky.names == ("test_f.FlakyTest.test_sometimes",)
    assert test_warnings(result) == ("Flaky on the same files: test_f.FlakyTest.test_sometimes.",)


def test_a_case_that_is_gone_is_told(bench: Bench) -> None:
    without = TESTS.replace("test_zero", "zero")
    result = bench.run(bench.change(calc__py=FIXED_CALC, test_calc__py=without), bench.plan(COMMAND))
    assert result.success
    assert result.verdict is not None
    assert result.verdict.missing.names == (PASSING,)
    assert f"Ran before the change and not after it: {PASSING}." in test_warnings(result)


def test_pytest_is_heard_through_a_script(tmp_path: Path) -> None:
    files = FILES | {"check.sh": f"exec {sys.executable} -m pytest -q -p no:cacheprovider\n"}
    with opened(make_repository(tmp_path / "repo", files), tmp_path) as bench:
        result = bench.run(bench.change(calc__py=FIXED_CALC), bench.plan("sh check.sh"))
    assert result.verdict is not None
    assert (result.commands[0].report, result.verdict.basis) == ("junit", "cases")
    assert result.verdict.fixed.names == ("test_calc.CalcTest::test_add",)
    assert "generated xml" not in result.commands[0].output
    assert "reports-" not in result.commands[0].output


def test_asking_for_a_report_changes_nothing_about_the_tests(tmp_path: Path) -> None:
    tests = "def test_a(record_property):\n    record_property('a', 1)\n"
    with opened(make_repository(tmp_path / "repo", {"test_a.py": tests}), tmp_path) as bench:
        plan = bench.plan(f"{sys.executable} -m pytest -q -W error -p no:cacheprovider")
    assert plan.base is not None
    assert plan.base.success, plan.base.commands[0].output
    assert len(plan.base.commands[0].cases) == 1


def test_without_a_plan_the_exit_codes_of_the_tasks_commands_decide(bench: Bench) -> None:
    result = run_tests(
        bench.task(COMMAND), bench.workspace, bench.change(calc__py=FIXED_CALC), bench.sandbox(),
        environment={}, redactor=bench.redactor, deadline=Deadline(60),
    )  # fmt: skip
    assert (result.success, result.verdict, len(result.commands[0].cases)) == (True, None, 2)


def test_secrets_are_masked_in_every_text(bench: Bench) -> None:
    tests = TESTS.replace("add(1, 2), 3", "'s3cr3t-0123456789', 3")
    result = bench.run(bench.change(test_calc__py=tests, calc__py=FIXED_CALC), bench.plan(COMMAND))
    assert not result.success
    assert "s3cr3t" not in result.model_dump_json()
    assert "***" in result.commands[0].cases[0].message


@pytest.mark.parametrize("before", ["", "z" * 972, "z" * 983])
@pytest.mark.parametrize("after", ["", "z" * 3940])
def test_no_part_of_a_secret_is_left_where_texts_are_cut(bench: Bench, before: str, after: str) -> None:
    body = (
        f"<testsuite><testcase name='{before[-280:]}{KEY}'><failure message='{before}{KEY}{after}'>{before}{KEY}{after}"
    )
    report = f"{body}</failure></testcase></testsuite>"
    command = f"""cat >"$NECROCODE_REPORTS/a.xml" <<'END'\n{report}\nEND\nexit 1"""
    result = bench.run(bench.change(a__py=""), TestPlan((command,)))
    (case,) = result.commands[0].cases
    assert case.message
    for text in (case.name, case.message, case.details):
        assert KEY[:6] not in text
        assert KEY[-6:] not in text


PHRASE = "correct horse\nbattery staple and 'more'"
KEY_BLOCK = "\n".join(
    ["-----BEGIN RSA PRIVATE KEY-----", *(f"{number:064}" for number in range(20)), "-----END RSA PRIVATE KEY-----"]
)


@pytest.mark.parametrize(
    ("leaked", "pieces"),
    [
        (KEY, [KEY]),
        (json.dumps(PHRASE), ["correct", "horse", "battery", "staple", "more"]),
        (PHRASE, ["correct", "horse", "battery", "staple", "more"]),
        (base64.b64encode(f"x{PHRASE}".encode()).decode(), [base64.b64encode(f"x{PHRASE}".encode()).decode()[4:-4]]),
        (PHRASE.encode().hex(), [PHRASE.encode().hex()]),
        (KEY_BLOCK, ["0000000"]),
        (f"https://me:{KEY}@host/", [KEY]),
    ],
    ids=["word", "json", "phrase", "base64", "hex", "private key", "url"],
)
@pytest.mark.parametrize("is_first_half", [True, False])
def test_no_part_of_a_secret_is_left_where_output_is_cut(leaked: str, pieces: list[str], is_first_half: bool) -> None:
    """Wherever the cut goes through it, and however the output came."""
    redactor, half = Redactor((KEY, PHRASE)), 3000
    for shift in range(0, len(leaked) + 2, max(1, len(leaked) // 40)):
        filling = "a " * ((half - shift) // 2) + "\n" * ((half - shift) % 2)
        text = f"{filling}{leaked} {'c ' * 5000}" if is_first_half else f"{'c ' * 5000} {leaked}{filling}"
        kept = HeadAndTail(2 * half)
        for start in range(0, len(text), 7):
            kept.write(text[start : start + 7].encode())
        output = masked_output(kept.content().decode(), redactor)
        assert "bytes left out" in output
        for piece in pieces:
            assert not any(piece[start : start + 5] in output for start in range(len(piece) - 4)), (shift, piece)
        assert len(output) > half


def test_a_flood_of_secrets_leaves_none() -> None:
    kept = HeadAndTail(1000)
    kept.write(f"{KEY} ".encode() * 100)
    output = masked_output(kept.content().decode(), Redactor((KEY,)))
    assert not any(KEY[start : start + 4] in output for start in range(len(KEY) - 3))


def test_what_only_looks_like_the_end_of_a_private_key_hides_little() -> None:
    kept, end = HeadAndTail(200_000), "-----END RSA PRIVATE KEY-----"
    kept.write(f"{'a ' * 200_000}{end} {'b ' * 10_000}".encode())
    assert masked_output(kept.content().decode(), Redactor()).count("a ") > 80_000


def test_a_secret_with_colours_in_it_is_masked() -> None:
    redactor = Redactor((KEY,))
    assert masked_output(f"a {KEY[:5]}\x1b[31m{KEY[5:]}\x1b[0m b", redactor) == "a *** b"
    assert masked_output("\x1b[31mred\x1b[0m", redactor) == "\x1b[31mred\x1b[0m"


def test_a_forged_report_does_not_outweigh_the_exit_code(tmp_path: Path) -> None:
    forge = (
        "import os, pathlib\n"
        "pathlib.Path(os.environ['NECROCODE_REPORTS'], 'pytest.xml').write_text("
        "'<testsuite><testcase name=\"all\"/></testsuite>')\nos._exit(1)\n"
    )
    with opened(make_repository(tmp_path / "repo", {"a.py": "", "t.py": forge}), tmp_path) as bench:
        for rule in ("exit-code", "no-new-failures"):
            result = bench.run(bench.change(a__py="x\n"), bench.plan("python3 t.py", pass_rule=rule))
            assert not result.success
            assert result.commands[0].report_note == "exited with 1, though its report names no failing case"


# --- the base


def test_the_base_is_tested_once_for_the_same_tree_and_commands(bench: Bench) -> None:
    first = bench.plan(COMMAND)
    assert bench.notes == []
    again = bench.plan(COMMAND)
    assert again.base == first.base
    assert again.base is not None
    assert bench.notes == [f"the tests on the base are known from an earlier run ({base_trees(bench)[:12]})"]
    other = bench.plan(COMMAND, test_environment={"A": "1"})
    assert len(bench.notes) == 1
    assert other.base is not None


@pytest.mark.parametrize("command", ["nosuchtool --all", "true && nosuchtool", "/opt/nosuch/tool", "env nosuchtool"])
def test_a_program_that_is_not_there_ends_it_before_the_model_is_asked(bench: Bench, command: str) -> None:
    with pytest.raises(TestExecutionError, match=r"`.*` cannot be run: there is no program .*nosuch"):
        bench.plan("true", command)


def test_without_a_base_a_program_that_is_not_there_is_found_with_the_change(bench: Bench) -> None:
    with pytest.raises(TestExecutionError, match="nosuchtool"):
        bench.run(bench.change(a__py=""), TestPlan(("nosuchtool",)))


@pytest.mark.parametrize(
    "command",
    ["./check.sh", "bash new.sh", "exit 127", "PATH=bin:$PATH newtool", "sh -c 'exit 126'"],
)
def test_a_program_that_the_change_may_bring_is_waited_for(bench: Bench, command: str) -> None:
    assert bench.plan(command).commands == (command,)


def test_every_command_is_run_on_the_base(bench: Bench) -> None:
    base = bench.plan("false", "true").base
    assert base is not None
    assert [command.exit_code for command in base.commands] == [1, 0]


def test_a_base_that_takes_too_long_is_not_known(bench: Bench) -> None:
    bench.seconds = 1.5
    plan = bench.plan("sleep 60")
    assert plan == TestPlan(("sleep 60",))
    assert "did not end in" in bench.notes[0]
    assert bench.plan("sleep 60").base is None
    assert "the last time" in bench.notes[1], "what is known not to end in that time is not tried again"


def test_the_base_is_left_alone_where_the_settings_say_so(bench: Bench) -> None:
    plan = bench.plan(COMMAND, test_base=False)
    assert plan == TestPlan((COMMAND,))
    assert not (bench.state_dir / "base-tests").exists()


# --- detection


def test_tests_that_work_on_the_base_are_found_and_ask_for_nothing_new(bench: Bench) -> None:
    plan = bench.plan()
    assert plan.commands == ("python -m unittest",)
    assert (plan.pass_rule, plan.detected) == ("no-new-failures", "test_calc.py is written for unittest")
    result = bench.run(bench.change(notes__md="x"), plan)
    assert result.success
    assert result.detected == plan.detected
    assert "test_calc.py" in result.detected
    broken = bench.run(bench.change(calc__py="def add(a, b):\n    return 5\n"), plan)
    assert not broken.success


@pytest.mark.parametrize(
    "files",
    [
        {"go.mod": "module m\n", "a_test.go": "package m\n"},
        {"package.json": '{"scripts": {"test": "no-such-runner"}}'},
        {"Makefile": "test:\n\texit 3\n"},
    ],
)
def test_what_does_not_work_on_the_base_is_not_used(tmp_path: Path, files: dict[str, str | bytes]) -> None:
    with opened(make_repository(tmp_path / "repo", files), tmp_path) as bench:
        plan = bench.plan()
        assert plan == TestPlan(())
    assert re.match(r"Nothing is tested: `.*` was found \(.*\), but does not work on the base\.", bench.troubles[0])


def test_a_project_without_tests_is_told_to_be_untested(tmp_path: Path) -> None:
    with opened(make_repository(tmp_path / "repo", {"a.txt": ""}), tmp_path) as bench:
        assert bench.plan() == TestPlan(())
    assert bench.troubles == ["Nothing is tested: the task names no test commands, and no project file tells of any."]


@pytest.mark.parametrize("settings", [{"detect_tests": False}, {"test_base": False}])
def test_nothing_is_looked_for_where_the_settings_say_so(bench: Bench, settings: dict[str, bool]) -> None:
    assert bench.plan(**settings) == TestPlan(())
    (off,) = settings
    assert bench.troubles == [f"Nothing is tested: the task names no test commands, and {off} is off."]


# --- tests that could not be run


SOUND: dict[str, str | bytes] = {
    "conftest.py": "",
    "calc.py": FIXED_CALC,
    "test_calc.py": "import calc\ndef test_add(): assert calc.add(1, 2) == 3\n",
}
LACKING: dict[str, str | bytes] = {"test_lacking.py": "import nosuchmodule\ndef test_it(): pass\n"}


def test_one_module_that_cannot_be_imported_does_not_hide_what_breaks(tmp_path: Path) -> None:
    with opened(make_repository(tmp_path / "repo", SOUND | LACKING), tmp_path) as bench:
        result = bench.run(bench.change(calc__py=BROKEN_CALC), bench.plan())
    assert not result.success
    assert result.verdict is not None
    assert result.verdict.newly_broken.names == ("test_calc::test_add",)
    assert result.verdict.pre_existing.names == ("test_lacking",)


def test_commands_that_nobody_asked_for_and_that_come_to_no_test_say_nothing(tmp_path: Path) -> None:
    files: dict[str, str | bytes] = {"a.py": "", "test_a.py": "import unittest, nosuchmodule\n"}
    with opened(make_repository(tmp_path / "repo", files), tmp_path) as bench:
        plan = bench.plan()
        result = bench.run(bench.change(a__py="x = 1\n"), plan)
    assert plan.commands == ("python -m unittest",)
    assert (plan.counts(result), result.success) == (False, False), "named, they would not be accepted"


def test_tests_that_only_the_change_makes_importable_count(tmp_path: Path) -> None:
    files: dict[str, str | bytes] = {"calc.py": "", "test_calc.py": TESTS}
    with opened(make_repository(tmp_path / "repo", files), tmp_path) as bench:
        plan = bench.plan()
        good = bench.run(bench.change(calc__py=FIXED_CALC), plan)
        bad = bench.run(bench.change(calc__py=BROKEN_CALC), plan)
    assert (good.success, bad.success, plan.counts(bad)) == (True, False, True)
    assert good.verdict is not None
    assert good.verdict.fixed.names == ("unittest.loader._FailedTest.test_calc",)
    assert test_warnings(good) == (), "it is not missing"


def test_a_command_that_passes_without_a_test_is_told(tmp_path: Path) -> None:
    tests = "import unittest\n@unittest.skip('')\nclass T(unittest.TestCase):\n    def test_a(self): pass\n"
    with opened(make_repository(tmp_path / "repo", {"test_a.py": tests}), tmp_path) as bench:
        result = bench.run(bench.change(a__py=""), bench.plan(COMMAND))
    assert result.success
    assert test_warnings(result) == (f"`{COMMAND}` exited with 0 and ran no test.",)


# --- tests that are not come to


PYTEST = f"{sys.executable} -m pytest -q -p no:cacheprovider"
ENDED = "import os\nos._exit(0)\n"


@pytest.mark.parametrize(
    ("command", "files"),
    [
        (COMMAND, {"calc__py": ENDED}),
        (COMMAND, {"unittest__py": "raise SystemExit(0)\n"}),
        (PYTEST, {"test_aaa__py": ENDED}),
    ],
)
def test_a_change_that_ends_the_tests_with_0_fails(bench: Bench, command: str, files: dict[str, str]) -> None:
    plan = bench.plan(command)
    result = bench.run(bench.change(**files), plan)
    assert not result.success
    assert result.verdict is not None
    assert result.verdict.missing.count == 2
    assert "without a word on any test" in test_warnings(result)[0]
    assert failure_text(result).startswith(f"The tests failed: `{command}` exited with 0 and came to no test")
    feedback = failure_feedback(result, plan.base)
    assert "exited with 0 without a word on any test" in feedback
    assert "Ran before the change and not now: " in feedback


# --- tampering


def test_the_bases_tests_are_run_on_a_change_that_touches_them(bench: Bench) -> None:
    change = bench.change(test_calc__py=WEAK_TESTS)
    result = bench.run(change, bench.plan(COMMAND))
    assert result.success
    assert result.tamper is not None
    assert result.tamper.paths == ("test_calc.py",)
    under_base = result.base_version
    assert under_base is not None
    assert not under_base.success
    assert under_base.tree == base_trees(bench), "nothing but the test was changed"
    assert git(bench.workspace.path, "rev-parse", "HEAD") == change.commit, "the slot holds the change again"
    assert (bench.workspace.path / "test_calc.py").read_text() == WEAK_TESTS
    told = "The change touches what it is judged by: test_calc.py. With these as they were, the tests FAIL."
    assert test_warnings(result)[-1] == told
    with pytest.raises(TamperedTestsError, match=r"touches test_calc\.py, and fails the tests as they were"):
        refuse_tampering(result)


@pytest.mark.parametrize("removed", [False, True])
def test_a_change_that_passes_the_bases_tests_too_is_only_told(bench: Bench, removed: bool) -> None:
    tests = None if removed else f"{TESTS}\n    def test_more(self):\n        self.assertEqual(add(2, 2), 4)\n"
    other = {"test_other__py": TESTS} if removed else {}
    result = bench.run(bench.change(calc__py=FIXED_CALC, test_calc__py=tests, **other), bench.plan(COMMAND))
    assert result.base_version is not None
    assert result.base_version.success
    assert test_warnings(result)[-1].endswith("by: test_calc.py. With these as they were, the tests pass too.")
    refuse_tampering(result)


@pytest.mark.parametrize(
    ("tests", "lost"),
    [
        (None, ("test_more.py", "test_more.CalcTest.test_add", "test_more.CalcTest.test_zero")),
        (TESTS.replace("test_zero", "zero"), ("test_more.CalcTest.test_zero",)),
        (TESTS.replace("    def test_z", "    @unittest.skip('')\n    def test_z"), ("test_more.CalcTest.test_zero",)),
    ],
)
def test_tests_that_are_removed_or_disabled_are_refused_although_the_bases_pass(
    tmp_path: Path, tests: str | None, lost: tuple[str, ...]
) -> None:
    files = FILES | {"test_more.py": TESTS}
    with opened(make_repository(tmp_path / "repo", files), tmp_path) as bench:
        result = bench.run(bench.change(calc__py=FIXED_CALC, test_more__py=tests), bench.plan(COMMAND))
    assert result.base_version is not None
    assert result.base_version.success
    assert result.tamper is not None
    assert result.tamper.lost == lost
    with pytest.raises(TamperedTestsError, match="removes or disables tests: test_more"):
        refuse_tampering(result)


def test_new_tests_are_no_tampering(bench: Bench) -> None:
    result = bench.run(bench.change(calc__py=FIXED_CALC, test_more__py=TESTS), bench.plan(COMMAND))
    assert (result.success, result.tamper, result.base_version) == (True, None, None)
    refuse_tampering(result)


@pytest.mark.parametrize(
    ("name", "is_run"),
    [("conftest__py", True), ("pytest__ini", True), ("nose2__py", True), (".github__workflows__ci__yml", False)],
)
def test_configuration_is_told_even_when_it_is_new(bench: Bench, name: str, is_run: bool) -> None:
    result = bench.run(bench.change(**{"calc__py": FIXED_CALC, name: "x = 1\n"}), bench.plan(COMMAND))
    assert result.tamper is not None
    assert len(result.tamper.paths) == 1
    assert (result.base_version is not None) is is_run
    with pytest.raises(TamperedTestsError, match="which decides what is tested"):
        refuse_tampering(result)


def test_a_script_that_the_commands_name_is_configuration(tmp_path: Path) -> None:
    files = FILES | {"ci/check.sh": f"{COMMAND}\n"}
    with opened(make_repository(tmp_path / "repo", files), tmp_path) as bench:
        result = bench.run(bench.change(ci__check__sh="true\n"), bench.plan("sh ci/check.sh"))
    assert result.success
    assert result.tamper is not None
    assert result.tamper.configuration == ("ci/check.sh",)
    assert result.base_version is not None
    assert not result.base_version.success


def test_of_tests_that_fail_anyhow_the_bases_are_not_run(bench: Bench) -> None:
    result = bench.run(bench.change(test_calc__py=TESTS.replace("1)", "2)")), bench.plan(COMMAND))
    assert not result.success
    assert result.tamper is not None
    assert result.base_version is None
    refuse_tampering(result)


# --- a brought checkout


def test_a_brought_checkout_is_tested_at_its_base_each_time(tmp_path: Path) -> None:
    path = make_repository(tmp_path / "repo", FILES)
    with opened(path, tmp_path, is_brought=True) as bench:
        for _ in range(2):
            plan = bench.plan(COMMAND)
            assert plan.base is not None
        assert bench.notes == []
        assert git(path, "rev-parse", "--abbrev-ref", "HEAD") == "main", "its HEAD was there already"
        result = bench.run(bench.change(test_calc__py=WEAK_TESTS, calc__py=FIXED_CALC), plan)
        assert result.base_version is not None
        assert result.base_version.success
        assert bench.plan(COMMAND).base is not None
        assert git(path, "rev-parse", "HEAD") == bench.workspace.base_commit
