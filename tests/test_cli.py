"""The ``necrocode`` command: what it prints, and the exit codes."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from necrocode import __version__
from necrocode.agent_runner import ErrorDetails, LocalTaskRegistry, Progress, RunnerResult
from necrocode.cli import main
from necrocode.cli.run import ProgressDisplay
from tests.support.http_server import Answer, serving
from tests.support.model_server import as_files, model_server
from tests.support.repositories import CALC_TEST_COMMAND, FIXED_CALC, commit_files, git

GOOD = as_files({"calc.py": FIXED_CALC})
BRANCH = "feature/task-calc-1.1-mend-add"


class Bench:
    """A task file, and the command run in this process."""

    def __init__(self, folder: Path, repository: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
        self.folder = folder
        self.repository = repository
        self._capture = capsysbinary
        self.out = b""
        self.err = ""

    def task_file(self, **changes: Any) -> Path:
        task = {
            "task_id": "1.1",
            "spec_name": "calc",
            "title": "Mend add",
            "description": "add() subtracts.",
            "acceptance_criteria": ["add adds"],
            "repo_url": str(self.repository),
            "test_commands": [CALC_TEST_COMMAND],
        }
        file = self.folder / "task.yaml"
        values = {key: value for key, value in (task | changes).items() if value is not None}
        file.write_text(yaml.safe_dump(values, allow_unicode=True), encoding="utf-8")
        return file

    def run(self, *arguments: str, **changes: Any) -> int:
        code = main(["run", str(self.task_file(**changes)), *arguments])
        captured = self._capture.readouterr()
        self.out, self.err = captured.out, captured.err.decode()
        return code

    @property
    def result(self) -> RunnerResult:
        return RunnerResult.model_validate_json(self.out)


@pytest.fixture
def bench(
    tmp_path: Path, repository: Path, capsysbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> Bench:
    monkeypatch.setenv("NECROCODE_STATE_DIR", str(tmp_path / "state"))
    return Bench(tmp_path, repository, capsysbinary)


@pytest.fixture
def good_model(monkeypatch: pytest.MonkeyPatch) -> Any:
    with model_server(GOOD) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", f"{server.url}/v1")
        yield server


def use(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", f"{url}/v1")


# --- a task that goes well


def test_a_delivered_task_is_summed_up_and_exits_0(bench: Bench, good_model: Any) -> None:
    assert bench.run() == 0
    lines = bench.out.decode().splitlines()
    assert lines[0].startswith("done: task 1.1 of calc in ")
    assert lines[1] == f"branch     {BRANCH} in {bench.repository}"
    assert any(line.startswith("log        file:///") for line in lines)
    assert "tests      passed (1 fixed)" in lines
    assert re.fullmatch(r"model      1 call, .*\d+ tokens of prompts and \d+ of answers, no price is known", lines[5])
    steps = [line.split()[1] for line in bench.err.splitlines()]
    assert steps == ["prepare", "allocate", "examine", "generate", "apply", "test", "deliver", "upload", "report"]
    assert len(good_model.requests) == 1


@pytest.mark.usefixtures("good_model")
def test_a_delivery_that_nothing_tested_says_so(bench: Bench, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("detect_tests: false\n")
    assert bench.run("--config", str(config), "--no-push", test_commands=None) == 0
    lines = bench.out.decode().splitlines()
    assert "tests      not tested" in lines
    assert "warning    Nothing is tested: the task names no test commands, and detect_tests is off." in lines


def test_each_answer_is_told_by_what_it_was_an_answer_to(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    with model_server(iter(["rubbish", GOOD]).__next__) as server:
        use(monkeypatch, server.url)
        assert bench.run("--no-push") == 0
    lines = bench.out.decode().splitlines()
    assert [line[:11] for line in lines if " accepted" in line or " unusable" in line] == ["answer 1   ", "repair 1   "]


@pytest.mark.usefixtures("good_model")
def test_json_prints_the_result_alone_on_standard_output(bench: Bench) -> None:
    assert bench.run("--json", title="足し算を直す") == 0
    assert bench.result.success
    assert bench.result.branch == "feature/task-calc-1.1-足し算を直す"
    assert "足し算" in bench.out.decode("utf-8")


@pytest.mark.usefixtures("good_model")
def test_quiet_shows_no_progress_and_verbose_shows_the_log(bench: Bench) -> None:
    bench.run("--quiet")
    assert bench.err == ""


def test_model_and_push_can_be_chosen_on_the_command_line(bench: Bench, good_model: Any) -> None:
    assert bench.run("--json", "--no-push", "--model", "special") == 0
    assert good_model.requests[0].json["model"] == "special"
    assert bench.result.push_result is not None
    assert not bench.result.push_result.pushed
    assert git(bench.repository, "branch", "--list", BRANCH) == ""


def test_settings_come_from_the_config_file_and_the_environment_overrides_them(
    bench: Bench, good_model: Any, tmp_path: Path
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(
        "execution_mode: local-process\nrunner_id: runner-7\nstate_dir: /nonexistent/state\n"
        "llm:\n  model: from-file\n  endpoint: http://127.0.0.1:9/v1\n"
    )
    assert bench.run("--json", "--config", str(config)) == 0
    assert bench.result.runner_id == "runner-7"
    assert good_model.requests[0].json["model"] == "from-file"


@pytest.mark.usefixtures("good_model")
def test_relative_paths_in_a_task_file_start_at_its_folder(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert bench.run(repo_url="./repo") == 0
    assert bench.run(repo_url=None, slot_path="repo", branch_name="feature/x") == 0


# --- exit code 1: the task failed


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("calc.py\n```\nnonsense\n```\n", "The tests failed"),
        ("I would rather not.", "holds no change"),
        ("../evil\n```\nx\n```\n", "path is refused"),
    ],
)
def test_a_failed_task_exits_1_and_says_why(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, answer: str, words: str
) -> None:
    with model_server(answer) as server:
        use(monkeypatch, server.url)
        assert bench.run() == 1
    assert words in bench.err.splitlines()[-1]
    assert bench.out.decode().startswith("failed: task 1.1")


@pytest.mark.usefixtures("good_model")
def test_a_branch_that_is_somebody_elses_exits_1(bench: Bench) -> None:
    git(bench.repository, "checkout", "--quiet", "-b", BRANCH)
    commit_files(bench.repository, {"theirs.txt": "x"})
    git(bench.repository, "checkout", "--quiet", "main")
    assert bench.run() == 1
    assert "did not make" in bench.err


# --- exit code 2: bad input


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"task_id": None}, "task_id is missing"),
        ({"spec_name": None}, "spec_name is missing"),
        ({"title": None}, "title is missing"),
        ({"description": None}, "description is missing"),
        ({"repo_url": None}, "either repo_url"),
        ({"task_id": 1.1}, "must be text: put it in quotes"),
        ({"task_id": "../x"}, "task_id: must be 1 to 128 letters"),
        ({"spec_name": "a/b"}, "spec_name: must be 1 to 128 letters"),
        ({"title": ""}, "title:"),
        ({"title": "two\nlines"}, "title: must be one line"),
        ({"acceptance_criteria": "one"}, "acceptance_criteria:"),
        ({"branch_name": "a..b"}, "branch_name:"),
        ({"base_ref": "--upload-pack=x"}, "base_ref:"),
        ({"repo_url": "ext::sh -c whoami"}, "repo_url:"),
        ({"repo_url": "https://user:secret@host/x.git"}, "use GIT_TOKEN"),
        ({"slot_id": "s"}, "slot_id names a checkout"),
        ({"timeout_seconds": 0}, "timeout_seconds:"),
        ({"timeout_seconds": "soon"}, "timeout_seconds:"),
        ({"max_tokens": -1}, "max_tokens:"),
        ({"related_files": ["/etc/passwd"]}, "related_files:"),
        ({"test_commands": [""]}, "test_commands:"),
        ({"fail_fast": "perhaps"}, "fail_fast:"),
        ({"descripton": "x"}, "did you mean 'description'?"),
        ({"repo_url": "./nowhere"}, "There is no repository at"),
        ({"base_ref": "nowhere"}, "has no branch, tag or commit 'nowhere'"),
        ({"playbook_path": "nowhere.yaml"}, "Cannot read the playbook"),
    ],
)
def test_bad_input_exits_2_with_one_line_that_names_it(
    bench: Bench, good_model: Any, changes: dict[str, Any], words: str
) -> None:
    assert bench.run("--quiet", **changes) == 2
    (line,) = bench.err.splitlines()
    assert line.startswith("necrocode: ")
    assert words in line
    assert "secret" not in line
    assert good_model.requests == []


@pytest.mark.usefixtures("good_model")
def test_bad_input_is_json_where_json_is_asked_for(bench: Bench) -> None:
    assert bench.run("--json", title=None) == 2
    said = json.loads(bench.out)
    assert said["success"] is False
    assert said["error_details"]["type"] == "TaskContextValidationError"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("modle: x\n", "unknown key 'modle'"),
        ("llm:\n  modle: x\n", "did you mean 'model'?"),
        ("llm: 3\n", "llm must be a mapping"),
        ("task_registry_url: localhost:8001\n", "must be a URL such as http://localhost:8001"),
        ("execution_mode: docker\n", "execution_mode"),
        ("network_retry_count: -1\n", "network_retry_count"),
        ("commit_message: '{nope}'\n", "may only use {task_id}"),
        ("a: 1\na: 2\n", "given twice"),
        ("- a\n", "must hold a mapping"),
        ("a: [\n", "not valid YAML"),
        ("git_token: hunter2 hunter2\n", "git_token: must be one word"),
    ],
)
def test_a_bad_config_exits_2(bench: Bench, tmp_path: Path, content: str, words: str) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(content)
    assert bench.run("--config", str(config)) == 2
    assert words in bench.err
    assert "hunter2" not in bench.err


def test_files_that_cannot_be_read_exit_2(
    bench: Bench, tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    assert bench.run("--config", str(tmp_path / "none.yaml")) == 2
    assert "No such file" in bench.err
    (tmp_path / "latin.yaml").write_bytes(b"title: \xff\n")
    assert main(["run", str(tmp_path / "latin.yaml")]) == 2
    assert b"not UTF-8" in capsysbinary.readouterr().err


def test_no_key_for_openai_exits_2_before_anything_is_done(bench: Bench) -> None:
    assert bench.run("--quiet", "--json") == 2
    assert "Set OPENAI_API_KEY" in bench.err
    assert "allocate" not in bench.result.timings


@pytest.mark.parametrize("arguments", [["--json"], ["run", "--json"], ["run", "t.yaml", "--json", "--fast"]])
def test_a_wrong_command_line_that_asks_for_json_gets_an_object(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    captured = capsys.readouterr()
    said = json.loads(captured.out)
    assert (said["success"], said["status"], said["error_details"]["type"]) == (False, "failed", "ConfigurationError")
    assert set(said["error_details"]) == set(ErrorDetails.model_fields)
    assert said["error"] in captured.err.replace(": error", "")


@pytest.mark.parametrize("arguments", [[], ["run"], ["fly"], ["run", "t.yaml", "--fast"]])
def test_a_wrong_command_line_exits_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2


@pytest.mark.usefixtures("good_model")
def test_a_checkout_that_cannot_be_used_exits_2(bench: Bench, tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        assert bench.run("--json", repo_url=None, slot_path=str(path)) == 2
        assert bench.result.error_details is not None
        assert bench.result.error_details.type == "UnusableCheckoutError"
    (bench.repository / "calc.py").write_text("work in progress")
    assert bench.run(repo_url=None, slot_path=str(bench.repository)) == 2
    assert "calc.py. Commit or stash them" in bench.err


# --- exit code 3: something is not available


@pytest.mark.usefixtures("good_model")
def test_a_state_folder_that_cannot_be_used_exits_3(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NECROCODE_STATE_DIR", "/proc/none")
    assert bench.run() == 3


@pytest.mark.usefixtures("good_model")
def test_a_repository_host_that_cannot_be_reached_exits_3(bench: Bench) -> None:
    assert bench.run("--json", repo_url="https://127.0.0.1:1/x/y.git") == 3
    assert bench.result.error_details is not None
    assert bench.result.error_details.retryable


def test_an_unreachable_model_exits_3(bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("llm:\n  retry_count: 0\n")
    use(monkeypatch, "http://127.0.0.1:9")
    assert bench.run("--json", "--config", str(config)) == 3
    assert "Failed to connect to http://127.0.0.1:9/v1 (model endpoint): is it running? try: curl" in bench.err
    assert bench.result.error_details is not None
    assert bench.result.error_details.step == "generate"


def test_a_wrong_key_exits_3(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving([Answer(401, {"error": {"message": "Incorrect API key provided"}})]) as server:
        use(monkeypatch, server.url)
        assert bench.run() == 3
    assert "Invalid API key for" in bench.err


@pytest.mark.parametrize("variable", ["TASK_REGISTRY_URL", "REPO_POOL_URL", "ARTIFACT_STORE_URL"])
def test_an_unreachable_service_exits_3_and_no_answer_is_paid_for(
    bench: Bench, good_model: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variable: str
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("network_retry_count: 0\n")
    monkeypatch.setenv(variable, "http://127.0.0.1:9")
    assert bench.run("--config", str(config)) == 3
    assert "Failed to connect to http://127.0.0.1:9 (" in bench.err
    assert good_model.requests == []


# --- the command itself


def test_the_module_is_the_command(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "necrocode", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"necrocode {__version__}\n"
    ascii_only = {**os.environ, "PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    (tmp_path / "t.yaml").write_text("title: 日本\n", encoding="utf-8")
    command = [sys.executable, "-m", "necrocode", "run", str(tmp_path / "t.yaml"), "--json"]
    refused = subprocess.run(command, capture_output=True, check=False, env=ascii_only)
    assert refused.returncode == 2
    json.loads(refused.stdout)


def test_help_states_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["run", "--help"])
    assert caught.value.code == 0
    assert "143  ended by SIGTERM" in capsys.readouterr().out


# --- streams of which the outcome must not depend


@pytest.mark.usefixtures("good_model")
@pytest.mark.parametrize(
    "redirection",
    ["2>/dev/full", "2>&-", ">/dev/full", ">&-", "2>&1 | head -1", "2> >(head -1 >/dev/null)"],
)
def test_a_closed_or_full_stream_changes_nothing_about_the_run(bench: Bench, redirection: str) -> None:
    command = f"{sys.executable} -m necrocode run {bench.task_file()} --json {redirection}"
    shell = ["bash", "-c", f"set -o pipefail; {command}; exit $?"]
    done = subprocess.run(shell, capture_output=True, text=True, check=False, env=os.environ)
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    assert git(bench.repository, "branch", "--list", BRANCH) != ""
    with LocalTaskRegistry(f"sqlite:///{bench.folder / 'state' / 'registry.db'}") as registry:
        assert registry.get_task("1.1").status == "done"
    if redirection == ">/dev/full":
        assert "cannot write the result: No space left on device" in done.stderr


# --- progress


@pytest.mark.usefixtures("good_model")
def test_tests_that_fail_are_shown_as_failed(bench: Bench) -> None:
    assert bench.run(test_commands=["echo broken; exit 3"]) == 1
    (line,) = (line for line in bench.err.splitlines() if " test " in line)
    assert line.startswith("  FAILED test ")
    assert line.endswith("exited with 3: broken")


class Terminal(io.StringIO):
    """A stream that says it is a terminal with few characters."""

    encoding = "ascii"

    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_the_step_under_way_and_then_its_outcome() -> None:
    stream = Terminal()
    display = ProgressDisplay(stream, is_silent=False)
    display.show(Progress("generate"))
    display.show(Progress("generate", 1.5, None, "日本 done"))
    display.show(Progress("test"))
    display.show(Progress("test", 0.1, "broken"))
    assert stream.getvalue().split("\r") == [
        "  ....   generate ",
        "  ok     generate     1.50 s  ?? done\n  ....   test     ",
        "  FAILED test         0.10 s  broken\n",
    ]


def test_the_display_passes_on_no_escapes_and_no_floods() -> None:
    stream = io.StringIO()
    ProgressDisplay(stream, is_silent=False).show(Progress("test", 0.1, "\x1b[2J\x1b]0;pwn\x07" + "x" * 1_000_000))
    assert "\x1b" not in stream.getvalue()
    assert "\\x1b[2J" in stream.getvalue()
    assert len(stream.getvalue()) < 5000


@pytest.mark.usefixtures("good_model")
def test_what_the_tests_wrote_reaches_the_terminal_without_its_escapes(bench: Bench) -> None:
    assert bench.run(test_commands=[r"printf '\033[2J\033]0;pwn\007 \302\233 \342\200\256end\n'; exit 1"]) == 1
    assert "\\x1b[2J\\x1b]0;pwn\\x07" in bench.err
    assert not set(bench.err + bench.out.decode()) & set("\x1b\x07\x9b\u202e")
    assert bench.run("--json", test_commands=[r"printf '\033[2J\n'; exit 1"]) == 1
    assert bench.result.test_result is not None
    assert bench.result.test_result.commands[0].output == "\x1b[2J\n"
    assert "\x1b" not in (bench.result.error or "")


@pytest.mark.usefixtures("good_model")
def test_what_the_tests_wrote_is_no_command_of_a_ci_system(bench: Bench) -> None:
    command = r"printf '::set-output name=a::b\n##vso[task.setvariable variable=x]y\n'; exit 1"
    for options in ((), ("--json",), ("--verbose",)):
        assert bench.run(*options, test_commands=[command]) == 1
        for line in (bench.err + bench.out.decode()).splitlines():
            assert not line.lstrip().startswith("::")
            assert "##vso[" not in line
