from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from necrocode.agent_runner.test_results import CommandResult, TestCase
from necrocode.agent_runner.verdict import cases as bounds
from necrocode.agent_runner.verdict.asking import AskedCommand
from necrocode.agent_runner.verdict.cases import CaseBook, UnreadableReport, case_name, shortened
from necrocode.agent_runner.verdict.json_reports import parse_go, parse_jest
from necrocode.agent_runner.verdict.junit import parse_junit
from necrocode.agent_runner.verdict.reading import with_cases
from necrocode.agent_runner.verdict.text_reports import parse_cargo, parse_unittest
from tests.support.pace import is_within

RECORDINGS = Path(__file__).parents[1] / "support" / "recordings"


def recorded(name: str) -> bytes:
    return (RECORDINGS / name).read_bytes()


def not_run(cases: tuple[TestCase, ...]) -> list[str]:
    return [case.name for case in cases if not case.ran]


def statuses(cases: tuple[TestCase, ...]) -> dict[str, str]:
    return {case.name: case.status for case in cases}


def command(**options: object) -> CommandResult:
    return CommandResult.model_validate(
        {"command": "t", "exit_code": 0, "duration_seconds": 1.0, "output": ""} | options
    )


def junit(*cases: str) -> bytes:
    return f"<testsuite>{''.join(cases)}</testsuite>".encode()


# --- what the tools wrote


def test_pytest() -> None:
    cases = parse_junit([recorded("pytest.xml")])
    assert statuses(cases) == {
        "tests.test_calc::test_add[1]": "failed",
        "tests.test_calc::test_add[2]": "failed",
        "tests.test_calc::test_obj": "passed",
        "tests.test_calc::test_ok": "passed",
        "tests.test_calc::test_s": "skipped",
    }
    assert cases[0].message.startswith("assert 0 == (1 + 1)")
    assert cases[0].details.endswith("tests/test_calc.py:6: AssertionError")
    assert cases[1].duration_seconds == 0.005


def test_surefire() -> None:
    cases = parse_junit([recorded("surefire.xml")])
    assert statuses(cases) == {"x.CalcTest::adds": "failed", "x.CalcTest::ok": "passed", "x.CalcTest::skip": "skipped"}
    assert cases[0].message == "expected: <2> but was: <0>"


def test_vitest() -> None:
    assert statuses(parse_junit([recorded("vitest.xml")])) == {
        "b.test.ts::b.test.ts": "failed",
        "src/a.test.ts::adds": "failed",
        "src/a.test.ts::s > ok": "passed",
        "src/a.test.ts::s > sk": "skipped",
    }


def test_node_names_its_cases_by_the_suites_around_them() -> None:
    assert statuses(parse_junit([recorded("node.xml")])) == {
        "adds": "failed",
        "ok <&> 日本": "passed",
        "s": "skipped",
        "suite > one": "passed",
        "suite > two": "failed",
    }


def test_jest_names_its_files_from_the_top() -> None:
    cases = parse_jest(recorded("jest.json"), "/work/top")
    assert statuses(cases) == {
        "b.test.js": "error",
        "src/a.test.js > adds": "failed",
        "src/a.test.js > s ok": "passed",
        "src/a.test.js > s sk": "skipped",
        "src/a.test.js > s t": "skipped",
    }
    assert not_run(cases) == ["b.test.js"]
    assert "Expected: 2" in cases[1].details
    assert "\x1b" not in cases[1].details


def test_go() -> None:
    cases, text = parse_go(recorded("go.jsonl"))
    assert statuses(cases) == {
        "ex.com/m.TestAdd": "failed",
        "ex.com/m.TestOk": "passed",
        "ex.com/m.TestOk/sub": "passed",
        "ex.com/m.TestSkip": "skipped",
        "ex.com/m/b": "error",
        "ex.com/m/c.TestP": "failed",
    }
    assert not_run(cases) == ["ex.com/m/b"]
    assert cases[0].message == "a_test.go:3: want 2 got 0"
    assert cases[-1].message.startswith("panic: boom")
    assert "FAIL\tex.com/m/b [build failed]\n" in text
    assert "quiet" not in text, "what a passing test prints is shown with -v alone"
    assert "=== RUN" not in text
    assert "quiet" in parse_go(recorded("go.jsonl"), verbose=True)[1]


