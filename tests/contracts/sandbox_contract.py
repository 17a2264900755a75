"""What every ``Sandbox`` does."""

from __future__ import annotations

import os
import select
import stat
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from necrocode.agent_runner import RunCancelledError, Sandbox, TestExecutionError, TestResult
from necrocode.agent_runner._clock import Deadline
from necrocode.agent_runner.sandbox.kept import made_fit
from necrocode.agent_runner.sandbox.limits import Limits
from tests.contracts.threads import at_once
from tests.support.repositories import BROKEN_CALC, CALC_TEST_COMMAND, git

OpenSandbox = Callable[[Limits], Sandbox]
OUTPUT_BYTES = 20_000
LIMITS = Limits(kept_output_bytes=OUTPUT_BYTES)


def run(sandbox: Sandbox, checkout: Path, *commands: str, seconds: float = 60, **options: Any) -> TestResult:
    options = {"tree": "t" * 40, "environment": {}, "fail_fast": True} | options
    return sandbox.run_tests(commands, checkout, deadline=Deadline(seconds), **options)


def set_up(sandbox: Sandbox, checkout: Path, kept: Path, *commands: str, seconds: float = 60) -> TestResult:
    """Set-up commands, and what they wrote made fit to be used as the runner does it."""
    result = sandbox.run_setup(
        commands, checkout, kept, tree="t" * 40, environment={}, has_network=False, deadline=Deadline(seconds)
    )
    if result.success:
        made_fit(kept, {"calc.py", "test_calc.py"})
    return result


def codes(result: TestResult) -> list[int | None]:
    return [command.exit_code for command in result.commands]


def outputs(result: TestResult) -> list[str]:
    return [command.output for command in result.commands]


