"""Every answer that repeats an earlier one writes: a WAIT for replicas behind a call that wrote nothing would report
the first call's write as safe although no replica has it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

import ffcore.contracts as c
from tests.lua.edges import applying, grown, staging
from tests.lua.engine import P0, TTL, Engine, cancel, completion, delay, failure, retries, unclaim
from tests.lua.graphs import chunk, chunks, row, spawning
from tests.lua.test_admission_queues import PAYS, refusal
from tests.lua.test_block import block
from tests.lua.test_claim import finishing
from tests.lua.test_grant import claim, issue, reclaim, reissue, resume
from tests.lua.test_schedule import DUE, firing, new_schedule, putting, scheduled, trigger

Prepare = Callable[[Engine], Awaitable[Any]]
"""Makes what is needed; answers the call to be made twice."""


async def create(engine: Engine) -> Any:
    return engine.creation()


async def create_many(engine: Engine) -> Any:
    rows = [c.NewExecution(engine.new_id(), b"d" * 16, b"hello")]
    return c.CreateManyArgs(partition=P0, items=rows, namespace="default", lane_id="mail", execution_kind="send")  # type: ignore[arg-type]


async def create_purged(engine: Engine) -> Any:
    """Its key is taken although its record is gone."""
    args = engine.creation(engine.new_id(key="k"))
    await engine.call(args)
    await engine.call(cancel(args.execution_id))
    await engine.call(c.PurgeArgs(partition=P0, lane_id="mail", outcome="cancelled", before_ms=engine.now))  # type: ignore[arg-type]
    return args


async def claim_batch(engine: Engine) -> Any:
    await engine.submit()
    return engine.claiming()


async def complete(engine: Engine) -> Any:
    return completion(await engine.running())


async def complete_many(engine: Engine) -> Any:
    return finishing([await engine.running()], engine.claiming(0))


async def fail(engine: Engine) -> Any:
    return failure(await engine.running(policy=retries(1)))


async def fail_for_good(engine: Engine) -> Any:
    return failure(await engine.running())


async def put_off(engine: Engine) -> Any:
    return delay(await engine.running(), engine.now + 1_000)


async def hand_back(engine: Engine) -> Any:
    return unclaim(await engine.running())


async def cancel_waiting(engine: Engine) -> Any:
    return cancel(await engine.submit())


async def cancel_running(engine: Engine) -> Any:
    return cancel((await engine.running()).execution_id)


async def block_ready(engine: Engine) -> Any:
    return block(await engine.submit())


async def grant(engine: Engine) -> Any:
    return issue(await engine.submit())


async def claim_granted(engine: Engine) -> Any:
    id = await engine.submit()
    await engine.call(issue(id))
    return claim(id)


async def claim_resumed(engine: Engine) -> Any:
    job = await engine.running()
    await engine.call(unclaim(job))
    await engine.call(issue(job.execution_id))
    return resume(job.execution_id)


async def _lost(engine: Engine) -> Any:
    job = await engine.running()
    await engine.pass_time(TTL + 1)
    return job.execution_id


async def reclaim_grant(engine: Engine) -> Any:
    return reissue(await _lost(engine))


async def reclaim_granted(engine: Engine) -> Any:
    id = await _lost(engine)
    await engine.call(reissue(id))
    return reclaim(id)


async def refuse(engine: Engine) -> Any:
    job = await engine.running(admission=PAYS)
    return c.RefuseManyArgs(partition=P0, items=[refusal(job)])


# ---- flows


async def create_flow(engine: Engine) -> Any:
    return c.CreateFlowArgs(flow_id=engine.new_id(), flow_kind="graph", namespace="default")  # type: ignore[arg-type]


async def add_member(engine: Engine) -> Any:
    flow, _ = await grown(engine, 1)
    return c.AddExecutionToFlowArgs(flow_id=flow, execution_id=await engine.submit())


async def apply_edge(engine: Engine) -> Any:
    flow, ids = await grown(engine, 2)
    await engine.call(await staging(engine, flow, *ids))
    return await applying(engine, flow, *ids)


async def set_policy(engine: Engine) -> Any:
    flow, ids = await grown(engine, 2)
    return c.SetEdgeGroupPolicyArgs(flow_id=flow, downstream_execution_id=ids[1], policy=c.EdgeAnyOf())


async def submit_flow(engine: Engine) -> Any:
    return chunk(engine.new_id(), [row(engine.new_id())])


async def submit_chunk(engine: Engine) -> Any:
    return chunks(engine.new_id(), [row(engine.new_id()) for _ in range(2)], 1)[0]


async def cancel_flow(engine: Engine) -> Any:
    flow, _ = await grown(engine, 1)
    return c.CancelFlowWireArgs(flow_id=flow, reason="", cancellation_policy=c.CancelFlowPolicy.CANCEL_ALL)


async def spawn(engine: Engine) -> Any:
    return spawning(await engine.running(), engine.new_id(), engine.new_id())


async def put_schedule(engine: Engine) -> Any:
    return putting(engine, new_schedule(engine))


async def fire_schedule(engine: Engine) -> Any:
    id = await scheduled(engine)
    return c.FireSchedulesArgs(partition=P0, items=[firing(id, DUE, DUE + 1)])


async def run_schedule(engine: Engine) -> Any:
    return trigger(engine, await scheduled(engine))


async def pause_schedule(engine: Engine) -> Any:
    return c.PauseScheduleArgs(schedule_id=await scheduled(engine))


async def resume_schedule(engine: Engine) -> Any:
    id = await scheduled(engine, paused=True)
    return c.ResumeScheduleArgs(schedule_id=id, due_ms=DUE, at_ms=DUE, expected_revision=1)


async def remove_schedule(engine: Engine) -> Any:
    return c.RemoveScheduleArgs(schedule_id=await scheduled(engine))


CALLS: tuple[Prepare, ...] = (
    create, create_many, create_purged, claim_batch, complete, complete_many, fail, fail_for_good, put_off, hand_back,
    refuse,
    cancel_waiting, cancel_running, block_ready, grant, claim_granted, claim_resumed, reclaim_grant, reclaim_granted,
    create_flow, add_member, apply_edge, set_policy, submit_flow, submit_chunk, cancel_flow, spawn,
    put_schedule, fire_schedule, run_schedule, pause_schedule, resume_schedule, remove_schedule,
)  # fmt: skip


@pytest.mark.parametrize("prepare", CALLS, ids=lambda prepare: prepare.__name__)
async def test_a_call_that_is_repeated_writes(engine: Engine, prepare: Prepare) -> None:
    args = await prepare(engine)

    async def replays() -> int:
        header = await engine.call(c.ReadHeaderArgs(partition=P0))
        return int(header.fields.get("replays", "0"))

    await engine.call(args)
    before = await replays()
    await engine.call(args)
    assert await replays() == before + 1
