"""The two-step claim of the contract: grants, claims under them, and the same for what lost its lease."""

from __future__ import annotations

from typing import Any

import pytest

import ffcore.contracts as c
from ffcore import limits
from tests.lua.engine import (
    P0,
    START_MS,
    TTL,
    Engine,
    cancel,
    completion,
    delay,
    lane_told,
    missing,
    progress,
    revoke,
    timeouts,
    unclaim,
)  # fmt: skip
from tests.lua.test_claim import needs, sets_of

GRANT_TTL = 1_000
CAPS = frozenset({"gpu"})


def issue(id: Any, **options: Any) -> c.IssueClaimGrantArgs:
    given: dict[str, Any] = {
        "execution_id": id, "lane_id": "mail", "worker_id": "wk", "worker_instance_id": "w1", "partition": P0,
        "grant_ttl_ms": GRANT_TTL,
    } | options  # fmt: skip
    return c.IssueClaimGrantArgs(**given)


def claim(id: Any, **options: Any) -> c.ClaimExecutionArgs:
    given: dict[str, Any] = {
        "execution_id": id, "worker_id": "wk", "worker_instance_id": "w1", "lane_id": "mail", "lease_id": "L1",
        "lease_ttl_ms": TTL, "attempt_id": "A1", "expected_attempt_index": 0,
    } | options  # fmt: skip
    return c.ClaimExecutionArgs(**given)


def resume(id: Any, **options: Any) -> c.ClaimResumedExecutionArgs:
    given: dict[str, Any] = {
        "execution_id": id, "worker_id": "wk", "worker_instance_id": "w1", "lane_id": "mail", "lease_id": "L2",
        "lease_ttl_ms": TTL, "current_attempt_index": 0,
    } | options  # fmt: skip
    return c.ClaimResumedExecutionArgs(**given)


def reissue(id: Any, **options: Any) -> c.IssueReclaimGrantArgs:
    given: dict[str, Any] = {
        "execution_id": id, "worker_id": "wk", "worker_instance_id": "w1", "lane_id": "mail", "grant_ttl_ms": GRANT_TTL,
    } | options  # fmt: skip
    return c.IssueReclaimGrantArgs(**given)


def reclaim(id: Any, **options: Any) -> c.ReclaimExecutionArgs:
    given: dict[str, Any] = {
        "execution_id": id, "worker_id": "wk", "worker_instance_id": "w1", "lane_id": "mail", "lease_id": "L3",
        "lease_ttl_ms": TTL, "attempt_id": "A3", "old_worker_instance_id": "w0", "current_attempt_index": 0,
    } | options  # fmt: skip
    return c.ReclaimExecutionArgs(**given)


def for_worker(**options: Any) -> c.ClaimForWorkerArgs:
    given: dict[str, Any] = {
        "at": P0, "lane_id": "mail", "worker_id": "wk", "worker_instance_id": "w1", "worker_capabilities": frozenset(),
        "grant_ttl_ms": GRANT_TTL,
    } | options  # fmt: skip
    return c.ClaimForWorkerArgs(**given)


async def crashed(engine: Engine, **options: Any) -> Any:
    job = await engine.running(**options)
    await engine.call(progress(job, progress_pct=1))
    await engine.pass_time(TTL)
    return job.execution_id


# ---- grants ------------------------------------------------------------------------------------------


async def test_a_granted_execution_is_out_of_its_queue_and_blocks_nobody(engine: Engine) -> None:
    one, two = await engine.submit_many(2)
    assert await engine.call(issue(one)) == c.Granted(one)
    assert [job.execution_id for job in await engine.claim(2)] == [two]


async def test_a_grant_that_runs_out_gives_the_execution_its_place_back(engine: Engine) -> None:
    one, two = await engine.submit_many(2)
    await engine.call(issue(one))
    await engine.advance(GRANT_TTL - 1)
    await engine.tick()
    assert await engine.state(one) == "granted"
    await engine.advance(1)
    await engine.tick()
    assert [job.execution_id for job in await engine.claim(2)] == [one, two]


async def test_asking_for_ones_own_grant_again_is_the_same_grant(engine: Engine) -> None:
    id = await engine.submit()
    await engine.call(issue(id))
    await engine.advance(10)
    assert await engine.call(issue(id)) == c.Granted(id)
    assert await engine.refused("grant_already_exists", issue(id, worker_id="other")) == str(START_MS + GRANT_TTL)


async def test_a_grant_needs_a_ready_execution_and_a_worker_that_can(engine: Engine) -> None:
    await engine.refused("execution_not_found", issue(missing()))
    assert (
        await engine.refused("execution_not_eligible", issue(await engine.submit(delay_until=START_MS + 9)))
        == "delayed"
    )
    picky = await engine.submit(policy=needs("gpu", "eu"))
    assert await engine.refused("capability_mismatch", issue(picky)) == "eu,gpu"
    assert await engine.refused("capability_mismatch", issue(picky, worker_capabilities=CAPS)) == "eu"
    await engine.call(issue(picky, worker_capabilities=frozenset({"gpu", "eu", "x"})))


