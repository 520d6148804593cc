"""ff_create_pending_waitpoint, ff_close_waitpoint, ff_list_pending_waitpoints, and the end of a waitpoint by time."""

from __future__ import annotations

from typing import Any

import pytest

import ffcore.contracts as c
from ffcore import limits, tokens
from tests.lua.engine import OPERATOR, Engine, cancel, fence, force, missing, renewal, revoke
from tests.lua.waits import serial_uuid

KEY = "ab.01.0"


def opening(job: c.ClaimedJob, key: str = "approval", **options: Any) -> c.CreatePendingWaitpointArgs:
    given: dict[str, Any] = {"waitpoint_id": serial_uuid(), "expires_in_ms": 60_000} | options
    return c.CreatePendingWaitpointArgs(
        execution_id=job.execution_id, lease_id=job.lease_id, lease_epoch=job.lease_epoch, attempt_id=job.attempt_id,
        attempt_index=job.attempt_index, waitpoint_key=key, **given,
    )  # fmt: skip


def on_wire(job: c.ClaimedJob, **options: Any) -> c.CreatePendingWaitpointWireArgs:
    given: dict[str, Any] = {"waitpoint_id": serial_uuid(), "waitpoint_key": "approval"} | options
    return c.CreatePendingWaitpointWireArgs(execution_id=job.execution_id, fence=fence(job), **given)


def close(job: c.ClaimedJob, waitpoint_id: Any, reason: str = "done", **options: Any) -> c.CloseWaitpointArgs:
    return c.CloseWaitpointArgs(at=options.get("at", job.execution_id), waitpoint_id=waitpoint_id, reason=reason)


async def listed(engine: Engine, id: Any, **options: Any) -> list[c.PendingWaitpointInfo]:
    return (await engine.call(c.ListPendingWaitpointsArgs(execution_id=id, **options))).entries


# ---- open --------------------------------------------------------------------------------------------


async def test_an_opened_waitpoint_has_a_token_the_store_does_not_know(engine: Engine) -> None:
    job = await engine.running()
    made = await engine.call(opening(job))
    assert (made.waitpoint_key, made.kid, made.replayed) == ("approval", "k1", False)
    assert made.waitpoint_token.startswith("k1:") and len(made.waitpoint_token) == 3 + 64
    row = await engine.command("HGET", f"ff:{{fp:0}}:g:{job.execution_id[7:]}", made.waitpoint_id)
    assert tokens.digest(made.waitpoint_token).encode() in row and made.waitpoint_token[3:].encode() not in row
    (info,) = await listed(engine, job.execution_id)
    assert info == c.PendingWaitpointInfo(
        made.waitpoint_id, "approval", "pending", [], engine.now, None, engine.now + 60_000, job.execution_id, "k1",
        tokens.fingerprint_of(made.waitpoint_token),
    )  # fmt: skip


async def test_the_same_call_again_is_the_same_waitpoint(engine: Engine) -> None:
    job = await engine.running()
    call = opening(job)
    first, again = await engine.call(call), await engine.call(call)
    assert again == c.WaitpointCreated(
        first.waitpoint_id, first.waitpoint_key, first.waitpoint_token, "k1", True
    ) and len(await listed(engine, job.execution_id)) == 1  # fmt: skip
    assert await engine.refused("waitpoint_already_exists", call, waitpoint_key="other") == call.waitpoint_id


async def test_a_step_keeps_its_waitpoint_over_attempts(engine: Engine) -> None:
    """A handler that runs again has the gate whose token has left the house, not another one."""
    job = await engine.running()
    first = await engine.call(opening(job, step=KEY, step_name="manager", version=3))
    page = await engine.call(c.ReadJournalArgs(execution_id=job.execution_id))
    key, kind, status, *_ = page.entries[0].split(b" ")
    assert (page.began, key, kind, status) == ("0 3", KEY.encode(), b"gate", b"ok")
    record = tokens.GateRecord.parse(page.entries[0].partition(b":manager")[2])
    assert record == (first.waitpoint_id, "approval", "k1")
    again = await engine.call(opening(job, "whatever", step=KEY, step_name="manager"))
    assert again == c.WaitpointCreated(first.waitpoint_id, "approval", first.waitpoint_token, "k1", True)
    other = await engine.call(opening(job, "second", step="ab.02.0", step_name="manager"))
    assert other.waitpoint_token != first.waitpoint_token and len(await listed(engine, job.execution_id)) == 2


