"""A settings file of the A2A/Kiro runner, rewritten for this one."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from necrocode.agent_runner.config import RunnerConfig
from necrocode.agent_runner.errors import ConfigurationError
from necrocode.agent_runner.llm_config import LLMConfig
from necrocode.agent_runner.removed import explain_setting
from necrocode.migration.old_settings import GUIDE_MODEL, NEW_PORTS, OLD_SETTINGS, SECTIONS, OldSetting, service_urls
from necrocode.migration.yaml_edits import Edits, Raw, Style, raw
from necrocode.migration.yaml_tree import Node, read_tree

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from necrocode.migration.yaml_edits import NewValue

MAX_FILE_BYTES = 1_000_000
_BOM = "\ufeff"
_EMBEDDED = "Left out, each service is embedded in the runner."
_PORTS = (
    "The host is kept. The ports are those that the services have by custom: change them where yours differ, or leave "
    "a URL out to have that service embedded."
)


@dataclass(frozen=True)
class Finding:
    """An old setting, and what became of it, or why it was left. ``line`` is 0 for the file as a whole."""

    line: int
    key: str
    what: str
    why: str


@dataclass(frozen=True)
class MigratedSettings:
    """The new text, each change explained, and what is left for a person to do."""

    text: str
    changes: tuple[Finding, ...]
    left: tuple[Finding, ...]


def migrate_settings(data: bytes, *, name: str, is_embedded: bool = False) -> MigratedSettings:
    """The settings rewritten; all that is not an old setting stays as it is, byte for byte.

    ``is_embedded``: no service URLs are written. Values are never quoted in what is told. Raises
    :class:`ConfigurationError`, which names the file by ``name``, for a file that cannot be read as settings.
    """
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{name} is not UTF-8 (byte {error.start}).") from None
    bom = _BOM if text.startswith(_BOM) else ""
    text = text.removeprefix(_BOM)
    root = read_tree(text, name=name)
    if root is None or root.is_null:
        return MigratedSettings(bom + text, (), ())
    if root.kind != "mapping":
        raise ConfigurationError(f"{name} must hold a mapping of names to values at its top.")
    work = _Migration(text, root, name=name, is_embedded=is_embedded)
    new_text = work.run()
    return MigratedSettings(bom + new_text, tuple(work.changes), (*work.left, *_refusal(new_text, name)))


def _refusal(text: str, name: str) -> Iterator[Finding]:
    """Why a runner would not take the new settings."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "config.yaml"
        file.write_bytes(text.encode())
        try:
            RunnerConfig.from_yaml(file, environ={})
        except ConfigurationError as error:
            why = str(error).replace(str(file), name)
            yield Finding(0, "", "a runner does not take the result as it is", why)


@dataclass(frozen=True)
class _Entry:
    """An old setting: ``mapping`` holds it at ``index``; ``place`` is its pair at the top, or that of its section."""

    name: str
    old: OldSetting
    mapping: Node
    index: int
    place: int
    shown: str

    @property
    def key(self) -> Node:
        return self.mapping.pairs[self.index][0]

    @property
    def value(self) -> Node:
        return self.mapping.pairs[self.index][1]


