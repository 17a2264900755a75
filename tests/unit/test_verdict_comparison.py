from __future__ import annotations

import pytest

from necrocode.agent_runner.test_results import (
    CaseStatus,
    CommandResult,
    PassRule,
    TestCase,
    TestResult,
    Verdict,
)
from necrocode.agent_runner.verdict.comparison import (
    LOST_NOTE,
    MAX_LISTED,
    is_success,
    make_verdict,
    newly_failing,
    with_lost_tests,
    with_second_run,
)

SHORT: dict[str, CaseStatus] = {"+": "passed", "-": "failed", "!": "error", "0": "skipped"}


def ran(
    text: str, *, code: int | None = None, command: str = "t", more: tuple[str, ...] = (), **options: object
) -> CommandResult:
    """A command by its cases: ``a+ b- c0``; and by ``more``, of which no test could be run."""
    cases = tuple(TestCase(name=word[:-1], status=SHORT[word[-1]]) for word in text.split())
    cases += tuple(TestCase(name=name, status="error", ran=False) for name in more)
    failing = any(case.is_failing for case in cases)
    return CommandResult.model_validate(
        {"command": command, "exit_code": int(failing) if code is None else code, "duration_seconds": 1.0, "output": ""}
        | {"cases": cases}
        | options
    )


def result(*commands: CommandResult, tree: str = "after") -> TestResult:
    return TestResult(
        success=all(one.exit_code == 0 for one in commands),
        commands=commands,
        sandbox="none",
        layer="copy",
        tree=tree,
        duration_seconds=1.0,
    )


def told(verdict: Verdict) -> str:
    """The verdict in short: each list that is not empty."""
    names = ("fixed", "newly_broken", "pre_existing", "flaky", "missing", "new")
    return "; ".join(
        f"{name}: {' '.join(getattr(verdict, name).names)}" for name in names if getattr(verdict, name).count
    )


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("a+ b-", "a+ b+", "fixed: b"),
        ("a+ b-", "a- b-", "newly_broken: a; pre_existing: b"),
        ("a+ b!", "a! b-", "newly_broken: a; pre_existing: b"),
        ("a+ b+ c- d0", "a+", "missing: b c"),
        ("a+ b- c0", "a0 b0 c0", "missing: a b"),
        ("a+", "a+ b+ c-", "newly_broken: c; new: b c"),
        ("a0 b0", "a+ b-", "newly_broken: b; new: a b"),
        ("a+", "a+", ""),
    ],
)
def test_cases_are_compared_by_name(before: str, after: str, expected: str) -> None:
    verdict = make_verdict(result(ran(before), tree="base"), result(ran(after)))
    assert told(verdict) == expected
    assert (verdict.basis, verdict.base_tree, verdict.tree) == ("cases", "base", "after")
    assert verdict.passed == after.count("+")


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [(1, 0, "fixed: $ t"), (0, 1, "newly_broken: $ t"), (1, 2, "pre_existing: $ t"), (0, 0, "")],
)
def test_without_cases_on_both_sides_the_exit_code_speaks(before: int, after: int, expected: str) -> None:
    for base, now in ((ran("", code=before), ran("", code=after)), (ran("a+ b-", code=before), ran("", code=after))):
        verdict = make_verdict(result(base), result(now))
        assert (verdict.basis, told(verdict)) == ("exit-code", expected)


def test_a_failure_that_no_case_explains_is_one_of_the_command() -> None:
    verdict = make_verdict(result(ran("a+")), result(ran("a+", code=1)))
    assert (verdict.basis, told(verdict)) == ("cases", "newly_broken: $ t")
    verdict = make_verdict(result(ran("a+", code=1)), result(ran("a+", code=1)))
    assert told(verdict) == "pre_existing: $ t"
    verdict = make_verdict(result(ran("a+", code=1)), result(ran("a+")))
    assert told(verdict) == "fixed: $ t"


