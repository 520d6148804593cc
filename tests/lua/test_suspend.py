"""ff_suspend: with waitpoints of its own or pending ones, under a policy, sent once or again."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

import ffcore.contracts as c
from ffcore import limits
from ffcore.conditions import compile_condition
from ffcore.ids import LeaseId, WaitpointId
from ffcore.states import PublicState
from tests.lua.engine import P0, Engine, cancel, completion, fence, missing, renewal, revoke
from tests.lua.waits import (
    gate,
    gates,
    observed,
    resume,
    resumed,
    send,
    serial_uuid,
    single,
    suspending,
    waiting,
)

BOTH = c.all_of_waitpoints(["a", "b"])
MINUTE = 60_000


async def holder(engine: Engine, **options: Any) -> c.ClaimedJob:
    return await engine.running(**options)


async def test_suspend_opens_its_waitpoints_itself(engine: Engine) -> None:
    job = await holder(engine)
    at = {"a": serial_uuid(), "b": serial_uuid()}
    wire = suspending(job, BOTH, at, timeout_at=engine.now + MINUTE, continuation_metadata_pointer="s3://x")
    answer = await engine.call(wire)
    assert isinstance(answer, c.WireSuspended) and not answer.replayed
    told = [(w.waitpoint_id, w.waitpoint_key, w.kid) for w in answer.waitpoints]
    assert told == [(at["a"], "a", ""), (at["b"], "b", "")]
    assert answer.fence == fence(job).wire
    await send(engine, job.execution_id, at["a"])
    assert await send(engine, job.execution_id, at["a"]) == "appended_to_waitpoint_duplicate"
    assert await send(engine, job.execution_id, at["b"]) == "resume_condition_satisfied"
    seen = await observed(engine, job.execution_id)
    assert (seen.why, [s.waitpoint_id for s in seen.signals]) == ("signal", [at["a"], at["b"]])


async def test_suspend_uses_a_pending_waitpoint_and_what_it_kept(engine: Engine) -> None:
    job = await holder(engine)
    pending = await gate(engine, job, "a")
    await send(engine, job.execution_id, pending)
    wire = suspending(job, single("a"), pending={"a": pending})
    for replayed in (False, True):
        answer = await engine.call(wire)
        assert isinstance(answer, c.WireSatisfied) and answer.replayed is replayed
        assert answer.waitpoints[0].waitpoint_key == "a"
    assert await engine.state(job.execution_id) == "active"
    other = await gate(engine, job, "c")
    await engine.refused("invalid_waitpoint_for_execution", suspending(job, single("b"), pending={"b": other}))
    assert isinstance(await engine.call(suspending(job, c.OperatorOnly(), pending={"": other})), c.WireSuspended)


async def test_suspend_sent_again_answers_the_first_outcome(engine: Engine) -> None:
    job = await holder(engine)
    first = suspending(job, single("a"), {"a": serial_uuid()}, idempotency_key="once")
    other = suspending(job, single("a"), {"a": serial_uuid()}, idempotency_key="once")
    was = await engine.call(first)
    assert isinstance(was, c.WireSuspended)
    for again in (first, other):
        answer = await engine.call(again)
        assert answer == msgspec.structs.replace(was, replayed=True)
    await engine.refused("already_suspended", suspending(job, single("a"), {"a": serial_uuid()}))
    await send(engine, job.execution_id, was.waitpoints[0].waitpoint_id)
    after = await resumed(engine, job.execution_id)
    # Also after it has gone on, and after it has waited for something else.
    again = msgspec.structs.replace(other, fence=fence(after))
    assert await engine.call(again) == msgspec.structs.replace(was, replayed=True)
    second = suspending(after, single("a"), {"a": serial_uuid()}, idempotency_key="twice")
    assert isinstance(await engine.call(second), c.WireSuspended)
    assert (await engine.call(other)).suspension_id == was.suspension_id
    assert (await engine.call(second)).replayed


async def test_only_so_many_keys_are_remembered(engine: Engine) -> None:
    job = await holder(engine)
    ids: list[Any] = []
    for n in range(limits.SUSPEND_KEYS_N + 1):
        at = await gate(engine, job, "a")
        await send(engine, job.execution_id, at)
        wire = suspending(job, single("a"), pending={"a": at}, idempotency_key=f"k{n}")
        assert isinstance(await engine.call(wire), c.WireSatisfied)
        ids.append(wire)
    assert (await engine.call(ids[1])).replayed
    await engine.refused("waitpoint_not_pending", ids[0])


async def test_an_operator_suspends_what_runs_and_its_worker_is_told(engine: Engine) -> None:
    job = await holder(engine)
    ear = await engine.listen(engine.backend.worker_channel(P0, "w1"))
    wire = suspending(job, c.OperatorOnly(), requested_by="operator", reason_code="manual_pause", fence=None)
    assert isinstance(await engine.call(wire), c.WireSuspended)
    assert [text for _, text in await ear.heard()] == [f"revoked {job.execution_id}"]
    await engine.refused("stale_lease", completion(job))
    assert (await engine.call(wire)).replayed
    await engine.refused("already_suspended", suspending(job, c.OperatorOnly(), requested_by="operator", fence=None))
    assert await engine.call(resume(job.execution_id)) == c.Resumed(PublicState.WAITING)
    await engine.refused("no_active_lease", suspending(job, c.OperatorOnly(), requested_by="operator", fence=None))
    await engine.refused("fence_required", suspending(job, c.OperatorOnly(), fence=None))


@pytest.mark.parametrize(("fields", "detail"), [
    ({"suspension_id": ""}, "suspension_id"),
    ({"suspension_id": "a b"}, "suspension_id"),
    ({"reason_code": "mood"}, "reason_code"),
    ({"requested_by": "nobody"}, "requested_by"),
    ({"timeout_behavior": "auto_resume"}, "timeout_behavior"),
    ({"timeout_at": 1}, "timeout_at"),
    ({"timeout_at": 9_000_000_000_000_000}, "timeout_at"),
    ({"resume_delay_ms": -1}, "resume_delay_ms"),
    ({"condition": b"[]"}, "condition"),
    ({"idempotency_key": "k" * 600}, "idempotency_key"),
    ({"continuation_metadata_pointer": "p" * 5_000}, "continuation_metadata_pointer"),
    ({"waitpoints": []}, "waitpoints"),
    ({"waitpoints": [c.SuspendWaitpoint(WaitpointId("x"), "a")]}, "waitpoint_id"),
    ({"condition": compile_condition(c.TimeoutOnly(), [])}, "timeout_only_without_deadline"),
])  # fmt: skip
async def test_suspend_refuses_what_it_cannot_mean(engine: Engine, fields: dict[str, Any], detail: str) -> None:
    job = await holder(engine)
    wire = suspending(job, single("a"), {"a": serial_uuid()})
    assert detail in await engine.refused("invalid_input", wire, **fields)
    assert await engine.state(job.execution_id) == "active"


async def test_suspend_refuses_waitpoints_it_cannot_use(engine: Engine) -> None:
    job = await holder(engine)
    there = await gate(engine, job, "a", expires_in_ms=MINUTE)
    await engine.refused("waitpoint_already_exists", suspending(job, single("a"), {"a": there}))
    await engine.refused("invalid_waitpoint_key", suspending(job, single("a"), {"a": serial_uuid()}), waitpoints=[
        c.SuspendWaitpoint(serial_uuid(), ""),
    ])  # fmt: skip
    keyed = c.SuspendWaitpoint(serial_uuid(), "a", "k1", "0" * 64)
    await engine.refused("invalid_kid", suspending(job, single("a"), {"a": serial_uuid()}), waitpoints=[keyed])
    twice = c.SuspendWaitpoint(there, "a", fresh=False)
    await engine.refused("invalid_input", suspending(job, single("a"), {"a": serial_uuid()}), waitpoints=[twice, twice])
    await engine.refused("waitpoint_not_found", suspending(job, single("a"), pending={"a": serial_uuid()}))
    later = suspending(job, single("a"), pending={"a": there}, attempt_index=4)
    await engine.refused("invalid_lease_for_suspend", later)
    await engine.pass_time(20_000)
    await engine.call(renewal(job, 600_000))
    await engine.advance(MINUTE)
    await engine.refused("pending_waitpoint_expired", suspending(job, single("a"), pending={"a": there}))
    await engine.tick()
    await engine.refused("waitpoint_not_pending", suspending(job, single("a"), pending={"a": there}))
    many = {f"k{n}": serial_uuid() for n in range(limits.WAITPOINTS_N)}
    await gate(engine, job, "b")
    await engine.refused("waitpoint_limit_exceeded", suspending(job, c.all_of_waitpoints(many), many))


async def test_suspend_refuses_whoever_does_not_hold_the_lease(engine: Engine) -> None:
    job = await holder(engine)
    wire, wait = suspending(job, single("a"), {"a": serial_uuid()}), waiting(job, timeout_ms=1)
    other = msgspec.structs.replace(fence(job), lease_id=LeaseId("w9.s0.0.0"))
    for args in (wire, wait):
        await engine.refused("stale_lease", args, fence=other)
        await engine.refused("execution_not_found", args, execution_id=missing())
    await engine.advance(31_000)
    for args in (wire, wait):
        await engine.refused("lease_expired", args)
    await engine.call(c.RenewManyArgs(partition=P0, lease_ttl_ms=30_000, items=[]))
    await engine.pass_time(12_000)
    (job,) = await engine.claim()
    wire, wait = suspending(job, single("a"), {"a": serial_uuid()}), waiting(job, timeout_ms=1)
    await engine.call(revoke(job.execution_id))
    for args in (wire, wait):
        await engine.refused("lease_revoked", args)
    await engine.call(cancel(job.execution_id))
    for args in (wire, wait):
        await engine.refused("terminal", args)


# ---- policy ----------------------------------------------------------------------------------------------


async def test_signals_that_are_not_consumed_count_again(engine: Engine) -> None:
    job = await holder(engine)
    at = await gates(engine, job, "a")
    keep: dict[str, Any] = {
        "consume_matched_signals": False, "close_waitpoint_on_resume": False, "retain_signal_buffer_until_closed": True,
    }  # fmt: skip
    await engine.call(suspending(job, single("a"), pending=at, **keep))
    await send(engine, job.execution_id, at["a"], payload=b"1")
    after = await resumed(engine, job.execution_id)
    answer = await engine.call(suspending(after, single("a"), pending=at, **keep))
    assert isinstance(answer, c.WireSatisfied)
    assert [s.payload for s in (await observed(engine, job.execution_id)).signals] == [b"1"]
    await engine.call(waiting(after, single("a"), at))
    assert isinstance(await engine.call(waiting(after, c.OperatorOnly(), step="ab.09.0")), c.WaitSuspended)


async def test_what_did_not_count_goes_unless_it_is_to_be_kept(engine: Engine) -> None:
    for retain, state in ((False, "suspended"), (True, "active")):
        job = await holder(engine)
        at = await gates(engine, job, "a")
        await engine.call(suspending(job, single("a", "x"), pending=at, close_waitpoint_on_resume=False,
                                     retain_signal_buffer_until_closed=retain))  # fmt: skip
        await send(engine, job.execution_id, at["a"], "y")
        await send(engine, job.execution_id, at["a"], "x")
        after = await resumed(engine, job.execution_id)
        await engine.call(waiting(after, single("a", "y"), at))
        assert await engine.state(job.execution_id) == state