def test_go_since_1_24_tells_of_a_failed_build_by_events() -> None:
    events = [
        {"ImportPath": "ex.com/m [ex.com/m.test]", "Action": "build-output", "Output": "./a.go:3: undefined: x\n"},
        {"ImportPath": "ex.com/m [ex.com/m.test]", "Action": "build-fail"},
        {"Action": "start", "Package": "ex.com/m"},
        {"Action": "output", "Package": "ex.com/m", "Output": "FAIL\tex.com/m [build failed]\n"},
        {"Action": "fail", "Package": "ex.com/m", "Elapsed": 0, "FailedBuild": "ex.com/m [ex.com/m.test]"},
    ]
    ((case,), text) = parse_go("\n".join(map(json.dumps, events)).encode())
    assert (case.name, case.status, case.message) == ("ex.com/m", "error", "./a.go:3: undefined: x")
    assert "undefined: x" in text


def test_a_go_test_that_never_ended_is_an_error() -> None:
    events = [{"Action": "run", "Package": "p", "Test": "TestX"}, {"Action": "fail", "Package": "p"}]
    assert statuses(parse_go("\n".join(map(json.dumps, events)).encode())[0]) == {"p": "error", "p.TestX": "error"}


def test_cargo() -> None:
    cases = parse_cargo(recorded("cargo.txt").decode())
    assert statuses(cases) == {
        "it tests/it.rs::it": "passed",
        "shop doc::src/lib.rs - add": "failed",
        "shop unittests src/lib.rs::tests::adds": "failed",
        "shop unittests src/lib.rs::tests::fine": "passed",
        "shop unittests src/lib.rs::tests::panics": "passed",
        "shop unittests src/lib.rs::tests::slow": "skipped",
    }
    assert "left == right" in cases[2].message


@pytest.mark.parametrize(
    "change",
    [
        ("test tests::fine ... ok\n", ""),
        ("test tests::fine ... ok\n", "test tests::fine ... ok\ntest tests::forged ... ok\n"),
        ("test tests::fine ... ok\n", "test tests::fine ... FAILED\n"),
        ("; finished in", " finished in"),
    ],
)
def test_cargo_is_not_believed_when_its_totals_differ(change: tuple[str, str]) -> None:
    text = recorded("cargo.txt").decode()
    assert change[0] in text
    if change[1] == " finished in":
        text = text[: text.rindex("test result:")]
    with pytest.raises(UnreadableReport):
        parse_cargo(text.replace(*change))


def test_unittest() -> None:
    cases = parse_unittest(recorded("unittest.txt").decode())
    assert statuses(cases) == {
        "test_calc.S.setUpClass": "error",
        "test_calc.T.test_add": "failed",
        "test_calc.T.test_doc": "passed",
        "test_calc.T.test_err": "error",
        "test_calc.T.test_sk": "skipped",
        "test_calc.T.test_sub": "failed",
        "test_calc.T.test_xf": "skipped",
        "unittest.loader._FailedTest.test_imp": "error",
    }
    assert cases[1].message == "AssertionError: 0 != 2"
    assert cases[3].message == "ValueError: x\ny"


