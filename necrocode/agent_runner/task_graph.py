"""The tasks of a spec as a graph: its picture as JSON, Mermaid or DOT, and the cycle that would block it for ever."""

from __future__ import annotations

import json
import re
import unicodedata
from typing import TYPE_CHECKING, Literal

from necrocode.agent_runner._strict import Value
from necrocode.agent_runner.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from necrocode.agent_runner.records import TaskRecord

GraphFormat = Literal["json", "mermaid", "dot"]
GRAPH_MEDIA_TYPES: Mapping[GraphFormat, str] = {
    "json": "application/json",
    "mermaid": "text/vnd.mermaid",  # both registered with IANA
    "dot": "text/vnd.graphviz",
}

_LONGEST_LABEL = 80
_UNKNOWN = "unknown"  # how a dependency is drawn that the registry has no task for
_COLOURS = {  # fill, border
    "blocked": ("#e5e7eb", "#6b7280"),
    "ready": ("#dbeafe", "#2563eb"),
    "running": ("#fef3c7", "#d97706"),
    "done": ("#d1fae5", "#059669"),
    "failed": ("#fee2e2", "#dc2626"),
    "cancelled": ("#f5f5f4", "#78716c"),
    _UNKNOWN: ("#ffffff", "#9ca3af"),
}


class GraphNode(Value):
    """A task of the graph."""

    id: str
    title: str = ""
    status: str


class GraphEdge(Value):
    """``target`` waits for ``source``."""

    source: str
    target: str


class TaskGraph(Value):
    """The tasks of one spec and who waits for whom. An edge may name a task that is not among the nodes."""

    spec_name: str
    nodes: tuple[GraphNode, ...]
    edges: tuple[GraphEdge, ...]

    @classmethod
    def of(cls, spec_name: str, tasks: Iterable[TaskRecord]) -> TaskGraph:
        """The graph of a registry's task records."""
        known = list(tasks)
        return cls(
            spec_name=spec_name,
            nodes=tuple(GraphNode(id=task.task_id, title=task.title, status=task.status) for task in known),
            edges=tuple(
                GraphEdge(source=dependency, target=task.task_id) for task in known for dependency in task.dependencies
            ),
        )


def render_graph(graph: TaskGraph, format: GraphFormat) -> str:  # noqa: A002  the name of the query parameter
    """The graph as text, the same for the same graph: tasks in the order 1, 1.1, 1.2, 1.10, 2.

    ``json`` holds everything as it is: ``{"spec_name", "nodes": [{"id", "title", "status"}], "edges": [{"source",
    "target"}]}``. In ``mermaid`` and ``dot`` a label is one line of at most 80 characters, no text of a title has a
    meaning of its own, and the state is both the class and the colour of a task.
    """
    renderers = {"json": _as_json, "mermaid": _as_mermaid, "dot": _as_dot}
    if format not in renderers:
        raise ConfigurationError(f"{format!r} is not a graph format (known: {', '.join(renderers)}).")
    return renderers[format](graph)


def natural_order(task_id: str) -> tuple[tuple[int, int, str], ...]:
    """A sort key under which numbers inside ids count as numbers: 1.2 comes before 1.10."""
    parts = re.split(r"([0-9]+)", task_id)
    return tuple((0, int(part), part) if part[0] in "0123456789" else (1, 0, part) for part in parts if part)


def find_cycle(dependencies: Mapping[str, Iterable[str]]) -> tuple[str, ...] | None:
    """A path of tasks that wait for each other, its first task repeated at its end; None when there is none.

    ``dependencies`` maps a task to those it waits for; one that is no key waits for nothing.
    """
    finished: set[str] = set()
    for start in dependencies:
        path: dict[str, Iterator[str]] = {} if start in finished else {start: iter(dependencies[start])}
        while path:
            task = next(reversed(path))
            for needed in path[task]:
                if needed in path:
                    around = list(path)
                    return (*around[around.index(needed) :], needed)
                if needed not in finished:
                    path[needed] = iter(dependencies.get(needed, ()))
                    break
            else:
                path.popitem()
                finished.add(task)
    return None