@pytest.mark.parametrize(
    ("file", "case"),
    [
        ("tests.test_a", "tests.test_a::test_x"),
        ("unittest.loader._FailedTest.test_a", "test_a.A.test_x"),
        ("a.test.js", "a.test.js > adds"),
        ("example.com/m", "example.com/m.TestX"),
    ],
)
def test_a_file_that_can_be_run_now_is_fixed_and_not_missing(file: str, case: str) -> None:
    verdict = make_verdict(result(ran("b+", more=(file, "z"))), result(ran("b+", more=("z",)), tree="x"))
    assert told(verdict) == f"pre_existing: z; missing: {file}"
    cases = (TestCase(name=case, status="passed"), TestCase(name=f"{file}er", status="passed"))
    now = result(ran("", cases=cases))
    assert told(make_verdict(result(ran("", more=(file,))), now)).startswith(f"fixed: {file}; new: ")


def test_commands_are_told_apart() -> None:
    base = result(ran("", code=0, command="lint"), ran("a-", command="t"))
    verdict = make_verdict(base, result(ran("", code=1, command="lint"), ran("a+", command="t")))
    assert (verdict.basis, told(verdict)) == ("mixed", "fixed: a; newly_broken: $ lint")


def test_a_command_that_was_not_come_to_is_not_compared() -> None:
    verdict = make_verdict(result(ran("a+"), ran("b+")), result(ran("a-")))
    assert told(verdict) == "newly_broken: a"
    assert make_verdict(result(), result()).basis == "exit-code"


def lost(base: TestResult, *commands: CommandResult, rule: PassRule = "exit-code") -> tuple[bool, str]:
    """Whether it counts as passed, and the verdict."""
    now = with_lost_tests(base, result(*commands))
    return is_success(now, base, asked_for=len(commands), rule=rule), told(make_verdict(base, now))


@pytest.mark.parametrize("rule", ["exit-code", "no-new-failures"])
@pytest.mark.parametrize("now", ["", "a0 b0"])
def test_an_exit_code_of_0_without_the_tests_of_the_base_is_no_pass(now: str, rule: PassRule) -> None:
    gone = ran(now, code=0)
    assert lost(result(ran("a+ b+")), gone, rule=rule) == (False, "newly_broken: $ t; missing: a b")
    assert lost(result(ran("a+ b-")), gone, rule=rule) == (False, "pre_existing: $ t; missing: a b")
    both = gone.model_copy(update={"rerun": gone})
    assert lost(result(ran("a+ b+")), both, rule=rule) == (False, "newly_broken: $ t; missing: a b")
    failed = ran("a-").model_copy(update={"rerun": gone})
    assert not lost(result(ran("a+")), failed, rule=rule)[0]


def test_a_command_that_ran_no_test_on_the_base_is_judged_by_its_exit_code() -> None:
    for before in (ran("", code=0), ran("a0")):
        assert lost(result(before), ran("", code=0))[0]
    assert lost(result(ran("a+")), ran("b+"), ran("", code=0, command="lint"))[0]


def test_a_second_run_that_comes_to_the_tests_is_a_pass() -> None:
    once = ran("", code=0).model_copy(update={"rerun": ran("a+")})
    assert lost(result(ran("a+")), once) == (True, "flaky: $ t")


def test_lost_tests_are_told_with_the_reports_own_reason() -> None:
    base, gone = result(ran("a+")), ran("", code=0, report_note="the report was not written")
    now = with_lost_tests(base, result(gone))
    assert now.commands[0].report_note == f"{LOST_NOTE} (the report was not written)"
    assert with_lost_tests(base, now) == now


def test_what_passes_in_the_second_run_is_flaky() -> None:
    base = result(ran("a+ b+ c-"))
    first = result(ran("a- b- c-"))
    both = with_second_run(first, result(ran("a+ b- c-")))
    verdict = make_verdict(base, both)
    assert told(verdict) == "newly_broken: b; pre_existing: c; flaky: a"
    assert not is_success(both, base, asked_for=1, rule="exit-code")
    assert both.commands[0].rerun is not None
    assert both.duration_seconds == 2.0


