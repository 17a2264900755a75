"""What one run has to tell, how much of it is known to have arrived, and what was refused."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Self, cast, get_args

from necrocode.agent_runner.results import Artifact

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from necrocode.agent_runner.outbox.spool import Record, Spool

Kind = Literal["work", "upload", "manifest", "record", "event", "status"]
State = Literal["waiting", "done", "refused"]
ORDER: tuple[Kind, ...] = ("upload", "manifest", "record", "event", "status")
"""In which order things are sent: what is told of an upload comes after it, and the end of the run last of all."""
MANIFEST_SCHEMA_VERSION = 1
_MADE_AT_THE_END = frozenset({"upload", "manifest", "record"})
_TOLD_OF_UPLOADS = ("type", "size_bytes", "sha256")
_COUNT = re.compile(r"\.\d+$")
_VOLATILE = frozenset({"runner_id", "at"})
"""What may be another when a run that was continued tells the same thing once more."""


@dataclass(frozen=True)
class RunIdentity:
    """Whose outbox it is."""

    run_id: str
    runner_id: str
    spec_name: str
    task_id: str
    started_at: str = ""
    """ISO 8601."""


@dataclass
class Entry:
    """One thing to tell.

    ``work`` is a patch that only matters when the run ends without a word of its own. A ``manifest`` is an upload whose
    bytes are made when the others have been stored, for it lists them.
    """

    number: int
    kind: Kind
    key: str
    """Its idempotency key: the same however often it is sent, and by whom."""
    body: dict[str, Any]
    epoch: int | None = None
    """Of the task's lease, under which it is written."""
    content: bytes = b""
    """An upload's bytes, while they are not on disk."""
    record: Record | None = None
    """Where it is in the file; None: it is not kept."""
    state: State = "waiting"
    uri: str = ""
    reason: str = ""
    """Why it was refused."""

    def fields(self) -> dict[str, Any]:
        """The entry as the file has it."""
        return {"kind": self.kind, "n": self.number, "key": self.key, "epoch": self.epoch, "body": self.body}


