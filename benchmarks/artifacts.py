"""What storing an artifact costs beside the bare work: ``python benchmarks/artifacts.py [--size-mib 1024]``.

Files against one pass of sha256 and write with a final fsync; S3 (moto, needs the extra ``dev``) against boto3 alone;
memory in a process of its own. Ratios are of speed: above 1 is faster than the bare work.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import statistics
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from _measure import median_ratio, side_by_side

sys.path.insert(0, str(Path(__file__).parents[1]))

from necrocode.agent_runner import LocalArtifactStore, S3ArtifactStore
from tests.support.s3_server import s3_server

MIB = 1 << 20
PLACE = {"spec_name": "bench", "task_id": "1", "run_id": "r"}
MEMORY_OF = """
import sys
from pathlib import Path
from necrocode.agent_runner import LocalArtifactStore, S3ArtifactStore
def now(name):
    return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith(name)) / 1024
where, spool, source = sys.argv[1:]
store = S3ArtifactStore(where, spool_dir=Path(spool)) if where.startswith("s3:") else LocalArtifactStore(Path(where))
store.delete(store.upload("warm", bytes(9 << 20)))
Path("/proc/self/clear_refs").write_text("5")
idle = now("VmRSS:")
with open(source, "rb") as stream:
    stored = store.upload_stream("raw", stream)
with open("/dev/null", "wb") as target:
    store.download_to(stored.artifact_id, target)
print(now("VmHWM:") - idle)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size-mib", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCHMARK_DIR")) as folder:
        place = Path(folder)
        source = place / "source"
        with source.open("wb") as stream:
            for _ in range(arguments.size_mib):
                stream.write(os.urandom(MIB))
        print(f"{arguments.size_mib} MiB, medians of {arguments.rounds} rounds")
        print(f"{'':<44}{'MB/s':>7}{'speed':>8}{'goal':>7}")
        files(place, source, arguments)
        buckets(place, source, arguments)


def files(place: Path, source: Path, arguments: argparse.Namespace) -> None:
    plain = LocalArtifactStore(place / "plain")
    gzip = LocalArtifactStore(place / "gzip", compress=True)
    subjects = {
        "sha256 and write in one pass, fsync": partial(bare_write, source, place / "bare"),
        "folder": partial(put, plain, source),
        "folder, compress on (stays raw)": partial(put, gzip, source),
    }
    report(subjects, arguments, "0.90")
    stored = put(plain, source, keep=True)
    report(
        {
            "read and sha256": partial(bare_read, source),
            "folder, download": partial(get, plain, stored),
        },
        arguments,
        "",
    )
    plain.delete(stored)
    told_memory("folder", str(place / "memory"), place, source)


def buckets(place: Path, source: Path, arguments: argparse.Namespace) -> None:
    with s3_server() as server:
        os.environ.update(server.environment)
        bucket, client = server.new_bucket(), server.client()
        store = S3ArtifactStore(f"s3://{bucket}/x", spool_dir=place / "spool")
        subjects = {
            "boto3 alone, upload_file": partial(bare_upload, client, bucket, source),
            "S3": partial(put, store, source),
        }
        report(subjects, arguments, "0.90")
        stored = put(store, source, keep=True)
        client.upload_file(str(source), bucket, "bare")
        subjects = {
            "boto3 alone, get_object": partial(bare_download, client, bucket),
            "S3, download": partial(get, store, stored),
        }
        report(subjects, arguments, "")
        store.delete(stored)
        told_memory("S3", f"s3://{bucket}/y", place, source)


def report(subjects: dict[str, Any], arguments: argparse.Namespace, goal: str) -> None:
    seconds = side_by_side(subjects, arguments.rounds)
    base = next(iter(subjects))
    for name in subjects:
        speed = arguments.size_mib * MIB / 1e6 / statistics.median(seconds[name])
        ratio = 1 / median_ratio(seconds, name, base)
        print(f"{name:<44}{speed:7.0f}{ratio:8.2f}{goal if name != base else '':>7}")


def told_memory(name: str, where: str, place: Path, source: Path) -> None:
    command = [sys.executable, "-c", MEMORY_OF, where, str(place / "spool"), str(source)]
    grown = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    print(f"{f'{name}, memory over idle, MiB':<44}{grown:7.1f}{'':>8}{'16':>7}")


def put(store: Any, source: Path, *, keep: bool = False) -> str:
    with source.open("rb") as stream:
        stored = store.upload_stream("raw", stream, PLACE)
    if not keep:
        store.delete(stored.artifact_id)
    return str(stored.artifact_id)


def get(store: Any, artifact_id: str) -> None:
    with Path(os.devnull).open("wb") as target:
        store.download_to(artifact_id, target)


def bare_write(source: Path, target: Path) -> str:
    digest = hashlib.sha256()
    with source.open("rb") as stream, target.open("wb", buffering=0) as copy:
        while chunk := stream.read(MIB):
            digest.update(chunk)
            copy.write(chunk)
        os.fsync(copy.fileno())
    target.unlink()
    return digest.hexdigest()


def bare_read(source: Path) -> str:
    digest = hashlib.sha256()
    with source.open("rb") as stream, Path(os.devnull).open("wb") as target:
        while chunk := stream.read(MIB):
            digest.update(chunk)
            target.write(chunk)
    return digest.hexdigest()


def bare_upload(client: Any, bucket: str, source: Path) -> None:
    client.upload_file(str(source), bucket, "bare")
    client.delete_object(Bucket=bucket, Key="bare")


def bare_download(client: Any, bucket: str) -> None:
    with Path(os.devnull).open("wb") as target:
        target.writelines(client.get_object(Bucket=bucket, Key="bare")["Body"].iter_chunks(MIB))


if __name__ == "__main__":
    main()
