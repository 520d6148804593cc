"""A graph is checked as a whole and sorted before any of it is sent, and its ids say what they stand for."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lupa.lua51 import LuaRuntime

from ffcore import flows, ids, limits
from ffcore.contracts import (
    EdgeAllOf,
    EdgeAnyOf,
    EdgeGroupState,
    EdgeQuorum,
    FlowNode,
    FlowPlan,
    OnSatisfied,
)
from ffcore.errors import EngineBug, InvalidArgument
from ffcore.ids import ExecutionId, FlowId

FLOW = FlowId("{fp:3}:018f1234-5678-7abc-9def-0123456789ab")
PLANS = [FlowPlan(execution_kind="send", lane_id="default")]
ROOT = Path(__file__).parents[3]


def node(place: int, *upstreams: int | tuple[int, str], **changes: Any) -> FlowNode:
    fields: dict[str, Any] = {
        "execution_id": flows.unkeyed_member_id(FLOW, place), "digest": bytes(16), "payload": b"{}",
        "label": f"n{place}", "upstreams": [(up, "success_only") if isinstance(up, int) else up for up in upstreams],
        **changes,
    }
    return FlowNode(**fields)


def graph(*nodes: FlowNode, plans: Sequence[FlowPlan] = PLANS) -> flows.Graph:
    steps = flows.compiling(FLOW, plans, nodes)
    while True:
        try:
            next(steps)
        except StopIteration as done:
            compiled: flows.Graph = done.value
            return compiled


# ---- ids -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lua() -> Any:
    """The library's own file, with everything it leans on at load replaced by nothing."""
    runtime = LuaRuntime(unpack_returned_tuples=False)
    runtime.execute("""
        local nothing = setmetatable({}, {})
        getmetatable(nothing).__index = function() return nothing end
        getmetatable(nothing).__call = function() return nothing end
        setmetatable(_G, { __index = function() return nothing end })
    """)
    return runtime.execute((ROOT / "lua/shared/graph.lua").read_text() + "\nreturn graph")


@pytest.mark.parametrize(("up", "down"), [(1, 2), (0xFFF, 0x1000), (99_999, 100_000), (2**32 - 1, 2**28 - 1)])
def test_both_languages_name_an_edge_alike(lua: Any, up: int, down: int) -> None:
    edge = flows.edge_id(FLOW, up, down)
    assert edge == lua.edge_id(ids.uuid_of(FLOW), up, down)
    assert flows.edge_of(FLOW, edge) == (up, down)
    assert ids.check_id(f"{{fp:3}}:{edge}")


def test_an_edge_that_somebody_named_stands_for_no_numbers() -> None:
    other = FlowId("{fp:3}:018f1234-5678-7abc-9def-0123456789ac")
    assert flows.edge_of(other, flows.edge_id(FLOW, 1, 2)) is None
    assert flows.edge_of(FLOW, "018f1234-5678-7abc-9def-0123456789ab") is None
    assert flows.edge_of(FLOW, "mine") is None


def test_a_members_id_is_of_its_flow_and_key() -> None:
    """A graph that is sent again must name the same executions, in the partition of its flow."""
    keyed, unkeyed = flows.member_id(FLOW, "0"), flows.unkeyed_member_id(FLOW, 0)
    assert keyed == flows.member_id(FLOW, "0") and unkeyed == flows.unkeyed_member_id(FLOW, 0)
    implicit = flows.implicit_flow(ExecutionId(FLOW))
    several = {keyed, unkeyed, flows.member_id(FLOW, "1"), flows.unkeyed_member_id(FLOW, 1), implicit}
    assert len(several) == 5
    for one in several:
        assert ids.partition_of(ids.check_id(one)) == "{fp:3}"
    assert ids.is_keyed(keyed) and not ids.is_keyed(unkeyed) and not ids.is_keyed(implicit)
    assert flows.member_id(FlowId("{fp:4}" + FLOW[6:]), "0")[6:] != keyed[6:]


