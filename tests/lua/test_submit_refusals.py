"""What ff_submit_flow refuses: the whole call, by name, before anything is written."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

import ffcore.contracts as c
from ffcore import limits
from ffcore.policy import ExecutionPolicy, RoutingRequirements
from ffcore.wire import pack_pairs
from tests.lua.engine import P0, START_MS, Engine, force, lane_told
from tests.lua.graphs import MAIL, chunk, chunks, refused, row, uuid


def plan(**options: Any) -> Any:
    return [msgspec.structs.asdict(MAIL) | options]


@pytest.mark.parametrize(
    ("detail", "given"),
    [
        ("namespace", {"namespace": "two words"}), ("flow_kind", {"flow_kind": "x" * 129}),
        ("flow_kind", {"flow_kind": "a\nb"}), ("name", {"name": "x" * 513}),
        ("digest", {"digest": b""}), ("digest", {"digest": b"x" * 33}), ("chunk", {"chunk": 0}),
        ("node_total, edge_total", {"node_total": 0}), ("node_total, edge_total", {"edge_total": -1}),
        ("node_total, edge_total: there are 2 nodes and 1 edges up to here", {"node_total": 1}),
        ("node_total, edge_total: there are 2 nodes and 1 edges up to here", {"node_total": 3}),
        ("node_total, edge_total: there are 2 nodes and 1 edges up to here", {"edge_total": 0}),
        ("node_total, edge_total: there are 2 nodes and 1 edges up to here", {"edge_total": 2}),
        ("nodes", {"nodes": []}), ("plans", {"plans": []}), ("plans", {"plans": [MAIL] * 65}), ("plans", {"plans": 7}),
        ("plan 1", {"plans": [7]}), ("plan 1: lane_id", {"plans": plan(lane_id=None)}),
        ("plan 1: execution_kind", {"plans": plan(execution_kind=7)}),
        ("plan 1: version", {"plans": plan(version=1.5)}),
        ("plan 1: priority", {"plans": plan(priority="9")}), ("plan 1: policy", {"plans": plan(policy={})}),
        ("plan 1: payload_encoding", {"plans": plan(payload_encoding=1)}),
        ("plan 1: delay_until", {"plans": plan(delay_until=1e300)}),
        ("plan 1: execution_deadline_at", {"plans": plan(execution_deadline_at="soon")}),
        ("lane_id", {"plans": plan(lane_id="#1")}), ("execution_kind", {"plans": plan(execution_kind="")}),
        ("version", {"plans": plan(version=0)}), ("priority", {"plans": plan(priority=10_001)}),
        ("payload_encoding", {"plans": plan(payload_encoding="x" * 129)}),
        ("delay_until", {"plans": plan(delay_until=-1)}), ("creator_identity", {"creator_identity": "x" * 513}),
        ("execution_deadline_at", {"plans": plan(execution_deadline_at=-1)}),
    ],
)  # fmt: skip
async def test_a_call_that_cannot_be_is_refused_by_name(engine: Engine, detail: str, given: dict[str, Any]) -> None:
    args = chunk(engine.new_id(), [row(engine.new_id()), row(engine.new_id(), "1s")])
    assert await refused(engine, "invalid_input", args, **given) == detail


async def test_tags_of_a_flow_are_checked(engine: Engine) -> None:
    args = chunk(engine.new_id(), [row(engine.new_id())])
    assert await refused(engine, "invalid_tag_key", args, tags={"bad": "1"}) == "bad"
    assert await refused(engine, "invalid_input", args, tags={"a.b": "x" * 257}) == "tag a.b"
    assert await refused(engine, "invalid_input", args, tags={f"a.b{n}": "1" for n in range(65)}) == "tags"


@pytest.mark.parametrize(
    ("code", "detail", "given"),
    [
        ("invalid_input", "node 2: plan", {"plan": 0}), ("invalid_input", "node 2: plan", {"plan": 2}),
        ("invalid_input", "node 2: digest", {"digest": b""}),
        ("invalid_input", "node 2: digest", {"digest": b"x" * 33}),
        ("invalid_input", "node 2: label", {"label": ""}), ("invalid_input", "node 2: label", {"label": "x" * 513}),
        ("invalid_input", "node 2: tags", {"tags": b"7"}),
        ("invalid_tag_key", "bad", {"tags": pack_pairs({"bad": "1"})}),
        ("invalid_input", "tag a.b", {"tags": pack_pairs({"a.b": "x" * 257})}),
        ("invalid_input", "node 2 has no payload and no upstream whose result could be one",
         {"edges": "", "payload": None}),
        ("payload_too_large", str(limits.PAYLOAD_BYTES + 1), {"payload": b"x" * (limits.PAYLOAD_BYTES + 1)}),
        ("invalid_input", "node 2: execution_id", {"execution_id": f"{P0}:no-uuid"}),
        ("invalid_input", "node 2: plan", {"plan": "x"}),
        *(("invalid_dependency", "node 2 depends on {}: it may on nodes sent before it, on each once", {"edges": text})
          for text in ("2s", "9s", "0s", "1s,1a", "000000000000009s")),
        *(("invalid_dependency", "node 2: edges are numbers with s, a or f behind", {"edges": text})
          for text in ("s", "1", "1x", "1s,", ",1s", "1s;2s", "1 s", "-1s", "1.5s")),
        *(("invalid_dependency", f"node 2: group {text} of 1 edges", {"group": text})
          for text in ("", "B", "A 1", "O", "O x", "Q", "Q c", "Q 0 c", "Q 2 c", "Q 1", "Q 1.5 c", "Q -1 l", "O c ")),
        ("invalid_dependency", "node 2: group O c of 0 edges", {"edges": "", "payload": b"", "group": "O c"}),
        ("invalid_dependency", "node 2: group Q 1 c of 0 edges", {"edges": "", "payload": b"", "group": "Q 1 c"}),
    ],
)  # fmt: skip
async def test_a_node_that_cannot_be_refuses_the_whole_call(
    engine: Engine, code: str, detail: str, given: dict[str, Any]
) -> None:
    known = engine.new_id()
    bad = force(row(engine.new_id(), "1s"), **given)
    args = chunk(engine.new_id(), [row(known), bad], node_total=2, edge_total=1)
    text = given.get("edges", "").rstrip("saf").rpartition(",")[2].rstrip("saf").lstrip("-")[:12]
    assert await refused(engine, code, args) == detail.format(text)


async def test_two_nodes_do_not_have_one_id(engine: Engine) -> None:
    id = engine.new_id()
    args = chunk(engine.new_id(), [row(id), row(id)])
    assert await refused(engine, "invalid_input", args) == "node 2 has the id of another one"


async def test_an_id_that_is_taken_is_a_conflict_before_anything_is_written(engine: Engine) -> None:
    taken, flow = await engine.submit(), engine.new_id()
    nodes = [row(engine.new_id()), row(taken), row(engine.new_id())]
    assert await refused(engine, "idempotency_conflict", chunk(flow, nodes)) == taken
    one, two = chunks(flow, nodes, 1)[:2]
    await engine.call(one)
    assert await refused(engine, "idempotency_conflict", two) == taken


@pytest.mark.parametrize(
    ("detail", "given"),
    [
        (f"{limits.FLOW_NODES_N} nodes", {"node_total": limits.FLOW_NODES_N + 1}),
        (f"{limits.FLOW_EDGES_N} edges", {"edge_total": limits.FLOW_EDGES_N + 1}),
    ],
)
async def test_a_graph_beyond_its_bounds_is_refused_with_its_first_chunk(
    engine: Engine, detail: str, given: dict[str, Any]
) -> None:
    assert await refused(engine, "flow_too_large", chunk(engine.new_id(), [row(engine.new_id())]), **given) == detail


async def test_a_chunk_brings_so_many_edges_and_a_flow_so_many_bytes(engine: Engine) -> None:
    flow, n = engine.new_id(), 46
    nodes = [row(engine.new_id(), ",".join(f"{up}s" for up in range(1, at))) for at in range(1, n + 1)]
    assert await refused(engine, "flow_too_large", chunk(flow, nodes)) == f"{limits.FLOW_CHUNK_EDGES_N} edges a call"
    one, two = chunks(flow, [row(engine.new_id(), payload=b"x" * 10), row(engine.new_id(), payload=b"x" * 10)], 1)
    await engine.call(one)
    await engine.command("HSET", f"ff:{P0}:flow:{uuid(flow)}", "z", limits.FLOW_BYTES - 9)
    assert await refused(engine, "flow_too_large", two) == f"{limits.FLOW_BYTES} bytes of payloads"
    await engine.command("HSET", f"ff:{P0}:flow:{uuid(flow)}", "z", limits.FLOW_BYTES - 10)
    assert isinstance(await engine.call(two), c.FlowSubmitted)
    await engine.command("HSET", f"ff:{P0}:flow:{uuid(flow)}", "z", 20)


async def test_a_lane_that_is_full_takes_no_graph_that_is_larger_than_its_room(engine: Engine) -> None:
    await engine.call(lane_told(max_count=4))   # two in each of two partitions
    nodes = [row(engine.new_id()), row(engine.new_id(), "1s"), row(engine.new_id(), "2s")]
    assert await refused(engine, "lane_full", chunk(engine.new_id(), nodes)) == str(limits.FULL_RETRY_MS)
    assert isinstance(await engine.call(chunk(engine.new_id(), nodes[:2])), c.FlowSubmitted)
    await engine.call(lane_told(max_count=0))


async def test_plans_are_refused_as_a_create_is(engine: Engine) -> None:
    args = chunk(engine.new_id(), [row(engine.new_id())])
    await engine.call(lane_told("post", state="disabled"))
    plans = [MAIL, msgspec.structs.replace(MAIL, lane_id="post")]
    assert await refused(engine, "lane_closed", args, plans=plans) == "disabled"
    await refused(engine, "invalid_policy_json", args, plans=plan(policy="no policy"))
    needs = b'{"routing_requirements":{"required_capabilities":["a b"]}}'.decode()
    assert await refused(engine, "invalid_capabilities", args, plans=plan(policy=needs)) == "token 1"


async def test_lanes_and_capability_sets_of_plans_are_bounded(engine: Engine) -> None:
    await engine.submit()
    table = [word for n in range(2, limits.LANES_N + 1) for word in (f"lane-{n}", str(n), f"#{n}", f"lane-{n}")]
    await engine.command("HSET", f"ff:{P0}:lanes", *table)
    args = chunk(engine.new_id(), [row(engine.new_id())])
    await refused(engine, "too_many_names", args, plans=[msgspec.structs.replace(MAIL, lane_id="one-more")])
    await engine.command("HDEL", f"ff:{P0}:lanes", *table[0::4], *table[2::4])


async def test_nodes_go_under_the_capabilities_their_task_needs(engine: Engine) -> None:
    needs = ExecutionPolicy(routing_requirements=RoutingRequirements(required_capabilities=frozenset({"gpu"})))
    plans = [msgspec.structs.replace(MAIL, policy=msgspec.json.encode(needs).decode()), MAIL]
    gpu, plain = engine.new_id(), engine.new_id()
    await engine.call(chunk(engine.new_id(), [row(gpu), row(plain, plan=2)], plans=plans))
    assert [job.execution_id for job in await engine.claim(limit=9)] == [plain]
    assert await engine.state(gpu) == "ready"


async def test_above_the_high_water_mark_no_chunk_is_taken(engine: Engine) -> None:
    flow = engine.new_id()
    one, two = chunks(flow, [row(engine.new_id()), row(engine.new_id())], 1)
    await engine.call(one)
    await engine.command("HSET", f"ff:{P0}", "gate_until", START_MS + 1_000, "v", "1 x")
    await refused(engine, "store_full", two)
    await engine.refused("store_full", chunk(engine.new_id(), [row(engine.new_id())]))
    assert await engine.call(one) == c.FlowStaged(2)
    await engine.advance(1_001)
    assert isinstance(await engine.call(two), c.FlowSubmitted)