@dataclass
class RunBook:
    """The entries of one run, in memory and, where that works, in a file. Not thread-safe."""

    run: RunIdentity
    spool: Spool | None = None
    entries: dict[int, Entry] = field(default_factory=dict)
    repository: str | None = None
    """Where the run works, on this machine."""
    is_reconciled: bool = False
    """Whether what the dead process of the run has left on this machine was cleaned up."""
    _found: Counter[str] = field(default_factory=Counter)
    """How often each thing stood in the file when it was opened."""
    _told: Counter[str] = field(default_factory=Counter)
    _has_head: bool = False
    _is_saved: bool = False

    @classmethod
    def read(cls, spool: Spool, run: RunIdentity | None = None) -> Self | None:
        """The book in a file. ``run`` is whose it is to be where it is empty; None where nobody's name stands in it."""
        head = spool.records[0].fields if spool.records else {}
        if head.get("kind") == "run":
            try:
                found = RunIdentity(**{name: str(head[name]) for name in RunIdentity.__dataclass_fields__})
            except KeyError:
                return None
            book = cls(found, spool, _has_head=True)
        elif run is not None and not spool.records:
            book = cls(run, spool)
        else:
            return None
        for record in spool.records[1:]:
            book._take(record)
        return book

    def _take(self, record: Record) -> None:
        fields = record.fields
        kind, entry = str(fields.get("kind")), self.entries.get(fields.get("n", -1))
        if kind in get_args(Kind) and entry is None:
            entry = Entry(
                fields["n"], cast("Kind", kind), fields["key"], fields["body"], fields["epoch"], record=record
            )
            self.entries[entry.number] = entry
            self._found[_base_of(entry.key)] += 1
        elif kind == "done" and entry is not None:
            entry.state, entry.uri = "done", str(fields.get("uri", ""))
            entry.body |= fields.get("stored", {})
        elif kind == "refused" and entry is not None:
            entry.state, entry.reason = "refused", str(fields.get("reason", ""))
        elif kind == "place":
            self.repository = str(fields["repository"])
        elif kind == "reconciled":
            self.is_reconciled = True
        elif kind == "lives":
            self.is_reconciled = False

    @property
    def is_sealed(self) -> bool:
        """Whether the end of the run is among what it tells: nothing more will come."""
        return any(entry.kind == "status" for entry in self.entries.values())

    def waiting(self, *kinds: Kind) -> list[Entry]:
        """What has not arrived yet, in order; of all kinds that are sent where none is named."""
        chosen = kinds or ORDER
        found = [entry for entry in self.entries.values() if entry.state == "waiting" and entry.kind in chosen]
        return sorted(found, key=lambda entry: (ORDER.index(entry.kind) if entry.kind in ORDER else -1, entry.number))

    @property
    def is_complete(self) -> bool:
        """Whether everything that the run will ever tell is among its entries."""
        return self.is_sealed or self._is_saved

    @property
    def refused(self) -> list[Entry]:
        """What a service will never take."""
        return [entry for entry in self.entries.values() if entry.state == "refused"]

    # --- telling

    def entry(self, kind: Kind, body: dict[str, Any], content: bytes = b"", *, epoch: int | None) -> Entry | None:
        """A further entry; None when the run has told just this before it was continued."""
        if kind in {"work", "upload"}:
            body = body | _measured(content)
        base = f"{self.run.run_id}-{_digest(kind, body)}"
        self._told[base] += 1
        if self._told[base] <= self._found[base]:
            return None
        count = max(self._told[base], self._found[base])
        key = base if count == 1 else f"{base}.{count}"
        number = 1 + max(self.entries, default=0)
        self.entries[number] = entry = Entry(number, kind, key, body, epoch, content)
        return entry

    def forget_unkept(self) -> None:
        """Take back uploads and records that are in memory alone: their maker was interrupted, and begins anew."""
        for entry in [one for one in self.entries.values() if one.record is None and one.kind in _MADE_AT_THE_END]:
            del self.entries[entry.number]
            self._told[_base_of(entry.key)] -= 1

    def keep(self, entries: Iterable[Entry], *, is_durable: bool = True) -> None:
        """Put entries on disk, all or none; raises :class:`OSError`.

        What is not ``is_durable`` outlives this process, but perhaps no power failure.
        """
        if self.spool is None:
            return
        new = [entry for entry in entries if entry.record is None]
        head = [] if self._has_head else [({"kind": "run", "version": 1, **asdict(self.run)}, b"")]
        write = self.spool.append if is_durable else self.spool.note
        written = write([*head, *((entry.fields(), entry.content) for entry in new)])
        self._has_head = True
        for entry, record in zip(new, written[len(head) :], strict=True):
            entry.record, entry.content = record, b""

    def sync(self) -> None:
        """Make what was kept outlive a power failure too; raises :class:`OSError`."""
        if self.spool is not None:
            self.spool.sync()

    def keep_place(self, repository: str) -> None:
        """Remember where the run works; raises :class:`OSError`."""
        self.repository = repository
        if self.spool is not None and self._has_head:
            self.spool.note([({"kind": "place", "repository": repository}, b"")])

    def content_of(self, entry: Entry) -> bytes:
        """An upload's bytes."""
        if entry.record is None or self.spool is None:
            return entry.content
        return self.spool.blob(entry.record)

    # --- what has become of it

    def done(self, entry: Entry, *, uri: str = "", content: bytes | None = None) -> None:
        """It has arrived. Should this be forgotten in a crash, it is sent again, under the same key.

        ``content``: an upload's bytes that were made only now.
        """
        stored = {} if content is None else _measured(content)
        entry.state, entry.uri = "done", uri
        entry.body |= stored
        self._note(entry, {"kind": "done", "n": entry.number, "uri": uri, "stored": stored}, is_durable=False)

    def refuse(self, entry: Entry, reason: str) -> None:
        """It will never be taken. Should this be forgotten, it is sent, and refused, once more."""
        entry.state, entry.reason = "refused", reason
        self._note(entry, {"kind": "refused", "n": entry.number, "reason": reason}, is_durable=True)

    def reconciled(self) -> None:
        """What the run's dead process has left was cleaned up."""
        self.is_reconciled = True
        if self.spool is not None:
            with suppress(OSError):
                self.spool.note([({"kind": "reconciled"}, b"")])

    def lives(self) -> None:
        """The run goes on in another process, which may die as well."""
        if self.is_reconciled:
            self.is_reconciled = False
            if self.spool is not None:
                with suppress(OSError):
                    self.spool.note([({"kind": "lives"}, b"")])

    def _note(self, entry: Entry, fields: dict[str, Any], *, is_durable: bool) -> None:
        if self.spool is None or entry.record is None:
            return
        with suppress(OSError):
            if is_durable:
                self.spool.append([(fields, b"")])
            else:
                self.spool.note([(fields, b"")])

    def told_of(self, record: Entry) -> dict[str, Any]:
        """What a record tells of its upload: URI, which is empty while it has none, type, size and hash."""
        upload = self.entries.get(record.body["of"])
        uri = str(record.body.get("uri") or (upload.uri if upload is not None else ""))
        source = record.body if upload is None else upload.body
        return {"uri": uri, **{name: source[name] for name in _TOLD_OF_UPLOADS}}

    def uploaded(self) -> tuple[Artifact, ...]:
        """What has been stored, in order."""
        return tuple(
            Artifact(
                type=entry.body["type"],
                uri=entry.uri,
                size_bytes=entry.body["size_bytes"],
                sha256=entry.body["sha256"],
            )
            for entry in self.entries.values()
            if entry.kind in {"upload", "manifest"} and entry.state == "done"
        )

    def save_work(self, find: Callable[[RunBook], bytes]) -> list[Entry]:
        """The uploads that a run which died without a word still owes: its newest patch, which ``find`` may have."""
        patches = [entry for entry in self.entries.values() if entry.kind == "work"]
        content = self.content_of(patches[-1]) if patches else find(self)
        self._is_saved = True
        if not content:
            return []
        fence = patches[-1].body["metadata"] if patches else {}
        return upload_entries(self, [("diff", content)], fence, epoch=patches[-1].epoch if patches else None)