def test_a_digest_is_of_ids_contents_edges_and_groups() -> None:
    def digest(*nodes: FlowNode) -> bytes:
        return flows.flow_digest(graph(*nodes).rows)

    first = digest(node(0), node(1), node(2, 0, 1))
    assert len(first) == 16 and first == digest(node(0), node(1), node(2, 0, 1))
    others = [
        digest(node(0), node(1, digest=b"d" * 16), node(2, 0, 1)),
        digest(node(0), node(3), node(2, 0, 1)),
        digest(node(0), node(1), node(2, 1, 0)),
        digest(node(0), node(1), node(2, 0, (1, "always"))),
        digest(node(0), node(1), node(2, 0, 1, policy=EdgeAnyOf())),
        digest(node(0), node(1), node(2, 0)),
        digest(node(1), node(0), node(2, 1, 0)),
    ]
    assert len({first, *others}) == 8
    assert first == digest(node(0), node(1), node(2, 0, 1, tags=b"1:a1:b", label="else"))


# ---- groups --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("policy", "sent", "stored"), [
    (EdgeAllOf(), "A", "A 0 - 3 1 0 0 0 0 p"),
    (EdgeAnyOf(), "O c", "O 1 c 3 1 0 0 0 0 s"),
    (EdgeAnyOf(OnSatisfied.LET_RUN), "O l", "O 1 l 3 0 3 1 1 1 i"),
    (EdgeQuorum(2), "Q 2 c", "Q 2 c 3 1 1 1 0 0 p"),
    (EdgeQuorum(7, OnSatisfied.LET_RUN), "Q 7 l", "Q 7 l 9 1 1 0 1 0 p"),
])  # fmt: skip
def test_a_group_is_a_short_text(policy: Any, sent: str, stored: str) -> None:
    assert flows.group_text(policy) == sent
    group = flows.Group.parse(stored)
    assert group.policy == policy
    words = stored.split()
    assert [group.edges, group.ok, group.impossible, group.failed, group.skipped, group.cancelled] == [
        int(word) for word in words[3:9]
    ]
    assert group.unresolved == group.edges - group.ok - group.impossible
    assert group.state == {"p": EdgeGroupState.PENDING, "s": "satisfied", "i": "impossible"}[words[-1]]


@pytest.mark.parametrize("text", [
    "", "A", "A 0 - 1 2 3 4 5 p", "Q 0 c 1 0 0 0 0 0 p", "O 1 x 1 0 0 0 0 0 p", "A 0 - 1 0 0 0 0 0 z",
])
def test_a_group_that_cannot_be_read_is_a_bug(text: str) -> None:
    with pytest.raises(EngineBug, match="no group of edges"):
        flows.Group.parse(text)


# ---- order ---------------------------------------------------------------------------------------------


def test_a_graph_in_order_keeps_it() -> None:
    rows = graph(node(0), node(1), node(2, 1, (0, "always")), node(3, (2, "on_failure"), policy=EdgeAnyOf())).rows
    assert [row.edges for row in rows] == ["", "", "2s,1a", "3f"]
    assert [row.group for row in rows] == ["A", "A", "A", "O c"]
    assert [row.label for row in rows] == ["n0", "n1", "n2", "n3"]


def test_upstreams_come_first_and_all_else_stays_where_it_was() -> None:
    found = graph(node(0, 3, 2), node(1), node(2), node(3, 2), node(4, 0))
    assert [row.label for row in found.rows] == ["n2", "n3", "n0", "n1", "n4"]
    assert [row.edges for row in found.rows] == ["", "1s", "2s,1s", "", "3s"]
    assert (found.edges, found.edge_total) == ([0, 1, 2, 0, 1], 4)


def test_a_long_chain_given_backwards_is_sorted_without_recursion() -> None:
    n = 5_000
    order = flows.topological([node(place, place + 1) for place in range(n - 1)] + [node(n - 1)])
    assert order == list(range(n - 1, -1, -1))


def naive(nodes: list[FlowNode]) -> list[int] | None:
    """Take the first node whose upstreams have all been taken, over and over; None where there is none left."""
    taken: list[int] = []
    while len(taken) < len(nodes):
        free = [
            place for place, one in enumerate(nodes)
            if place not in taken and all(up in taken for up, _ in one.upstreams)
        ]  # fmt: skip
        if not free:
            return None
        taken.append(free[0])
    return taken


