"""A flow's graph as a tree of lines and in Graphviz's language: every node once, whatever the shape."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable

import pytest

from ffcli.flow_graph import Edge, Node, dot, draw, group_text, quoted
from ffcli.render import STYLES, Out


def node(
    number: int, ups: Iterable[int] = (), kind: str = "success_only", *, state: str = "completed", label: str = "",
    group: str = "", task: str = "t",
) -> Node:  # fmt: skip
    """A node whose upstreams all have one kind of edge."""
    return Node(f"id{number}", number, task, state, label, group, [Edge(f"id{up}", kind) for up in ups])


def lines(nodes: list[Node], left_out: int = 0) -> list[str]:
    return [str(line) for line in draw(nodes, left_out)]


def pictured(nodes: list[Node]) -> list[int]:
    """The numbers of the nodes in the order of their lines."""
    found = [re.search(r"(\d+)$", line.tree) for line in draw(nodes)]
    return [int(match[1]) for match in found if match]


NIGHTLY = [
    node(1, state="failed", label="extract-eu", task="extract"),
    node(2, label="extract-us", task="extract"),
    node(3, [1], state="skipped", task="clean"),
    node(4, [2], task="clean"),
    node(5, [1], "on_failure", task="alert", label="alert"),
    node(6, [3, 4], "always", label="cleanup", task="rm"),
    node(7, [4], label="publish", task="publish"),
]


def test_a_node_stands_under_its_first_upstream_and_is_named_by_the_others() -> None:
    assert lines(NIGHTLY, 12) == [
        "1 failed extract-eu (extract)",
        "|- 3 skipped id3 (clean)",
        "|  v 6 completed cleanup (rm) [always, all of 2]",
        "`- 5 completed alert [on failure]",
        "2 completed extract-us (extract)",
        "v 4 completed id4 (clean) -> 6 always",
        "v 7 completed publish",
        "... 12 more not shown: raise --limit",
    ]


def test_groups_say_how_many_suffice() -> None:
    assert group_text(node(9, [1, 2, 3], group="any_of")) == "any of 3"
    assert group_text(node(9, [1, 2, 3], group="quorum 2")) == "2 of 3"
    assert group_text(node(9, [1, 2, 3])) == "all of 3"
    assert group_text(node(9, [1])) == ""
    assert group_text(node(9, [1, 2], "child")) == "", "what it spawned is no upstream"


def test_what_was_spawned_stands_under_the_one_that_spawned_it() -> None:
    parent = Node("id1", 1, "agent", "suspended", edges=[Edge("id2", "child"), Edge("id3", "child")])
    assert lines([parent, node(2, state="active"), node(3)]) == [
        "1 suspended id1 (agent)",
        "|- 2 active id2 (t) [spawned]",
        "`- 3 completed id3 (t) [spawned]",
    ]


def test_a_long_list_of_downstreams_is_cut() -> None:
    nodes = [node(1), node(2, [1]), *(node(n, [2, 1]) for n in range(3, 10))]
    assert lines(nodes)[0] == "1 completed id1 (t) -> 3, 4, 5, 6 and 3 more"


def test_a_label_cannot_steer_the_terminal_or_the_file() -> None:
    [line] = lines([node(1, label="a\x1b[2J\nb", task="t\r")])
    assert line == "1 completed a\\x1b[2J\\nb (t\\x0d)"
    assert quoted('say "no" \\N & go\x1b\n') == '"say \\"no\\" \\\\N &amp; go?\\n"'


def test_only_a_terminal_that_wants_colours_gets_them() -> None:
    def printed(stream: io.StringIO, color: bool) -> str:
        Out(json=False, stream=stream, color=color, width=20).styled([("1", "failed", "x" * 30)], STYLES)
        return stream.getvalue()

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    plain = f"1 failed {'x' * 30}\n"
    assert printed(io.StringIO(), True) == plain
    assert printed(Terminal(), False) == plain, "a line is not broken at the width"


N = 10_000
SHAPES = {
    "chain": [node(n, [n - 1] if n > 1 else []) for n in range(1, N + 1)],
    "fan out and in": [node(1), *(node(n, [1]) for n in range(2, N)), node(N, range(2, N))],
    "spine with a leaf at each level": [node(1), *(node(n, [(n - 2) // 2 * 2 + 1]) for n in range(2, N + 1))],
    "each after the five before it": [node(n, range(max(1, n - 5), n)) for n in range(1, N + 1)],
    "alone": [node(n) for n in range(1, N + 1)],
}  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_every_node_has_one_line_of_bounded_length_whatever_the_shape(shape: str) -> None:
    nodes = SHAPES[shape]
    assert sorted(pictured(nodes)) == list(range(1, N + 1))
    assert max(map(len, lines(nodes))) < 150


def test_deep_levels_say_how_many_steps_are_not_shown() -> None:
    spine = lines(SHAPES["spine with a leaf at each level"][:101])
    assert spine[1] == "|- 2 completed id2 (t)"
    assert re.fullmatch(r"\+26 +`- 101 completed id101 \(t\)", spine[-1])


def test_a_ring_or_an_upstream_that_is_not_there_loses_nobody() -> None:
    assert sorted(pictured([node(1, [3]), node(2, [1]), node(3, [2]), node(4, [4, 99])])) == [1, 2, 3, 4]


# ---- Graphviz --------------------------------------------------------------------------------------------

STRING = r'"(?:[^"\\]|\\.)*"'
WORD = rf"(?:\w+|{STRING})"
ATTRS = rf"\[[a-z]+={WORD}(?:, [a-z]+={WORD})*\]"
STATEMENT = re.compile(rf"  (?:(?:graph|node|edge) {ATTRS}|n\d+ {ATTRS}|n\d+ -> n\d+(?: {ATTRS})?);")


def test_dot_is_a_digraph_with_a_style_for_every_kind_and_a_colour_for_every_state() -> None:
    odd = Node("id8", 8, 'a"b', "active", "x\\y", "any_of", [Edge("id7", "child"), Edge("id1", "success_only",
               "impossible"), Edge("id99", "always")])  # fmt: skip
    told = list(dot([*NIGHTLY, odd], 'nightly "failed"', 3))
    assert (told[0], told[-1]) == ("digraph flow {", "}")
    assert [line for line in told[1:-1] if not STATEMENT.fullmatch(line)] == []
    assert '  graph [label="nightly \\"failed\\"\\n3 more not shown", labelloc=t, rankdir=TB];' in told
    assert '  n8 [label="x\\\\y\\na\\"b\\nactive\\nany of 2", fillcolor="#b3e5fc"];' in told
    assert "  n2 -> n4;" in told
    assert any(line.startswith("  n1 -> n5 [style=dotted") for line in told)
    assert any(line.startswith("  n3 -> n6 [style=dashed") for line in told)
    assert any(line.startswith("  n8 -> n7 [style=dashed") for line in told), "from whoever spawned"
    assert '  n1 -> n8 [color="#bdbdbd"];' in told
    assert sum(" -> " in line for line in told) == 8, "an edge from a node that is not shown is left out"