def test_unittest_before_python_3_11() -> None:
    text = (
        "test_a (test_calc.T) ... ok\ntest_b (test_calc.T) ... FAIL\n\n"
        f"{'=' * 70}\nFAIL: test_b (test_calc.T)\n{'-' * 70}\nTraceback (most recent call last):\n"
        '  File "/x/test_calc.py", line 3, in test_b\n    self.fail()\nAssertionError: None\n\n'
        f"{'-' * 70}\nRan 2 tests in 0.001s\n\nFAILED (failures=1)\n"
    )
    assert statuses(parse_unittest(text)) == {"test_calc.T.test_a": "passed", "test_calc.T.test_b": "failed"}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("test_add (test_calc.T.test_add) ... FAIL\n", ""),
        (
            "test_add (test_calc.T.test_add) ... FAIL\n",
            "test_add (test_calc.T.test_add) ... FAIL\ntest_z (a.B) ... ok\n",
        ),
        ("Ran 7 tests", "Ran 8 tests"),
        ("Ran 7 tests", "Ran 7 tests in 1s\nRan 7 tests"),
        ("skipped=1", "skipped=2"),
        ("FAILED (", "DONE ("),
    ],
)
def test_unittest_is_not_believed_when_its_totals_differ(old: str, new: str) -> None:
    text = recorded("unittest.txt").decode()
    assert old in text
    with pytest.raises(UnreadableReport):
        parse_unittest(text.replace(old, new))


# --- JUnit of all sorts


def test_a_case_that_is_told_twice_counts_by_its_worst() -> None:
    passed, failed = '<testcase classname="c" name="n"/>', '<testcase classname="c" name="n"><failure/></testcase>'
    for order in ((passed, failed), (failed, passed)):
        assert statuses(parse_junit([junit(*order)])) == {"c::n": "failed"}
    assert statuses(parse_junit([junit(passed), junit(failed)])) == {"c::n": "failed"}


def test_a_case_that_a_tool_has_retried_with_success_has_passed() -> None:
    case = '<testcase name="n"><flakyFailure message="once"/><rerunFailure/></testcase>'
    assert statuses(parse_junit([junit(case)])) == {"n": "passed"}


def test_output_that_looks_like_a_failure_is_none() -> None:
    case = '<testcase name="n"><system-out>&lt;failure/&gt;</system-out><properties><failure/></properties></testcase>'
    assert statuses(parse_junit([junit(case)])) == {"n": "passed"}


@pytest.mark.parametrize("value", ["NaN", "inf", "-1", "1,234.5", "x", "", "9" * 5000])
def test_a_number_that_is_none_is_no_duration(value: str) -> None:
    (case,) = parse_junit([junit(f'<testcase name="n" time="{value}"/>')])
    assert case.duration_seconds == (1234.5 if value == "1,234.5" else None)


BOMB = (
    '<?xml version="1.0"?><!DOCTYPE lolz [<!ENTITY a "lol">'
    + "".join(f'<!ENTITY {new} "{f"&{old};" * 10}">' for old, new in zip("abcdefghi", "bcdefghij", strict=True))
    + "]><testsuite><testcase name='&j;'/></testsuite>"
)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not xml",
        BOMB.encode(),
        b"<!DOCTYPE testsuite SYSTEM 'file:///etc/passwd'><testsuite/>",
        b"<testsuite><testcase name='a'>",
        b"<html><testcase name='a'/></html>",
        b"<testsuite>" + b"<a>" * 5000 + b"</a>" * 5000 + b"</testsuite>",
        b"<?xml version='1.0' encoding='no-such'?><testsuite/>",
        b"<?xml version='1.0' encoding='utf-32'?><testsuite/>",
        b"<?xml version='1.0' encoding='shift_jis'?><testsuite name='\x82'/>",
        b"\xff\xfe<\0t\0",
        b"<testsuite><testcase name='\x00'/></testsuite>",
        b"<testsuite><testcase name='a' name='b'/></testsuite>",
        b"<testsuite>\xff</testsuite>",
        b"<testsuite/><testsuite/>",
    ],
    ids=range(15),
)
def test_what_is_no_whole_report_is_said_to_be_none(content: bytes) -> None:
    with pytest.raises(UnreadableReport):
        parse_junit([content])


def test_an_encoding_that_is_known_is_read() -> None:
    content = "<?xml version='1.0' encoding='utf-16'?><testsuite><testcase name='日本'/></testsuite>".encode("utf-16")
    assert statuses(parse_junit([content])) == {"日本": "passed"}


def test_too_many_cases_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "MAX_CASES", 10)
    with pytest.raises(UnreadableReport, match="more than 10"):
        parse_junit([junit(*(f'<testcase name="{number}"/>' for number in range(11)))])


