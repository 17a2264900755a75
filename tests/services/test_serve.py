from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import requests

from necrocode.agent_runner import ArtifactStoreClient, RepoPoolClient, TaskContext, TaskRegistryClient
from necrocode.cli import main
from necrocode.services._serving import url_of
from tests.support.serving import necrocode_serve

TOKEN = "a-token-for-tests"


def task(**changes: str) -> TaskContext:
    values = {"task_id": "1.1", "spec_name": "s", "title": "t", "description": "d", "repo_url": "/r"}
    return TaskContext(**(values | changes))  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def _own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NECROCODE_STATE_DIR", str(tmp_path / "state"))


def test_all_three_are_served_and_keep_what_they_were_told(tmp_path: Path, repository: Path) -> None:
    with necrocode_serve(tmp_path, "all", "--port", "0", "--pool-size", "2") as served:
        assert list(served.urls) == ["task-registry", "repo-pool", "artifact-store"]
        with TaskRegistryClient(served.urls["task-registry"]) as registry:
            registry.register_task(task())
            registry.update_task_status("1.1", "running")
        with RepoPoolClient(served.urls["repo-pool"]) as pool:
            slot = pool.allocate_slot(str(repository), "me")
            assert (slot.slot_path / "calc.py").is_file()
            pool.release_slot(slot.slot_id)
        with ArtifactStoreClient(served.urls["artifact-store"]) as store:
            uri = store.upload("diff", b"x" * 1000, {"task_id": "1.1"})
            assert uri.startswith(served.urls["artifact-store"])
            assert store.download(uri) == b"x" * 1000
        assert served.stop() == 0
    with necrocode_serve(tmp_path, "all", "--port", "0") as again:
        with TaskRegistryClient(again.urls["task-registry"]) as registry:
            assert registry.get_task("1.1").status == "running"
        with ArtifactStoreClient(again.urls["artifact-store"]) as store:
            assert store.download(uri.rpartition("/")[2]) == b"x" * 1000


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_endless_streams_end_with_the_service(tmp_path: Path, number: int) -> None:
    with necrocode_serve(tmp_path, "task-registry", "--port", "0") as served:
        url = served.urls["task-registry"]
        with TaskRegistryClient(url) as registry:
            registry.register_task(task())
            registry.add_event("1.1", "first")
        heard = threading.Event()
        ended = threading.Event()

        def listen() -> None:
            with requests.get(f"{url}/events/stream", params={"since": "2000-01-01T00:00:00Z"}, stream=True,
                              headers={"Last-Event-ID": "0"}, timeout=30) as answer:  # fmt: skip
                for line in answer.iter_lines(chunk_size=1):
                    if b"first" in line:
                        heard.set()
            ended.set()

        thread = threading.Thread(target=listen, daemon=True)
        thread.start()
        assert heard.wait(30)
        assert served.stop(number) == 0
        assert ended.wait(30)


def test_a_request_under_way_is_finished(tmp_path: Path, repository: Path) -> None:
    """The pool is full, so the second allocation is waiting when the service is told to stop."""
    with necrocode_serve(tmp_path, "repo-pool", "--port", "0", "--pool-size", "1") as served:
        url = served.urls["repo-pool"]
        body = {"repo_url": str(repository), "required_by": "me"}
        assert requests.post(f"{url}/slots/allocate", json=body, timeout=60).status_code == 201
        answers: list[int] = []
        waiting = threading.Thread(
            target=lambda: answers.append(
                requests.post(f"{url}/slots/allocate", json={**body, "timeout_seconds": 2}, timeout=60).status_code
            )
        )
        waiting.start()
        while "necrocode_http_requests_running 2" not in requests.get(f"{url}/metrics", timeout=30).text:
            pass
        assert served.stop() == 0
        waiting.join(60)
        assert answers == [503]


def test_a_secret_in_a_path_or_an_error_stays_out_of_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NECROCODE_SERVICE_TOKEN", TOKEN)
    monkeypatch.setenv("GIT_TOKEN", "git-token-0123456789")
    with necrocode_serve(tmp_path, "all", "--port", "0") as served:
        for url in served.urls.values():
            for secret in (TOKEN, "git-token-0123456789", "ghp_" + "a1B2" * 9):
                requests.get(f"{url}/{secret}", headers={"Authorization": f"Bearer {TOKEN}"}, timeout=30)
        served.stop()
    log = served.log.read_text()
    assert [json.loads(line)["path"] for line in log.splitlines() if line.startswith("{")] == ["/***"] * 9
    assert TOKEN not in log


def test_the_access_log_is_json_and_can_be_left_out(tmp_path: Path) -> None:
    with necrocode_serve(tmp_path, "task-registry", "--port", "0") as served:
        requests.get(f"{served.urls['task-registry']}/health", timeout=30)
        served.stop()
    (line,) = (line for line in served.log.read_text().splitlines() if line.startswith("{"))
    assert json.loads(line)["path"] == "/health"
    with necrocode_serve(tmp_path, "task-registry", "--port", "0", "--no-access-log") as quiet:
        before = served.log.stat().st_size
        requests.get(f"{quiet.urls['task-registry']}/health", timeout=30)
        quiet.stop()
    assert "/health" not in served.log.read_text()[before:]


# --- tokens and addresses