@pytest.mark.parametrize("make", [issue, reissue])
async def test_bad_input_to_a_grant_is_refused(engine: Engine, make: Any) -> None:
    id = await engine.submit()
    for field, value in [("grant_ttl_ms", 0), ("grant_ttl_ms", limits.GRANT_TTL_MAX_MS + 1), ("worker_id", ""),
                         ("worker_id", "a b"), ("worker_id", "x" * 49)]:  # fmt: skip
        assert await engine.refused("invalid_input", make(id), **{field: value}) == field
    await engine.refused("invalid_capabilities", make(id), worker_capabilities={str(n) for n in range(257)})


async def test_a_scheduler_cannot_start_what_is_held_or_of_a_paused_lane(engine: Engine) -> None:
    """A kill switch that one of the ways to start passes by is none."""
    id = await engine.submit()
    await engine.call(c.HoldArgs(partition=P0, what="task:send", reason="bad release"))
    assert await engine.refused("execution_not_eligible", issue(id)) == "held task:send"
    assert await engine.call(for_worker()) == c.NoWork()
    assert await engine.state(id) == "blocked"
    await engine.call(c.ReleaseArgs(partition=P0, what="task:send"))
    await engine.tick()
    await engine.call(lane_told("mail", state="paused"))
    assert await engine.refused("execution_not_eligible", issue(id)) == "lane paused"
    lost = await crashed(engine, lane_id="other")
    await engine.call(lane_told("other", state="disabled"))
    assert await engine.call(reissue(lost)) == c.NotReclaimable(lost, "lane disabled")


# ---- the best of a lane ------------------------------------------------------------------------------


async def test_a_worker_is_granted_the_best_it_can_serve(engine: Engine) -> None:
    picky = await engine.submit(policy=needs("gpu"), priority=9)
    plain = await engine.submit()
    granted = await engine.call(for_worker())
    assert (granted.grant.execution_id, granted.grant.partition_key, granted.grant.expires_at_ms) == (
        plain, P0, START_MS + GRANT_TTL,
    )  # fmt: skip
    assert (await engine.call(for_worker(worker_capabilities=CAPS))).grant.execution_id == picky
    assert await engine.call(for_worker(worker_capabilities=CAPS)) == c.NoWork()


async def test_there_is_no_work_in_a_lane_nobody_knows_or_that_starts_none(engine: Engine) -> None:
    assert await engine.call(for_worker(lane_id="none")) == c.NoWork()
    assert await engine.call(for_worker(), lane_id="#") == c.NoWork()
    await engine.submit()
    await engine.call(lane_told("mail", state="disabled"))
    assert await engine.call(for_worker()) == c.NoWork()


async def test_a_grant_for_a_worker_passes_over_what_is_past_its_deadline_or_gone(engine: Engine) -> None:
    late = await engine.submit(execution_deadline_at=START_MS + 5)
    good = await engine.submit()
    await engine.command("ZADD", f"ff:{P0}:q:1:-", -5, "ffffffff-0000-7000-8000-000000000000")
    await engine.advance(5)
    assert (await engine.call(for_worker())).grant.execution_id == good
    assert await engine.state(late) == "expired"


async def test_bad_input_to_a_claim_for_a_worker_is_refused(engine: Engine) -> None:
    assert await engine.refused("invalid_input", for_worker(), grant_ttl_ms=0) == "grant_ttl_ms"
    assert (
        await engine.refused("invalid_capabilities", for_worker(), worker_capabilities={str(n) for n in range(257)})
        == "worker"
    )


# ---- claim under a grant -----------------------------------------------------------------------------


async def test_a_granted_execution_is_claimed_once_and_again_by_the_same_call(engine: Engine) -> None:
    id = await engine.submit()
    await engine.call(issue(id))
    first = (await engine.call(claim(id))).execution
    assert (first.lease_id, first.lease_epoch, first.attempt_id, first.attempt_index) == ("L1", START_MS, "A1", 0)
    assert (first.attempt_type, first.lease_expires_at) == ("initial", START_MS + TTL)
    assert (first.handle.kind, first.handle.execution_id, first.handle.fence) == (c.HandleKind.FRESH, id, first.fence)
    assert (await engine.call(claim(id))).execution == first
    assert await engine.refused("lease_conflict", claim(id, lease_id="L9")) == "held by w1"
    assert (await engine.read(id)).worker_instance_id == "w1"
    done = c.CompleteExecutionArgs(execution_id=id, fence=first.fence, attempt_index=0)
    await engine.call(done)
    assert await engine.refused("terminal", claim(id)) == "completed"


