"""A flow's graph for people: a tree of lines for a terminal, and Graphviz's language for everything else.

The rule: nothing here asks the store, and nothing recurses: a chain of ten thousand is drawn as readily as a fan of as
many. Each node has one line. It stands under its first upstream; the line of any other one names it behind an arrow.
A spawned execution stands under the one that spawned it. What follows alone goes straight down, marked `v`, without
another step to the right.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from .render import printable

MARKS_N: Final = 4
"""Other downstreams a line names; it says how many more there are."""
INDENT_N: Final = 24
"""Steps to the right a line shows; deeper ones show the last of them behind their number."""
KINDS: Final = {"success_only": "", "always": "always", "on_failure": "on failure", "child": "spawned"}
"""What people read of an edge's kind; success needs no word."""
EDGE_STYLES: Final = {
    "always": 'style=dashed, label="always"',
    "on_failure": 'style=dotted, color="#b3261e", fontcolor="#b3261e", label="on failure"',
    "child": 'style=dashed, color="#777777", arrowhead=empty, label="spawned"',
}
COLOURS: Final = {
    "completed": "#c8e6c9",
    "active": "#b3e5fc",
    "failed": "#ffcdd2",
    "expired": "#ffcdd2",
    "cancelled": "#ffe0b2",
    "skipped": "#e0e0e0",
    "suspended": "#d1c4e9",
    "delayed": "#fff9c4",
}
"""Background by public state; what waits is white."""


class Edge(NamedTuple):
    """An edge into a node; of kind `child` it comes from what the node has spawned."""

    upstream: str
    kind: str
    state: str = ""


class Node(NamedTuple):
    """A member of a flow, as far as a picture needs it."""

    id: str
    number: int
    task: str
    state: str
    label: str = ""
    group: str = ""
    """`all_of`, `any_of` or `quorum K`; empty: all_of."""
    edges: Sequence[Edge] = ()


class Line(NamedTuple):
    """A line of the tree in three parts, so that the state can have its colour."""

    tree: str
    state: str
    text: str

    def __str__(self) -> str:
        return " ".join(filter(None, self))


def group_text(node: Node) -> str:
    """How many of its upstreams a node waits for, in words; empty for one with a single upstream or none."""
    n = sum(edge.kind != "child" for edge in node.edges)
    word, _, k = node.group.partition(" ")
    if word == "any_of":
        return f"any of {n}"
    if word == "quorum":
        return f"{k} of {n}"
    return f"all of {n}" if n > 1 else ""


class _Plan(NamedTuple):
    """Who stands under whom, and what else a line has to name."""

    nodes: Sequence[Node]
    below: list[list[int]]
    marks: list[list[tuple[int, str]]]
    first: list[str | None]
    """The kind of the edge a node hangs on; None: it hangs on nothing that is drawn."""


def _plan(nodes: Sequence[Node]) -> _Plan:
    at = {node.id: i for i, node in enumerate(nodes)}
    plan = _Plan(nodes, [[] for _ in nodes], [[] for _ in nodes], [None] * len(nodes))
    links: list[tuple[int, bool, int, str]] = []
    for i, node in enumerate(nodes):
        for edge in node.edges:
            other = at.get(edge.upstream, i)
            if other != i:
                spawned = edge.kind == "child"
                links.append((other, True, i, edge.kind) if spawned else (i, False, other, edge.kind))
    # What was spawned hangs on whoever spawned it, unless it has upstreams of its own. Sorting keeps their order.
    for down, _, up, kind in sorted(links, key=lambda link: link[:2]):
        if plan.first[down] is None:
            plan.first[down] = kind
            plan.below[up].append(down)
        else:
            plan.marks[up].append((down, kind))
    return plan