def test_texts_are_cut_and_the_end_of_a_traceback_is_kept() -> None:
    text = "\n".join(f"line {number}" for number in range(5000))
    (case,) = parse_junit(
        [junit(f'<testcase name="{"n" * 5000}"><failure message="{"m" * 5000}">{text}</failure></testcase>')]
    )
    case = shortened(case)
    assert len(case.name) <= bounds.MAX_NAME_CHARACTERS
    assert len(case.message) <= bounds.MAX_MESSAGE_CHARACTERS + 2
    assert len(case.details) <= bounds.MAX_DETAILS_CHARACTERS + 2
    assert case.details.endswith("line 4999")


def test_only_so_many_failing_cases_keep_their_texts() -> None:
    book = CaseBook()
    for number in range(bounds.MAX_TOLD_CASES + 5):
        book.add(f"{number:04}", "failed", message="m", details="d")
    assert sum(bool(case.message) for case in book.cases()) == bounds.MAX_TOLD_CASES


def test_names_are_the_same_in_every_run() -> None:
    assert case_name("t[<C object at 0x7f3a5c0d1e50>]") == case_name("t[<C object at 0x7f0000000010>]")
    assert case_name("a\n\tb \x1b[31mred\x1b[0m\x07") == "a b red\\x07"
    long = (shortened(TestCase(name="x" * 399 + end, status="passed")).name for end in "xxy")
    assert len({*long}) == 2


# --- jest and go of all sorts


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"null",
        b"{}",
        b"[" * 100_000,
        b'{"testResults": 1}',
        b'{"testResults": [1]}',
        b'{"testResults": [{"assertionResults": [1]}]}',
        b'{"testResults": [{"assertionResults": [{"status": []}]}]}',
        b'{"testResults": [{"assertionResults": [{"status": "no such"}]}]}',
        b"\xff\xff",
    ],
)
def test_what_is_no_file_of_jest_is_said_to_be_none(content: bytes) -> None:
    with pytest.raises(UnreadableReport):
        parse_jest(content, "/top")


def test_a_large_file_of_jest_is_not_read() -> None:
    with pytest.raises(UnreadableReport, match="larger"):
        parse_jest(b" " * (17 * 1024 * 1024), "/top")


def test_lines_that_are_no_events_stay_in_the_text() -> None:
    event = json.dumps({"Action": "pass", "Package": "p", "Test": "T", "Elapsed": [[]]})
    odd = ["[" * 2000, "{", '{"Action": ["x"], "Package": {}}', "warning: x"]
    cases, text = parse_go("\n".join([*odd, event, '{"Action":"output","Package":"p","Output":"ok\\n"}']).encode())
    assert statuses(cases) == {"p.T": "passed"}
    assert "warning: x\n" in text


# --- reports that are small and would become large


def test_names_around_many_cases_are_bounded_and_different_ones_stay_different() -> None:
    suites = "".join(f'<testsuite name="{"n" * 2000}">' for _ in range(90))
    cases = "".join(f'<testcase classname="test" name="{number}"/>' for number in range(500))
    other = f'<testsuite name="{"m" * 2000}"><testcase classname="test" name="1"/></testsuite>'
    read = parse_junit([f"<testsuites>{suites}{cases}{'</testsuite>' * 90}{other}</testsuites>".encode()])
    assert len(read) == 501
    assert sum(len(case.name) for case in read) < 501 * 30
    report = {"name": "f" * 200_000, "assertionResults": [{"status": "passed", "title": str(n)} for n in range(500)]}
    told = parse_jest(json.dumps({"testResults": [report]}).encode(), "")
    assert len(told) == 500
    assert sum(len(case.name) for case in told) < 500 * 30


def test_more_elements_or_lines_than_any_report_has_are_not_read() -> None:
    with pytest.raises(UnreadableReport, match="elements"):
        parse_junit([b"<testsuite>" + b"<a/>" * 500_001 + b"</testsuite>"])
    with pytest.raises(UnreadableReport, match="lines"):
        parse_go(b"\n" * 500_001)