def _nodes(graph: TaskGraph) -> list[GraphNode]:
    return sorted(graph.nodes, key=lambda node: natural_order(node.id))


def _edges(graph: TaskGraph) -> list[GraphEdge]:
    return sorted(set(graph.edges), key=lambda edge: (natural_order(edge.source), natural_order(edge.target)))


def _drawn_nodes(graph: TaskGraph) -> list[GraphNode]:
    """The nodes, and one for every task that only an edge names."""
    named = {task_id for edge in graph.edges for task_id in (edge.source, edge.target)}
    missing = named - {node.id for node in graph.nodes}
    strangers = (GraphNode(id=task_id, status=_UNKNOWN) for task_id in missing)
    return _nodes(graph.model_copy(update={"nodes": (*graph.nodes, *strangers)}))


def _as_json(graph: TaskGraph) -> str:
    ordered = graph.model_copy(update={"nodes": tuple(_nodes(graph)), "edges": tuple(_edges(graph))})
    return json.dumps(ordered.model_dump(), ensure_ascii=False, indent=2) + "\n"


def _as_mermaid(graph: TaskGraph) -> str:
    nodes = _drawn_nodes(graph)
    names = {node.id: f"n{number}" for number, node in enumerate(nodes)}  # a dot in an id is an error there
    lines = ["flowchart LR"]
    lines += [f'  {names[node.id]}["{_mermaid_text(_label(node))}"]:::{_class(node)}' for node in nodes]
    lines += [f"  {names[edge.source]} --> {names[edge.target]}" for edge in _edges(graph)]
    lines += [
        f"  classDef {name} fill:{fill},stroke:{border},color:#111827" for name, (fill, border) in _COLOURS.items()
    ]
    return "\n".join(lines) + "\n"


def _as_dot(graph: TaskGraph) -> str:
    lines = [
        f"digraph {_dot_text(graph.spec_name)} {{",
        '  graph [rankdir=LR, charset="UTF-8"];',
        '  node [shape=box, style="rounded,filled", fontname="sans-serif"];',
    ]
    for node in _drawn_nodes(graph):
        fill, border = _COLOURS[_class(node)]
        look = f'class="{_class(node)}", fillcolor="{fill}", color="{border}"'
        lines.append(f"  {_dot_text(node.id)} [label={_dot_text(_label(node))}, {look}];")
    lines += [f"  {_dot_text(edge.source)} -> {_dot_text(edge.target)};" for edge in _edges(graph)]
    return "\n".join([*lines, "}"]) + "\n"


def _class(node: GraphNode) -> str:
    return node.status if node.status in _COLOURS else _UNKNOWN


def _label(node: GraphNode) -> str:
    """The id and title on one line; what no picture can show is the replacement character."""
    line = " ".join(f"{node.id} {node.title}".split())
    shown = "".join("\ufffd" if unicodedata.category(char) in {"Cc", "Cs"} else char for char in line)
    return shown if len(shown) <= _LONGEST_LABEL else f"{shown[: _LONGEST_LABEL - 1]}…"


def _mermaid_text(text: str) -> str:
    """The text with every character that Mermaid, its Markdown or HTML could read as theirs as ``#code;``.

    Its own marks for such codes (``ﬂ°…¶ß`` in its ``encodeEntities``) are among them.
    """
    return re.sub(r"[!-'*+/:-@\[-`{-~ﬂ°¶ß]", lambda match: f"#{ord(match[0])};", text)


def _dot_text(text: str) -> str:
    r"""A quoted string of DOT. Labels know escapes (``\N``) and HTML's entities, so both are taken from them."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("&", "&amp;")
    return f'"{escaped}"'
