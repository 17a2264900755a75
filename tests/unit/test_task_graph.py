from __future__ import annotations

import json
import re
import shutil
import subprocess
from itertools import pairwise
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from necrocode.agent_runner import ConfigurationError
from necrocode.agent_runner.records import TaskRecord
from necrocode.agent_runner.task_graph import (
    GRAPH_MEDIA_TYPES,
    GraphEdge,
    GraphNode,
    TaskGraph,
    find_cycle,
    natural_order,
    render_graph,
)

AWKWARD = [
    "quotes \" and ' and `",
    "[brackets] (round) {curly}",
    "<b>bold</b> &amp; & #quot; #35;",
    "日本語「検索」、と（全角）：。",
    '%%{init: {"theme": "dark"}}%%',
    'style x:"#f00;" classDef a:#1;',
    "back\\slash \\N \\",
    "end",
    "ﬂ°°35¶ß",
    "--> n0; A --> B",
    "emoji 👩‍💻",
]


def graph_of(*titles: str, status: str = "ready") -> TaskGraph:
    nodes = tuple(GraphNode(id=f"1.{number}", title=title, status=status) for number, title in enumerate(titles, 1))
    edges = tuple(GraphEdge(source=a.id, target=b.id) for a, b in pairwise(nodes))
    return TaskGraph(spec_name="chat-app", nodes=nodes, edges=edges)


def test_the_graph_of_records_has_an_edge_for_every_dependency() -> None:
    tasks = [
        TaskRecord(task_id="1", spec_name="s", status="done", title="First"),
        TaskRecord(task_id="2", spec_name="s", status="ready", dependencies=("1", "0")),
    ]
    graph = TaskGraph.of("s", iter(tasks))
    assert graph.nodes == (GraphNode(id="1", title="First", status="done"), GraphNode(id="2", status="ready"))
    assert graph.edges == (GraphEdge(source="1", target="2"), GraphEdge(source="0", target="2"))


def test_numbers_inside_ids_count_as_numbers() -> None:
    ids = ["2", "1.10", "1.2", "1", "a", "1.1", "1.b", "10"]
    assert sorted(ids, key=natural_order) == ["1", "1.1", "1.2", "1.10", "1.b", "2", "10", "a"]


@pytest.mark.parametrize("kind", list(GRAPH_MEDIA_TYPES))
def test_the_text_does_not_depend_on_the_order_of_the_input(kind: Any) -> None:
    graph = graph_of(*AWKWARD)
    backwards = TaskGraph(spec_name="chat-app", nodes=graph.nodes[::-1], edges=(*graph.edges[::-1], *graph.edges))
    assert render_graph(backwards, kind) == render_graph(graph, kind)


def test_another_format_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigurationError, match=r"'svg' is not a graph format \(known: json, mermaid, dot\)"):
        render_graph(graph_of("x"), "svg")  # type: ignore[arg-type]


def test_json_holds_everything_as_it_is() -> None:
    long = "x" * 300 + "\n日本語"
    assert json.loads(render_graph(graph_of("a", long), "json")) == {
        "spec_name": "chat-app",
        "nodes": [{"id": "1.1", "title": "a", "status": "ready"}, {"id": "1.2", "title": long, "status": "ready"}],
        "edges": [{"source": "1.1", "target": "1.2"}],
    }
    assert "日本語" in render_graph(graph_of("日本語"), "json")


def test_mermaid_names_the_tasks_and_draws_their_states() -> None:
    graph = TaskGraph(
        spec_name="s",
        nodes=(GraphNode(id="1.2", title="Two", status="blocked"), GraphNode(id="1.1", title="One", status="done")),
        edges=(GraphEdge(source="1.1", target="1.2"), GraphEdge(source="0", target="1.1")),
    )
    lines = render_graph(graph, "mermaid").splitlines()
    assert lines[:6] == [
        "flowchart LR",
        '  n0["0"]:::unknown',
        '  n1["1.1 One"]:::done',
        '  n2["1.2 Two"]:::blocked',
        "  n0 --> n1",
        "  n1 --> n2",
    ]
    assert "  classDef done fill:#d1fae5,stroke:#059669,color:#111827" in lines


def test_a_state_of_a_newer_registry_is_drawn_as_unknown() -> None:
    assert ":::unknown" in render_graph(graph_of("x", status="paused"), "mermaid")
    assert 'class="unknown"' in render_graph(graph_of("x", status="paused"), "dot")


