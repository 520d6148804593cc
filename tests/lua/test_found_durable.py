"""Faults that reviews of waits, signals and secrets have found: each test failed before."""

from __future__ import annotations

from typing import Any

import pytest

import ffcore.contracts as c
from ffcore import limits, tokens
from ffcore.ids import uuid_of
from tests.lua.engine import OPERATOR, P0, Engine, cancel, timeouts, wire
from tests.lua.test_secret import ONE, THREE, TWO, FixedRing, rotate
from tests.lua.test_signal import delivering, opened
from tests.lua.test_waitpoint import close
from tests.lua.waits import gate, gates, observed, resume, send, serial_uuid, signal, single, suspending, waiting

BOTH = c.all_of_waitpoints(["a", "b"])


async def replayed(engine: Engine, id: Any) -> c.ClaimedJob:
    await engine.call(c.ReplayExecutionArgs(execution_id=id, mode="resume"))
    (job,) = await engine.claim()
    return job


async def end(engine: Engine, job: c.ClaimedJob, how: str) -> None:
    if how == "cancel":
        await engine.call(cancel(job.execution_id, OPERATOR))
    else:
        await engine.pass_time(1_000)
    assert (
        await engine.state(job.execution_id) == {"cancel": "cancelled", "timeout": "failed", "deadline": "expired"}[how]
    )


@pytest.mark.parametrize("how", ["timeout", "cancel", "deadline"])
@pytest.mark.parametrize("early", [True, False], ids=["before the wait", "while it waits"])
async def test_what_a_wait_had_counted_when_it_ended_counts_after_a_replay(
    engine: Engine, how: str, early: bool
) -> None:
    job = await engine.running(policy=timeouts(execution_deadline_ms=1_000) if how == "deadline" else None)
    at = await gates(engine, job, "a", "b")
    ada = signal(job.execution_id, at["a"], "yes", payload=b"ada", idempotency_key="ada")
    if early:
        assert isinstance(await engine.call(ada), c.Accepted)
    await engine.call(waiting(job, BOTH, at, timeout_ms=1_000 if how == "timeout" else None))
    if not early:
        assert isinstance(await engine.call(ada), c.Accepted)
    await end(engine, job, how)
    again = await replayed(engine, job.execution_id)
    assert isinstance(await engine.call(ada), c.SignalDuplicate), "its sender is told that it counts"
    await engine.call(waiting(again, BOTH, at))
    assert await send(engine, job.execution_id, at["b"]) == "resume_condition_satisfied"
    seen = (await observed(engine, job.execution_id)).signals
    assert [s.payload for s in seen] == [b"ada", b""]


async def test_a_waitpoint_whose_time_is_over_takes_no_signal(engine: Engine) -> None:
    """Before the timer has closed it, too: what it took would be dropped with it."""
    job = await engine.running()
    at = await gate(engine, job, expires_in_ms=1_000)
    sent = signal(job.execution_id, at, idempotency_key="once")
    assert isinstance(await engine.call(sent), c.Accepted)
    await engine.advance(1_000)
    assert await engine.refused("waitpoint_closed", signal(job.execution_id, at)) == "expired"
    assert isinstance(await engine.call(sent), c.SignalDuplicate)


async def test_what_only_time_ends_needs_a_time_also_within_a_tree(engine: Engine) -> None:
    job = await engine.running()
    at = await gates(engine, job, "a")
    never = c.Composite(c.all_of([single("a"), c.TimeoutOnly()]))
    detail = await engine.refused("invalid_input", waiting(job, never, at))
    assert detail == "timeout_only_without_deadline"
    assert isinstance(await engine.call(waiting(job, never, at, timeout_ms=1_000)), c.WaitSuspended)


async def test_no_policy_lets_in_more_signals_than_one_execution_takes(engine: Engine) -> None:
    job = await engine.running(policy={"max_signals_per_execution": limits.SIGNALS_N * 2})
    at = await gate(engine, job)
    await engine.command("HSET", f"ff:{P0}:m:{uuid_of(job.execution_id)}", "n", f"{limits.SIGNALS_N} 0 0")
    await engine.refused(
        "signal_limit_exceeded", signal(job.execution_id, at, max_signals_per_execution=limits.SIGNALS_N * 2)
    )


@pytest.mark.parametrize("forgotten", [False, True])
async def test_the_name_of_a_secret_is_not_given_to_another_while_its_waitpoints_are_open(
    engine: Engine, forgotten: bool
) -> None:
    """Or tokens of a secret that has leaked, and was put out of use at once, open waitpoints again."""
    job, leaked = await opened(engine)
    engine.backend.use_secrets(FixedRing(k1=ONE, k2=TWO, k3=THREE))
    await engine.call(rotate("k2", TWO, grace_ms=0))
    await engine.advance(1)
    if forgotten:
        await engine.call(rotate("k3", THREE, grace_ms=0))
    await engine.refused("invalid_token", delivering(job, leaked))
    again = c.RotateWaitpointHmacSecretWireArgs(
        new_kid="k1", fingerprint=tokens.fingerprint(b"x" * 32), grace_ms=0, at=P0
    )
    await engine.refused("rotation_conflict", again)
    await engine.refused("invalid_token", delivering(job, leaked))
    await engine.call(close(job, leaked.waitpoint_id))
    assert isinstance(await engine.call(again), c.Rotated)