def test_lines_that_are_no_events_cost_little() -> None:
    def read() -> None:
        with pytest.raises(UnreadableReport, match="no events"):
            parse_go(b"\n" * 100_000)

    assert is_within(2, read)


any_text = st.text(alphabet=st.sampled_from('abT(). ...\n=-:"<>/&;{}[],\x1b\r01FAILEDokruns日\ud800'), max_size=300)


@given(any_text)
def test_no_reader_fails_in_another_way(text: str) -> None:
    content = text.encode(errors="replace")
    for read in (
        lambda: parse_junit([content]),
        lambda: parse_jest(content, ""),
        lambda: parse_go(content),
        lambda: parse_cargo(text),
        lambda: parse_unittest(text),
    ):
        try:
            read()
        except UnreadableReport:
            continue


json_values = st.recursive(
    st.none() | st.booleans() | st.text(max_size=5) | st.floats(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["testResults", "assertionResults", "status", "name", "duration"]), inner)
    ),
)


@given(json_values)
def test_no_json_fails_in_another_way(value: object) -> None:
    content = json.dumps(value).encode()
    try:
        parse_jest(content, "")
    except UnreadableReport:
        return


# --- the report beside the exit code


PYTEST_XML = {"reports/pytest.xml": recorded("pytest.xml")}
SUMMARY = "2 failed, 2 passed, 1 skipped in 0.08s\n"


def test_cases_come_with_the_name_of_their_report() -> None:
    read = with_cases(command(exit_code=1, output=SUMMARY, collected=PYTEST_XML), AskedCommand("run", "pytest"), "mine")
    assert (read.command, read.report, len(read.cases), read.report_note) == ("mine", "junit", 5, "")
    assert read.collected == {}


def test_a_command_that_is_no_known_tool_has_no_report_and_no_note() -> None:
    read = with_cases(command(output="all fine"), AskedCommand("./check.sh"), "./check.sh")
    assert (read.report, read.cases, read.report_note) == ("", (), "")


def test_any_junit_file_in_the_reports_folder_is_read() -> None:
    files = {"reports/mine/a.xml": junit('<testcase name="a"/>'), "reports/notes.txt": b"x"}
    assert statuses(with_cases(command(collected=files), AskedCommand("x"), "x").cases) == {"a": "passed"}


@pytest.mark.parametrize(
    ("kind", "options", "note"),
    [
        ("pytest", {"exit_code": 2}, "was not written"),
        ("go", {"exit_code": 1}, "was not written"),
        ("go", {"exit_code": 127, "collected": {"reports/go.json": b""}}, "no events"),
        ("jest", {"exit_code": 1}, "was not written"),
        ("junit", {"exit_code": 1}, "was not written"),
        ("pytest", {"collected": {"reports/pytest.xml": recorded("pytest.xml")[:500]}}, "not whole XML"),
        ("cargo", {"exit_code": 101, "output": "error: could not compile"}, "names no test case"),
        ("unittest", {"output": recorded("unittest.txt").decode(), "truncated_bytes": 7}, "too long"),
        ("pytest", {"exit_code": None, "timed_out": True, "collected": PYTEST_XML}, "time limit"),
        (
            "pytest",
            {"exit_code": 1, "output": f"1 passed in 0.1s\n{SUMMARY}", "collected": PYTEST_XML},
            "last of several",
        ),
        ("pytest", {"exit_code": 0, "output": "= 4 passed in 1.08s =", "collected": PYTEST_XML}, "totals differ"),
    ],
)
def test_without_a_report_to_rely_on_the_exit_code_stands_alone(
    kind: str, options: dict[str, object], note: str
) -> None:
    read = with_cases(command(**options), AskedCommand.__call__("x", kind), "x")  # type: ignore[arg-type]
    assert (read.report, read.cases) == ("", ())
    assert note in read.report_note


