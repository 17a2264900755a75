"""A runner is killed at every place at which it does something that lasts; the next one finishes its work."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.world import World, Zygote

EVERY = 13
"""One place in so many belongs to the ordinary tests, the others to ``make soak``."""


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    with Zygote() as one:
        yield one


def places(folder: Path, zygote: Zygote) -> list[str]:
    """Every place that an undisturbed run passes, in order."""
    world = World(folder, zygote)
    with world.model() as url:
        code, told = world.runner(url)
    assert (code, [one["status"] for one in told["results"]]) == (0, ["done"]), told
    world.assert_all_is_well()
    return list(told["points"][:-1])  # after the last one the run has ended, and the same task would be run anew


def lost_answers(found: list[str], place: str) -> int:
    """Whether a runner that dies at the place has an answer in its memory alone: until the next write has ended."""
    before = found[: found.index(place) + 1]
    came = [at for at, one in enumerate(before) if one.startswith("after LanguageModel.complete")]
    return int(bool(came) and not any(one.startswith("after durable append") for one in before[came[-1] :]))


def die_and_recover(folder: Path, zygote: Zygote, place: str, found: list[str]) -> None:
    world = World(folder, zygote)
    with world.model() as url:
        code, _ = world.runner(url, dies_at=place)
        assert code in {-signal.SIGKILL, 0}, "0: candidates and heartbeats do not pass every place each time"
        code, told = world.runner(url)
    assert (code, [one["status"] for one in told["results"]]) == (0, ["done"]), told["results"][0]["error"]
    world.assert_all_is_well(lost_answers=lost_answers(found, place))


def test_a_runner_killed_at_some_places_loses_and_repeats_nothing(tmp_path: Path, zygote: Zygote) -> None:
    found = places(tmp_path / "undisturbed", zygote)
    for number, place in enumerate(found[::EVERY]):
        die_and_recover(tmp_path / str(number), zygote, place, found)


@pytest.mark.soak
def test_a_runner_killed_at_any_place_loses_and_repeats_nothing(tmp_path: Path, zygote: Zygote) -> None:
    failures = {}
    found = places(tmp_path / "undisturbed", zygote)
    for number, place in enumerate(found):
        try:
            die_and_recover(tmp_path / str(number), zygote, place, found)
        except AssertionError as error:
            failures[place] = str(error)[:500]
    assert not failures
