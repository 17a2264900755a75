"""Pairs of a YAML mapping taken out of its text and others put in their place; comments stay."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable

    from necrocode.migration.yaml_tree import Node

    NewValue: TypeAlias = "str | int | Raw"
    NewPairs: TypeAlias = Mapping[str, NewValue | Mapping[str, NewValue]]

_COMMENT = re.compile(r"(?:(?<=\s)|^)#[^\r\n]*")
_TO_COMMA = re.compile(r"(?:\s|#[^\n]*)*,")
_PLAIN = re.compile(r"[A-Za-z0-9+-][A-Za-z0-9_./+-]*")


@dataclass(frozen=True)
class Raw:
    """A value as it stood in the text."""

    text: str


@dataclass(frozen=True)
class Style:
    """How names and texts are quoted, after the pair whose place is taken: ``"``, ``'`` or not at all."""

    name_quote: str
    text_quote: str

    @classmethod
    def of(cls, key: Node, value: Node) -> Style:
        """The style of a pair."""
        name_quote = key.style or ""
        own = value.style if value.style in {"'", '"'} else None
        return cls(name_quote, own or (name_quote if value.kind != "scalar" else ""))

    def name(self, text: str) -> str:
        """A name, written."""
        return f"{self.name_quote}{text}{self.name_quote}"

    def value(self, value: NewValue) -> str:
        """A value, written."""
        if isinstance(value, Raw):
            return value.text
        return str(value) if isinstance(value, int) else f"{self.text_quote}{value}{self.text_quote}"