@pytest.mark.parametrize("end", ["met", "resumed", "cancelled"])
async def test_signals_of_many_waitpoints_are_read_in_one_go(engine: Engine, end: str) -> None:
    """Those of one lie among those of the others: to look for each one's apart reads all of them as often."""
    job = await engine.running()
    at = await gates(engine, job, *(f"g{i}" for i in range(8)))
    for n in range(48):
        await send(engine, job.execution_id, at[f"g{n * 5 % 8}"], payload=b"%d" % n, source_identity=f"{n % 12}")
    enough = c.Composite(c.count(12 if end == "met" else 13, c.CountKind.DISTINCT_SOURCES, None, list(at)))
    answer = await engine.call(waiting(job, enough, at))
    if end == "met":
        assert isinstance(answer, c.WaitSatisfied)
    elif end == "resumed":
        await engine.call(resume(job.execution_id))
    else:
        await engine.call(cancel(job.execution_id, OPERATOR))
        again = await replayed(engine, job.execution_id)
        assert isinstance(await engine.call(waiting(again, enough, at)), c.WaitSuspended)
    seen = (await observed(engine, job.execution_id)).signals
    assert [s.payload for s in seen] == [b"%d" % n for n in range(12)]
    kept = await engine.command("HGET", f"ff:{P0}:m:{uuid_of(job.execution_id)}", "n")
    assert kept.split()[1] == (b"36" if end == "cancelled" else b"0"), "what closed gates keep goes with them"


async def test_any_number_of_waitpoints_may_expire_in_one_tick(engine: Engine) -> None:
    """Each is told of in the feed, and what one call can hand on has an end."""
    jobs_n = 70
    for _ in range(jobs_n):
        job = await engine.running()
        await gate(engine, job, expires_in_ms=1_000)
        key = f"ff:{P0}:g:{uuid_of(job.execution_id)}"
        until = engine.now + 1_000
        rows = {serial_uuid(): f"pending {engine.now} . {until} . . . . k" for _ in range(limits.WAITPOINTS_N - 1)}
        flat = [text for row in rows.items() for text in row]
        await engine.command("HSET", key, "m", f"{limits.WAITPOINTS_N} {until}", *flat)
    await engine.advance(1_000)
    await engine.tick()
    closed = str(await engine.command("XRANGE", f"ff:{P0}:ev", "-", "+")).count("waitpoint_closed")
    assert closed == jobs_n * limits.WAITPOINTS_N


@pytest.mark.parametrize("same", ["key", "id"])
async def test_a_wait_that_ended_with_its_execution_is_no_answer_after_a_replay(engine: Engine, same: str) -> None:
    """Or the run that waits anew is told that it is suspended, and lets go of its lease until it is poisoned."""
    job = await engine.running()
    at = await gates(engine, job, "a")
    named: Any = {"idempotency_key": "at the gate"} if same == "key" else {"suspension_id": "s1"}
    kept = suspending(job, single("b"), {"b": serial_uuid()}, idempotency_key="another")
    await engine.call(kept)
    await send(engine, job.execution_id, kept.waitpoints[0].waitpoint_id)
    (job,) = await engine.claim()
    first = suspending(job, single("a"), pending=at, timeout_at=engine.now + 1_000, **named)
    assert isinstance(await engine.call(first), c.WireSuspended)
    await end(engine, job, "timeout")
    assert (await engine.call(first)).replayed
    again = await replayed(engine, job.execution_id)
    assert (await engine.call(kept)).replayed, "one that was resumed has its answer still"
    answer = await engine.call(suspending(again, single("a"), pending=at, **named))
    assert isinstance(answer, c.WireSuspended) and not answer.replayed
    assert await send(engine, job.execution_id, at["a"]) == "resume_condition_satisfied"


async def test_a_step_sent_again_does_not_emit_its_frames_twice(engine: Engine) -> None:
    job = await engine.running()
    for status, value in (("intent", None), ("error", b"1 it broke"), ("error", b"2 it broke"), ("ok", b"1")):
        record = c.RecordStepArgs(
            execution_id=job.execution_id, fence=wire(job), step="ab.01.0", kind="step", name="pay", status=status,
            value=value, version=1, frames=[c.StepFrame("text", "append", status.encode())],
        )  # fmt: skip
        await engine.call(record)
        await engine.call(record)
    page = await engine.call(c.ReadStreamArgs(execution_id=job.execution_id))
    assert [frame.payload for frame in page.frames] == [b"intent", b"error", b"error", b"ok"]