async def test_a_step_that_is_no_gate_is_not_opened_over(engine: Engine) -> None:
    job = await engine.running()
    await engine.call(c.RecordStepArgs(
        execution_id=job.execution_id, fence=fence(job).wire, step=KEY, name="x", value=b"1"
    ))  # fmt: skip
    said = await engine.refused("invalid_input", opening(job, step=KEY, step_name="manager"))
    assert said == "the step of this key is a step, not a gate"
    full = f"ff:{{fp:0}}:j:{job.execution_id[7:]}"
    kept = await engine.command("HGET", full, "n")
    await engine.command("HSET", full, "n", f"{limits.STEPS_N} {kept.split()[1].decode()}")
    await engine.refused("journal_full", opening(job, step="ab.02.0", step_name="manager"))
    assert await listed(engine, job.execution_id) == []
    await engine.command("HSET", full, "n", kept)


async def test_only_the_holder_opens_one(engine: Engine) -> None:
    job = await engine.running()
    call = opening(job)
    await engine.refused("stale_lease", call, lease_epoch=job.lease_epoch + 1)
    await engine.refused("execution_not_found", call, execution_id=missing())
    ended = await engine.running()
    await engine.complete(ended)
    await engine.refused("terminal", opening(ended))
    revoked = await engine.running()
    await engine.call(revoke(revoked.execution_id))
    await engine.refused("lease_revoked", opening(revoked))
    await engine.advance(30_001)
    await engine.refused("lease_expired", call)


async def test_bad_input_opens_nothing(engine: Engine) -> None:
    job = await engine.running()
    for field, value in {
        "waitpoint_id": "m", "expires_in_ms": 0, "token_digest": "0" * 64, "version": -1,
    }.items():  # fmt: skip
        await engine.refused("invalid_input", on_wire(job), **{field: value})
    await engine.refused("invalid_input", on_wire(job), kid="k1", token_digest="0" * 63)
    await engine.refused("invalid_input", on_wire(job), step="no key", step_name="x")
    for key in ("", "x" * 513, "a\nb"):
        await engine.refused("invalid_waitpoint_key", on_wire(job), waitpoint_key=key)
    assert await listed(engine, job.execution_id) == []


async def test_a_waitpoint_may_be_opened_for_operators_alone(engine: Engine) -> None:
    job = await engine.running()
    await engine.call(on_wire(job))
    (info,) = await listed(engine, job.execution_id)
    assert (info.token_kid, info.token_fingerprint, info.expires_at) == ("", "", None)


async def test_so_many_are_open_at_a_time(engine: Engine) -> None:
    job = await engine.running()
    for _ in range(limits.WAITPOINTS_N):
        last = await engine.call(on_wire(job))
    await engine.refused("waitpoint_limit_exceeded", on_wire(job))
    await engine.call(close(job, last.waitpoint_id))
    await engine.call(on_wire(job))


async def test_of_many_closed_ones_the_older_half_is_forgotten(engine: Engine) -> None:
    job = await engine.running()
    made = []
    for n in range(limits.WAITPOINTS_KEPT_N + 1):
        if n % 50 == 0:
            await engine.advance(1)
            await engine.call(renewal(job))
        made.append((await engine.call(on_wire(job))).waitpoint_id)
        await engine.call(close(job, made[-1]))
    await engine.refused("waitpoint_not_found", close(job, made[0]))
    assert await engine.call(close(job, made[-1])) == c.Closed()
    assert await engine.command("HLEN", f"ff:{{fp:0}}:g:{job.execution_id[7:]}") < limits.WAITPOINTS_KEPT_N


# ---- kids --------------------------------------------------------------------------------------------


async def test_only_the_current_kid_opens_one(engine: Engine) -> None:
    job = await engine.running()
    await engine.refused("invalid_kid", on_wire(job), kid="k1", token_digest="0" * 64)
    await engine.call(opening(job))
    said = await engine.refused("invalid_kid", on_wire(job), kid="k2", token_digest="0" * 64)
    assert said == "k1", "whoever mints goes by this"


# ---- close -------------------------------------------------------------------------------------------


async def test_closing_is_for_good_and_may_be_repeated(engine: Engine) -> None:
    job = await engine.running()
    made = await engine.call(opening(job))
    for reason in ("no longer needed", "again"):
        assert await engine.call(close(job, made.waitpoint_id, reason)) == c.Closed()
    assert await listed(engine, job.execution_id) == []
    again = await engine.call(opening(job, waitpoint_id=made.waitpoint_id))
    assert again.replayed and await listed(engine, job.execution_id) == [], "a closed one is not opened again"


async def test_closing_what_is_not_there_is_refused(engine: Engine) -> None:
    job = await engine.running()
    made = await engine.call(opening(job))
    await engine.refused("waitpoint_not_found", close(job, serial_uuid()))
    await engine.refused("waitpoint_not_found", force(close(job, made.waitpoint_id), waitpoint_id="m"))
    await engine.refused("execution_not_found", close(job, made.waitpoint_id, at=missing()))
    for reason in ("", "ended", "x" * 129):
        await engine.refused("invalid_input", force(close(job, made.waitpoint_id), reason=reason))
    other = await engine.running()
    await engine.refused("waitpoint_not_found", close(other, made.waitpoint_id))


