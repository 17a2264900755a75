"""Every attack of the threat list on running tests, against every sandbox that this machine has."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from necrocode.agent_runner import RunInterrupted, RunnerConfig, RunnerOrchestrator, ScriptedLLM
from tests.contracts.sandbox_contract import assert_gone, processes_with
from tests.security.attacks import ATTACKS
from tests.security.boxes import DOCKER, TIERS, Attack, Box, Tier, open_box
from tests.support.bench import GOOD_ANSWER, Bench

# Landlock lets see whether a file is there, though neither read it nor list its folder.
KNOWN_HOLES = {("sandlock, no namespaces", "learns which files there are outside")}


# Its supervisor loses a program's start now and then (docs/security.md), so what it stops is shown by "make soak".
_FALLBACK = "sandlock, no namespaces"
_PARAMETERS = [
    *(pytest.param(tier, marks=[pytest.mark.soak] if tier.name == _FALLBACK else []) for tier in TIERS),
    pytest.param(DOCKER, marks=pytest.mark.docker_engine),
]


@pytest.fixture(params=_PARAMETERS, ids=lambda tier: tier.name)
def tier(request: pytest.FixtureRequest) -> Tier:
    tier: Tier = request.param
    if reason := tier.why_not():
        pytest.skip(f"{tier.name}: {reason}")
    return tier


@pytest.fixture
def box(tier: Tier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Box]:
    with open_box(tier, tmp_path, monkeypatch) as box:
        yield box


@pytest.mark.parametrize("title", ATTACKS)
def test_the_sandbox_holds_when_a_test(box: Box, title: str) -> None:
    attack: Attack = ATTACKS[title]
    if (box.tier.name, title) in KNOWN_HOLES:
        with pytest.raises(AssertionError):
            attack(box)
    else:
        attack(box)


def test_honest_tests_find_what_they_need(box: Box) -> None:
    program = """
import getpass, locale, multiprocessing, os, pwd, socket, ssl, subprocess, tempfile, time, zoneinfo
assert os.urandom(8) and open("/dev/null", "w").write("x")
assert "no namespaces" in os.environ["TIER"] or pwd.getpwuid(os.getuid()).pw_dir == os.environ["HOME"]
assert os.listdir("/proc/self/fd") and time.localtime() and len(os.sched_getaffinity(0)) > 0
with tempfile.TemporaryDirectory() as folder:
    open(folder + "/x", "w").close()
done = subprocess.run("echo $HOME | cat; git --version", shell=True, capture_output=True)
assert "no namespaces" in os.environ["TIER"] or done.returncode == 0  # docs/security.md says why
ssl.create_default_context()
if "no namespaces" not in os.environ["TIER"]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname()).close()
    multiprocessing.Lock()
    with multiprocessing.Manager() as manager:
        assert manager.dict(a=1)["a"] == 1
print("fine")
"""
    (box.slot / "honest.py").write_text(program)
    done = box.run(f"TIER='{box.tier.name}' python3 honest.py", cpu_seconds=60)
    assert (done.exit_code, done.output) == (0, "fine\n"), done.output


def test_ctrl_c_ends_a_confined_test(tier: Tier, repository: Path, state_dir: Path, tmp_path: Path) -> None:
    if tier.confinement is None or not tier.confinement.has_own_root:
        pytest.skip("the ladder takes this way only where there are no namespaces")
    marker = f"confined-{tmp_path.name}"
    bench = Bench(repository, state_dir)
    task = bench.task(test_commands=[f"sh -c 'while :; do sleep 60; done' {marker}"])
    config = RunnerConfig(state_dir=state_dir, sandbox=tier.name, test_base=False)
    watcher = threading.Thread(target=interrupt_once_there_is, args=(marker,))
    watcher.start()
    with pytest.raises(RunInterrupted), RunnerOrchestrator(config, llm=ScriptedLLM([GOOD_ANSWER])) as orchestrator:
        orchestrator.run(task)
    watcher.join()
    assert_gone(marker)


def interrupt_once_there_is(marker: str) -> None:
    until = time.monotonic() + 60
    pause = threading.Event()
    while time.monotonic() < until and len(processes_with(marker)) < 1:
        pause.wait(0.05)
    signal.raise_signal(signal.SIGINT)
