"""Signals to ``necrocode run``, in a process of its own: the first ends it in order, the second at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from necrocode.agent_runner import RunnerResult
from tests.support.bench import BRANCH, Bench
from tests.support.cancelling import SOON_SECONDS, Bell, hanging_git
from tests.support.http_server import Answer, Request, serving
from tests.support.model_server import as_asked, as_json, completion
from tests.support.repositories import CALC_TEST_COMMAND, FIXED_CALC, files_at

GOOD = as_json({"calc.py": FIXED_CALC})
SIGNALS = {signal.SIGINT: (130, "Ctrl-C"), signal.SIGTERM: (143, "SIGTERM"), signal.SIGHUP: (129, "SIGHUP")}
VERBS = [("fetch", "allocate"), ("grep", "generate"), ("fast-import", "apply"), ("reset", "allocate"),
         ("push", "deliver")]  # fmt: skip


@pytest.fixture
def bench(repository: Path, state_dir: Path) -> Bench:
    return Bench(repository, state_dir)


class Command:
    """``necrocode run`` on its way."""

    def __init__(self, bench: Bench, commands: list[str], environment: dict[str, str], config: dict[str, Any]) -> None:
        folder = bench.repository.parent
        task = {"task_id": "1.1", "spec_name": "calc", "title": "Mend add", "description": "add() subtracts.",
                "repo_url": str(bench.repository), "test_commands": commands}  # fmt: skip
        (folder / "task.yaml").write_text(yaml.safe_dump(task))
        (folder / "config.yaml").write_text(yaml.safe_dump({"test_base": False, "sandbox": "none"} | config))
        argv = ["run", str(folder / "task.yaml"), "--config", str(folder / "config.yaml"), "--json"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "necrocode", *argv], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env=os.environ | {"NECROCODE_STATE_DIR": str(bench.state_dir)} | environment,
        )  # fmt: skip
        self.family: list[psutil.Process] = []

    def send(self, number: int) -> None:
        self.family += psutil.Process(self.process.pid).children(recursive=True)
        self.process.send_signal(number)

    def end(self) -> tuple[bytes, bytes, float]:
        """Both outputs, and the seconds that it took to end from now on."""
        began = time.monotonic()
        out, err = self.process.communicate(timeout=30)
        seconds = time.monotonic() - began
        psutil.wait_procs(self.family, timeout=SOON_SECONDS)
        return out, err, seconds

    def left(self) -> list[str]:
        left = [one for one in self.family if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
        return [" ".join(one.cmdline()) for one in left]


@pytest.fixture(autouse=True)
def _no_signal_is_ignored() -> Iterator[None]:
    """Tests that were started with nohup would hand it down; a handler becomes the default in a child."""
    ignored = [number for number in SIGNALS if signal.getsignal(number) is signal.SIG_IGN]
    for number in ignored:
        signal.signal(number, lambda *_: None)
    yield
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def command(
    bench: Bench, *, commands: list[str], environment: dict[str, str] | None = None, **config: Any
) -> Iterator[Command]:
    with serving(lambda request: as_asked(request, completion(GOOD))) as model:
        given = {"OPENAI_BASE_URL": f"{model.url}/v1"} | (environment or {})
        running = Command(bench, commands, given, config)
        try:
            yield running
        finally:
            running.process.kill()
            running.process.communicate()


def assert_cancelled(bench: Bench, running: Command, number: int, step: str) -> RunnerResult:
    code, name = SIGNALS[signal.Signals(number)]
    out, _, seconds = running.end()
    result = RunnerResult.model_validate_json(out)
    assert (running.process.returncode, result.status, result.reported) == (code, "cancelled", "yes")
    assert result.error_details is not None
    assert result.error_details.message == f"{name} asked the run to stop."
    assert (result.error_details.type, result.error_details.step) == ("RunCancelledError", step)
    assert seconds < SOON_SECONDS
    assert running.left() == []
    assert bench.status() == "cancelled"
    bench.assert_nothing_is_left()
    return result


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_during_the_tests_ends_them_and_keeps_the_work(bench: Bench, tmp_path: Path, number: int) -> None:
    runs = threading.Event()
    bell = Bell(tmp_path, runs.set)
    with command(bench, commands=[f"trap '' INT TERM HUP; echo >{bell.path}; sleep 98764; true"]) as running:
        assert runs.wait(60)
        running.send(number)
        result = assert_cancelled(bench, running, number, "test")
    assert {one.type for one in result.artifacts} == {"diff", "transcript", "log", "manifest"}


@pytest.mark.soak
@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize(("verb", "step"), VERBS)
def test_a_signal_ends_every_step(bench: Bench, tmp_path: Path, verb: str, step: str, number: int) -> None:
    hangs = threading.Event()
    path = hanging_git(tmp_path, verb, Bell(tmp_path, hangs.set))
    with command(bench, commands=[CALC_TEST_COMMAND], environment={"PATH": path}) as running:
        assert hangs.wait(60)
        running.send(number)
        assert_cancelled(bench, running, number, step)


@pytest.mark.parametrize("second", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.soak)])
def test_a_second_signal_ends_the_command_at_once_though_a_service_hangs(
    bench: Bench, tmp_path: Path, second: int
) -> None:
    """The first one ends the tests; the store then hangs, in which the second one comes."""
    runs, stores, release = threading.Event(), threading.Event(), threading.Event()
    bell = Bell(tmp_path, runs.set)

    def store(request: Request) -> Answer:
        if request.method == "GET":
            return Answer(200, {"status": "ok"})
        stores.set()
        return Answer(200, wait=release)

    with (
        serving(store) as server,
        command(bench, commands=[f"echo >{bell.path}; sleep 98764"], artifact_store_url=server.url) as running,
    ):
        assert runs.wait(60)
        running.send(signal.SIGINT)
        assert stores.wait(60)
        running.process.send_signal(second)
        out, err, seconds = running.end()
        release.set()
    assert (running.process.returncode, out) == (130 if second == signal.SIGINT else 143, b"")
    assert b"came twice: ended at once" in err
    assert seconds < SOON_SECONDS
    assert running.left() == []


@pytest.mark.soak
def test_a_second_signal_kills_what_the_first_one_could_not_end_yet(bench: Bench, tmp_path: Path) -> None:
    hangs = threading.Event()
    path = hanging_git(tmp_path, "push", Bell(tmp_path, hangs.set))
    with command(bench, commands=[CALC_TEST_COMMAND], environment={"PATH": path}) as running:
        assert hangs.wait(60)
        running.send(signal.SIGINT)
        running.process.send_signal(signal.SIGTERM)
        running.end()
        assert running.process.returncode in {130, 143}
        assert running.left() == []
    assert BRANCH not in bench.branches()


def test_a_signal_that_comes_after_the_delivery_changes_nothing(bench: Bench) -> None:
    stores, release = threading.Event(), threading.Event()

    def store(request: Request) -> Answer:
        if request.method == "GET":
            return Answer(200, {"status": "ok"})
        stores.set()
        release.wait(60)
        return Answer(201, {"uri": "file:///stored"})

    with serving(store) as server, command(
        bench, commands=[CALC_TEST_COMMAND], artifact_store_url=server.url
    ) as running:  # fmt: skip
        assert stores.wait(60)
        running.send(signal.SIGTERM)
        release.set()
        out, _, _ = running.end()
    assert (running.process.returncode, RunnerResult.model_validate_json(out).status) == (0, "done")
    assert files_at(bench.repository, BRANCH)["calc.py"] == FIXED_CALC.encode()


def test_signals_that_were_ignored_from_the_start_stay_so(bench: Bench, tmp_path: Path) -> None:
    """As under nohup, or in the background of a script."""
    runs = threading.Event()
    bell = Bell(tmp_path, runs.set)
    go_on = tmp_path / "go-on"
    waiting = f"echo >{bell.path}; while [ ! -e {go_on} ]; do sleep 0.01; done"
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with command(bench, commands=[waiting]) as running:
            signal.signal(signal.SIGHUP, before)
            assert runs.wait(60)
            running.send(signal.SIGHUP)
            go_on.touch()
            out, _, _ = running.end()
    finally:
        signal.signal(signal.SIGHUP, before)
    assert (running.process.returncode, RunnerResult.model_validate_json(out).status) == (0, "done")


AT_IMPORT = """
import os, signal, sys
class Now:
    def find_spec(self, name, *rest):
        if name == sys.argv[1]:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Now())
from necrocode.__main__ import main
sys.exit(main())
"""
AT_EXIT = """
import atexit, os, signal, sys
from necrocode.__main__ import main
atexit.register(lambda: os.kill(os.getpid(), signal.SIGINT))
sys.exit(main())
"""


@pytest.mark.parametrize("module", ["necrocode.cli", "necrocode.cli.run", "argparse"])
def test_ctrl_c_while_the_command_is_being_loaded_prints_nothing(module: str) -> None:
    done = subprocess.run([sys.executable, "-c", AT_IMPORT, module], capture_output=True, check=False, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"")


def test_ctrl_c_while_the_command_is_being_left_prints_nothing() -> None:
    argv = [sys.executable, "-c", AT_EXIT, "--version"]
    done = subprocess.run(argv, capture_output=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (-signal.SIGINT, b"")
