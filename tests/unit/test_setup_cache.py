from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

import pytest

from necrocode.agent_runner import RunnerTimeoutError
from necrocode.agent_runner._clock import Deadline
from necrocode.agent_runner.sandbox import kept
from necrocode.agent_runner.sandbox.kept import made_fit
from necrocode.agent_runner.sandbox.setup_cache import MAX_AGE, SetupCache
from tests.contracts.threads import at_once
from tests.support.clocks import FakeClock

SIZE = 100


class Bench:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clock = FakeClock()
        self.fills: list[str] = []

    def cache(self, max_bytes: int = 10 * SIZE) -> SetupCache:
        return SetupCache(self.folder, self.clock, max_bytes)

    def fill(self, text: str) -> Callable[[Path], int]:
        def fill(folder: Path) -> int:
            assert list(folder.iterdir()) == []
            self.fills.append(text)
            (folder / "file").write_text(text)
            return SIZE

        return fill

    def use(self, key: str, **options: int) -> str:
        with self.cache(**options).kept(key, self.fill(key), Deadline(60)) as folder:
            return (folder / "file").read_text()

    def keys(self) -> list[str]:
        return sorted(entry.parent.name.partition("-")[0] for entry in self.folder.glob("*/entry.json"))


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "setups")


def test_what_was_made_once_is_used_again(bench: Bench) -> None:
    assert [bench.use("a"), bench.use("a"), bench.use("b")] == ["a", "a", "b"]
    assert bench.fills == ["a", "b"]
    assert bench.folder.stat().st_mode & 0o077 == 0


def test_of_several_at_once_one_makes_it(bench: Bench) -> None:
    assert at_once(lambda _number: bench.use("a"), range(6)) == ["a"] * 6
    assert bench.fills == ["a"]


def test_what_could_not_be_made_is_not_kept_and_tried_again(bench: Bench) -> None:
    def fail(folder: Path) -> int:
        (folder / "half").touch()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), bench.cache().kept("a", fail, Deadline(60)):
        pass
    assert [path.suffix for path in bench.folder.iterdir()] == [".lock"]
    assert bench.use("a") == "a"


DYING = """
import os, signal, sys
from pathlib import Path
from necrocode.agent_runner._clock import SYSTEM_CLOCK, Deadline
from necrocode.agent_runner.sandbox.setup_cache import SetupCache

def fill(folder):
    (folder / "half").touch()
    os.kill(os.getpid(), signal.SIGKILL)

with SetupCache(Path(sys.argv[1]), SYSTEM_CLOCK, 1000).kept("a", fill, Deadline(60)):
    pass
"""


def test_who_dies_while_making_it_leaves_nothing_that_is_trusted_and_holds_nobody_up(bench: Bench) -> None:
    done = subprocess.run([sys.executable, "-c", DYING, str(bench.folder)], check=False)
    assert done.returncode == -9
    assert bench.keys() == []
    (draft,) = bench.folder.glob("draft-*")
    os.utime(draft, (0, 0))  # a young one may be somebody's who is about to lock it
    assert bench.use("a") == "a"
    assert not draft.exists()


def test_what_is_left_of_a_removal_counts_as_not_there(bench: Bench) -> None:
    bench.use("a")
    (entry,) = bench.folder.glob("*/entry.json")
    entry.unlink()
    assert bench.use("a") == "a"
    assert bench.fills == ["a", "a"]


def test_what_was_not_used_for_longest_makes_room(bench: Bench) -> None:
    for key in ("a", "b", "c", "a", "d"):
        bench.clock.seconds += 1
        bench.use(key, max_bytes=3 * SIZE)
    assert bench.keys() == ["a", "c", "d"]


def test_what_is_in_use_is_not_removed(bench: Bench) -> None:
    with bench.cache().kept("a", bench.fill("a"), Deadline(60)) as folder:
        for key in ("b", "c"):
            bench.clock.seconds += 1
            bench.use(key, max_bytes=SIZE)
        assert bench.keys() == ["a", "c"]
        assert (folder / "file").read_text() == "a"
    bench.clock.seconds += 1
    bench.use("d", max_bytes=SIZE)
    assert bench.keys() == ["d"]


