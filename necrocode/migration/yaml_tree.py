"""Where everything stands in a YAML text: the tree of its nodes, each with its place, so that the text can be edited.

Only the places that change are touched; comments, order, quotes and line ends of all else stay as they are, byte for
byte. Writing the whole file anew from loaded values, which ruamel.yaml can do too, would hang a comment onto the key
before it and lose it with that key, and would write ``~``, indentation and line ends in its own way.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from necrocode.agent_runner.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator

_MAX_DEPTH = 32
_TO_COLON = re.compile(r"\s*:")


@dataclass
class Node:
    """A value: ``start`` and ``end`` are its place in the text, ``line`` counts from 1."""

    kind: str
    start: int
    end: int
    line: int
    value: str = ""
    style: str | None = None
    anchor: str | None = None
    has_tag: bool = False
    is_flow: bool = False
    pairs: list[tuple[Node, Node]] = field(default_factory=list)
    items: list[Node] = field(default_factory=list)
    target: Node | None = None
    """What an alias stands for."""

    def walk(self) -> Iterator[Node]:
        """The node and all nodes in it, in the order of the text; aliases are not followed."""
        yield self
        for key, value in self.pairs:
            yield from key.walk()
            yield from value.walk()
        for item in self.items:
            yield from item.walk()

    @property
    def is_null(self) -> bool:
        """Whether it is a value that is left out, or ``null``."""
        return self.kind == "scalar" and self.style is None and self.value in {"", "~", "null", "Null", "NULL"}

    @property
    def resolved(self) -> Node:
        """What the node stands for: itself, or an alias's target."""
        return self if self.target is None else self.target


def read_tree(text: str, *, name: str) -> Node | None:
    """The root of the one document; None for a text that holds none.

    Raises :class:`ConfigurationError`, which quotes nothing of the text: it may hold secrets.
    """
    try:
        return _Reader(text, name).read()
    except ConfigurationError:
        raise
    except YAMLError as error:
        mark = error.problem_mark if isinstance(error, MarkedYAMLError) else None
        where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark is not None else ""
        why = getattr(error, "problem", None) or getattr(error, "reason", None) or "it cannot be read"
        raise ConfigurationError(f"{name} is not valid YAML: {why}{where}.") from None
    except (ValueError, LookupError, OverflowError) as error:  # of a broken directive or escape
        raise ConfigurationError(f"{name} is not valid YAML: {type(error).__name__}.") from None


class _Reader:
    def __init__(self, text: str, name: str) -> None:
        self._name = name
        self._text = text
        self._events = YAML(typ="safe", pure=True).parse(text)
        self._anchors: dict[str, Node] = {}

    def read(self) -> Node | None:
        root = None
        for event in self._events:
            kind = type(event).__name__
            if kind == "DocumentStartEvent":
                if root is not None:
                    raise ConfigurationError(f"{self._name} holds more than one document: a runner reads one.")
                root = self._node(next(self._events), 1)
        return root

    def _node(self, event: Any, depth: int) -> Node:  # noqa: ANN401  ruamel's events have no common fields
        if depth > _MAX_DEPTH:
            raise ConfigurationError(f"{self._name} is nested more than {_MAX_DEPTH} deep.")
        kind = type(event).__name__.removesuffix("Event").removesuffix("Start").lower()
        node = Node(kind, event.start_mark.index, event.end_mark.index, event.start_mark.line + 1)
        if kind == "alias":
            node.target = self._anchors.get(event.anchor)
            if node.target is None:
                raise ConfigurationError(f"{self._name} is not valid YAML: undefined alias (line {node.line}).")
            node.value = event.anchor
            return node
        node.anchor, node.has_tag = event.anchor, getattr(event, "tag", None) is not None
        if node.anchor is not None:
            self._anchors[node.anchor] = node
        if kind == "scalar":
            node.value, node.style = event.value, event.style if event.style in {"'", '"', "|", ">"} else None
            return node
        node.is_flow = bool(event.flow_style)
        self._fill(node, depth)
        return node

    def _fill(self, node: Node, depth: int) -> None:
        """Read what is in a mapping or sequence. Where a block ends is told by its last part: its own mark is late."""
        parts: list[Node] = []
        while True:
            event = next(self._events)
            if type(event).__name__ in {"MappingEndEvent", "SequenceEndEvent"}:
                break
            parts.append(self._node(event, depth + 1))
        if node.kind == "mapping":
            node.pairs = list(zip(parts[::2], parts[1::2], strict=True))
            for key, value in node.pairs:
                colon = _TO_COLON.match(self._text, key.end)
                if colon is not None and value.start == value.end and value.is_null:
                    value.start = value.end = colon.end()  # its own mark is that of whatever comes next
        else:
            node.items = parts
        node.end = event.end_mark.index if node.is_flow or not parts else parts[-1].end