def test_a_second_run_that_passes_whole_is_a_pass() -> None:
    base, first = result(ran("a+ b+")), result(ran("a+ b-"))
    both = with_second_run(first, result(ran("a+ b+")))
    assert is_success(both, base, asked_for=1, rule="exit-code")
    assert told(make_verdict(base, both)) == "flaky: b"
    both = with_second_run(result(ran("", code=1)), result(ran("", code=0)))
    assert is_success(both, result(ran("", code=0)), asked_for=1, rule="exit-code")
    assert told(make_verdict(result(ran("", code=0)), both)) == "flaky: $ t"


def test_a_case_that_fails_in_the_second_run_alone_is_flaky_too() -> None:
    both = with_second_run(result(ran("a+ b-")), result(ran("a- b-")))
    assert told(make_verdict(result(ran("a+ b+")), both)) == "newly_broken: b; flaky: a"


def test_commands_after_a_flaky_one_come_from_the_second_run() -> None:
    base = result(ran("a+"), ran("b+", command="u"))
    both = with_second_run(result(ran("a-")), result(ran("a+"), ran("b-", command="u")))
    assert [one.command for one in both.commands] == ["t", "u"]
    assert told(make_verdict(base, both)) == "newly_broken: b; flaky: a"
    assert not is_success(both, base, asked_for=2, rule="exit-code")


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (ran("a+ b-"), ran("a+ b-"), True),
        (ran("a+ b- c-"), ran("a+ b- c+"), True),
        (ran("a+ b-"), ran("a- b-"), False),
        (ran("a+ b-"), ran("b-"), False),
        (ran("a+ b-"), ran("a+ b- c-"), False),
        (ran("a+ b-"), ran("a+ b0", code=1), False),
        (ran("", code=1), ran("", code=1), False),
        (ran("a-"), ran("", code=1), False),
        (ran("a+", code=1), ran("a+", code=1), False),
        (ran("a+ b-"), ran("a+ b-", code=-9), True),
        (ran("a+ b-"), ran("a+ b-", code=None, exit_code=None, timed_out=True), False),
        (ran("a+"), ran("a+"), True),
        (ran("a-"), ran("a-", ended_early=True), False),
        (ran("b+", more=("a",)), ran("b+", more=("a",)), True),
        (ran("b0", more=("a",)), ran("b0", more=("a",)), False),
        (ran("", more=("a",)), ran("", more=("a",)), False),
        (ran("c+", more=("a", "b")), ran("c+ a::t+", more=("b",)), True),
    ],
)
def test_no_new_failures(before: CommandResult, after: CommandResult, expected: bool) -> None:
    base, now = result(before), result(after)
    assert is_success(now, base, asked_for=1, rule="no-new-failures") is expected
    assert is_success(now, base, asked_for=1, rule="exit-code") is (after.exit_code == 0)
    assert is_success(now, None, asked_for=1, rule="no-new-failures") is (after.exit_code == 0)


def test_a_command_that_was_not_run_is_no_success() -> None:
    base = result(ran("a-"), ran("b+"))
    for rule in ("exit-code", "no-new-failures"):
        assert not is_success(result(ran("a-")), base, asked_for=2, rule=rule)  # type: ignore[arg-type]
    assert is_success(result(), None, asked_for=0, rule="exit-code")


def test_a_report_never_turns_an_exit_code_into_success() -> None:
    forged = result(ran("a+ b+", code=1))
    assert not is_success(forged, result(ran("a+ b+")), asked_for=1, rule="exit-code")
    assert not is_success(forged, result(ran("a+ b-")), asked_for=1, rule="no-new-failures")


def test_only_what_fails_anew_is_worth_a_second_run() -> None:
    assert not newly_failing(result(ran("a-")), result(ran("a-")))
    assert newly_failing(result(ran("a+")), result(ran("a-")))
    assert newly_failing(result(ran("", code=0)), result(ran("", code=1)))


def test_lists_are_bounded_in_order_and_counted() -> None:
    names = [f"{number:05}" for number in range(MAX_LISTED + 50)]
    shuffled = [*names[1::2], *reversed(names[::2])]
    before, after = " ".join(f"{name}+" for name in names), " ".join(f"{name}-" for name in shuffled)
    broken = make_verdict(result(ran(before)), result(ran(after))).newly_broken
    assert broken.count == MAX_LISTED + 50
    assert broken.names == tuple(names[:MAX_LISTED])