@given(st.randoms(use_true_random=False), st.integers(1, 14), st.integers(0, 30), st.booleans())
def test_a_graph_is_sorted_or_refused_as_a_plain_executor_would(
    rng: random.Random, n: int, edges_n: int, cyclic: bool
) -> None:
    ups: list[set[int]] = [set() for _ in range(n)]
    places = list(range(n))
    rng.shuffle(places)
    for _ in range(edges_n):
        a, b = rng.randrange(n), rng.randrange(n)
        if a != b:
            low, high = (a, b) if cyclic else (min(a, b), max(a, b))
            ups[places[high]].add(places[low])
    nodes = [node(place, *sorted(ups[place])) for place in range(n)]
    if naive(nodes) is None:
        with pytest.raises(InvalidArgument) as caught:
            graph(*nodes)
        assert caught.value.code == "cycle_detected"
        path = [int(name) for name in str(caught.value).replace("'", "").replace(";", "").replace("n", " ").split()
                if name.isdecimal()]
        assert path[0] == path[-1] and len(path) > 2
        assert all(up in ups[down] for up, down in itertools.pairwise(path))
        return
    found = graph(*nodes)
    order = [int(row.label[1:]) for row in found.rows if row.label]
    assert sorted(order) == list(range(n))
    for number, (row, place) in enumerate(zip(found.rows, order, strict=True), 1):
        numbers = [int(word[:-1]) for word in row.edges.split(",") if word]
        assert all(up < number for up in numbers)
        assert [order[up - 1] for up in numbers] == sorted(ups[place])
    if naive(nodes) == list(range(n)):
        assert order == list(range(n))


# ---- what is refused -----------------------------------------------------------------------------------


def test_a_circle_is_named_in_the_direction_of_its_edges() -> None:
    with pytest.raises(InvalidArgument, match="'n1' -> 'n2' -> 'n3' -> 'n1'"):
        graph(node(0), node(1, 3), node(2, 1), node(3, 2, 0))
    with pytest.raises(InvalidArgument, match=r"goes in a circle: .* -> \.\.\. 89 more \.\.\. -> .*"):
        graph(*(node(place, (place + 1) % 100) for place in range(100)))


@pytest.mark.parametrize(("nodes", "code", "said"), [
    ([], "invalid_input", "no nodes"),
    ([node(0), node(1, 2)], "invalid_dependency", "there are 2"),
    ([node(0), node(1, -1)], "invalid_dependency", "there are 2"),
    ([node(0), node(1, 1)], "self_referencing_edge", "'n1' cannot depend on itself"),
    ([node(0), node(1, 0, 0)], "dependency_already_exists", "'n1' names an upstream twice"),
    ([node(0), node(1, (0, "maybe"))], "invalid_dependency", "use success_only, always, on_failure"),
    ([node(0), node(1, 0, policy=EdgeQuorum(2))], "invalid_dependency", "'n1' waits for 2 of 1 upstreams"),
    ([node(0, policy=EdgeAnyOf())], "invalid_dependency", "some of no upstreams"),
    ([node(0), node(0)], "invalid_input", "two nodes have the id"),
    ([node(0, payload=None)], "invalid_input", "neither a payload nor upstreams"),
    ([node(0, payload=bytes(limits.PAYLOAD_BYTES + 1))], "payload_too_large", "the payload of 'n0'"),
    ([node(0, plan=1)], "invalid_input", "plan 1 of 1"),
    ([node(0, digest=b"short")], "invalid_input", "5 bytes, not 16"),
    ([node(0, label="a\nb")], "invalid_input", "printable"),
    ([node(0, fairness_key="")], "invalid_input", "printable"),
    ([node(0, execution_id="{fp:30}:018f1234-5678-7abc-9def-0123456789ab")], "invalid_input", "partition {fp:3}"),
    ([node(0, execution_id="{fp:3}:018f1234-5678-7abc-9def-0123456789ab}")], "invalid_input", "partition {fp:3}"),
])  # fmt: skip
def test_a_graph_that_cannot_be_meant_is_refused_whole(nodes: list[FlowNode], code: str, said: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        graph(*nodes)
    assert caught.value.code == code and said in str(caught.value)


def test_a_graph_needs_a_task() -> None:
    with pytest.raises(InvalidArgument, match="no plans"):
        graph(node(0), plans=[])


def test_a_graph_is_refused_before_it_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [node(place, *range(max(0, place - 2), place)) for place in range(4)]
    graph(*nodes)
    for limit, value, said in (("FLOW_NODES_N", 3, "4 nodes"), ("FLOW_EDGES_N", 4, "5 edges"),
                               ("FLOW_BYTES", 7, "8 bytes"), ("FLOW_CHUNK_EDGES_N", 1, "'n2' has 2 upstreams")):
        with monkeypatch.context() as patched:
            patched.setattr(limits, limit, value)
            with pytest.raises(InvalidArgument, match=said) as caught:
                graph(*nodes)
            assert caught.value.code == "flow_too_large"