async def test_the_end_of_an_execution_closes_what_is_open(engine: Engine) -> None:
    for end in (engine.complete, lambda job: engine.call(cancel(job.execution_id, OPERATOR))):
        job = await engine.running()
        made = [await engine.call(opening(job)), await engine.call(on_wire(job))]
        await end(job)
        assert await listed(engine, job.execution_id) == []
        for one in made:
            assert await engine.call(close(job, one.waitpoint_id)) == c.Closed()
    assert not [name for name in await engine.timers() if name.startswith("waitpoint:")]


# ---- by time -----------------------------------------------------------------------------------------


async def test_a_pending_waitpoint_expires(engine: Engine) -> None:
    job = await engine.running()
    await engine.call(opening(job, "late", expires_in_ms=20_000))
    await engine.call(opening(job, "early", expires_in_ms=5_000))
    await engine.call(on_wire(job, waitpoint_key="never"))
    assert (await engine.timers())[f"waitpoint:{job.execution_id[7:]}"] == engine.now + 5_000
    await engine.pass_time(5_000)
    assert {one.waitpoint_key for one in await listed(engine, job.execution_id)} == {"late", "never"}
    await engine.pass_time(15_000)
    assert {one.waitpoint_key for one in await listed(engine, job.execution_id)} == {"never"}
    assert not [name for name in await engine.timers() if name.startswith("waitpoint:")]
    history = await engine.call(c.ExecutionHistoryArgs(execution_id=job.execution_id))
    assert str(history).count("waitpoint_closed") == 2


# ---- list --------------------------------------------------------------------------------------------


async def test_open_waitpoints_are_listed_in_pages(engine: Engine) -> None:
    job = await engine.running()
    made = [(await engine.call(on_wire(job))).waitpoint_id for _ in range(5)]
    await engine.call(close(job, made[2]))
    page = await engine.call(c.ListPendingWaitpointsArgs(execution_id=job.execution_id, limit=2))
    assert [one.waitpoint_id for one in page.entries] == made[:2] and page.next_cursor == made[1]
    rest = c.ListPendingWaitpointsArgs(execution_id=job.execution_id, after=page.next_cursor, limit=2)
    page = await engine.call(rest)
    assert [one.waitpoint_id for one in page.entries] == made[3:] and page.next_cursor is None
    await engine.refused("invalid_input", force(c.ListPendingWaitpointsArgs(execution_id=job.execution_id), limit=0))
    await engine.refused("execution_not_found", c.ListPendingWaitpointsArgs(execution_id=missing()))
    other = await engine.submit()
    assert await listed(engine, other) == []


async def test_an_active_one_says_which_names_count(engine: Engine) -> None:
    job = await engine.running()
    await engine.call(c.SuspendArgs(
        suspension_id=serial_uuid(), waitpoints=[c.Fresh(serial_uuid(), "a")],
        resume_condition=c.Single("a", c.ByName("approved")), at=job.execution_id, fence=fence(job),
        reason_code=c.SuspensionReasonCode.WAITING_FOR_APPROVAL,
    ))  # fmt: skip
    (info,) = await listed(engine, job.execution_id)
    assert (info.state, info.required_signal_names, info.activated_at) == ("active", ["approved"], engine.now)


# ---- afterwards --------------------------------------------------------------------------------------


async def test_a_purge_leaves_nothing_of_them(engine: Engine) -> None:
    job = await engine.running()
    await engine.call(opening(job))
    await engine.complete(job)
    await engine.call(c.PurgeArgs(partition="{fp:0}", lane_id="mail", outcome="completed", before_ms=engine.now))
    assert not [key for key in await engine.command("KEYS", "*") if job.execution_id[7:].encode() in key]


@pytest.mark.parametrize("mode", ["resume", "fresh"])
async def test_a_replay_opens_again_what_only_the_end_had_closed(engine: Engine, mode: str) -> None:
    job = await engine.running()
    kept, gone = await engine.call(opening(job)), await engine.call(opening(job, "other"))
    await engine.call(close(job, gone.waitpoint_id))
    await engine.fail(job, "boom")
    await engine.call(c.ReplayExecutionArgs(execution_id=job.execution_id, mode=mode))
    open_now = [(one.waitpoint_id, one.state) for one in await listed(engine, job.execution_id)]
    assert open_now == ([(kept.waitpoint_id, "pending")] if mode == "resume" else [])