def test_what_is_too_large_serves_its_own_run_and_is_dropped(bench: Bench) -> None:
    with ExitStack() as stack:
        folders = [
            stack.enter_context(bench.cache(SIZE - 1).kept("a", bench.fill("a"), Deadline(60))) for _ in range(2)
        ]  # fmt: skip
        assert folders[0] != folders[1]
        assert all((folder / "file").exists() for folder in folders)
    assert list(bench.folder.glob("*/")) == []


def test_a_cache_of_nothing_uses_nothing_and_throws_away_what_nobody_uses(bench: Bench) -> None:
    bench.use("a")
    with bench.cache().kept("b", bench.fill("b"), Deadline(60)):
        assert bench.use("a", max_bytes=0) == "a"
        assert bench.keys() == ["b"]
    assert bench.fills == ["a", "b", "a"]


def test_a_scratch_folder_is_dropped(bench: Bench) -> None:
    with bench.cache().scratch(bench.fill("a")) as folder:
        assert (folder / "file").read_text() == "a"
    assert list(bench.folder.iterdir()) == []


def test_an_old_one_is_made_anew_and_swept(bench: Bench) -> None:
    bench.use("a")
    bench.clock.seconds += MAX_AGE.total_seconds() + timedelta(minutes=1).total_seconds()
    assert bench.use("a") == "a"
    assert bench.fills == ["a", "a"]
    assert bench.keys() == ["a"]


HOLDER = """
import sys
from pathlib import Path
from necrocode.agent_runner._clock import Deadline
from necrocode.agent_runner.sandbox.setup_cache import SetupCache
from tests.support.clocks import FakeClock

def fill(folder):
    print("begun", flush=True)
    sys.stdin.read()
    (folder / "file").write_text("theirs")
    return 1

with SetupCache(Path(sys.argv[1]), FakeClock(), 1000).kept("a", fill, Deadline(60)):
    pass
"""


def test_another_process_that_is_at_it_is_waited_for_but_not_for_ever(bench: Bench) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(bench.folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdin is not None
        holder.stdout.readline()
        with (
            pytest.raises(RunnerTimeoutError, match="another run"),
            bench.cache().kept("a", bench.fill("a"), Deadline(0)),
        ):
            pass
        holder.stdin.close()
        assert bench.use("a") == "theirs"
    assert bench.fills == []


# --- made fit to lie below others


def test_only_what_stands_in_place_of_nothing_stays(tmp_path: Path) -> None:
    files, home = tmp_path / "files", tmp_path / "home"
    for path in ("a/own", "a/new", "gone/x", ".git/config", "sub/.git/HEAD"):
        (files / path).parent.mkdir(parents=True, exist_ok=True)
        (files / path).write_text("x")
    (files / "folder").write_text("a file where the checkout has a folder")
    os.mkfifo(files / "pipe")
    (files / "link").symlink_to("/etc/passwd")
    home.mkdir()
    (home / "a").mkdir(mode=0)
    (home / "own").write_text("x")
    (home / "own").chmod(0o4000)
    before = Path("/etc/passwd").stat()
    size = made_fit(tmp_path, {"a/", "a/own", "gone", "folder/", "folder/x", "own"})
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}
    assert left == {"files", "files/a", "files/a/new", "files/sub", "files/sub/.git", "files/sub/.git/HEAD",
                    "files/link", "home", "home/a", "home/own"}  # fmt: skip
    assert ((home / "a").stat().st_mode & 0o7777, (home / "own").stat().st_mode & 0o7777) == (0o700, 0o400)
    assert Path("/etc/passwd").stat() == before
    assert size > 0


def test_the_number_of_files_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "MAX_ENTRIES", 3)
    (tmp_path / "home").mkdir()
    for number in range(4):
        (tmp_path / "files" / str(number)).mkdir(parents=True)
    with pytest.raises(OSError, match="more than 3 files"):
        made_fit(tmp_path, ())