def test_a_token_from_the_environment_or_a_file_is_asked_for_and_never_shown(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    for arguments, env in ((["--token-file", str(tmp_path / "token")], {}), ([], {"NECROCODE_SERVICE_TOKEN": TOKEN})):
        with necrocode_serve(tmp_path, "task-registry", "--port", "0", "--host", "0.0.0.0", *arguments, env=env) as one:  # noqa: S104
            url = one.urls["task-registry"]
            assert url.startswith("http://127.0.0.1:")
            assert requests.get(f"{url}/tasks", timeout=30).status_code == 401
            allowed = requests.get(f"{url}/tasks", headers={"Authorization": f"Bearer {TOKEN}"}, timeout=30)
            assert allowed.status_code == 200
            command_line = Path(f"/proc/{one.process.pid}/cmdline").read_bytes()
            one.stop()
        assert TOKEN not in one.log.read_text()
        assert TOKEN.encode() not in command_line


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])  # noqa: S104
def test_without_a_token_no_other_address_than_loopback_is_served(
    host: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", "task-registry", "--host", host, "--port", "0"]) == 2
    assert "Set NECROCODE_SERVICE_TOKEN" in capsys.readouterr().err


@pytest.mark.parametrize(("arguments", "env"), [(["--allow-anonymous"], {}), ([], {"NECROCODE_ALLOW_ANONYMOUS": "1"})])
def test_anonymous_access_can_be_allowed_by_name(tmp_path: Path, arguments: list[str], env: dict[str, str]) -> None:
    with necrocode_serve(tmp_path, "task-registry", "--port", "0", "--host", "0.0.0.0", *arguments, env=env) as served:  # noqa: S104
        assert requests.get(f"{served.urls['task-registry']}/tasks", timeout=30).status_code == 200


def test_a_loopback_of_six_numbers_is_served(tmp_path: Path) -> None:
    with necrocode_serve(tmp_path, "task-registry", "--port", "0", "--host", "::1") as served:
        assert served.urls["task-registry"].startswith("http://[::1]:")
        assert requests.get(f"{served.urls['task-registry']}/health", timeout=30).status_code == 200


def test_a_socket_on_all_addresses_is_told_as_this_machine_reaches_it() -> None:
    with socket.socket() as sock:
        sock.bind(("0.0.0.0", 0))  # noqa: S104
        assert url_of(sock) == f"http://127.0.0.1:{sock.getsockname()[1]}"


# --- what is refused


def test_a_port_that_is_taken_exits_3(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert main(["serve", "task-registry", "--port", port]) == 3
    assert f"Cannot listen on 127.0.0.1, port {port}: Address already in use. Choose another" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--host", "no such host", "--allow-anonymous"], "Cannot listen on no such host"),
        (["--database-url", "mysql://x/y"], "mysql"),
        (["--token-file", "/nonexistent"], "Cannot read the token file /nonexistent"),
    ],
)
def test_settings_that_cannot_be_used_exit_2(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", "task-registry", "--port", "0", *arguments]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("pools: [{repo: /r}]\n", "repo"),
        ("pool_sise: 3\n", "did you mean 'pool_size'?"),
        ("[", "not valid YAML"),
    ],
)
def test_a_pools_file_that_is_wrong_exits_2(
    tmp_path: Path, content: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "pools.yaml").write_text(content)
    assert main(["serve", "repo-pool", "--port", "0", "--pools", str(tmp_path / "pools.yaml")]) == 2
    assert words in capsys.readouterr().err


def test_a_store_url_that_is_none_exits_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "artifact-store", "--port", "0", "--store-url", "ftp://x"]) == 2
    assert "file:///folder or s3://bucket/prefix" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--port", "70000"], ["--pool-size", "0"], ["--rate-limit", "-1"], ["--x"]])
def test_a_wrong_command_line_exits_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["serve", "all", *arguments])
    assert caught.value.code == 2


def test_a_database_that_cannot_be_used_exits_3(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    command = [sys.executable, "-m", "necrocode", "serve", "task-registry", "--port", "0"]
    command += ["--database-url", f"sqlite:///{tmp_path / 'file' / 'registry.db'}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ, timeout=60)
    assert done.returncode == 3
    assert done.stdout == ""
    assert "file/registry.db" in done.stderr
    assert "Traceback" not in done.stderr


def test_pools_of_a_file_are_there_from_the_start(tmp_path: Path, repository: Path) -> None:
    (tmp_path / "pools.yaml").write_text(f"pools:\n  - {{name: calc, repo_url: {repository}, pool_size: 2}}\n")
    with necrocode_serve(tmp_path, "repo-pool", "--port", "0", "--pools", str(tmp_path / "pools.yaml")) as served:
        status = requests.get(f"{served.urls['repo-pool']}/pools/status", timeout=30).json()
        assert [pool["name"] for pool in status["pools"]] == ["calc"]


def test_sources_that_are_not_allowed_are_refused(tmp_path: Path, repository: Path) -> None:
    with necrocode_serve(tmp_path, "repo-pool", "--port", "0", "--allow-source", "git.example.com") as served:
        body = {"repo_url": str(repository), "required_by": "me"}
        answer = requests.post(f"{served.urls['repo-pool']}/slots/allocate", json=body, timeout=60)
    assert (answer.status_code, answer.json()["type"]) == (422, "repository-not-found")
