"""What a member without a payload of its own works on: what its upstreams returned, in order."""

from __future__ import annotations

from typing import Any

import pytest

import ffcore.contracts as c
from ffcore import limits
from tests.lua.engine import Engine, completion, missing
from tests.lua.graphs import chunk, graph, row, spawning
from tests.lua.members import claimed, end


async def test_what_has_a_payload_of_its_own_has_no_inputs(engine: Engine) -> None:
    flow, ids = engine.new_id(), [engine.new_id(), engine.new_id()]
    await engine.call(chunk(flow, [row(ids[0]), row(ids[1], "1s", payload=b"mine")]))
    for id, payload in zip(ids, (b"root", b"mine"), strict=True):
        (job,) = await claimed(engine, id)
        assert (job.payload, job.inputs, job.flow_id) == (payload, None, flow)
        await engine.complete(job)
    alone = await engine.running()
    assert (alone.flow, alone.flow_id, alone.inputs) == ("-", None, None)


@pytest.mark.parametrize("result", [b"x", b"y" * 100, None])
async def test_one_upstream_is_the_input_itself(engine: Engine, result: bytes | None) -> None:
    _flow, ids = await graph(engine, "", "1s")
    (job,) = await claimed(engine, ids[0])
    await engine.call(completion(job, result_payload=result, result_encoding="json"))
    (job,) = await claimed(engine, ids[1])
    assert job.inputs == c.Inputs("1", True, [c.Input("json", result)])
    assert job.payload == b""


async def test_several_come_in_the_order_of_the_edges(engine: Engine) -> None:
    flow, ids = engine.new_id(), [engine.new_id() for _ in range(4)]
    await engine.call(chunk(flow, [*[row(id) for id in ids[:3]], row(ids[3], "3s,1s,2s")]))
    for n, job in enumerate(await claimed(engine, *ids[:3]), 1):
        await engine.complete(job, b"%d" % n)
    (job,) = await claimed(engine, ids[3])
    assert job.inputs == c.Inputs("*", True, [c.Input("", b"%d" % n) for n in (3, 1, 2)])


@pytest.mark.parametrize(
    ("group", "edges", "ends", "items"),
    [
        ("A", "1a,2s,3a", "fcx", [None, b"2", None]),
        ("O l", "1s,2s,3s", "fcc", [b"2"]),
        ("Q 2 l", "1s,2a,3s", "ccc", [b"1", b"2"]),
        ("Q 2 l", "1s,2a,3s", "cfc", [b"1"]),
        ("A", "1a", "fcc", [None]),
        ("A", "1f", "fcc", [None]),
        ("O l", "1a", "fcc", []),
        ("O l", "1s", "ccc", [b"1"]),
    ],
)
async def test_only_what_satisfied_the_group_in_time_is_an_input(
    engine: Engine, group: str, edges: str, ends: str, items: list[bytes | None]
) -> None:
    flow, ids = engine.new_id(), [engine.new_id() for _ in range(4)]
    await engine.call(chunk(flow, [*[row(id) for id in ids[:3]], row(ids[3], edges, group=group)]))
    for n, (job, how) in enumerate(zip(await claimed(engine, *ids[:3]), ends, strict=True), 1):
        await end(engine, job, how, b"%d" % n)
    (job,) = await claimed(engine, ids[3])
    assert job.inputs is not None and job.inputs.complete
    assert [item and item.result for item in job.inputs.items] == items


@pytest.mark.parametrize(
    ("n", "size", "complete"),
    [
        (limits.INPUTS_N, 10, True),
        (limits.INPUTS_N + 1, 10, False),
        (3, limits.INPUTS_BYTES // 3, True),
        (3, limits.INPUTS_BYTES // 2, False),
        (1, limits.INPUTS_BYTES, True),
        (1, limits.INPUTS_BYTES + 1, False),
    ],
)
async def test_too_many_are_read_apart(engine: Engine, n: int, size: int, complete: bool) -> None:
    flow, ids = engine.new_id(), [engine.new_id() for _ in range(n + 1)]
    await engine.call(
        chunk(flow, [*[row(id) for id in ids[:n]], row(ids[n], ",".join(f"{k}s" for k in range(1, n + 1)))])
    )
    for k, job in enumerate(await claimed(engine, *ids[:n])):
        await engine.complete(job, b"%06d" % k + b"." * (size - 6))
    (job,) = await claimed(engine, ids[n])
    assert job.inputs is not None and job.inputs.complete == complete
    assert not complete or len(job.inputs.items) == n
    seen: list[c.Upstream] = []
    after = -1
    while after:
        page = await engine.call(c.ReadUpstreamsArgs(execution_id=ids[n], after=max(0, after), limit=7))
        seen += page.upstreams
        after = page.next
    assert [up.execution_id for up in seen] == ids[:n]
    assert [int(up.result[:6]) for up in seen] == list(range(n))
    assert {(up.kind, up.state, up.edge_state, up.has_result, up.task) for up in seen} == {
        ("s", "completed", "S", True, "send")
    }


async def test_a_lost_answer_is_answered_with_the_same_inputs(engine: Engine) -> None:
    _flow, ids = await graph(engine, "", "1s")
    (job,) = await claimed(engine, ids[0])
    await engine.complete(job, b"5")
    args = engine.claiming(1)
    first, second = await engine.call(args), await engine.call(args)
    assert first.jobs == second.jobs and first.jobs[0].inputs is not None


async def test_inputs_count_towards_the_size_of_an_answer(engine: Engine) -> None:
    big, n = 60 << 10, 40
    flow, ids = engine.new_id(), [engine.new_id() for _ in range(n + 1)]
    await engine.call(chunk(flow, [row(ids[0]), *[row(id, "1s") for id in ids[1:]]]))
    (job,) = await claimed(engine, ids[0])
    await engine.complete(job, b"." * big)
    answer = await engine.call(engine.claiming(n))
    assert len(answer.jobs) == limits.CLAIM_BYTES // big + 1 and answer.again


async def test_upstreams_are_read_with_what_they_are_called(engine: Engine) -> None:
    flow, ids = engine.new_id(), [engine.new_id() for _ in range(3)]
    await engine.call(chunk(flow, [row(ids[0], label="scrape"), row(ids[1]), row(ids[2], "1a,2f")]))
    jobs = await claimed(engine, *ids[:2])
    await end(engine, jobs[0], "f")
    page = await engine.call(c.ReadUpstreamsArgs(execution_id=ids[2]))
    found: list[Any] = [(up.order, up.label, up.kind, up.state, up.edge_state, up.has_result) for up in page.upstreams]
    assert found == [(1, "scrape", "a", "failed", "S", False), (2, "", "f", "active", "u", False)]
    assert page.next == 0
    child = engine.new_id()
    await engine.call(spawning(jobs[1], child, flow))
    assert (await engine.call(c.ReadUpstreamsArgs(execution_id=ids[1]))).upstreams == []  # a child is none
    await engine.refused("execution_not_found", c.ReadUpstreamsArgs(execution_id=missing()))
    await engine.refused("invalid_input", c.ReadUpstreamsArgs(execution_id=ids[2]), limit=0)
