"""ff_cancel_execution: what runs is asked first; a completion or a final failure may still win (D9).

Every other end of the lease ends the execution as cancelled, in the call that ended it.
"""

from __future__ import annotations

from typing import Any

import pytest

import ffcore.contracts as c
from ffcore import limits
from ffcore.states import PublicState
from tests.lua.engine import (
    P0,
    START_MS,
    TTL,
    Engine,
    cancel,
    completion,
    delay,
    missing,
    renewal,
    retries,
    revoke,
    timeouts,
    unclaim,
)  # fmt: skip

GRACE = 5_000


async def requested(engine: Engine, **options: Any) -> c.ClaimedJob:
    """A running execution whose cancel was requested."""
    job = await engine.running(**options)
    answer = await engine.call(cancel(job.execution_id, grace_ms=GRACE))
    assert answer == c.CancelRequested(job.execution_id, START_MS + GRACE)
    return job


@pytest.mark.parametrize("where", ["ready", "delayed", "blocked", "granted", "reclaimable", "revoked"])
async def test_what_is_not_running_is_cancelled_at_once(engine: Engine, where: str) -> None:
    id = await engine.submit(**({"delay_until": START_MS + 9} if where == "delayed" else {}))
    match where:
        case "blocked":
            await engine.call(c.BlockExecutionArgs(execution_id=id, blocking_reason="waiting_for_quota"))
        case "granted":
            await engine.call(
                c.IssueClaimGrantArgs(
                    execution_id=id, lane_id="mail", worker_id="w", worker_instance_id="w", partition=P0, grant_ttl_ms=9
                )
            )
        case "reclaimable" | "revoked":
            await engine.claim()
            await (engine.pass_time(TTL) if where == "reclaimable" else engine.call(revoke(id)))
    assert await engine.state(id) == where
    assert await engine.call(cancel(id)) == c.Cancelled(id, PublicState.CANCELLED)
    x = await engine.read(id)
    assert (x.texts["cancel_reason"], x.texts["cancelled_by"]) == ("no longer wanted", "flow_cascade")
    assert await engine.call(cancel(id)) == c.Cancelled(id, PublicState.CANCELLED), (
        "the same again is answered the same"
    )


async def test_what_runs_is_asked_first_and_its_worker_is_told(engine: Engine) -> None:
    ear = await engine.listen(engine.backend.worker_channel(P0, "w1"))
    job = await requested(engine)
    assert await ear.heard() == [("w1", f"cancel {job.execution_id}")]
    await engine.advance(1)
    assert await engine.call(cancel(job.execution_id)) == c.CancelRequested(job.execution_id, START_MS + GRACE)
    assert await ear.heard() == [], "asked once"
    assert await engine.state(job.execution_id) == "active"
    await engine.call(renewal(job))


async def test_a_completion_during_the_grace_wins_and_keeps_the_request_on_record(engine: Engine) -> None:
    job = await requested(engine)
    await engine.call(completion(job))
    x = await engine.read(job.execution_id)
    assert (x.fields["state"], x.texts["cancel_reason"]) == ("completed", "no longer wanted")
    assert await engine.call(cancel(job.execution_id)) == c.CancelAlreadyTerminal(
        job.execution_id, PublicState.COMPLETED
    )


async def test_a_final_failure_during_the_grace_wins(engine: Engine) -> None:
    job = await requested(engine, policy=retries(3))
    assert await engine.fail(job, "fatal") == c.TerminalFailed(False)
    x = await engine.read(job.execution_id)
    assert (x.fields["state"], x.texts["category"], x.texts["cancel_reason"]) == ("failed", "fatal", "no longer wanted")
    assert await engine.fail(job, "fatal") == c.TerminalFailed(True)