async def test_a_claim_needs_its_grant(engine: Engine) -> None:
    id = await engine.submit()
    await engine.refused("execution_not_found", claim(missing()))
    assert await engine.refused("invalid_claim_grant", claim(id)) == "none"
    await engine.call(issue(id))
    assert await engine.refused("invalid_claim_grant", claim(id, worker_id="other")) == "of another worker"
    assert await engine.refused("execution_not_eligible_for_attempt", claim(id, expected_attempt_index=3)) == "0"
    assert await engine.refused("unsupported_policy", claim(id, attempt_policy_json='{"a":1}')) == "attempt_policy_json"
    await engine.advance(GRANT_TTL)
    assert await engine.refused("claim_grant_expired", claim(id)) == str(START_MS + GRANT_TTL)
    waiting = await engine.submit(delay_until=START_MS + 10**6)
    assert await engine.refused("execution_not_leaseable", claim(waiting)) == "delayed"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("lease_ttl_ms", 1), ("lease_id", ""), ("lease_id", "a b"), ("lease_id", "x" * 65), ("worker_instance_id", ""),
        ("worker_instance_id", "a\tb"), ("attempt_id", ""), ("attempt_id", "a b"), ("attempt_timeout_ms", 0),
        ("attempt_timeout_ms", -5), ("execution_deadline_at", -1), ("execution_deadline_at", 2**52),
    ],
)  # fmt: skip
async def test_bad_input_to_a_claim_is_refused_and_the_grant_kept(engine: Engine, field: str, value: Any) -> None:
    id = await engine.submit()
    await engine.call(issue(id))
    assert await engine.refused("invalid_input", claim(id), **{field: value}) == field
    assert await engine.state(id) == "granted"


async def test_a_claim_may_set_the_attempts_timeout_and_the_deadline(engine: Engine) -> None:
    id = await engine.submit()
    await engine.call(issue(id))
    got = (await engine.call(claim(id, attempt_timeout_ms=500, execution_deadline_at=START_MS + 700))).execution
    assert got.lease_expires_at == START_MS + 500
    fields = (await engine.read(id)).fields
    assert (fields["deadline_at"], fields["deadline_ms"]) == (str(START_MS + 700), "700")


# ---- resumed -----------------------------------------------------------------------------------------


async def resumable(engine: Engine, **options: Any) -> c.ClaimedJob:
    job = await engine.running(**options)
    await engine.call(unclaim(job))
    await engine.call(issue(job.execution_id))
    return job


async def test_a_resumed_claim_keeps_the_attempt_and_raises_the_epoch(engine: Engine) -> None:
    job = await resumable(engine)
    id = job.execution_id
    await engine.refused("use_claim_resumed_execution", claim(id))
    assert await engine.refused("execution_not_eligible_for_attempt", resume(id, current_attempt_index=1)) == "0"
    got = (await engine.call(resume(id))).execution
    assert (got.lease_id, got.attempt_id, got.attempt_index) == ("L2", job.attempt_id, 0)
    assert got.lease_epoch > job.lease_epoch and got.handle.kind is c.HandleKind.RESUMED
    assert (await engine.call(resume(id))).execution == got
    await engine.refused("lease_conflict", resume(id, lease_id="L8"))
    await engine.refused("stale_lease", completion(job))


async def test_a_resumed_claim_is_refused_like_a_fresh_one(engine: Engine) -> None:
    await engine.refused("execution_not_found", resume(missing()))
    fresh = await engine.submit()
    assert await engine.refused("invalid_claim_grant", resume(fresh)) == "none"
    await engine.call(issue(fresh))
    assert await engine.refused("not_a_resumed_execution", resume(fresh)) == "initial"
    waiting = await engine.submit(delay_until=START_MS + 10**6)
    assert await engine.refused("execution_not_leaseable", resume(waiting)) == "delayed"
    job = await resumable(engine, lane_id="other")
    for field, value in [("lease_ttl_ms", 1), ("remaining_attempt_timeout_ms", -1)]:
        assert await engine.refused("invalid_input", resume(job.execution_id), **{field: value}) == field
    await engine.advance(GRANT_TTL)
    await engine.refused("claim_grant_expired", resume(job.execution_id))
    await engine.call(cancel(job.execution_id))
    await engine.refused("terminal", resume(job.execution_id))


@pytest.mark.parametrize(("left", "deadline"), [(None, 1_000), (300, 300), (0, 0)])
async def test_a_resumed_attempt_goes_on_with_the_time_it_has_left(
    engine: Engine, left: int | None, deadline: int
) -> None:
    job = await resumable(engine, policy=timeouts(attempt_timeout_ms=1_000))
    await engine.call(resume(job.execution_id, remaining_attempt_timeout_ms=left))
    fields = (await engine.read(job.execution_id)).fields
    assert fields.get("attempt_deadline_at", "0") == (str(START_MS + deadline) if deadline else "0")