def upload_entries(
    book: RunBook, outputs: Iterable[tuple[str, bytes]], fence: Mapping[str, Any], *, epoch: int | None
) -> list[Entry]:
    """Entries for each (type, content): the upload, and what the registry is told of it.

    ``fence`` stands in the artifacts' metadata, besides whose they are.
    """
    place = _place(book.run) | dict(fence)
    made = []
    for artifact_type, content in outputs:
        body = {"type": artifact_type, "metadata": place}
        made += _with_record(book, book.entry("upload", body, content, epoch=epoch))
    return made


def manifest_entries(book: RunBook, expected: Sequence[str], fence: Mapping[str, Any], epoch: int | None) -> None:
    """Entries for the list of what was stored, where these types ought to be in it."""
    body = {"type": "manifest", "metadata": _place(book.run) | dict(fence), "expected": list(expected)}
    _with_record(book, book.entry("manifest", body | _measured(b""), epoch=epoch))


def manifest(book: RunBook, entry: Entry) -> bytes:
    """What the run has uploaded, as JSON; whoever finds it in a store knows that the rest is there."""
    stored = book.uploaded()
    types = {artifact.type for artifact in stored}
    listing = {
        "schema_version": MANIFEST_SCHEMA_VERSION,
        **entry.body["metadata"],
        "artifacts": [artifact.model_dump() for artifact in stored],
        "missing": [artifact_type for artifact_type in entry.body["expected"] if artifact_type not in types],
    }
    return json.dumps(listing, ensure_ascii=False, indent=1).encode(errors="backslashreplace")


def _with_record(book: RunBook, upload: Entry | None) -> list[Entry]:
    if upload is None:  # the run has told it before
        return []
    told = {"run_id": book.run.run_id, "runner_id": book.run.runner_id}
    body = {"of": upload.number, "metadata": told, **{name: upload.body[name] for name in _TOLD_OF_UPLOADS}}
    record = book.entry("record", body, epoch=upload.epoch)
    return [upload] if record is None else [upload, record]


def _place(run: RunIdentity) -> dict[str, Any]:
    return {"task_id": run.task_id, "spec_name": run.spec_name, "run_id": run.run_id}


def _measured(content: bytes) -> dict[str, Any]:
    return {"size_bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _digest(kind: Kind, body: dict[str, Any]) -> str:
    """A fingerprint of what is told, the same when it is told again."""
    steady = {name: value for name, value in body.items() if name != "of"}
    for name in ("data", "metadata"):
        if isinstance(held := steady.get(name), dict):
            steady[name] = {key: value for key, value in held.items() if key not in _VOLATILE}
    text = json.dumps([kind, steady], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _base_of(key: str) -> str:
    return _COUNT.sub("", key)
