"""The file of one run's outbox: what is torn is cut, what is damaged is never trusted, and nobody shares it."""

from __future__ import annotations

import os
import resource
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from necrocode.agent_runner.outbox.spool import Spool, framed

RECORDS = [({"kind": "run", "n": 0}, b""), ({"n": 1}, b"\nN1 5 5 bytes\0\xff"), ({"n": 2}, b""), ({"n": 3}, b"end")]


def opened(path: Path) -> Spool:
    spool = Spool.open(path, create=True)
    assert spool is not None
    return spool


def written(path: Path) -> bytes:
    spool = opened(path)
    spool.append(RECORDS)
    spool.close()
    return path.read_bytes()


def found(path: Path) -> list[tuple[object, bytes]]:
    spool = opened(path)
    try:
        return [(record.fields, spool.blob(record)) for record in spool.records]
    finally:
        spool.close()


def test_records_come_back_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.spool"
    spool = opened(path)
    (first,) = spool.append(RECORDS[:1])
    (_, last) = spool.append(RECORDS[1:3])
    spool.note([(RECORDS[3][0], b"")])
    assert (first.fields, spool.blob(last)) == (RECORDS[0][0], b"")
    spool.close()
    assert found(path) == [*RECORDS[:3], ({"n": 3}, b"")]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_file_that_a_crash_cut_anywhere_keeps_its_whole_records(tmp_path: Path) -> None:
    path = tmp_path / "a.spool"
    whole = written(path)
    ends = [0]
    for fields, blob in RECORDS:
        ends.append(ends[-1] + len(framed(fields, blob)))
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        kept = max(number for number, end in enumerate(ends) if end <= size)
        spool = opened(path)
        assert len(spool.records) == kept
        # A torn record may hold what looks like another one: then the file is shown to people instead of being cut.
        assert spool.damaged_at in {None, ends[kept]}
        spool.close()


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.data())
def test_a_changed_byte_is_never_trusted_and_nothing_behind_it(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "a.spool"
    path.unlink(missing_ok=True)
    content = bytearray(written(path))
    position = data.draw(st.integers(0, len(content) - 1))
    content[position] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    end = 0
    expected = []
    for fields, blob in RECORDS:
        end += len(framed(fields, blob))
        if end > position:
            break
        expected.append((fields, blob))
    assert found(path) == expected


def test_what_is_damaged_in_the_middle_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "a.spool"
    content = bytearray(written(path))
    first = len(framed(*RECORDS[0]))
    content[first + 90] ^= 1
    path.write_bytes(content)
    spool = opened(path)
    assert (spool.damaged_at, len(spool.records)) == (first, 1)
    spool.close()
    assert path.read_bytes() == bytes(content)


def test_one_at_a_time_has_the_file_and_a_dead_process_does_not(tmp_path: Path) -> None:
    path = tmp_path / "a.spool"
    written(path)
    code = (
        "import sys, pathlib; from necrocode.agent_runner.outbox.spool import Spool;"
        "spool = Spool.open(pathlib.Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        assert Spool.open(path) is None
        other.send_signal(signal.SIGKILL)
        other.wait()
        assert found(path) == RECORDS


def test_a_removed_file_is_not_taken_for_one_that_is_there(tmp_path: Path) -> None:
    path = tmp_path / "a.spool"
    written(path)
    spool = opened(path)
    spool.remove()
    assert Spool.open(path) is None
    assert not path.exists()


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    written(tmp_path / "a.spool")
    (tmp_path / "b.spool").symlink_to(tmp_path / "a.spool")
    with pytest.raises(OSError, match="symbolic"):
        Spool.open(tmp_path / "b.spool")


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """No file of this process can grow beyond that, as if the disk were full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("room", [0, 1, 100, 5000])
def test_a_record_that_the_disk_has_no_room_for_leaves_no_trace(tmp_path: Path, room: int) -> None:
    path = tmp_path / "a.spool"
    size = len(written(path))
    spool = opened(path)
    with files_of_at_most(size + room), pytest.raises(OSError, match="large"):
        spool.append([({"n": 4}, os.urandom(10_000))])
    spool.append([({"n": 5}, b"")])
    spool.close()
    assert found(path) == [*RECORDS, ({"n": 5}, b"")]
