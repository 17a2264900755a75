"""``necrocode migrate``: what it prints, what it writes, and the exit codes."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from necrocode.agent_runner import RunnerConfig, removed
from necrocode.cli import main
from necrocode.cli import run as cli_run

SECRET = "made-up-s3cr3t"
OLD = "# mine\nmessage_bus_url: http://localhost:5000\nkiro_url: http://localhost:6000\n"
NEW = (
    "# mine\ntask_registry_url: http://localhost:8001\nrepo_pool_url: http://localhost:8002\n"
    "artifact_store_url: http://localhost:8003\nllm:\n  model: gpt-4\n  timeout_seconds: 120\n"
)
CODE = "from necrocode.agent_runner import RunnerConfig\nconfig = RunnerConfig(message_bus_url='http://b', push=True)\n"


def names(folder: str = ".") -> list[str]:
    return sorted(path.name for path in Path(folder).iterdir())


class Bench:
    """The command, run in this process in a folder of its own."""

    def __init__(self, capture: pytest.CaptureFixture[str]) -> None:
        self._capture = capture
        self.out = ""
        self.err = ""

    def run(self, *arguments: str) -> int:
        code = main(["migrate", *arguments])
        self.out, self.err = self._capture.readouterr()
        assert SECRET not in self.out + self.err
        return code


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Bench:
    monkeypatch.chdir(tmp_path)
    Path("config.old.yaml").write_text(OLD, encoding="utf-8")
    return Bench(capsys)


# ---- config


def test_the_new_settings_go_to_standard_output_and_the_reasons_to_standard_error(bench: Bench) -> None:
    assert bench.run("config", "config.old.yaml") == 0
    assert bench.out == NEW
    assert "config.old.yaml:2: message_bus_url becomes task_registry_url" in bench.err
    assert "config.old.yaml:3: kiro_url becomes llm" in bench.err
    assert bench.err.count('See "Step 2: The configuration file" in MIGRATION.md.') == 2
    assert Path("config.old.yaml").read_text(encoding="utf-8") == OLD


def test_an_output_is_written_whole_and_loads(bench: Bench) -> None:
    Path("config.old.yaml").chmod(0o600)
    assert bench.run("config", "config.old.yaml", "-o", "config.yaml") == 0
    assert (bench.out, Path("config.yaml").read_text(encoding="utf-8")) == ("", NEW)
    assert Path("config.yaml").stat().st_mode & 0o777 == 0o600
    assert RunnerConfig.from_yaml("config.yaml", environ={}).repo_pool_url == "http://localhost:8002"
    assert names() == ["config.old.yaml", "config.yaml"]
    assert "wrote config.yaml" in bench.err


def test_an_output_that_is_there_is_left_alone_without_force(bench: Bench) -> None:
    Path("config.yaml").write_text("pool_size: 9\n", encoding="utf-8")
    assert bench.run("config", "config.old.yaml", "-o", "config.yaml") == 2
    assert "config.yaml is there already" in bench.err
    assert "--force" in bench.err
    assert Path("config.yaml").read_text(encoding="utf-8") == "pool_size: 9\n"
    assert bench.run("config", "config.old.yaml", "-o", "config.yaml", "--force") == 0
    assert bench.run("config", "config.old.yaml", "-o", "config.yaml") == 0  # it holds just that
    assert Path("config.yaml").read_text(encoding="utf-8") == NEW


def test_a_file_can_be_rewritten_in_place_through_a_link(bench: Bench) -> None:
    Path("link.yaml").symlink_to("config.old.yaml")
    assert bench.run("config", "link.yaml", "-o", "link.yaml") == 2
    assert bench.run("config", "link.yaml", "-o", "link.yaml", "--force") == 0
    assert Path("link.yaml").is_symlink()
    assert Path("config.old.yaml").read_text(encoding="utf-8") == NEW


def test_check_says_what_would_change_and_writes_nothing(bench: Bench) -> None:
    assert bench.run("config", "config.old.yaml", "--check", "-o", "config.yaml") == 1
    assert bench.out == ""
    assert "message_bus_url becomes" in bench.err
    assert names() == ["config.old.yaml"]
    Path("new.yaml").write_text(NEW, encoding="utf-8")
    assert bench.run("config", "new.yaml", "--check") == 0
    assert bench.err == "new.yaml: nothing to change\n"


def test_what_is_left_is_listed_and_the_exit_code_says_so(bench: Bench) -> None:
    Path("odd.yaml").write_text(f"{OLD}log_level: {SECRET}\nkiro_api_key: {SECRET}\n", encoding="utf-8")
    assert bench.run("config", "odd.yaml", "-o", "config.yaml") == 1
    assert "left for you:\nodd.yaml:4: log_level is unknown\n" in bench.err
    assert "log_level" in Path("config.yaml").read_text(encoding="utf-8")
    assert bench.run("config", "odd.yaml", "--check") == 1


def test_embedded_writes_no_urls(bench: Bench) -> None:
    assert bench.run("config", "config.old.yaml", "--embedded") == 0
    assert bench.out == "# mine\nllm:\n  model: gpt-4\n  timeout_seconds: 120\n"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("gone.yaml", None, "Cannot read gone.yaml: No such file"), ("list.yaml", b"- a\n", "must hold a mapping"),
        ("large.yaml", b"#" * 5_000_000, "larger than 1000000 bytes"), ("a\0b", None, "Cannot read"),
        ("broken.yaml", f"git_token: '{SECRET}\n".encode(), "not valid YAML"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_an_error(bench: Bench, name: str, content: bytes | None, words: str) -> None:
    if content is not None:
        Path(name).write_bytes(content)
    assert bench.run("config", name, "-o", "config.yaml") == 2
    assert bench.err.startswith("necrocode: ")
    assert words in bench.err
    assert not Path("config.yaml").exists()


@pytest.mark.parametrize("target", [".", "nosuch/config.yaml", "config.old.yaml/x"])
def test_what_cannot_be_written_is_an_error(bench: Bench, target: str) -> None:
    assert bench.run("config", "config.old.yaml", "--force", "-o", target) == 2
    assert f"Cannot write {target}" in bench.err
    assert names() == ["config.old.yaml"]


# ---- env


def test_env_prints_lines_for_the_shell(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MESSAGE_BUS_URL", f"http://u:{SECRET}@bus:1")
    monkeypatch.setenv("GIT_TOKEN", SECRET)
    assert bench.run("env") == 0
    assert "export TASK_REGISTRY_URL=http://bus:8001\n" in bench.out
    assert bench.run("env", "--shell", "fish", "--embedded") == 0
    assert "set -e MESSAGE_BUS_URL\n" in bench.out
    assert "8001" not in bench.out
    assert bench.err == ""


@pytest.mark.parametrize(("name", "value"), [("MESSAGE_BUS_URL", "http://"), ("KIRO_MODEL", "m"), ("KIRO_URL", "x")])
def test_env_says_by_its_exit_code_that_something_is_left(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv(name, value)
    assert bench.run("env") == 1
    assert f"unset {name}\n" in bench.out


# ---- code


@pytest.fixture
def source(bench: Bench) -> Path:
    del bench
    Path("src").mkdir()
    file = Path("src/app.py")
    file.write_bytes(CODE.encode())
    file.chmod(0o755)
    return file


def test_code_shows_a_diff_and_writes_nothing(bench: Bench, source: Path) -> None:
    assert bench.run("code", "src") == 1
    assert "--- a/src/app.py\n+++ b/src/app.py\n@@" in bench.out
    assert "+config = RunnerConfig(task_registry_url='http://b:8001'" in bench.out
    assert source.read_bytes() == CODE.encode()


def test_code_writes_what_is_safe(bench: Bench, source: Path) -> None:
    assert bench.run("code", "src", "--write") == 0
    assert bench.out == ""
    assert "rewrote src/app.py" in bench.err
    assert b"task_registry_url='http://b:8001'" in source.read_bytes()
    assert source.stat().st_mode & 0o777 == 0o755
    assert bench.run("code", "src") == 0
    assert bench.err == "nothing is left to change\n"
    assert names("src") == ["app.py"]


def test_code_lists_what_a_person_must_change(bench: Bench, source: Path) -> None:
    source.write_text("from necrocode import KiroClient\nkiro = KiroClient()\nkiro.ask()\n", encoding="utf-8")
    assert bench.run("code", "src", "--write") == 1
    assert bench.out.splitlines() == [
        'src/app.py:1: import of KiroClient; see "Removed components" in MIGRATION.md',
        'src/app.py:2: use of KiroClient; see "Removed components" in MIGRATION.md',
        'src/app.py:3: call of kiro.ask() on a KiroClient; see "Example 2: Run a task" in MIGRATION.md',
    ]


@pytest.mark.usefixtures("source")
def test_code_tells_of_files_that_it_skips(bench: Bench) -> None:
    Path("src/broken.py").write_text("x = (  # KiroClient\n", encoding="utf-8")
    assert bench.run("code", "src/broken.py") == 1
    assert bench.err.startswith("src/broken.py: skipped, for it is not Python 3.")


@pytest.mark.parametrize("name", ["a.py", "z.py"])
def test_code_that_is_not_text_is_skipped_and_the_other_files_are_done(bench: Bench, source: Path, name: str) -> None:
    odd = Path("src", name)
    odd.write_bytes(b"# \xff\nfrom necrocode.agent_runner import KiroClient\nKiroClient()\n")
    assert bench.run("code", "src", "--write") == 1
    assert f"src/{name}: skipped, for its bytes are not text" in bench.err
    assert "rewrote src/app.py" in bench.err
    assert b"task_registry_url" in source.read_bytes()
    assert odd.read_bytes().startswith(b"# \xff")


def test_code_that_cannot_be_written_is_left_and_the_other_files_are_rewritten(bench: Bench, source: Path) -> None:
    large = Path("src/a.py")
    large.write_bytes(CODE.encode() + b"#" * 5000)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, limits[1]))
    try:
        assert bench.run("code", "src", "--write") == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "necrocode: Cannot write src/a.py: File too large.\nrewrote src/app.py\n" in bench.err
    assert "nothing is left" not in bench.err
    assert large.read_bytes() == CODE.encode() + b"#" * 5000
    assert b"task_registry_url" in source.read_bytes()
    assert names("src") == ["a.py", "app.py"]


def test_code_of_a_path_that_is_not_there_is_an_error(bench: Bench) -> None:
    assert bench.run("code", "nosuch") == 2
    assert bench.err == "necrocode: There is no nosuch.\n"


# ---- all of them


@pytest.mark.parametrize(("module", "what"), [("ruamel", ["config", "x.yaml"]), ("libcst", ["code", "."])])
def test_without_the_extra_the_command_says_how_to_install_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, module: str, what: list[str]
) -> None:
    for name in [name for name in sys.modules if name.startswith(("ruamel", "libcst", "necrocode.migration."))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    assert bench.run(*what) == 2
    assert "pip install 'necrocode[cli]'" in bench.err


def test_the_help_says_the_exit_codes(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    del bench
    for action in ("config", "env", "code"):
        with pytest.raises(SystemExit):
            main(["migrate", action, "--help"])
        shown = capsys.readouterr().out
        assert "exit codes:\n  0 " in shown
        assert "\n  1 " in shown


@pytest.mark.parametrize("arguments", [["migrate"], ["migrate", "config"], ["migrate", "code"]])
def test_a_wrong_command_line_is_bad_input(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: necrocode migrate" in capsys.readouterr().err


def test_other_commands_warn_of_old_variables_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KIRO_URL", f"http://{SECRET}")
    monkeypatch.setenv("NECROCODE_STATE_DIR", str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-m", "necrocode", "registry", "graph", "x"], capture_output=True, text=True, check=False
    )
    assert done.returncode == cli_run.EXIT_BAD_INPUT
    assert done.stderr.count("KIRO_URL") == 1
    assert done.stderr.startswith("necrocode: warning: The variable KIRO_URL is set, but nothing reads it any more")
    assert SECRET not in done.stderr


def test_migrate_itself_does_not_warn(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(removed, "_told", set())
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("KIRO_URL", "x")
    assert bench.run("env") == 1
    assert bench.err == ""
