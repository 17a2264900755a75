"""One run's book: what was told before a death is known after it, and keys are the same whoever sends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from necrocode.agent_runner import ArtifactUploadError, AuthenticationError, RateLimitError, RunnerError, ServiceError
from necrocode.agent_runner.outbox.book import RunBook, RunIdentity, upload_entries
from necrocode.agent_runner.outbox.delivery import Sender, is_final
from necrocode.agent_runner.outbox.folder import Outbox

RUN = RunIdentity("20260102T030405Z-0a1b2c3d", "host-1-abc", "s", "1")


def event(book: RunBook, name: str, **data: Any) -> Any:
    return book.entry("event", {"event_type": name, "data": {"runner_id": book.run.runner_id, **data}}, epoch=3)


def opened(folder: Path, run: RunIdentity = RUN) -> RunBook:
    return Outbox(folder, 1_000_000).open_book(run)


def closed(book: RunBook) -> None:
    assert book.spool is not None
    book.spool.close()


class Service:
    """A registry and a store in one, which take everything."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def upload(self, artifact_type: str, content: bytes, _metadata: Any = None) -> str:
        self.told.append((artifact_type, content))
        return f"mem:{artifact_type}"

    def add_event(self, _task_id: str, event_type: str, _data: Any, **options: Any) -> None:
        self.told.append((event_type, options["lease_epoch"]))

    def add_artifact(self, *given: Any, **_options: Any) -> None:
        self.told.append(given[1:3])

    def update_task_status(self, _task_id: str, status: str, metadata: Any, **_options: Any) -> None:
        self.told.append((status, metadata["artifact_count"]))


def test_a_run_that_goes_on_after_a_death_tells_nothing_twice(tmp_path: Path) -> None:
    first = opened(tmp_path)
    told = [event(first, "run_started", at="10:00"), event(first, "asked"), event(first, "asked")]
    first.keep(told)
    first.done(told[0])
    closed(first)
    again = opened(tmp_path, RunIdentity(RUN.run_id, "host-2-def", "s", "1"))
    assert event(again, "run_started", at="11:00") is None
    assert [event(again, "asked") is None for _ in range(3)] == [True, True, False]
    assert event(again, "asked", round=2) is not None
    assert [entry.key for entry in again.waiting("event")][:2] == [told[1].key, told[2].key]
    closed(again)


def test_keys_differ_by_run_and_content_and_not_by_process_or_time(tmp_path: Path) -> None:
    books = [
        RunBook(RUN),
        RunBook(RunIdentity(RUN.run_id, "other", "s", "1")),
        RunBook(RunIdentity("r2", "o", "s", "1")),
    ]
    same, also, other = (event(book, "e", at=str(number)).key for number, book in enumerate(books))
    assert same == also != other
    assert event(books[0], "f").key != same
    assert len(same) < 255
    assert tmp_path.exists()


def test_a_patch_matters_only_to_a_run_that_ended_without_a_word(tmp_path: Path) -> None:
    for is_sealed in (True, False):
        outbox, service = Outbox(tmp_path / str(is_sealed), 1_000_000), Service()
        book = outbox.open_book(RUN)
        for number in range(2):
            book.keep([book.entry("work", {"type": "diff", "metadata": {}}, f"patch {number}".encode(), epoch=3)])
        if is_sealed:
            entries = upload_entries(book, [("diff", b"the best patch")], {}, epoch=3)
            status = book.entry("status", {"status": "failed", "metadata": {}}, epoch=3)
            assert status is not None
            book.keep([*entries, status])
        closed(book)
        report = outbox.flush(Sender(service, service))  # type: ignore[arg-type]
        expected = [("failed", 1)] if is_sealed else []
        patch = b"the best patch" if is_sealed else b"patch 1"
        assert service.told == [("diff", patch), ("diff", "mem:diff"), *expected]
        assert (report.waiting, outbox.runs()) == (0, ())


def test_a_place_is_remembered_and_a_run_told_dead_once(tmp_path: Path) -> None:
    found: list[RunIdentity] = []

    def clean_up(run: RunIdentity) -> list[str]:
        found.append(run)
        return ["swept"]

    outbox = Outbox(tmp_path, 1_000_000, clean_up)
    book = outbox.open_book(RUN)
    book.keep([event(book, "run_started")])
    book.keep_place("/pool/slots/a")
    assert outbox.clean_up_after_the_dead() == []
    closed(book)
    assert outbox.clean_up_after_the_dead() == ["swept", f"run {RUN.run_id}: died, cleaned up after"]
    assert outbox.clean_up_after_the_dead() == []
    assert found == [RUN]
    again = outbox.open_book(RUN)
    again.lives()
    closed(again)
    assert outbox.clean_up_after_the_dead()[0] == "swept", "it went on, and died once more"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ServiceError("x", status_code=422), True),
        (ServiceError("x", status_code=404), True),
        (ArtifactUploadError("x", status_code=413), True),
        (ServiceError("x", status_code=500), False),
        (ServiceError("x"), False),
        (AuthenticationError("x", status_code=401), False),
        (AuthenticationError("x", status_code=403), False),
        (RateLimitError("x", status_code=429), False),
        (ServiceError("x", status_code=408), False),
    ],
)
def test_what_another_moment_or_token_may_change_is_not_final(error: RunnerError, expected: bool) -> None:
    assert is_final(error) is expected