def test_what_stands_for_a_file_that_could_not_be_run_is_known_as_such() -> None:
    assert not_run(parse_junit([recorded("vitest.xml")])) == ["b.test.ts::b.test.ts"]
    assert not_run(parse_unittest(recorded("unittest.txt").decode())) == ["unittest.loader._FailedTest.test_imp"]
    pytests = junit('<testcase classname="" name="tests.test_a"><error message="collection failure"/></testcase>')
    assert not_run(parse_junit([pytests])) == ["tests.test_a"]
    assert not_run(parse_junit([junit('<testcase name="a"><error/></testcase>')])) == []


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("!!!!!!!!!!!!!!!!!!!! Interrupted: 1 error during collection !!!!!!!!!!!!!!!!!!!!", True),
        ("!!!!!!!!!!!!!!!!!!!!!!!!!! stopping after 1 failures !!!!!!!!!!!!!!!!!!!!!!!!!!!", True),
        ("\x1b[31m!!!!!!!!!!! xdist.dsession.Interrupted: stopping after 1 failures !!!!!!!!!!!\x1b[0m", True),
        ("! _pytest.outcomes.Exit: a long reason !", True),
        ("!!!!!!!!!!!!!!!!!!! KeyboardInterrupt !!!!!!!!!!!!!!!!!!!!", True),
        ("print: !!! stopping after 1 !!!", False),
        ("2 passed!", False),
    ],
)
def test_pytest_says_that_it_did_not_come_to_all_tests(line: str, expected: bool) -> None:
    for kind in ("pytest", ""):
        asked = AskedCommand("x", kind)  # type: ignore[arg-type]
        assert with_cases(command(output=f"F.\n{line}\n1 failed\n"), asked, "x").ended_early is expected


def test_what_does_not_fit_the_exit_code_is_said() -> None:
    passed = {"reports/pytest.xml": junit('<testcase name="a"/>')}
    read = with_cases(command(exit_code=1, collected=passed), AskedCommand("x", "pytest"), "x")
    assert read.report_note == "exited with 1, though its report names no failing case"
    read = with_cases(command(exit_code=0, collected=PYTEST_XML), AskedCommand("x", "pytest"), "x")
    assert read.report_note == "exited with 0, though its report names 2 failing"


def test_what_tools_say_of_our_file_is_left_out() -> None:
    output = (
        "> jest --json --outputFile=/l/layer-a/reports-x_1/jest.json\nFAIL\n"
        "Test results written to: ../reports-x_1/jest.json\n"
        "---- generated xml file: /l/layer-a/reports-x_1/pytest.xml ----\n"
        "---- generated xml file: /home/me/mine.xml ----\n"
    )
    read = with_cases(command(output=output), AskedCommand("x"), "x")
    assert read.output == "> jest\nFAIL\n---- generated xml file: /home/me/mine.xml ----\n"


def test_of_go_people_see_what_they_would_have_seen() -> None:
    done = command(exit_code=2, output="# ex.com/m/b\n", collected={"reports/go.json": recorded("go.jsonl")})
    read = with_cases(done, AskedCommand("x", "go"), "go test ./...")
    assert read.output.startswith("hi\n    a_test.go:3: want 2 got 0\n--- FAIL: TestAdd")
    assert read.output.endswith("# ex.com/m/b\n")


# --- time and memory


@pytest.mark.parametrize(
    "line",
    [
        "test " + "a ... " * 300,
        "Running " + "a-" * 900,
        "     Running " + "(" * 1900,
        "x" * 1900 + " ... skipped '",
        "test_a (" + "a." * 900 + ")",
        "skipped '" * 200,
        "\x1b[" * 900,
        "\x1b]" * 900,
        "1 passed, " * 180,
        "=" * 1900,
        "- generated xml file: " + "/reports-a" * 180,
        "FAIL: a (" + "a." * 900,
        "failures=1, " * 150,
    ],
)
@pytest.mark.timeout(20)
def test_a_megabyte_of_lines_is_read_in_time(line: str) -> None:
    text = f"{line}\n" * (1_000_000 // len(line))
    with_cases(command(output=text), AskedCommand("x", "cargo"), "x")
    with_cases(command(output=text), AskedCommand("x", "unittest"), "x")
    with_cases(command(output=text, collected={"reports/pytest.xml": junit()}), AskedCommand("x", "pytest"), "x")
    case_name(text)
