from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from necrocode.agent_runner import TestResult
from necrocode.agent_runner._clock import Deadline
from necrocode.agent_runner._git import Git, Repository
from necrocode.agent_runner._redact import Redactor
from necrocode.agent_runner.sandbox.plain import PlainSandbox
from necrocode.agent_runner.verdict import base_runs
from necrocode.agent_runner.verdict.base_runs import MAX_AGE, BaseRuns
from necrocode.agent_runner.verdict.test_run import TestRunner
from necrocode.agent_runner.workspace import Workspace
from tests.contracts.threads import at_once
from tests.support.clocks import FakeClock
from tests.support.repositories import git, make_repository


class Bench:
    """A slot at its base, and a command that counts how often it is run."""

    def __init__(self, workspace: Workspace, tmp_path: Path) -> None:
        self.workspace = workspace
        self.folder = tmp_path / "state" / "base-tests"
        self.layers = tmp_path / "layers"
        self.count = tmp_path / "count"
        self.clock = FakeClock()
        self.notes: list[str] = []

    def result(self, command: str = "true", *, seconds: float = 60, secret: str = "") -> TestResult | None:
        runs = BaseRuns(self.folder, self.clock)
        with self.workspace.repository.objects() as objects:  # each run of a task has its own
            runner = TestRunner(PlainSandbox(self.layers), objects, {}, Redactor((secret,)), Deadline(seconds))
            workspace = replace(self.workspace, objects=objects)
            return runs.result(workspace, [f"echo x >> {self.count}; {command}"], runner, on_note=self.notes.append)

    def runs(self) -> int:
        return self.count.read_text().count("x")

    def entry(self) -> Path:
        (file,) = self.folder.glob("*.json")
        return file


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    path = make_repository(tmp_path / "repo", {"a.txt": "a\n"})
    home = Git(tmp_path / "git-home")
    home.prepare()
    repository = Repository(home, path)
    with repository.objects() as objects:
        workspace = Workspace(repository, objects, "slot", git(path, "rev-parse", "HEAD"), None)
        yield Bench(workspace, tmp_path)


def test_what_was_found_once_is_not_run_again(bench: Bench) -> None:
    first = bench.result("echo out; exit 3")
    assert first is not None
    assert bench.result("echo out; exit 3") == first
    assert bench.runs() == 1
    assert first.commands[0].output == "out\n"
    assert bench.entry().stat().st_mode & 0o077 == 0
    assert bench.folder.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("damage", ["", "cut", "flip", "json", "other"])
def test_a_damaged_entry_is_run_again(bench: Bench, damage: str) -> None:
    bench.result()
    content = bench.entry().read_bytes()
    text = {
        "": b"", "cut": content[:-20], "flip": content.replace(b'"exit_code": 0', b'"exit_code": 1'), "json": b"{}",
        "other": b"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855\n",
    }[damage]  # fmt: skip
    bench.entry().write_bytes(text)
    again = bench.result()
    assert again is not None
    assert again.commands[0].exit_code == 0
    assert bench.runs() == 2
    bench.result()
    assert bench.runs() == 2


def test_an_old_entry_is_run_again(bench: Bench) -> None:
    bench.result()
    bench.clock.seconds += MAX_AGE.total_seconds() - 1
    bench.result()
    assert bench.runs() == 1
    bench.clock.seconds += timedelta(minutes=1).total_seconds()
    bench.result()
    assert bench.runs() == 2


def test_secrets_are_masked_before_they_are_kept_and_new_ones_as_they_are_read(bench: Bench) -> None:
    first = bench.result("echo first-secret-1 later-secret-2", secret="first-secret-1")
    assert first is not None
    assert first.commands[0].output == "*** later-secret-2\n"
    assert b"first-secret-1" not in bench.entry().read_bytes().partition(b'"output"')[2]
    again = bench.result("echo first-secret-1 later-secret-2", secret="later-secret-2")
    assert again is not None
    assert again.commands[0].output == "*** ***\n"
    assert bench.runs() == 1


def test_the_number_of_entries_is_bounded(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base_runs, "MAX_ENTRIES", 3)
    for number in range(6):
        bench.result(f"exit {number}")
    assert len(list(bench.folder.glob("*.json"))) == 3
    bench.result("exit 5")
    assert bench.runs() == 6


def test_an_entry_that_would_be_too_large_is_not_kept(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base_runs, "MAX_ENTRY_BYTES", 2000)
    assert bench.result("yes | head -c 5000") is not None
    assert not list(bench.folder.glob("*.json"))


def test_of_several_at_once_one_runs_the_tests(bench: Bench) -> None:
    results = at_once(lambda _number: bench.result("sleep 0.3"), range(4))
    assert bench.runs() == 1
    assert all(one == results[0] is not None for one in results)


HOLDER = """
import fcntl, sys
streams = [open(f"{sys.argv[1]}/lock-{number}", "a") for number in range(64)]
for stream in streams:
    fcntl.flock(stream, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


def test_another_process_that_is_testing_is_waited_for_but_not_for_ever(bench: Bench) -> None:
    bench.folder.mkdir(parents=True)
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(bench.folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        bench.clock.monotonic = iter([0.0, 0.0, *[9.0] * 50]).__next__  # type: ignore[method-assign]
        assert bench.result(seconds=3) is None
        assert bench.notes == ["another run is still testing the base: how it fares is not known"]
        assert not bench.count.exists()
        holder.communicate()
    bench.clock = FakeClock()
    assert bench.result() is not None


def test_a_folder_that_cannot_be_written_does_not_keep_the_tests_from_running(bench: Bench) -> None:
    bench.folder.parent.mkdir(parents=True, exist_ok=True)
    bench.folder.write_text("a file in its place")
    assert bench.result() is not None
    assert bench.result() is not None
    assert bench.runs() == 2


def test_a_sandbox_that_cannot_start_is_told_and_no_error(bench: Bench) -> None:
    bench.layers.write_text("a file in its place")
    assert bench.result() is None
    assert bench.notes[0].startswith("the tests on the base cannot be run: ")
    assert not list(bench.folder.glob("*.json"))
