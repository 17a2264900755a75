from __future__ import annotations

import pytest

from necrocode.agent_runner.test_results import CommandResult, PassRule, TestCase, TestResult
from necrocode.agent_runner.verdict.feedback import (
    MAX_FEEDBACK_TOKENS,
    _tokens,
    failure_feedback,
    failure_signature,
    tracebacks,
)


def case(name: str, status: str = "failed", message: str = "", details: str = "") -> TestCase:
    return TestCase.model_validate({"name": name, "status": status, "message": message, "details": details})


def command(*cases: TestCase, code: int | None = 1, output: str = "", **options: object) -> CommandResult:
    values = {"command": "pytest -q", "exit_code": code, "duration_seconds": 1.0, "output": output, "cases": cases}
    return CommandResult.model_validate(values | options)


def result(*commands: CommandResult, rule: PassRule = "exit-code") -> TestResult:
    return TestResult(
        success=False, commands=commands, sandbox="none", layer="copy", tree="t", duration_seconds=1.0, pass_rule=rule
    )


def test_cases_that_are_not_judged_are_set_aside_by_name() -> None:
    base = result(command(case("old"), case("a", "passed")))
    details = "    def test():\n>       assert total() == 3\nE       assert 2 == 3\n\ntests/test_a.py:3: AssertionError"
    cases = (case("old", message="old news"), case("a", message="assert 2 == 3", details=details))
    now = result(command(*cases), rule="no-new-failures")
    text = failure_feedback(now, base)
    assert text == (
        "The command `pytest -q` exited with 1.\n1 failing test case:\n\n- a\n"
        f"{details}\nThese failed before the change as well, and do not count against it: old"
    )


def test_where_all_must_pass_those_that_failed_before_are_to_be_mended_too() -> None:
    base = result(command(case("old"), case("z", "passed")))
    text = failure_feedback(result(command(case("old", message="2 != 3"), case("z", "passed"))), base)
    assert text == "The command `pytest -q` exited with 1.\n1 failing test case:\n\n- old\n  2 != 3"
    text = failure_feedback(result(command(case("old"), case("z", message="broken"))), base)
    assert text.endswith("2 failing test cases:\n\n- z\n  broken\n\n- old\nOf these, not failing before the change: z")


def test_a_message_that_the_traceback_does_not_hold_is_shown() -> None:
    text = failure_feedback(result(command(case("a", message="want 2 got 0", details="at a.js:1"))), None)
    assert text.endswith("- a\n  want 2 got 0\nat a.js:1")


def test_a_message_that_the_traceback_holds_in_other_blanks_is_not_said_twice() -> None:
    message = "AssertionError: assert 3 == 5\n  +  where 3 = total([1, 2])"
    details = (
        ">   assert total([1, 2]) == 5\nE   AssertionError: assert 3 == 5\nE    +  where 3 = total([1, 2])\n\na.py:3"
    )
    text = failure_feedback(result(command(case("a", message=message, details=details))), None)
    assert text.endswith(f"- a\n{details}")


FRAME = "kth.py:12: in kth\n    return kth(above, k)\n           ^^^^^^^^^^^^^\n"


@pytest.mark.parametrize(
    ("details", "told"),
    [
        (f"first\n{FRAME * 5}IndexError", f"first\n[5 times these 3 lines:]\n{FRAME}IndexError"),
        (f"{FRAME * 3}end", f"[3 times these 3 lines:]\n{FRAME}end"),
        (f"{FRAME * 2}end", f"{FRAME * 2}end"),
        ("a\na\na\na", "[4 times:]\na"),
        ("a\n\n\n\n\nb", "a\n\n\n\n\nb"),
        ("a\nb\n" * 400 + "c", "[400 times these 2 lines:]\na\nb\nc"),
        (f"{FRAME * 5}{'x' * 1199}", f"…\n{'x' * 1199}"),
    ],
)  # fmt: skip
def test_what_comes_over_and_over_is_shown_once(details: str, told: str) -> None:
    text = failure_feedback(result(command(case("x", details=details))), None)
    assert text.endswith(f"- x\n{told}")


def test_addresses_in_memory_do_not_make_each_question_another_one() -> None:
    failed = case("a", message="assert <Node object at 0x7f00deadbeef> is 0x7f00deadbeef")
    told = failure_feedback(result(command(failed)), None)
    assert "<Node object at 0x...> is 0x7f00deadbeef" in told


