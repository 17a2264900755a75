"""``necrocode registry``: what it prints, and the exit codes, against embedded and served registries."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from necrocode.agent_runner import LocalTaskRegistry, Spending, SpendingLimits
from necrocode.cli import main
from necrocode.services._app import create_app
from necrocode.services.task_registry import task_registry_service
from tests.support.postgres import empty_database
from tests.support.served import served
from tests.support.shared import shared_folder

TEXT = """\
- [ ] 1. グループ
- [x] 1.1 First
- [ ] 1.2 Second
  - _Depends: 1.1_
- [ ] 2. Alone
"""
TOKEN = "a-token-for-tests"


class Bench:
    """A spec, a registry that can be looked into, and the command run in this process."""

    def __init__(
        self, folder: Path, url: str, registry: LocalTaskRegistry, capture: pytest.CaptureFixture[bytes]
    ) -> None:
        self.folder = folder / ".kiro" / "specs" / "chat"
        self.folder.mkdir(parents=True)
        self.tasks = self.folder / "tasks.md"
        self.tasks.write_text(TEXT)
        self.url = url
        self.registry = registry
        self._capture = capture
        self.out = ""
        self.err = ""

    def run(self, *arguments: str | Path) -> int:
        code = main(["registry", *map(str, arguments)])
        captured = self._capture.readouterr()
        self.out, self.err = captured.out.decode(), captured.err.decode()
        return code

    def states(self) -> dict[str, str]:
        return {task.task_id: task.status for task in self.registry.list_tasks(spec_name="chat")}


@pytest.fixture(params=["embedded", "sqlite", "postgresql", "http"])
def bench(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    capsysbinary: pytest.CaptureFixture[bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Bench]:
    """The URL comes by ``--registry``, by the environment, or not at all."""
    monkeypatch.setenv("NECROCODE_STATE_DIR", str(tmp_path / "state"))
    if request.param == "embedded":
        with LocalTaskRegistry(f"sqlite:///{tmp_path / 'state' / 'registry.db'}") as registry:
            yield Bench(tmp_path, "", registry, capsysbinary)
    elif request.param == "postgresql":
        with empty_database() as url, LocalTaskRegistry(url) as registry:
            monkeypatch.setenv("TASK_REGISTRY_URL", url)
            yield Bench(tmp_path, "", registry, capsysbinary)
    else:
        url = f"sqlite:///{tmp_path / 'other.db'}"
        with LocalTaskRegistry(url) as registry:
            if request.param == "sqlite":
                yield Bench(tmp_path, url, registry, capsysbinary)
                return
            monkeypatch.setenv("NECROCODE_SERVICE_TOKEN", TOKEN)
            with served(create_app(task_registry_service(registry), token=TOKEN)) as served_url:
                yield Bench(tmp_path, served_url, registry, capsysbinary)


def at(bench: Bench) -> list[str]:
    return ["--registry", bench.url] if bench.url else []


def test_a_spec_goes_into_the_registry_and_its_progress_comes_back(bench: Bench) -> None:
    assert bench.run("import", bench.folder, *at(bench)) == 0
    assert bench.out.splitlines() == [
        "new      1.1 First",
        "new      1.2 Second",
        "new      2 Alone",
        "done     1.1 First (ticked by hand)",
        "chat: 3 tasks",
    ]
    assert bench.states() == {"1.1": "done", "1.2": "ready", "2": "ready"}
    assert bench.tasks.read_text() == TEXT
    assert bench.run("import", bench.tasks, *at(bench)) == 0
    assert bench.out == "chat: 3 tasks, nothing to do\n"

    bench.registry.update_task_status("1.2", "running", spec_name="chat")
    bench.registry.update_task_status("1.2", "done", spec_name="chat")
    bench.tasks.write_text(TEXT.replace("[ ] 2.", "[x] 2."))
    assert bench.run("sync", bench.folder, "--dry-run", *at(bench)) == 0
    told = ["done     2 Alone (ticked by hand)", "box      1 [ ] -> [x] グループ", "box      1.2 [ ] -> [x] Second"]
    assert bench.out.splitlines() == [*told, "chat: 3 tasks, nothing was done: --dry-run"]
    assert bench.states()["2"] == "ready"
    assert bench.tasks.read_text() == TEXT.replace("[ ] 2.", "[x] 2.")
    assert bench.run("sync", bench.folder, *at(bench)) == 0
    assert bench.out.splitlines() == [*told, "chat: 3 tasks"]
    assert bench.states() == {"1.1": "done", "1.2": "done", "2": "done"}
    assert bench.tasks.read_text() == TEXT.replace("[ ]", "[x]")
    assert bench.run("sync", bench.folder, *at(bench)) == 0
    assert bench.out == "chat: 3 tasks, nothing to do\n"


def test_a_tick_that_the_registry_took_back_is_remembered_from_the_import(bench: Bench) -> None:
    bench.run("import", bench.folder, *at(bench))
    task = bench.registry.get_taskset("chat").tasks[0]
    from necrocode.agent_runner.records import TaskDefinition  # noqa: PLC0415

    bench.registry.put_task(TaskDefinition(task_id=task.task_id, title=task.title), spec_name="chat")
    bench.run("import", bench.folder, *at(bench))
    assert bench.states()["1.1"] == "ready"
    bench.run("sync", bench.folder, *at(bench))
    assert bench.states()["1.1"] == "ready"
    assert bench.tasks.read_text() == TEXT.replace("[x]", "[ ]")


def test_a_task_that_left_the_file_leaves_the_registry(bench: Bench) -> None:
    bench.run("import", bench.folder, *at(bench))
    bench.tasks.write_text(TEXT.replace("- [ ] 2. Alone\n", ""))
    assert bench.run("sync", bench.folder, *at(bench)) == 0
    assert bench.out.splitlines() == ["removed  2", "box      1 [ ] -> [-] グループ", "chat: 2 tasks"]
    assert set(bench.states()) == {"1.1", "1.2"}


def test_the_shared_spec_is_imported_under_another_name_and_drawn(bench: Bench) -> None:
    folder = shared_folder("specs/chat-app")
    before = (folder / "tasks.md").read_bytes()
    assert bench.run("import", folder, "--spec", "会話", *at(bench)) == 0
    assert bench.out.splitlines()[-1] == "会話: 8 tasks"
    assert (folder / "tasks.md").read_bytes() == before
    assert bench.run("graph", "会話", *at(bench)) == 0
    assert bench.out.splitlines()[:2] == ["flowchart LR", '  n0["1.1 データベーススキーマの実装"]:::ready']
    assert bench.run("graph", "会話", "--format", "json", *at(bench)) == 0
    graph = json.loads(bench.out)
    assert {"source": "1.2", "target": "3.1"} in graph["edges"]
    assert bench.run("graph", "会話", "--format", "dot", *at(bench)) == 0
    assert bench.out.startswith('digraph "会話" {')


def test_a_title_commands_no_terminal(bench: Bench) -> None:
    bench.tasks.write_text("- [ ] 1 \x1b[2J\x9bgone\n")
    assert bench.run("import", bench.folder, *at(bench)) == 0
    assert bench.out.splitlines()[0] == "new      1 \\x1b[2J\\x9bgone"


def test_a_spec_that_the_registry_does_not_have_is_bad_input(bench: Bench) -> None:
    assert bench.run("graph", "none", *at(bench)) == 2
    assert "none" in bench.err


def test_a_bad_file_is_bad_input_and_names_the_line(bench: Bench) -> None:
    bench.tasks.write_text("- [ ] Title\n")
    for action in ("import", "sync"):
        assert bench.run(action, bench.folder, *at(bench)) == 2
        assert bench.err.startswith(f"necrocode: {bench.tasks}:1: the task 'Title' has no number")
        assert bench.out == ""


def test_the_memory_of_a_registry_holds_no_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    monkeypatch.setenv("NECROCODE_STATE_DIR", str(tmp_path / "state"))
    with empty_database() as url, LocalTaskRegistry(url) as registry:
        bench = Bench(tmp_path, url.replace("postgres:@", "postgres:hidden@"), registry, capsysbinary)
        assert bench.run("import", bench.folder, *at(bench)) == 0
        (memory,) = (tmp_path / "state" / "specs").iterdir()
        assert "hidden" not in memory.read_text()


def test_a_registry_that_does_not_answer_is_unavailable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    monkeypatch.setenv("NECROCODE_STATE_DIR", str(tmp_path / "file"))
    (tmp_path / "file").write_text("")
    with LocalTaskRegistry(f"sqlite:///{tmp_path / 'x.db'}") as registry:
        bench = Bench(tmp_path, "", registry, capsysbinary)
        assert bench.run("graph", "chat") == 3
        assert bench.err.startswith("necrocode: ")


# --- the database


@pytest.fixture
def local(
    tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Bench]:
    monkeypatch.setenv("NECROCODE_STATE_DIR", str(tmp_path / "state"))
    with LocalTaskRegistry(f"sqlite:///{tmp_path / 'state' / 'registry.db'}") as registry:
        bench = Bench(tmp_path, "", registry, capsysbinary)
        bench.run("import", bench.folder)
        yield bench


def test_a_backup_is_written_verified_and_restored(local: Bench, tmp_path: Path) -> None:
    file, other = tmp_path / "b.gz", f"sqlite:///{tmp_path / 'new.db'}"
    counts = "1 specs, 3 tasks, 1 dependencies, 1 events, 0 artifacts, 0 budgets, 0 budget_reservations"
    assert local.run("backup", file) == 0
    assert local.out == f"wrote {file}, and read it again: {counts}\n"
    assert local.run("verify", file) == 0
    assert local.out.endswith(f" is whole: {counts}\n")
    assert local.run("restore", file, "--registry", other) == 0
    assert local.out.endswith(f": {counts}\n")
    assert local.run("restore", file, "--registry", other) == 2
    assert local.err.startswith("necrocode: The database is not empty; nothing was restored. ")
    assert local.run("restore", file, "--registry", other, "--force") == 0
    with LocalTaskRegistry(other) as registry:
        assert len(registry.list_tasks(spec_name="chat")) == 3


def test_a_damaged_backup_is_bad_input(local: Bench, tmp_path: Path) -> None:
    file = tmp_path / "b.gz"
    local.run("backup", file)
    file.write_bytes(file.read_bytes()[:-20])
    for words in (["verify", file], ["restore", file, "--force"]):
        assert local.run(*words) == 2
        assert "is damaged: " in local.err
    assert local.run("backup", file) == 2
    assert local.run("backup", tmp_path / "c.gz", "--registry", "http://localhost:1") == 2


def test_ctrl_c_leaves_no_half_backup(local: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_file: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("necrocode.agent_runner.clients.registry_backup.verify_backup", interrupted)
    assert local.run("backup", tmp_path / "b.gz") == 130
    assert not list(tmp_path.glob("b.gz*"))


def test_a_database_is_upgraded(local: Bench, tmp_path: Path) -> None:
    assert local.run("upgrade") == 0
    assert local.out.endswith(" already\n")
    assert local.run("upgrade", "--registry", f"sqlite:///{tmp_path / 'new.db'}") == 0
    assert local.out.endswith(" (was not there)\n")


def test_a_folder_of_specs_can_be_moved_with_its_registry(local: Bench, tmp_path: Path) -> None:
    """Without the memory every tick counts as made by hand; what is done already stays done."""
    shutil.rmtree(tmp_path / "state" / "specs")
    assert local.run("sync", local.folder) == 0
    assert local.states()["1.1"] == "done"


@pytest.mark.parametrize(
    "words", [[], ["import"], ["graph", "x", "--format", "svg"], ["verify", "x", "--registry", "y"]]
)
def test_a_wrong_command_line_is_bad_input(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["registry", *words])
    assert ended.value.code == 2
    assert "usage: necrocode" in capsys.readouterr().err


def test_help_tells_the_actions(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["registry", "--help"])
    text = capsys.readouterr().out
    assert all(action in text for action in ("import", "sync", "graph", "backup", "restore", "verify", "upgrade"))


# --- budgets


def test_a_budget_is_shown_and_reset(bench: Bench) -> None:
    registry = ["--registry", bench.url] if bench.url else []
    for words in ((), ("--reset",), ("--json",)):
        assert bench.run("budget", "仕様", *words, *registry) == 2
        assert "仕様" in bench.err
    assert bench.run("import", bench.folder, "--spec", "仕様", *registry) == 0
    assert bench.run("budget", "仕様", *registry) == 0
    assert bench.out.startswith("registry   ")
    assert bench.out.splitlines()[1:] == [
        "spec       仕様",
        "since      never",
        "spent      0 calls, 0 + 0 tokens, 0.000000 USD",
        "reserved   0 calls, 0 + 0 tokens, 0.000000 USD",
        "unsettled  0 calls, 0 + 0 tokens, 0.000000 USD",
    ]
    question = Spending(calls=1, prompt_tokens=900, completion_tokens=100, cost_micro_usd=7, estimated_calls=1)
    bench.registry.reserve_budget("仕様", "a", run_id="r", need=question, limits=SpendingLimits(), ttl_seconds=3600)
    bench.registry.settle_budget("仕様", "b", question.plus(Spending(unpriced_calls=1)))
    assert bench.run("budget", "仕様", "--json", *registry) == 0
    assert json.loads(bench.out)["spent"]["prompt_tokens"] == 900
    assert bench.run("budget", "仕様", *registry) == 0
    assert bench.out.splitlines()[3:5] == [
        "spent      1 calls (1 without a price, 1 estimated), 900 + 100 tokens, 0.000007 USD",
        "reserved   1 calls (1 estimated), 900 + 100 tokens, 0.000007 USD",
    ]
    assert bench.run("budget", "仕様", "--reset", "--json", *registry) == 0
    after = json.loads(bench.out)
    assert (after["spent"]["calls"], after["reserved"]["calls"]) == (0, 1)


def test_the_registry_is_the_one_of_the_settings_file(local: Bench, tmp_path: Path) -> None:
    config, url = tmp_path / "config.yaml", f"sqlite:///{tmp_path / 'shared.db'}"
    config.write_text(f"task_registry_url: {url}\n")
    assert local.run("import", local.folder, "--spec", "shared", "--config", config) == 0
    assert local.run("budget", "shared", "--config", config) == 0
    assert local.out.startswith(f"registry   {url}\n")
    assert local.run("budget", "shared") == 2, "the embedded one does not know it"
    assert local.run("budget", "chat", "--config", tmp_path / "nothere.yaml") == 2
