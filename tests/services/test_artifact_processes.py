"""The artifact store service as a process: killed under load, and fed with more than its memory."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pytest

from necrocode.agent_runner import ArtifactStoreClient, LocalArtifactStore, RunnerError
from tests.support.s3_server import S3Server, s3_server

MIB = 1 << 20
LARGE_MIB = 256
MOST_GROWTH_MIB = 24
"""Less than a tenth of what goes through; a buffered body alone would be more than ten times as much."""


@contextmanager
def running(place: str | Path, folder: Path, environment: dict[str, str] | None = None) -> Iterator[tuple[str, Any]]:
    command = [sys.executable, "-m", "tests.support.artifact_process", str(place), str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | (environment or {})) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            assert url.startswith("http://")
            yield url, process
        finally:
            process.kill()


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.soak) for seed in (1, 2))])
def test_every_acknowledged_artifact_is_whole_after_a_kill(tmp_path: Path, seed: int) -> None:
    acknowledged: dict[str, str] = {}
    many = threading.Event()

    def load(number: int, url: str) -> None:
        rng = random.Random(100 * seed + number)  # noqa: S311  repeatable
        with ArtifactStoreClient(url, network_retry_count=0) as client:
            for turn in range(10_000):
                content = rng.randbytes(rng.choice([0, 10, 100_000, 3_000_000]))
                try:
                    uri = client.upload("log", content, {"run_id": f"{number}-{turn % 3}"})
                except RunnerError:
                    return
                acknowledged[uri.rpartition("/")[2]] = hashlib.sha256(content).hexdigest()
                if len(acknowledged) > 30 + 5 * seed:
                    many.set()

    with running(tmp_path / "store", tmp_path) as (url, process):
        threads = [threading.Thread(target=load, args=(number, url)) for number in range(4)]
        for thread in threads:
            thread.start()
        assert many.wait(60)
        os.kill(process.pid, signal.SIGKILL)
        for thread in threads:
            thread.join(60)
    with running(tmp_path / "store", tmp_path) as (url, _), ArtifactStoreClient(url) as client:
        for artifact_id, digest in acknowledged.items():
            assert hashlib.sha256(client.download(artifact_id)).hexdigest() == digest
        report = client.verify()
        assert (report.damaged, report.missing) == ((), ())
        assert report.checked >= len(acknowledged)
        client.upload("log", b"it goes on")
    assert LocalArtifactStore(tmp_path / "store").usage().count == report.checked + 1


class Zeros:
    """A source that is large without being anywhere."""

    def __init__(self, size: int) -> None:
        self.size, self._at = size, 0
        self._block = random.Random(9).randbytes(MIB)  # noqa: S311  incompressible

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset if whence == 0 else self.size + offset
        return self._at

    def read(self, size: int = -1) -> bytes:
        chunk = self._block[: min(size, self.size - self._at, MIB)]
        self._at += len(chunk)
        return chunk


class Sink:
    """A target that keeps only a hash."""

    def __init__(self) -> None:
        self.digest = hashlib.sha256()

    def seekable(self) -> bool:
        return False

    def write(self, chunk: bytes) -> int:
        self.digest.update(chunk)
        return len(chunk)


def resident_mib(pid: int, peak: bool = False) -> float:
    wanted = "VmHWM:" if peak else "VmRSS:"
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(wanted))


def through(url: str, pid: int, size_mib: int) -> tuple[float, float]:
    """Peak growth, in MiB, of the service and of this process, while an artifact goes in and comes out."""
    with ArtifactStoreClient(url, timeout_seconds=600) as client:
        client.download(client.upload("warm", os.urandom(9 * MIB)))
        for one in (pid, os.getpid()):
            Path(f"/proc/{one}/clear_refs").write_text("5")  # resets the peak
        before = resident_mib(pid), resident_mib(os.getpid())
        source: Any = Zeros(size_mib * MIB)
        stored = client.upload_stream("raw", source, {"run_id": "r"})
        sink: Any = Sink()
        client.download_to(stored.artifact_id, sink)
        assert sink.digest.hexdigest() == stored.sha256
        assert stored.size_bytes == size_mib * MIB
        after = resident_mib(pid, peak=True), resident_mib(os.getpid(), peak=True)
    return after[0] - before[0], after[1] - before[1]


def check_growth(url: str, pid: int, size_mib: int, told: IO[str] = sys.stderr) -> None:
    growth = through(url, pid, size_mib)
    print(f"{size_mib} MiB: the service grew by {growth[0]:.1f} MiB, the client by {growth[1]:.1f}", file=told)
    assert max(growth) < MOST_GROWTH_MIB, growth


def test_memory_stays_flat_with_a_folder(tmp_path: Path) -> None:
    with running(tmp_path / "store", tmp_path) as (url, process):
        check_growth(url, process.pid, LARGE_MIB)


@pytest.fixture
def s3() -> Iterator[S3Server]:
    with s3_server() as server:
        yield server


@pytest.mark.soak
def test_memory_stays_flat_with_a_bucket(s3: S3Server, tmp_path: Path) -> None:
    with running(f"s3://{s3.new_bucket()}/x", tmp_path, s3.environment) as (url, process):
        check_growth(url, process.pid, LARGE_MIB)


@pytest.mark.soak
def test_memory_stays_flat_with_two_gigabytes(tmp_path: Path) -> None:
    with running(tmp_path / "store", tmp_path) as (url, process):
        check_growth(url, process.pid, 2048 + 1)
