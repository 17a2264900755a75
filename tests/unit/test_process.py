from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from necrocode.agent_runner import _process
from necrocode.agent_runner._process import HeadAndTail, ProcessResult, run_process
from tests.contracts.sandbox_contract import assert_gone, processes_with

FOREVER = "while :; do sleep 600; done"
Run = Callable[..., ProcessResult]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    def run(command: str, *, seconds: float = 60, limit: int = 10_000, **environment: str) -> ProcessResult:
        environment = {"PATH": os.environ["PATH"]} | environment
        return run_process(
            ["sh", "-c", command],
            cwd=tmp_path,
            environment=environment,
            timeout_seconds=seconds,
            max_output_bytes=limit,
        )

    return run


@pytest.fixture
def marker(tmp_path: Path) -> Iterator[str]:
    """A word that is in the command line of the processes of one test only; none of them outlives it."""
    marker = f"process-{tmp_path.name}"
    yield marker
    for process in processes_with(marker):
        os.kill(process, signal.SIGKILL)


# --- what comes back


@pytest.mark.parametrize(("command", "code"), [("true", 0), ("exit 7", 7), ("kill -9 $$", -9), ("kill -15 $$", -15)])
def test_the_exit_code_is_the_commands(run: Run, command: str, code: int) -> None:
    result = run(command)
    assert (result.exit_code, result.timed_out) == (code, False)


def test_both_streams_come_as_one_in_order(run: Run) -> None:
    assert run("echo 1; echo 2 >&2; printf 3").output == b"1\n2\n3"


def test_there_is_no_input(run: Run) -> None:
    assert run("cat; echo end").output == b"end\n"


def test_output_may_be_closed_long_before_the_end(run: Run, tmp_path: Path) -> None:
    result = run("exec >/dev/null 2>&1; echo unseen; touch done; exit 3")
    assert (result.exit_code, result.output) == (3, b"")
    assert (tmp_path / "done").exists()


def test_all_that_was_written_before_the_end_is_there(run: Run) -> None:
    result = run("head -c 3000000 /dev/zero; echo end", limit=10_000_000)
    assert result.output == bytes(3_000_000) + b"end\n"
    assert result.truncated_bytes == 0


def test_a_command_that_is_not_there_cannot_start(tmp_path: Path) -> None:
    for argv, cwd in ((["no-such-command"], tmp_path), (["true"], tmp_path / "none")):
        with pytest.raises(FileNotFoundError):
            run_process(argv, cwd=cwd, environment={}, timeout_seconds=1, max_output_bytes=1)


# --- environment


def test_the_environment_is_exactly_what_is_given(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "inherited")
    seen = run("tr '\\0' '\\n' </proc/self/environ", A="1").output.decode()
    assert dict(line.split("=", 1) for line in seen.splitlines()) == {"PATH": os.environ["PATH"], "A": "1"}


def test_no_open_file_is_inherited(run: Run, tmp_path: Path) -> None:
    with (tmp_path / "secret").open("w") as file:
        os.set_inheritable(file.fileno(), True)
        assert b"secret" not in run("ls -l /proc/self/fd").output


def test_a_command_is_in_a_session_of_its_own(run: Run) -> None:
    assert int(run("ps -o sid= -p $$ || cut -d' ' -f6 /proc/$$/stat").output) != os.getsid(0)


# --- time


def test_at_the_time_limit_the_whole_group_is_killed(run: Run, marker: str) -> None:
    child = f"sh -c '{FOREVER}' {marker}"
    result = run(f"{child} & {child} & echo begun; trap '' TERM; {FOREVER}", seconds=1)
    assert (result.exit_code, result.timed_out, result.output) == (None, True, b"begun\n")
    assert_gone(marker)


def test_what_is_left_of_the_group_is_killed_at_the_end(run: Run, marker: str) -> None:
    result = run(f"sh -c '{FOREVER}' {marker} & echo end; exit 4")
    assert (result.exit_code, result.output) == (4, b"end\n")
    assert result.duration_seconds < 30
    assert_gone(marker)


def test_a_daemon_that_holds_the_output_makes_nobody_wait(run: Run, marker: str) -> None:
    result = run(f"setsid sh -c '{FOREVER}' {marker} & echo end")
    assert (result.exit_code, result.output) == (0, b"end\n")
    assert result.duration_seconds < 30


def test_a_daemon_that_goes_on_writing_makes_nobody_wait(run: Run, marker: str) -> None:
    result = run(f"setsid sh -c 'while :; do echo more; done' {marker} & sleep 0.1; exit 5", limit=100)
    assert result.exit_code == 5
    assert result.duration_seconds < 30
    assert len(result.output) < 200


def test_an_interruption_kills_the_group_too(run: Run, marker: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(_process, "_pump", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(f"sh -c '{FOREVER}' {marker} & {FOREVER}")
    assert_gone(marker)


def test_no_child_and_no_open_file_is_left_behind(run: Run) -> None:
    def ours() -> set[str]:
        children = (word for file in Path("/proc/self/task").glob("*/children") for word in file.read_text().split())
        return {*children, *(str(file) for file in Path("/proc/self/fd").iterdir())}

    before = ours()
    for command in ("true", "echo x", FOREVER):
        run(command, seconds=0.2)
    assert ours() <= before


def test_without_pidfd_commands_end_as_well(run: Run, marker: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "pidfd_open")
    assert run("echo 1; exec >&- 2>&-; exit 3").output == b"1\n"
    result = run(f"sh -c '{FOREVER}' {marker} & echo end; exit 4")
    assert (result.exit_code, result.output) == (4, b"end\n")
    assert run(FOREVER, seconds=0.2).timed_out


# --- size


def test_a_flood_keeps_its_beginning_and_end(run: Run) -> None:
    result = run("echo first; head -c 5000000 /dev/zero; echo last", limit=1000)
    assert result.output.startswith(b"first\n")
    assert result.output.endswith(b"\0last\n")
    assert f"[... {5_000_011 - 1000} bytes left out ...]".encode() in result.output
    assert result.truncated_bytes == 5_000_011 - 1000
    assert len(result.output) < 1100


@settings(max_examples=300, deadline=None)
@given(st.lists(st.binary(max_size=40), max_size=12), st.integers(2, 60))
def test_head_and_tail_are_those_of_the_whole(chunks: list[bytes], limit: int) -> None:
    kept, whole = HeadAndTail(limit), b"".join(chunks)
    for chunk in chunks:
        kept.write(chunk)
    half = limit // 2
    if len(whole) <= 2 * half:
        assert (kept.content(), kept.dropped_bytes) == (whole, 0)
    else:
        assert kept.dropped_bytes == len(whole) - 2 * half
        assert kept.content().startswith(whole[:half] + b"\n[... ")
        assert kept.content().endswith(b" ...]\n" + whole[-half:])