@pytest.mark.parametrize(
    "end", ["retryable", "expiry", "revoke", "hand_back", "refused", "unknown_task", "delay", "timeout", "expire_now"]
)
async def test_every_other_end_of_the_lease_ends_it_as_cancelled(engine: Engine, end: str) -> None:
    policy = retries(3) | timeouts(attempt_timeout_ms=2_000) if end in ("timeout", "expire_now") else retries(3)
    job = await requested(engine, policy=policy, claim={"lease_ttl_ms": 1_000})
    match end:
        case "retryable":
            assert await engine.fail(job) == c.TerminalFailed(False)
            assert await engine.fail(job) == c.TerminalFailed(True)
        case "expiry":
            await engine.pass_time(1_000)
        case "revoke":
            assert isinstance(await engine.call(revoke(job.execution_id)), c.Revoked)
        case "delay":
            later = delay(job, engine.now + 50)
            assert (await engine.call(later)).public_state == "cancelled"
        case "timeout":
            await engine.call(renewal(job, 4_000))
            await engine.pass_time(2_000)
        case "expire_now":
            ended = c.ExpireExecutionArgs(execution_id=job.execution_id, expire_reason="attempt_timeout")
            assert await engine.call(ended) == c.Expired(job.execution_id)
        case _:
            assert (await engine.call(unclaim(job, end))).state == "cancelled"
            assert (await engine.call(unclaim(job, end))).state == "cancelled"
    assert await engine.state(job.execution_id) == "cancelled"


async def test_the_grace_ends_by_fencing_the_worker_off(engine: Engine) -> None:
    job = await requested(engine)
    ear = await engine.listen(engine.backend.worker_channel(P0, "w1"))
    await engine.pass_time(GRACE - 1)
    assert await engine.state(job.execution_id) == "active"
    await engine.pass_time(1)
    assert await engine.state(job.execution_id) == "cancelled"
    assert await ear.heard() == [("w1", f"cancel {job.execution_id}")]
    assert await engine.refused("terminal", completion(job)) == "cancelled"


async def test_an_operator_does_not_wait_and_a_grace_of_nothing_is_none(engine: Engine) -> None:
    job = await requested(engine)
    assert await engine.call(cancel(job.execution_id, "operator_override")) == c.Cancelled(
        job.execution_id, PublicState.CANCELLED
    )
    other = await engine.running()
    await engine.call(cancel(other.execution_id, grace_ms=0))
    await engine.tick()
    assert await engine.state(other.execution_id) == "cancelled"


async def test_a_lease_holder_cancels_its_own_at_once(engine: Engine) -> None:
    job = await engine.running()
    mine = {"lease_id": job.lease_id, "lease_epoch": job.lease_epoch, "attempt_id": job.attempt_id}
    assert await engine.refused("stale_lease", cancel(job.execution_id, **(mine | {"lease_epoch": 1})))
    for gone in mine:
        await engine.refused("partial_fence_triple", cancel(job.execution_id, **mine), **{gone: None})
    assert isinstance(await engine.call(cancel(job.execution_id, "lease_holder", **mine)), c.Cancelled)
    assert isinstance(await engine.call(cancel(job.execution_id, "lease_holder", **mine)), c.Cancelled)


async def test_a_holder_that_lost_its_lease_cannot_cancel(engine: Engine) -> None:
    job = await engine.running()
    mine = {"lease_id": job.lease_id, "lease_epoch": job.lease_epoch, "attempt_id": job.attempt_id}
    await engine.advance(TTL)
    await engine.refused("lease_expired", cancel(job.execution_id, **mine))
    other = await engine.running(lane_id="other")
    theirs = {"lease_id": other.lease_id, "lease_epoch": other.lease_epoch, "attempt_id": other.attempt_id}
    await engine.call(revoke(other.execution_id))
    await engine.refused("lease_revoked", cancel(other.execution_id, **theirs))


async def test_bad_input_to_cancel_is_refused(engine: Engine) -> None:
    await engine.refused("execution_not_found", cancel(missing()))
    job = await engine.running()
    for grace in (-1, limits.SPAN_MAX_MS + 1):
        await engine.refused("invalid_grace_ms", cancel(job.execution_id), grace_ms=grace)


async def test_an_end_that_was_not_a_cancel_is_told(engine: Engine) -> None:
    job = await engine.running()
    await engine.fail(job)
    assert await engine.call(cancel(job.execution_id)) == c.CancelAlreadyTerminal(job.execution_id, PublicState.FAILED)


async def test_a_claimed_job_says_that_its_cancel_was_requested(engine: Engine) -> None:
    """A claim whose reply was lost is answered again, after the request."""
    await engine.submit()
    claim = engine.claiming(1)
    (job,) = (await engine.call(claim)).jobs
    await engine.call(cancel(job.execution_id))
    (job,) = (await engine.call(claim)).jobs
    assert job.cancel_requested