class Edits:
    """Changes of one text, made at once by :meth:`apply`."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._eol = "\r\n" if "\r\n" in text else "\n"
        self._changes: list[tuple[int, int, str]] = []

    def apply(self) -> str:
        """The text with all changes made."""
        parts, done = [], 0
        for start, end, new in sorted(self._changes):
            parts += [self._text[done:start], new]
            done = max(done, end)
        return "".join([*parts, self._text[done:]])

    def is_editable(self, mapping: Node, key: Node) -> bool:
        """Whether a pair is written as ``key: value``, which is the only form that is edited."""
        before = self._text[: key.start].rstrip()
        begins_its_line = not self._text[self._line_start(key.start) : key.start].strip()
        return not before.endswith("?") and (mapping.is_flow or begins_its_line)

    def replace(self, mapping: Node, index: int, new: NewPairs, style: Style) -> None:
        """Put new pairs in the place of one."""
        if mapping.is_flow:
            self._replace_in_flow(mapping, index, new, style)
        else:
            key, value = mapping.pairs[index]
            start, content_end = self._line_start(key.start), self._content_end(key, value)
            end = self._line_end(content_end)
            indent = self._text[start : key.start]
            comments = self._comments(key, value, content_end)
            lines = [*(f"{indent}{comment}" for comment in comments), *self._block(new, indent, style)]
            self._change_lines(start, end, lines)

    def insert_before(self, mapping: Node, index: int, new: NewPairs, style: Style) -> None:
        """Put new pairs before one."""
        key, _ = mapping.pairs[index]
        if mapping.is_flow:
            text = "".join(f"{pair}{self._flow_joint(key)}" for pair in _flow(new, style))
            self._changes.append((key.start, key.start, text))
        else:
            start = self._line_start(key.start)
            self._change_lines(start, start, self._block(new, self._text[start : key.start], style))

    def append(self, mapping: Node, new: NewPairs, style: Style) -> None:
        """Put new pairs at the end of a mapping, or make one of a value that was left out."""
        pairs = ", ".join(_flow(new, style))
        if mapping.is_null:
            space = " " if mapping.start == mapping.end else ""
            self._changes.append((mapping.start, mapping.end, f"{space}{{{pairs}}}"))
        elif mapping.is_flow:
            at = mapping.pairs[-1][1].end if mapping.pairs else mapping.end - 1
            self._changes.append((at, at, f", {pairs}" if mapping.pairs else pairs))
        else:
            first, (last, value) = mapping.pairs[0][0], mapping.pairs[-1]
            at = self._line_end(self._content_end(last, value))
            indent = " " * (first.start - self._line_start(first.start))
            self._change_lines(at, at, self._block(new, indent, style))

    def _change_lines(self, start: int, end: int, lines: Iterable[str]) -> None:
        new = "".join(f"{line}{self._eol}" for line in lines)
        if end == len(self._text) and not self._text.endswith("\n"):  # the last line has no end
            new = f"{self._eol}{new}" if start == end and new else new
            new = new.removesuffix(self._eol)
        self._changes.append((start, end, new))

    def _replace_in_flow(self, mapping: Node, index: int, new: NewPairs, style: Style) -> None:
        key, value = mapping.pairs[index]
        if new:
            self._changes.append((key.start, value.end, self._flow_joint(key).join(_flow(new, style))))
            return
        following = _TO_COMMA.match(self._text, value.end)
        if following is None:  # the last one
            before = _TO_COMMA.match(self._text, mapping.pairs[index - 1][1].end) if index else None
            if before is not None and not self._text[before.end() : key.start].strip(" \t"):
                self._changes.append((before.end() - 1, value.end, ""))
                return
            comma = [] if before is None else [(before.end() - 1, before.end(), "")]
            self._changes += [*comma, (*self._widened(key.start, value.end), "")]
        elif "#" in following[0]:
            self._changes += [(key.start, value.end, ""), (following.end() - 1, following.end(), "")]
        else:
            self._changes.append((*self._widened(key.start, following.end()), ""))

    def _widened(self, start: int, end: int) -> tuple[int, int]:
        """The place and the blanks after it; the whole line where nothing else is on it."""
        while self._text[end : end + 1] in {" ", "\t"}:
            end += 1
        line_start, line_end = self._line_start(start), self._line_end(end)
        is_alone = not (self._text[line_start:start] + self._text[end:line_end]).strip()
        return (line_start, line_end) if is_alone else (start, end)

    def _flow_joint(self, key: Node) -> str:
        indent = self._text[self._line_start(key.start) : key.start]
        return f",{self._eol}{indent}" if indent and not indent.strip() else ", "

    def _block(self, new: NewPairs, indent: str, style: Style) -> list[str]:
        lines = []
        for name, value in new.items():
            if isinstance(value, Mapping):
                lines.append(f"{indent}{style.name(name)}:")
                lines += self._block(value, f"{indent}  ", style)
            else:
                lines.append(f"{indent}{style.name(name)}: {style.value(value)}")
        return lines

    def _comments(self, key: Node, value: Node, content_end: int) -> list[str]:
        """What is commented in a pair and behind it, on its last line."""
        leaves = [node for node in (*key.walk(), *value.walk()) if node.kind in {"scalar", "alias"}]
        starts = [*(node.start for node in leaves[1:]), self._line_end(content_end)]
        gaps = [self._text[node.end : start] for node, start in zip(leaves, starts, strict=True)]
        if value.style in {"|", ">"}:  # it ends where the next line begins, and has a first line that may be commented
            gaps = [self._text[value.start : self._line_end(value.start)]]
        return [found[0].rstrip() for gap in gaps for found in _COMMENT.finditer(gap)]

    def _content_end(self, key: Node, value: Node) -> int:
        return key.start + len(self._text[key.start : max(key.end, value.end)].rstrip())

    def _line_start(self, index: int) -> int:
        return self._text.rfind("\n", 0, index) + 1

    def _line_end(self, index: int) -> int:
        """Where the next line begins."""
        found = self._text.find("\n", index)
        return len(self._text) if found < 0 else found + 1


def _flow(new: NewPairs, style: Style) -> list[str]:
    texts = []
    for name, value in new.items():
        written = f"{{{', '.join(_flow(value, style))}}}" if isinstance(value, Mapping) else style.value(value)
        texts.append(f"{style.name(name)}: {written}")
    return texts


def raw(text: str, node: Node) -> Raw:
    """A scalar to be written elsewhere: as it stands, or in quotes where that could mean something else there."""
    is_bare = node.anchor is None and not node.has_tag
    if is_bare and (node.style in {"'", '"'} or _PLAIN.fullmatch(node.value)):
        return Raw(text[node.start : node.end])
    if node.style is None and not node.has_tag and _PLAIN.fullmatch(node.value):
        return Raw(node.value)
    escaped = node.value.replace("'", "''")
    return Raw(f"'{escaped}'")