async def test_a_grant_lapses_back_to_where_the_execution_came_from(engine: Engine) -> None:
    lost = await crashed(engine)
    await engine.call(reissue(lost))
    await engine.advance(GRANT_TTL)
    await engine.tick()
    assert await engine.state(lost) == "reclaimable"
    job = await resumable(engine, lane_id="other")
    await engine.advance(GRANT_TTL)
    await engine.tick()
    assert await engine.state(job.execution_id) == "ready"


# ---- reclaim -----------------------------------------------------------------------------------------


async def test_an_execution_whose_lease_was_lost_is_reclaimed_as_a_new_attempt(engine: Engine) -> None:
    id = await crashed(engine)
    granted = await engine.call(reissue(id))
    assert (granted.grant.execution_id, granted.grant.lane_id, granted.grant.expires_at_ms) == (
        id,
        "mail",
        engine.now + GRANT_TTL,
    )
    assert await engine.call(reissue(id)) == granted
    await engine.refused("grant_already_exists", reissue(id, worker_id="other"))
    handle = (await engine.call(reclaim(id))).handle
    assert (handle.kind, handle.execution_id, handle.fence.lease_id) == (c.HandleKind.RECLAIMED, id, "L3")
    assert (await engine.call(reclaim(id))).handle == handle
    assert (await engine.read(id)).fields["attempt"] == "1"
    assert await engine.call(reclaim(id, lease_id="L7")) == c.NotReclaimable(id, "active")


async def test_a_revoked_execution_is_reclaimable_too(engine: Engine) -> None:
    job = await engine.running()
    await engine.call(revoke(job.execution_id))
    await engine.call(reissue(job.execution_id))
    assert isinstance(await engine.call(reclaim(job.execution_id)), c.ReclaimClaimed)


async def test_only_what_lost_its_lease_is_reclaimable(engine: Engine) -> None:
    await engine.refused("execution_not_found", reissue(missing()))
    await engine.refused("execution_not_found", reclaim(missing()))
    id = await engine.submit()
    assert await engine.call(reissue(id)) == c.NotReclaimable(id, "ready")
    assert await engine.call(reclaim(id)) == c.NotReclaimable(id, "ready")
    picky = await engine.submit(lane_id="other", policy=needs("gpu"))
    (job,) = await engine.claim(lanes=["other"], capability_sets=list((await sets_of(engine, "other")).values()))
    await engine.call(revoke(job.execution_id))
    assert await engine.refused("capability_mismatch", reissue(picky)) == "gpu"


async def test_a_reclaim_needs_its_grant(engine: Engine) -> None:
    id = await crashed(engine)
    assert await engine.call(reclaim(id)) == c.GrantNotFound(id)
    await engine.call(reissue(id))
    assert await engine.refused("invalid_claim_grant", reclaim(id, worker_id="other")) == "of another worker"
    assert await engine.refused("execution_not_eligible_for_attempt", reclaim(id, current_attempt_index=5)) == "1"
    assert await engine.refused("unsupported_policy", reclaim(id, attempt_policy_json="[1]")) == "attempt_policy_json"
    assert await engine.refused("invalid_input", reclaim(id), lease_ttl_ms=1) == "lease_ttl_ms"
    await engine.advance(GRANT_TTL)
    await engine.refused("claim_grant_expired", reclaim(id))


async def test_a_caller_may_lower_the_cap_only_with_its_grant_in_hand(engine: Engine) -> None:
    id = await crashed(engine)
    await engine.call(reissue(id))
    await engine.refused("invalid_claim_grant", reclaim(id, worker_id="other", max_reclaim_count=0))
    assert await engine.call(reclaim(id, max_reclaim_count=0)) == c.ReclaimCapExceeded(id, 1)
    x = await engine.read(id)
    assert (x.fields["state"], x.texts["category"]) == ("failed", "poisoned")


async def test_a_poisoned_execution_tells_who_asks_for_a_grant(engine: Engine) -> None:
    id = await crashed(engine, policy={"max_reclaim_count": 0})
    assert await engine.call(reissue(id)) == c.ReclaimCapExceeded(id, 1)


async def test_a_delayed_attempt_that_is_due_is_granted_as_resumed(engine: Engine) -> None:
    job = await engine.running()
    await engine.call(delay(job, engine.now + 5))
    await engine.advance(5)
    await engine.tick()
    await engine.call(issue(job.execution_id))
    assert (await engine.call(resume(job.execution_id))).execution.attempt_index == 0