def draw(nodes: Sequence[Node], left_out: int = 0) -> Iterator[Line]:
    """The lines of the tree, in the order of the nodes' numbers as far as that goes; the last one says how many nodes
    are left out."""
    plan = _plan(nodes)
    drawn = bytearray(len(nodes))
    roots = [i for i, kind in enumerate(plan.first) if kind is None]
    # A graph has no cycles. Should it grow while it is read, nobody is forgotten all the same.
    for root in (*roots, *range(len(nodes))):
        # What is to be drawn, the next one last: a node, how its line begins, how those below it begin, its depth.
        stack = [(root, "", "", 0)]
        while stack:
            i, head, tail, depth = stack.pop()
            if drawn[i]:
                continue
            drawn[i] = 1
            hidden = f"+{depth - INDENT_N} " if depth > INDENT_N else ""
            yield Line(f"{hidden}{head}{nodes[i].number}", nodes[i].state, _text(plan, i))
            below = plan.below[i]
            if len(below) == 1:
                stack.append((below[0], tail + "v ", tail, depth))
            elif below:
                kept = tail[-3 * (INDENT_N - 1) :]
                stack.append((below[-1], kept + "`- ", kept + "   ", depth + 1))
                stack += [(j, kept + "|- ", kept + "|  ", depth + 1) for j in below[-2::-1]]
    if left_out:
        yield Line("...", "", f"{left_out:,} more not shown: raise --limit")


def _text(plan: _Plan, i: int) -> str:
    node = plan.nodes[i]
    name = printable(node.label) if node.label else node.id
    task = printable(node.task)
    parts = [task if name == task else f"{name} ({task})"]
    kind = plan.first[i] or "success_only"
    notes = [note for note in (KINDS.get(kind, kind), group_text(node)) if note]
    if notes:
        parts.append(f"[{', '.join(notes)}]")
    marks = plan.marks[i]
    named = [f"{plan.nodes[j].number} {KINDS.get(kind, kind)}".rstrip() for j, kind in marks[:MARKS_N]]
    if named:
        more = f" and {len(marks) - MARKS_N:,} more" if len(marks) > MARKS_N else ""
        parts.append(f"-> {', '.join(named)}{more}")
    return " ".join(parts)


# ---- Graphviz ------------------------------------------------------------------------------------------


def quoted(text: str) -> str:
    """Text as a quoted string of Graphviz, where a backslash and an entity mean something in labels."""
    escaped = "".join(
        "\\n" if c == "\n" else "\\\\" if c == "\\" else '\\"' if c == '"' else "&amp;" if c == "&"
        else c if c.isprintable() else "?"
        for c in text
    )  # fmt: skip
    return f'"{escaped}"'


def dot(nodes: Sequence[Node], title: str, left_out: int = 0) -> Iterator[str]:
    """The lines of a digraph: colours say states, line styles say kinds of edges, labels how many upstreams suffice."""
    known = {node.id: node.number for node in nodes}
    below = f"\n{left_out:,} more not shown" if left_out else ""
    yield "digraph flow {"
    yield f"  graph [label={quoted(title + below)}, labelloc=t, rankdir=TB];"
    yield '  node [shape=box, style="rounded,filled", fillcolor=white, fontname="Helvetica"];'
    yield '  edge [fontname="Helvetica", fontsize=10];'
    for node in nodes:
        group = group_text(node)
        texts = [node.label or node.id, node.task if node.task != node.label else "", node.state]
        label = quoted("\n".join(filter(None, [*texts, group if group and not group.startswith("all") else ""])))
        colour = COLOURS.get(node.state)
        yield f"  n{node.number} [label={label}" + (f", fillcolor={quoted(colour)}];" if colour else "];")
    for node in nodes:
        for edge in node.edges:
            if edge.upstream not in known:
                continue
            # Drawn the way work goes: from whoever spawned to what was spawned.
            ends = (node.number, known[edge.upstream]) if edge.kind == "child" else (known[edge.upstream], node.number)
            style = EDGE_STYLES.get(edge.kind, "")
            if edge.state == "impossible":
                style = ", ".join(filter(None, [style, 'color="#bdbdbd"']))
            yield f"  n{ends[0]} -> n{ends[1]}" + (f" [{style}];" if style else ";")
    yield "}"
