"""One run's journal: what it has done and paid for, so that it can go on after its process has died.

A run that goes on is run anew from its beginning, and whatever is journalled is taken from here and not done again. So
nothing has to be known of where it was.
"""

from __future__ import annotations

import threading
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from necrocode.agent_runner._error_data import error_from
from necrocode.agent_runner._journal_file import Entry, Reading
from necrocode.agent_runner.errors import ImplementationError
from necrocode.agent_runner.fencing import Fence

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from necrocode.agent_runner._journal_file import Fields, JournalFile


@dataclass
class Journal:
    """What a run asks its journal, and tells it. Thread-safe; nothing raises: a run goes on without its journal.

    ``file`` None: nothing is kept, as where the disk is full from the start.
    """

    run_id: str
    file: JournalFile | None = None
    reading: Reading = field(default_factory=lambda: Reading((), 0, ""))

    def __post_init__(self) -> None:
        self._lock = threading.RLock()
        self._known = _believable(self.reading.entries)
        self._has_told_of_trouble = False
        self._troubles: list[str] = []
        self.on_trouble: Callable[[str], None] = self._troubles.append
        """Told of what the result must say."""
        if self.reading.is_damaged:
            self.on_trouble(
                f"The journal of run {self.run_id} was damaged: what follows its entry {len(self.reading.entries)} was"
                " not believed, and is done again. The damaged file is kept beside it, as journal.damaged."
            )

    def tell(self, on_trouble: Callable[[str], None]) -> None:
        """Tell what the result must say to this from now on, and at once what came up before."""
        self.on_trouble = on_trouble
        for trouble in self._troubles:
            on_trouble(trouble)
        self._troubles.clear()

    @property
    def is_resumed(self) -> bool:
        """Whether the run was begun before."""
        return bool(self.reading.entries)

    @property
    def runner_id(self) -> str:
        """Of the runner that had begun the run; empty for one that has not."""
        return str(self.reading.header.get("runner_id") or "")

    @property
    def fence(self) -> Fence | None:
        """What the run's writes carried last."""
        claims = [entry for entry in self.reading.entries if entry.kind == "claim"]
        with suppress(ValueError):
            return Fence.model_validate(claims[-1].data.get("fence")) if claims else None
        return None

    @property
    def result(self) -> Fields | None:
        """The run's result, where all that may be left to be done is to tell it."""
        if not self.reading.entries or self.reading.entries[-1].kind not in {"result", "told"}:
            return None
        found = next((entry for entry in reversed(self.reading.entries) if entry.kind == "result"), None)
        return None if found is None else found.data

    @property
    def is_told(self) -> bool:
        """Whether the outbox has all that the run has to tell."""
        return bool(self.reading.entries) and self.reading.entries[-1].kind == "told"

    @property
    def count_of_answers(self) -> int:
        """How many questions to the model need not be asked again."""
        return sum(kind == "answer" for kind, _ in self._known)

    def recorded(
        self,
        kind: str,
        key: str = "",
        basis: str = "",
        *,
        parts: Sequence[str] = (),  # noqa: ARG002  for a replay, which tells what differs
    ) -> Fields | None:
        """What an earlier process of this run has journalled, where it still holds; None: it is to be done.

        A question to the model that differs from the journalled one ends the trust in all that followed from answers.
        """
        with self._lock:
            entry = self._known.get((kind, key))
            if entry is None or entry.basis == basis:
                return None if entry is None else entry.data
            if kind == "answer":
                self.forget(
                    f"question {key} is no longer the one that was asked before the interruption (the task, the"
                    " settings or the version of necrocode has changed): the model is asked anew from there"
                )
            return None

    def record(self, kind: str, key: str = "", basis: str = "", **data: Any) -> None:  # noqa: ANN401  as JSON has it
        """Journal that something was done; what is journalled already is not written twice."""
        entry = Entry(kind, key, basis, data)
        with self._lock:
            if self._known.get((kind, key)) == entry:
                return
            self._append(entry)
            if kind == "tests":  # what was said of a tree is said once: so it is the same when the run is done again
                self._known[kind, key] = entry

    def forget(self, why: str) -> None:
        """Believe nothing any more of what followed from the model's answers; results of tests hold all the same."""
        with self._lock:
            if any(kind in _FROM_ANSWERS for kind, _ in self._known):
                self.on_trouble(f"The run could not simply go on where it was: {why}.")
            self._known = {place: entry for place, entry in self._known.items() if place[0] not in _FROM_ANSWERS}

    def forget_all(self, why: str) -> None:
        """The same, and nothing of the workspace and its tests either."""
        with self._lock:
            self.forget(why)
            self._known = {}

    def end(self, status: str) -> None:
        """Nothing is left to be done: the run is over, and will not go on by itself."""
        with self._lock:
            self._append(Entry("ended", "", "", {"status": status}))
            if self.file is not None:
                self.file.mark_ended()

    def reopen(self) -> None:
        """The run goes on, though it had ended before."""
        if self.file is not None and self.reading.ended:
            self.file.mark_open()

    def close(self) -> None:
        """Let other processes have the journal; harmless when it is closed."""
        with self._lock:
            file, self.file = self.file, None
            if file is not None:
                file.close()

    def _append(self, entry: Entry) -> None:
        if self.file is None:
            return
        try:
            self.file.append(entry)
        except (OSError, ValueError) as error:
            if not self._has_told_of_trouble:
                self._has_told_of_trouble = True
                why = getattr(error, "strerror", None) or str(error)
                self.on_trouble(
                    f"The run's journal cannot be written ({why}): if it is interrupted now, it cannot go on from here."
                )


_FROM_ANSWERS = {"answer", "commit", "committed", "delivered", "result"}


def _believable(entries: Sequence[Entry]) -> dict[tuple[str, str], Entry]:
    """The entries that hold, the latest of each kind and key, by these.

    A question that brought no answer, and cost none, is asked again, unless the run went on from that. Where a question
    was answered anew, what had followed from the older answer holds no more.
    """
    known: dict[tuple[str, str], Entry] = {}
    places: dict[tuple[str, str], int] = {}
    latest_use = max((place for place, entry in enumerate(entries) if entry.kind in {"commit", "tests"}), default=-1)
    for place, entry in enumerate(entries):
        name = (entry.kind, entry.key)
        if entry.kind == "answer":
            if not _is_settled(entry, is_used=place < latest_use):
                continue
            if name in known:
                known = {
                    one: was for one, was in known.items() if one[0] not in _FROM_ANSWERS or places[one] < places[name]
                }
        known[name], places[name] = entry, place
    return known


def _is_settled(entry: Entry, *, is_used: bool) -> bool:
    """Whether an answer is one that the run goes on from."""
    if (error := entry.data.get("error")) is None:
        return not entry.data.get("masked")
    known = error_from(error)
    return known is not None and (isinstance(known, ImplementationError) or is_used)