def snapshot(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """Every file below, with its mode, time and bytes."""
    found = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        content = path.read_bytes() if stat.S_ISREG(status.st_mode) else b""
        found[str(path)] = (status.st_mode, status.st_mtime_ns, content)
    return found


def processes_with(marker: str) -> list[int]:
    """The processes of this machine whose command line holds the marker."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and marker.encode() in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except OSError:  # it has just ended
            continue
    return found


def assert_gone(marker: str) -> None:
    """None is left, or will be once the kernel has done what it was told."""
    for process in processes_with(marker):
        try:
            handle = os.pidfd_open(process)
        except ProcessLookupError:
            continue
        try:
            assert select.select([handle], [], [], 5)[0], f"process {process} goes on"
        finally:
            os.close(handle)


class SandboxContract:
    """Inherit it, and say how the sandbox under test is opened, with which limits."""

    has_fixed_place = True
    """Whether commands see every copy at one path."""

    @pytest.fixture
    def open_sandbox(self) -> OpenSandbox:
        raise NotImplementedError

    @pytest.fixture
    def sandbox(self, open_sandbox: OpenSandbox) -> Sandbox:
        return open_sandbox(LIMITS)

    # --- what a command says

    @pytest.mark.parametrize("code", [0, 1, 3, 125, 126, 127, 255])
    def test_the_exit_code_is_the_commands(self, sandbox: Sandbox, repository: Path, code: int) -> None:
        result = run(sandbox, repository, f"touch x; exit {code}")
        assert codes(result) == [code]
        assert result.success is (code == 0)
        assert not result.commands[0].timed_out

    def test_a_command_that_is_not_there_is_a_failed_test(self, sandbox: Sandbox, repository: Path) -> None:
        result = run(sandbox, repository, "no-such-command --version")
        assert codes(result) == [127]
        assert "no-such-command" in result.commands[0].output

    def test_a_signal_is_a_negative_code(self, sandbox: Sandbox, repository: Path) -> None:
        result = run(sandbox, repository, "kill -9 $$")
        assert codes(result) == [-9]
        assert not result.success
        assert not result.commands[0].timed_out

    def test_real_tests_run(self, sandbox: Sandbox, repository: Path) -> None:
        result = run(sandbox, repository, CALC_TEST_COMMAND, "sed -i 's/a - b/a + b/' calc.py", CALC_TEST_COMMAND)
        assert codes(result) == [1]
        assert "AssertionError" in result.commands[0].output
        mended = run(sandbox, repository, "sed -i 's/a - b/a + b/' calc.py", CALC_TEST_COMMAND)
        assert mended.success, outputs(mended)

    def test_the_result_names_what_was_run(self, sandbox: Sandbox, repository: Path) -> None:
        result = run(sandbox, repository, "echo 'a  b'", "true", tree="f" * 40)
        assert [command.command for command in result.commands] == ["echo 'a  b'", "true"]
        assert result.tree == "f" * 40
        assert result.sandbox
        assert result.layer
        assert 0 <= sum(command.duration_seconds for command in result.commands) <= result.duration_seconds

    def test_no_command_is_no_failure(self, sandbox: Sandbox, repository: Path) -> None:
        result = run(sandbox, repository)
        assert result.success
        assert result.commands == ()

    def test_both_streams_come_in_order(self, sandbox: Sandbox, repository: Path) -> None:
        result = run(sandbox, repository, "echo 1; echo 2 >&2; echo 3")
        assert outputs(result) == ["1\n2\n3\n"]

    def test_output_may_be_anything(self, sandbox: Sandbox, repository: Path) -> None:
        result = run(sandbox, repository, "echo 日本語", r"printf 'a\0b\377\303'", "printf 'no end'", "true")
        assert result.commands[0].output == "日本語\n"
        assert result.commands[1].output.startswith("a\0b")
        assert outputs(result)[2:] == ["no end", ""]
        assert result.success

    def test_too_much_output_keeps_its_beginning_and_end(self, sandbox: Sandbox, repository: Path) -> None:
        result = run(sandbox, repository, "echo first; yes line | head -c 5000000; echo last")
        (command,) = result.commands
        assert result.success
        assert command.output.startswith("first\nline\n")
        assert command.output.endswith("last\n")
        assert len(command.output) < OUTPUT_BYTES + 200
        assert command.truncated_bytes >= 5_000_000 - OUTPUT_BYTES

    def test_the_cap_is_each_commands_own(self, sandbox: Sandbox, repository: Path) -> None:
        result = run(sandbox, repository, "yes | head -c 100000", "echo short")
        assert result.commands[1].output == "short\n"
        assert [command.truncated_bytes > 0 for command in result.commands] == [True, False]

    def test_there_is_no_input(self, sandbox: Sandbox, repository: Path) -> None:
        assert outputs(run(sandbox, repository, "cat; echo end")) == ["end\n"]

    # --- several commands

    def test_a_later_command_finds_what_an_earlier_one_wrote(self, sandbox: Sandbox, repository: Path) -> None:
        result = run(sandbox, repository, "mkdir d && cd d && echo made > f", "cat d/f; rm calc.py", "ls")
        assert outputs(result)[1] == "made\n"
        assert outputs(result)[2].split() == ["d", "test_calc.py"]

    @pytest.mark.parametrize(("fail_fast", "expected"), [(True, [0, 1]), (False, [0, 1, 0])])
    def test_a_failure_ends_the_tests_if_told_so(
        self, sandbox: Sandbox, repository: Path, fail_fast: bool, expected: list[int]
    ) -> None:
        result = run(sandbox, repository, "true", "false", "true", fail_fast=fail_fast)
        assert codes(result) == expected
        assert not result.success

    def test_variables_do_not_pass_from_command_to_command(self, sandbox: Sandbox, repository: Path) -> None:
        assert outputs(run(sandbox, repository, "A=1; export A; cd /", "echo [$A]; ls calc.py"))[1] == "[]\ncalc.py\n"

    # --- time

    def test_a_command_that_does_not_end_is_stopped_and_is_the_last(self, sandbox: Sandbox, repository: Path) -> None:
        result = run(sandbox, repository, "echo begun; sleep 600", "true", seconds=1, fail_fast=False)
        assert codes(result) == [None]
        assert result.commands[0].timed_out
        assert result.commands[0].output == "begun\n"
        assert not result.success
        assert result.duration_seconds < 30

    def test_a_command_that_ignores_signals_is_stopped_too(self, sandbox: Sandbox, repository: Path) -> None:
        result = run(sandbox, repository, "trap '' TERM INT HUP; while :; do sleep 600; done", seconds=0.5)
        assert result.commands[0].timed_out

    def test_a_flood_is_stopped_in_time(self, sandbox: Sandbox, repository: Path) -> None:
        result = run(sandbox, repository, "yes", seconds=0.5)
        assert result.commands[0].stopped_by in {"timeout", "output-limit"}
        assert len(result.commands[0].output) < OUTPUT_BYTES + 200

    def test_no_time_left_is_a_failed_test(self, sandbox: Sandbox, repository: Path) -> None:
        result = run(sandbox, repository, "sleep 600", seconds=0)
        assert not result.success
        assert result.duration_seconds < 30

    def test_a_cancelled_command_ends_soon_with_all_its_processes(
        self, sandbox: Sandbox, repository: Path, tmp_path: Path
    ) -> None:
        marker = f"survivor-{tmp_path.name}-cancelled"
        deadline, asked = Deadline(60), []

        def cancel_once_it_runs() -> None:
            pause = threading.Event()
            while not processes_with(marker) and deadline.remaining_seconds() > 0:
                pause.wait(0.02)
            asked.append(time.monotonic())
            deadline.cancellation.request("Somebody asked.")

        canceller = threading.Thread(target=cancel_once_it_runs)
        canceller.start()
        options: dict[str, Any] = {"tree": "t", "environment": {}, "fail_fast": True}
        with pytest.raises(RunCancelledError, match="Somebody asked"):
            sandbox.run_tests(
                [f"trap '' TERM INT; sh -c 'sleep 600; true' {marker} & sleep 600; true"],
                repository, deadline=deadline, **options,
            )  # fmt: skip
        ended = time.monotonic()
        canceller.join()
        assert ended - asked[0] < 10
        assert_gone(marker)

    @pytest.mark.parametrize("ending", ["true", "false", "sleep 600"])
    def test_no_process_is_left(self, sandbox: Sandbox, repository: Path, tmp_path: Path, ending: str) -> None:
        marker = f"survivor-{tmp_path.name}-{ending.replace(' ', '-')}"
        daemon = f"sh -c 'while :; do sleep 600; done' {marker}"
        run(
            sandbox,
            repository,
            f"{daemon} & {daemon} >/dev/null 2>&1 & {ending}",
            seconds=5 if "600" not in ending else 1,
        )
        assert_gone(marker)

    # --- what a command sees

    def test_the_callers_environment_is_not_inherited(
        self, sandbox: Sandbox, repository: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        secrets = ("OPENAI_API_KEY", "GIT_TOKEN", "NECROCODE_SERVICE_TOKEN", "AWS_SECRET_ACCESS_KEY", "MY_OWN")
        for name in secrets:
            monkeypatch.setenv(name, "s3cr3t-0123456789")
        monkeypatch.setenv("PYTHONPATH", "/s3cr3t-0123456789")
        (seen,) = outputs(run(sandbox, repository, "env; cat /proc/self/environ"))
        assert "PATH=" in seen
        assert "s3cr3t" not in seen

    def test_what_the_operator_adds_is_there(self, sandbox: Sandbox, repository: Path) -> None:
        environment = {"DATABASE_URL": "sqlite://", "LABEL": "日本語", "LINES": "a\nb c"}
        (seen,) = outputs(run(sandbox, repository, 'env; echo "[$LINES]"', environment=environment))
        assert "DATABASE_URL=sqlite://\n" in seen
        assert "LABEL=日本語\n" in seen
        assert "[a\nb c]\n" in seen

    def test_home_and_temporary_files_are_not_the_callers(self, sandbox: Sandbox, repository: Path) -> None:
        home = Path.home()
        command = 'touch "$HOME/mark" "${TMPDIR:-/tmp}/mark" && ls -A "$HOME"'
        for _ in range(2):
            result = run(sandbox, repository, command)
            assert outputs(result) == ["mark\n"]
        assert not (home / "mark").exists()

    # --- what comes back

    def test_reports_come_back_with_their_command_alone(self, sandbox: Sandbox, repository: Path) -> None:
        leave = 'mkdir -p "$NECROCODE_REPORTS/d" && echo {} > "$NECROCODE_REPORTS/d/{}.xml"; ls -A "$NECROCODE_REPORTS"'
        result = run(sandbox, repository, leave.format("1", "a"), leave.format("2", "b"), "true")
        assert [command.collected for command in result.commands] == [
            {"reports/d/a.xml": b"1\n"},
            {"reports/d/b.xml": b"2\n"},
            {},
        ]
        assert outputs(result)[:2] == ["d\n", "d\n"], "each command has a fresh folder"
        assert "reports" not in result.model_dump_json(exclude={"commands": {"__all__": {"command"}}})

    def test_files_of_the_copy_come_back_by_pattern_where_the_command_wrote_them(
        self, sandbox: Sandbox, repository: Path
    ) -> None:
        (repository / "m/target").mkdir(parents=True)
        (repository / "m/target/TEST-old.xml").write_text("old")
        write = "mkdir -p {0}/target && echo {0} > {0}/target/TEST-{0}.xml && echo x > {0}/target/notes.xml"
        patterns = ("*/target/TEST-*.xml",)
        result = run(sandbox, repository, write.format("m"), write.format("日本"), collect=patterns)
        assert [command.collected for command in result.commands] == [
            {"m/target/TEST-m.xml": b"m\n"},
            {"日本/target/TEST-日本.xml": "日本\n".encode()},
        ]

    def test_a_stopped_command_leaves_what_it_had_written(self, sandbox: Sandbox, repository: Path) -> None:
        result = run(sandbox, repository, 'echo half > "$NECROCODE_REPORTS/a.xml"; sleep 600', seconds=1)
        assert result.commands[0].timed_out
        assert result.commands[0].collected == {"reports/a.xml": b"half\n"}

    @pytest.mark.parametrize("folder", [".", "$HOME", "$TMPDIR", "$NECROCODE_REPORTS"])
    def test_a_file_that_is_too_large_is_told_whatever_the_command_says(
        self, open_sandbox: OpenSandbox, repository: Path, folder: str
    ) -> None:
        sandbox = open_sandbox(Limits(file_bytes=1_000_000))
        (repository / "large").write_bytes(b"x" * 1_200_000)
        os.utime(repository / "large", (0, 0))
        result = run(sandbox, repository, "true", f"head -c 3000000 /dev/zero >{folder}/big; true")
        assert codes(result) == [0, None]
        assert [command.stopped_by for command in result.commands] == [None, "disk-limit"]

    @pytest.mark.parametrize(
        "command",
        [
            'ln -s {secret} "$NECROCODE_REPORTS/a.xml"',
            'ln -s {folder} "$NECROCODE_REPORTS/d"',
            'rmdir "$NECROCODE_REPORTS" && ln -s {folder} "$NECROCODE_REPORTS"',
            'rmdir "$NECROCODE_REPORTS" && echo x > "$NECROCODE_REPORTS"',
            'rmdir "$NECROCODE_REPORTS"',
            'mkfifo "$NECROCODE_REPORTS/a.xml"',
            'echo x > a.xml && ln a.xml "$NECROCODE_REPORTS/a.xml"; ln -s {folder} target',
            'mkdir "$NECROCODE_REPORTS/a.xml"; rm -rf target; ln -s {folder} target',
        ],
    )
    def test_no_link_is_followed_and_only_files_are_read(
        self, sandbox: Sandbox, repository: Path, tmp_path: Path, command: str
    ) -> None:
        folder = tmp_path / "outside"
        folder.mkdir()
        (folder / "TEST-a.xml").write_text("secret")
        command = command.format(secret=folder / "TEST-a.xml", folder=folder)
        result = run(sandbox, repository, command, "true", collect=("*.xml",), fail_fast=False)
        assert not any(b"secret" in content for one in result.commands for content in one.collected.values())
        assert codes(result)[1] == 0

    def test_what_comes_back_is_bounded(self, sandbox: Sandbox, repository: Path) -> None:
        result = run(
            sandbox,
            repository,
            'truncate -s 1900M "$NECROCODE_REPORTS/big"',
            'cd "$NECROCODE_REPORTS" && seq 1 5000 | xargs touch',
            'cd "$NECROCODE_REPORTS" && for i in $(seq 1 60); do mkdir d; cd d; done; touch deep',
        )
        assert sum(map(len, result.commands[0].collected.values())) <= 64 * 1024 * 1024
        assert len(result.commands[1].collected) <= 2000
        assert "deep" not in str(list(result.commands[2].collected))

    def test_names_that_are_no_utf_8_do_no_harm(self, sandbox: Sandbox, repository: Path) -> None:
        result = run(sandbox, repository, r"""echo x > "$NECROCODE_REPORTS/$(printf 'a\377')" """)
        assert list(result.commands[0].collected.values()) == [b"x\n"]
        result.commands[0].collected.popitem()[0].encode()

    # --- the checkout

    def test_the_checkout_is_never_written_to(self, sandbox: Sandbox, repository: Path) -> None:
        (repository / "sub").mkdir()
        (repository / "sub/data.txt").write_text("data")
        (repository / "link").symlink_to("calc.py")
        before = snapshot(repository)
        result = run(
            sandbox, repository, "echo x > new; echo x >> calc.py; rm test_calc.py", "rm -rf sub; echo x > link",
            "chmod 777 calc.py; mkdir -p a/b/c; touch a/b/c/d", "mkdir .git; echo x > .git/config; rm -rf .git/HEAD",
            fail_fast=False,
        )  # fmt: skip
        assert codes(result)[:3] == [0, 0, 0]
        assert snapshot(repository) == before
        assert git(repository, "status", "--porcelain", "--", "calc.py", "test_calc.py") == ""
        assert git(repository, "fsck") == ""

    def test_each_run_starts_from_the_checkout(self, sandbox: Sandbox, repository: Path) -> None:
        run(sandbox, repository, "echo x > left; echo x > calc.py")
        result = run(sandbox, repository, "ls; cat calc.py")
        assert outputs(result) == [f"calc.py\ntest_calc.py\n{BROKEN_CALC}"]

    def test_a_folder_without_write_permission_is_dropped_too(self, sandbox: Sandbox, repository: Path) -> None:
        assert run(sandbox, repository, "mkdir -p d/e && touch d/e/f && chmod 000 d/e d").success
        assert run(sandbox, repository, "test ! -e d").success

    def test_names_of_any_script_are_seen(self, sandbox: Sandbox, repository: Path) -> None:
        (repository / "日本 語").mkdir()
        (repository / "日本 語/ファイル.txt").write_text("内容\n")
        assert outputs(run(sandbox, repository, 'cat "日本 語/ファイル.txt"')) == ["内容\n"]

    def test_a_checkout_that_is_not_there_is_an_error(self, sandbox: Sandbox, tmp_path: Path) -> None:
        with pytest.raises(TestExecutionError):
            run(sandbox, tmp_path / "none", "true")

    def test_eight_runs_at_once_do_not_meet(self, sandbox: Sandbox, repository: Path) -> None:
        def work(number: int) -> Sequence[str]:
            return outputs(run(sandbox, repository, f"echo {number} > mine", "cat mine; ls"))

        assert at_once(work, range(8)) == [["", f"{number}\ncalc.py\nmine\ntest_calc.py\n"] for number in range(8)]

    # --- set-up

    def test_what_a_set_up_wrote_is_there_in_every_run_and_none_changes_it(
        self, sandbox: Sandbox, repository: Path, tmp_path: Path
    ) -> None:
        before, kept = snapshot(repository), tmp_path / "kept"
        made = set_up(
            sandbox, repository, kept, "mkdir -p .deps/lib && echo one > .deps/lib/a; ln -s lib .deps/link",
            'mkdir -p "$HOME/go/pkg" && echo two > "$HOME/go/pkg/b" && chmod 555 "$HOME/go/pkg" && cat .deps/lib/a',
        )  # fmt: skip
        assert made.success, outputs(made)
        assert outputs(made)[1] == "one\n"
        for _ in range(2):
            result = run(
                sandbox, repository, 'cat .deps/link/a calc.py "$HOME/go/pkg/b"; ls -d .d*; ls',
                'echo x >> .deps/lib/a && touch "$HOME/new" && rm -rf .deps && ls -d .d*; ls -A "$HOME"', below=kept,
            )  # fmt: skip
            assert outputs(result)[0] == f"one\n{BROKEN_CALC}two\n.deps\ncalc.py\ntest_calc.py\n"
            assert outputs(result)[1].split()[-2:] == ["go", "new"]
            assert ".deps\n" not in outputs(result)[1]
        assert outputs(run(sandbox, repository, 'ls -d .d*; ls; ls -A "$HOME"'))[0].endswith(
            "\ncalc.py\ntest_calc.py\n"
        )
        assert snapshot(repository) == before

    def test_the_checkouts_own_files_hide_what_a_set_up_did_to_them(
        self, sandbox: Sandbox, repository: Path, tmp_path: Path
    ) -> None:
        kept = tmp_path / "kept"
        made = set_up(
            sandbox, repository, kept,
            "echo bad > calc.py; rm test_calc.py; mkdir test_calc.py; touch test_calc.py/x",
            "mkdir -p .git; touch .git/x; mkdir d; echo deep > d/made; echo own > later.py; mkfifo pipe; true",
        )  # fmt: skip
        assert made.success, outputs(made)
        (repository / "d").mkdir()
        (repository / "d/file").write_text("file\n")
        (repository / "later.py").write_text("the change's\n")
        result = run(sandbox, repository, "cat calc.py d/file d/made later.py .git/x; ls -d test_calc.py", below=kept)
        seen = "".join(line for line in outputs(result)[0].splitlines(keepends=True) if ".git/x" not in line)
        assert seen == f"{BROKEN_CALC}file\ndeep\nthe change's\ntest_calc.py\n"
        assert outputs(run(sandbox, repository, "find . -type p", below=kept)) == [""]

    @pytest.mark.parametrize("ending", ["false", "sleep 600"])
    def test_of_a_set_up_that_fails_nothing_is_kept(
        self, sandbox: Sandbox, repository: Path, tmp_path: Path, ending: str
    ) -> None:
        made = set_up(sandbox, repository, tmp_path / "kept", f"touch made; {ending}", "touch more", seconds=1)
        assert not made.success
        assert len(made.commands) == 1
        assert not (tmp_path / "kept").exists()

    def test_what_a_set_up_leaves_is_the_runners_and_gives_nobody_rights(
        self, sandbox: Sandbox, repository: Path, tmp_path: Path
    ) -> None:
        kept = tmp_path / "kept"
        made = set_up(sandbox, repository, kept, "touch suid; chmod 6755 suid; mkdir closed; chmod 0 closed; chmod 0 .")
        assert made.success, outputs(made)
        files = [kept, *kept.rglob("*")]
        assert {(path.lstat().st_uid, path.lstat().st_gid) for path in files} == {(os.getuid(), os.getgid())}
        assert not any(path.lstat().st_mode & 0o7000 for path in files)
        assert outputs(run(sandbox, repository, "stat -c %a suid", below=kept)) == ["755\n"]

    def test_what_names_its_own_path_stays_true(self, sandbox: Sandbox, repository: Path, tmp_path: Path) -> None:
        if not self.has_fixed_place:
            pytest.skip("copies that cannot be mounted elsewhere")
        kept, venv = tmp_path / "kept", "python3 -m venv --without-pip .venv && echo 'm = 1' > \"$HOME/m.py\""
        link = 'cd .venv/lib/python*/site-packages; echo "$HOME" > own.pth'
        made = set_up(sandbox, repository, kept, venv, link)
        assert made.success, outputs(made)
        use = ". .venv/bin/activate; python -c 'import calc, m, sys; print(m.m, sys.prefix)'; pwd"
        result = run(sandbox, repository, use, below=kept)
        printed, folder = outputs(result)[0].splitlines()
        assert printed == f"1 {folder}/.venv"