class _Migration:
    def __init__(self, text: str, root: Node, *, name: str, is_embedded: bool) -> None:
        self.changes: list[Finding] = []
        self.left: list[Finding] = []
        self._text = text
        self._root = root
        self._name = name
        self._is_embedded = is_embedded
        self._has_model = False
        self._edits = Edits(text)
        self._top = self._unique(root)
        self._llm = self._top.get("llm") or self._top.get("llm_config")
        self._new: dict[str, NewValue] = {}  # by dotted name
        self._givers: dict[str, _Entry] = {}  # whose value each of them is
        self._places: dict[str, int] = {}  # which pair of the top each new setting takes the place of

    def run(self) -> str:
        entries = self._without_shared(list(self._entries()))
        moved = [entry for entry in entries if self._move(entry)]
        self._complete_llm()
        self._edit(moved)
        return self._edits.apply()

    def _unique(self, mapping: Node) -> dict[str, Node]:
        values: dict[str, Node] = {}
        for key, value in mapping.pairs:
            if key.value in values:
                raise ConfigurationError(f"{self._name}:{key.line}: the key {key.value!r} is given twice.")
            values[key.value] = value
        return values

    def _entries(self) -> Iterator[_Entry]:
        """The old settings; what is neither old nor known is left."""
        known = set(RunnerConfig.known_keys())
        for place, (key, value) in enumerate(self._root.pairs):
            if key.value in SECTIONS and value.kind == "mapping":
                self._unique(value)
                for index, (inner, _) in enumerate(value.pairs):
                    yield from self._entry(value, index, place, f"{key.value}.{inner.value}")
            elif key.value not in known or key.value in OLD_SETTINGS:
                yield from self._entry(self._root, place, place, key.value)

    def _entry(self, mapping: Node, index: int, place: int, shown: str) -> Iterator[_Entry]:
        name, key = shown.replace(".", "_"), mapping.pairs[index][0]
        old = OLD_SETTINGS.get(name)
        if old is None:
            is_old = explain_setting(name) is not None
            self._leave(
                key.line, shown, "belonged to the old runner, but is not known here" if is_old else "is unknown"
            )
        elif not self._edits.is_editable(mapping, key):
            self._leave(key.line, shown, 'is written with "?" or in a way that is not edited: write it as "key: value"')
        else:
            yield _Entry(name, old, mapping, index, place, shown)

    def _leave(self, line: int, key: str, why: str) -> None:
        self.left.append(Finding(line, key, why, "It was left as it is: a runner refuses it."))

    def _without_shared(self, entries: list[_Entry]) -> list[_Entry]:
        """The entries without those whose anchor something that stays refers to."""
        gone = {id(node) for entry in entries for node in entry.value.walk()}
        gone |= {id(node) for entry in entries for node in entry.key.walk()}
        for entry in entries:
            own = {id(node) for node in (*entry.key.walk(), *entry.value.walk())}
            users = [node for node in self._root.walk() if id(node.target) in own and id(node) not in gone]
            if users:
                why = f"has an anchor that line {users[0].line} refers to: write the value out there"
                self._leave(entry.key.line, entry.shown, why)
                return self._without_shared([other for other in entries if other is not entry])
        return entries

    def _move(self, entry: _Entry) -> bool:
        """Whether the old setting goes; what comes in its place is noted, and all of it explained."""
        match entry.old.becomes:
            case "services":
                return self._move_bus(entry)
            case "model":
                return self._move_model(entry)
            case "carried":
                return self._carry(entry)
        return self._explain(entry, "is gone", "")

    def _move_bus(self, entry: _Entry) -> bool:
        value = entry.value.resolved
        if self._is_embedded or value.is_null or (value.kind == "scalar" and not value.value.strip()):
            return self._explain(entry, "is gone", _EMBEDDED)
        if set(NEW_PORTS) & set(self._top):
            return self._explain(entry, "is gone", f"The services' URLs are there already. {_EMBEDDED}")
        urls = service_urls(value.value) if value.kind == "scalar" else None
        if urls is None:
            why = f"names no host that could be kept; write {', '.join(NEW_PORTS)} yourself, or remove it"
            self._leave(entry.key.line, entry.shown, why)
            return False
        given = {name: self._new[name] for name in urls if name in self._new}
        if given:
            is_same = given == urls
            return self._agree(entry, self._givers[next(iter(given))], "scheme or host", is_same=is_same)
        self._add(entry, dict(urls))
        return self._explain(entry, f"becomes {', '.join(urls)}", _PORTS)

    def _move_model(self, entry: _Entry) -> bool:
        if self._has_model or not (self._llm is None or self._llm.resolved.is_null):
            return self._explain(entry, "is gone", "The llm section is there already.")
        self._add(
            entry, {f"llm.{name}": value for name, value in GUIDE_MODEL.items() if f"llm.{name}" not in self._new}
        )
        self._has_model = True
        told = "The model is the guide's: choose yours, and add llm.endpoint for a server that is not OpenAI's."
        return self._explain(entry, "becomes llm", told)

    def _carry(self, entry: _Entry) -> bool:
        target, value = entry.old.target, entry.value.resolved
        if self._is_given(target):
            return self._explain(entry, "is gone", f"{target} is there already, and stays.")
        if value.kind != "scalar" or not _is_taken(target, raw(self._text, value).text):
            self._leave(entry.key.line, entry.shown, f"has a value that {target} does not take; write that yourself")
            return False
        new, there = raw(self._text, value), self._new.get(target)
        if isinstance(there, Raw):
            is_same = _loaded(there.text) == _loaded(new.text)
            return self._agree(entry, self._givers[target], f"value for {target}", is_same=is_same)
        self._add(entry, {target: new})
        return self._explain(entry, f"becomes {target}", "")

    def _agree(self, entry: _Entry, first: _Entry, what: str, *, is_same: bool) -> bool:
        """Whether an old setting goes for it says what an earlier one does; one that says another thing is left."""
        other = f"{first.shown} in line {first.key.line}"
        if is_same:
            return self._explain(entry, "is gone", f"It says the same as {other}.")
        self._leave(entry.key.line, entry.shown, f"has another {what} than {other}, which was taken: choose one")
        return False

    def _is_given(self, target: str) -> bool:
        section, _, name = target.rpartition(".")
        if not section:
            return target in self._top
        llm = None if self._llm is None else self._llm.resolved
        return llm is not None and (llm.kind != "mapping" or name in self._unique(llm)) and not llm.is_null

    def _add(self, entry: _Entry, new: dict[str, NewValue]) -> None:
        for name, value in new.items():
            if name not in self._new or isinstance(value, Raw):
                self._new[name] = value
                self._givers[name] = entry
                self._places.setdefault(name.partition(".")[0], entry.place)

    def _explain(self, entry: _Entry, what: str, told: str) -> bool:
        self.changes.append(Finding(entry.key.line, entry.shown, what, f"{entry.old.why} {told}".rstrip()))
        return True

    def _complete_llm(self) -> None:
        """Write what is carried into an llm section that is there already."""
        inner = {name.partition(".")[2]: value for name, value in self._new.items() if name.startswith("llm.")}
        if self._llm is not None and inner:
            self._edits.append(self._llm, inner, Style("", ""))
            self._places.pop("llm")

    def _edit(self, moved: list[_Entry]) -> None:
        for place, (key, value) in enumerate(self._root.pairs):
            going = [entry for entry in moved if entry.place == place]
            if not going:
                continue
            new, style = self._at(place), Style.of(key, going[0].value)
            if going[0].mapping is self._root or len(going) == len(value.pairs):
                self._edits.replace(self._root, place, new, style)
                continue
            self._edits.insert_before(self._root, place, new, style)
            for entry in going:
                self._edits.replace(entry.mapping, entry.index, {}, style)

    def _at(self, place: int) -> dict[str, NewValue | Mapping[str, NewValue]]:
        """The new settings that come to a place."""
        new: dict[str, NewValue | Mapping[str, NewValue]] = {}
        for name, at in self._places.items():
            if at == place and name == "llm":
                inner = {key.partition(".")[2]: value for key, value in self._new.items() if key.startswith("llm.")}
                order = [*GUIDE_MODEL, *inner]
                new[name] = {key: inner[key] for key in dict.fromkeys(order) if key in inner}
            elif at == place:
                new[name] = self._new[name]
        return new


def _is_taken(target: str, text: str) -> bool:
    """Whether a setting takes the value, as it would be read from a file."""
    import yaml  # noqa: PLC0415  as everywhere, at first use

    section, _, name = target.rpartition(".")
    try:
        value = _loaded(text)
        LLMConfig(**{name: value}) if section else RunnerConfig(**{name: value})
    except (ConfigurationError, yaml.YAMLError, ValueError):
        return False
    return value is not None


def _loaded(text: str) -> Any:  # noqa: ANN401  any value
    import yaml  # noqa: PLC0415  as everywhere, at first use

    return yaml.safe_load(text)