def mermaid_label(title: str) -> str:
    line = render_graph(graph_of(title), "mermaid").splitlines()[1]
    (quoted,) = re.findall(r'^  n0\["([^"]*)"\]:::ready$', line)
    return str(quoted)


@given(st.text(max_size=120))
def test_no_title_means_anything_to_mermaid(title: str) -> None:
    label = mermaid_label(title)
    rest = re.sub(r"#[0-9]+;", "", label)
    assert not re.search(r"[\"'#;&<>{}\[\]|`%:@$*_~\\ﬂ°¶ß\x00-\x1f]", rest)
    shown = re.sub(r"#([0-9]+);", lambda code: chr(int(code[1])), label)
    assert len(shown) <= 80
    assert shown.startswith("1.1")


@pytest.mark.parametrize("title", AWKWARD)
def test_a_title_is_read_back_whole_from_mermaid(title: str) -> None:
    assert re.sub(r"#([0-9]+);", lambda code: chr(int(code[1])), mermaid_label(title)) == f"1.1 {title}"


def test_labels_are_one_line_of_what_can_be_shown() -> None:
    assert mermaid_label("a\n  - b\t\x07") == "1.1 a - b \ufffd"
    assert mermaid_label("x" * 200) == f"1.1 {'x' * 75}…"


@pytest.mark.skipif(shutil.which("dot") is None, reason="graphviz is not installed")
def test_graphviz_shows_every_title_as_it_is() -> None:
    text = render_graph(graph_of(*AWKWARD), "dot")
    drawn = subprocess.run(["dot", "-Tsvg"], input=text.encode(), capture_output=True, check=True)
    assert drawn.stderr == b""
    svg = ET.fromstring(drawn.stdout)  # noqa: S314  graphviz made it
    space = {"svg": "http://www.w3.org/2000/svg"}
    nodes = svg.findall(".//svg:g[@class='node ready']", space)
    assert [node.findtext("svg:text", namespaces=space) for node in nodes] == [
        f"1.{number} {title}" for number, title in enumerate(AWKWARD, 1)
    ]
    assert len(svg.findall(".//svg:g[@class='edge']", space)) == len(AWKWARD) - 1


def test_dot_quotes_names_and_colours_states() -> None:
    lines = render_graph(graph_of('say "hi"', "b", status="failed"), "dot").splitlines()
    assert lines[0] == 'digraph "chat-app" {'
    assert lines[3] == (
        '  "1.1" [label="1.1 say \\"hi\\"", class="failed", fillcolor="#fee2e2", color="#dc2626"];'
    )  # fmt: skip
    assert lines[5:] == ['  "1.1" -> "1.2";', "}"]


# --- cycles


@pytest.mark.parametrize(
    ("dependencies", "cycle"),
    [
        ({}, None),
        ({"a": ["b"], "b": ["c", "d"], "c": ["d"]}, None),
        ({"a": ["a"]}, ("a", "a")),
        ({"x": ["a"], "a": ["b"], "b": ["c"], "c": ["a"]}, ("a", "b", "c", "a")),
        ({"a": ["b", "c"], "b": [], "c": ["a"]}, ("a", "c", "a")),
    ],
)
def test_a_cycle_is_named_by_its_path(dependencies: dict[str, list[str]], cycle: tuple[str, ...] | None) -> None:
    assert find_cycle(dependencies) == cycle


def test_a_long_chain_is_no_trouble() -> None:
    chain = {str(number): [str(number + 1)] for number in range(100_000)}
    assert find_cycle(chain) is None
    ring = find_cycle(chain | {"100000": ["0"]})
    assert ring is not None
    assert len(ring) == 100_002


@given(st.dictionaries(st.integers(0, 6).map(str), st.lists(st.integers(0, 6).map(str), max_size=4)))
def test_a_cycle_is_found_exactly_when_there_is_one(dependencies: dict[str, list[str]]) -> None:
    cycle = find_cycle(dependencies)
    if cycle is not None:
        assert cycle[0] == cycle[-1]
        assert all(needed in dependencies[task] for task, needed in pairwise(cycle))
        return
    reachable = {task: set(needed) for task, needed in dependencies.items()}
    for _ in dependencies:
        reachable = {t: n.union(*(reachable.get(m, set()) for m in n)) for t, n in reachable.items()}
    assert all(task not in needed for task, needed in reachable.items())
