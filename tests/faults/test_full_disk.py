"""A state folder on a disk that is too small: every run ends truthfully, and nothing is spoiled for the next one."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.world import ANSWERS, World, Zygote


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    with Zygote() as one:
        yield one


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system in memory."""
    place = tmp_path / "disk"
    place.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)], check=False, capture_output=True, text=True
    )
    if made.returncode != 0:
        pytest.skip(f"no file system can be mounted here: {made.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def resize(disk: Path, kilobytes: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={kilobytes}k", str(disk)], check=True)


@pytest.mark.parametrize("kilobytes", [240, 480])
def test_a_run_on_a_full_disk_ends_truthfully_and_the_next_one_is_not_harmed(
    tmp_path: Path, disk: Path, zygote: Zygote, kilobytes: int
) -> None:
    resize(disk, kilobytes)
    # The lease on the task is known again by the runner's name; that on the slot has to run out: there are two.
    world = World(tmp_path / "world", zygote, runner_id="runner-1", pool_size=2)
    world.state = disk / "state"
    with world.model() as url:
        code, told = world.runner(url)
        assert code == 0, "whatever is wrong, it is a result"
        (result,) = told["results"]
        if result["status"] != "done":
            assert result["error_details"]["type"] != "InternalError", result["error"]
            assert "Traceback" not in result["error"]
        resize(disk, 100_000)
        code, told = world.runner(url)
    assert (code, [one["status"] for one in told["results"]]) == (0, ["done"]), told["results"][0]["error"]
    world.assert_delivered()
    world.assert_no_layer_and_no_process_is_left()
    assert len(world.asked) <= 2 * len(ANSWERS)