def test_without_cases_the_end_of_the_output_is_shown_plainly() -> None:
    output = "x" * 9000 + "\n\x1b[31mTypeError\x1b[0m in /s/layers/layer-ab_1/top/src/a.js:3\x07\n"
    text = failure_feedback(result(command(output=output)), None)
    assert text.endswith("TypeError in src/a.js:3\\x07")
    assert len(text) < 5000


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"code": None, "timed_out": True}, "did not end in time"),
        ({"code": -11}, "was ended by signal 11"),
        ({"code": 3}, "exited with 3"),
    ],
)
def test_how_it_ended_is_said(options: dict[str, object], words: str) -> None:
    assert words in failure_feedback(result(command(**options)), None).splitlines()[0]  # type: ignore[arg-type]


def test_the_command_that_breaks_something_anew_comes_before_one_that_failed_already() -> None:
    base = result(command(code=1, command="lint"), command(case("a", "passed"), code=0))
    now = result(command(code=1, command="lint", output="lint noise"), command(case("a")))
    text = failure_feedback(now, base)
    assert text.startswith("The command `pytest -q`")
    assert "lint noise" not in text


def test_a_flaky_case_is_not_told_as_failing() -> None:
    again = command(case("a", "passed"), case("b"))
    assert "- a\n" not in failure_feedback(result(command(case("a"), case("b"), rerun=again)), None)


def test_a_note_on_the_report_brings_the_output() -> None:
    note = "exited with 1, though its report names no failing case"
    text = failure_feedback(result(command(case("a", "passed"), report_note=note, output="coverage 10% < 90%")), None)
    assert note in text
    assert text.endswith("coverage 10% < 90%")


def test_cases_that_no_longer_run_are_named() -> None:
    base = result(command(case("a", "passed"), case("b", "passed"), code=0))
    text = failure_feedback(result(command(case("mod", "error"))), base)
    assert "Ran before the change and not now: a, b" in text


def test_passing_tests_give_none() -> None:
    passed = result(command(case("a", "passed"), code=0))
    assert (failure_feedback(passed, passed), failure_signature(passed)) == ("", "")


@pytest.mark.parametrize("letter", ["x", "日", "x y\n"])
def test_it_never_has_more_than_its_tokens(letter: str) -> None:
    cases = [case(f"{letter * 40}{number:05}", message=letter * 300, details=letter * 3000) for number in range(300)]
    text = failure_feedback(result(command(*cases, output=letter * 50_000)), None)
    assert _tokens(text) <= MAX_FEEDBACK_TOKENS + 2
    assert text.startswith("The command")


VARIANTS = [
    ("at 0x7f3a5c0d1e50", "at 0x7f0000000001"),
    ("took 1.25s and 3 ms", "took 0.9s and 12 ms"),
    ("/tmp/pytest-of-me/pytest-1/x.db missing", "/tmp/pytest-of-me/pytest-22/x.db missing"),  # noqa: S108  a message
    ("2026-01-02T03:04:05.123Z", "2027-11-12 13:14:15+09:00"),
    ("/s/layers/layer-abc/top/a.py:3", "/s/layers/layer-x_9/top/a.py:3"),
    ("id 123e4567-e89b-12d3-a456-426614174000", "id 123e4567-e89b-12d3-a456-426614174fff"),
    ("thread 'main' pid 4711", "thread 'main' pid 99"),
]


@pytest.mark.parametrize(("one", "other"), VARIANTS)
def test_the_same_failure_has_the_same_signature(one: str, other: str) -> None:
    for make in (lambda text: command(case("a", message=text)), lambda text: command(output=text)):
        assert failure_signature(result(make(one))) == failure_signature(result(make(other))) != ""


def test_other_failures_have_others() -> None:
    variants = [
        command(case("a", message="assert 1 == 2")),
        command(case("a", message="assert 1 == 3")),
        command(case("b", message="assert 1 == 2")),
        command(case("a", message="assert 1 == 2"), case("b", message="x")),
        command(output="NameError: x"),
        command(output="NameError: y"),
        command(output="NameError: x", code=2),
    ]
    assert len({failure_signature(result(one)) for one in variants}) == len(variants)


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "line",
    ["/layer-" * 100, "a" * 3999, "1" * 3000, "/tmp/" * 700, "0x" * 2000, "Process ::::" * 300],  # noqa: S108
)
def test_hostile_text_takes_no_longer(line: str) -> None:
    now = result(command(output=line * (1_000_000 // len(line))))
    failure_signature(now)
    failure_feedback(now, None)


def test_what_each_failing_case_says_is_known_of_all_or_of_none() -> None:
    passed, failed = case("a", "passed"), case("b", message="1 != 2", details="at b.py:1")
    assert tracebacks(result(command(passed, failed), command(passed, code=0))) == ("at b.py:1\n1 != 2",)
    for doubt in (
        command(failed, case("c")),
        command(failed, report_note="the report does not fit the exit code"),
        command(passed),
        command(),
    ):
        assert tracebacks(result(command(failed), doubt)) == ()
    assert tracebacks(result(command(passed, code=0))) == ()
