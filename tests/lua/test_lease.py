"""ff_renew_lease, ff_renew_many, ff_mark_lease_expired, ff_revoke_lease, and what a lost lease counts (D7)."""

from __future__ import annotations

from typing import Any

import pytest

import ffcore.contracts as c
from ffcore import limits
from ffcore.policy import FixedBackoff
from tests.lua.conftest import servers_that_can
from tests.lua.engine import (
    P0,
    START_MS,
    TTL,
    Engine,
    cancel,
    completion,
    delay,
    missing,
    progress,
    renewal,
    retries,
    revoke,
    timeouts,
    unclaim,
    wire,
)  # fmt: skip


async def counts(engine: Engine, id: Any) -> tuple[str, int, int]:
    fields = (await engine.read(id)).fields
    return fields["state"], int(fields.get("crashes", 0)), int(fields.get("unseen", 0))


async def lose(engine: Engine, job: c.ClaimedJob, *, heard: bool) -> None:
    """Let a lease run out under a live ticker, after its holder was heard or not."""
    if heard:
        await engine.call(progress(job, progress_pct=1))
    await engine.pass_time(TTL)


# ---- renew -------------------------------------------------------------------------------------------


async def test_a_renewal_moves_the_end_and_keeps_the_epoch(engine: Engine) -> None:
    job = await engine.running()
    await engine.advance(TTL - 1)
    assert (await engine.call(renewal(job))).expires_at == engine.now + TTL
    await engine.pass_time(TTL - 1)
    assert await engine.state(job.execution_id) == "active"
    await engine.call(completion(job))


async def test_a_renewal_bounds_its_ttl(engine: Engine) -> None:
    job = await engine.running()
    for ttl in (limits.LEASE_TTL_MIN_MS - 1, limits.LEASE_TTL_MAX_MS + 1):
        assert await engine.refused("invalid_input", renewal(job), lease_ttl_ms=ttl) == "lease_ttl_ms"
        many = c.RenewManyArgs(partition=P0, lease_ttl_ms=ttl, items=[])
        assert await engine.refused("invalid_input", many) == "lease_ttl_ms"


async def test_renewing_many_answers_each_on_its_own_and_carries_cancel_requests(engine: Engine) -> None:
    await engine.submit_many(4)
    one, two, three, four = await engine.claim(4)
    await engine.complete(two)
    await engine.call(cancel(three.execution_id, grace_ms=9_000))
    await engine.call(revoke(four.execution_id))
    rows = [c.Renewal(job.execution_id, wire(job)) for job in (one, two, three, four)]
    rows += [c.Renewal(missing(), wire(one)), c.Renewal("{fp:1}:00000000-0000-7000-8000-000000000000", wire(one))]  # type: ignore[arg-type]
    await engine.advance(50)
    answer = await engine.call(c.RenewManyArgs(partition=P0, lease_ttl_ms=TTL, items=rows))
    end = engine.now + TTL
    assert [(i.state, i.detail, i.expires_at_ms) for i in answer.items] == [
        ("renewed", "", end), ("error", "terminal", 0), ("renewed", f"cancel:{START_MS + 9_000}", end),
        ("error", "lease_revoked", 0), ("error", "execution_not_found", 0), ("error", "invalid_input", 0),
    ]  # fmt: skip
    assert answer.now_ms == engine.now


# ---- what a lost lease counts ------------------------------------------------------------------------


async def test_a_lease_lost_after_its_holder_was_heard_is_a_crash(engine: Engine) -> None:
    job = await engine.running()
    await lose(engine, job, heard=True)
    assert await counts(engine, job.execution_id) == ("reclaimable", 1, 0)
    (job,) = await engine.claim()
    assert (job.attempt_index, job.attempt_type, job.crashes) == (1, "reclaim", 1)
    (row,) = (await engine.read(job.execution_id, "attempts")).attempts
    assert row.endswith("interrupted_reclaimed lease_expired")


async def test_the_first_silent_loss_in_a_row_counts_nothing_and_further_ones_do(engine: Engine) -> None:
    """The reply of the claim may have been lost: then nobody ever held the lease."""
    job = await engine.running()
    await lose(engine, job, heard=False)
    assert await counts(engine, job.execution_id) == ("reclaimable", 0, 1)
    (job,) = await engine.claim()
    await lose(engine, job, heard=False)
    assert await counts(engine, job.execution_id) == ("reclaimable", 1, 2)
    (job,) = await engine.claim()
    await lose(engine, job, heard=True)
    assert await counts(engine, job.execution_id) == ("reclaimable", 2, 0)
    (job,) = await engine.claim()
    await lose(engine, job, heard=False)
    assert await counts(engine, job.execution_id) == ("reclaimable", 2, 1)


@pytest.mark.parametrize("speak", ["fail", "delay", "hand_back", "refused", "unknown_task"])
async def test_any_word_of_a_holder_ends_the_row_of_silent_losses(engine: Engine, speak: str) -> None:
    job = await engine.running(policy=retries(5))
    await lose(engine, job, heard=False)
    (job,) = await engine.claim()
    match speak:
        case "fail":
            await engine.fail(job)
        case "delay":
            await engine.call(delay(job, engine.now))
        case _:
            await engine.call(unclaim(job, speak))
    if speak == "unknown_task":
        await engine.call(c.AnnounceTasksArgs(partition=P0, tasks=["send@1"]))
    await engine.tick()
    (job,) = await engine.claim()
    await lose(engine, job, heard=False)
    assert await counts(engine, job.execution_id) == ("reclaimable", 0, 1)


async def test_too_many_crashes_poison_an_execution(engine: Engine) -> None:
    job = await engine.running(policy={"max_reclaim_count": 1})
    await lose(engine, job, heard=True)
    (job,) = await engine.claim()
    ear = await engine.listen(engine.backend.client_channel(P0, "c1"))
    await engine.call(c.AwaitArgs(partition=P0, client="c1", items=[c.ExecutionRef(job.execution_id)]))
    await lose(engine, job, heard=True)
    x = await engine.read(job.execution_id)
    assert (x.fields["state"], x.texts["category"], x.fields["crashes"]) == ("failed", "poisoned", "2")
    assert [text.split()[1] for _, text in await ear.heard()] == ["failed"]


async def test_the_lower_of_the_two_caps_of_a_policy_holds(engine: Engine) -> None:
    job = await engine.running(policy=timeouts(max_reclaim_count=0))
    await lose(engine, job, heard=True)
    assert await engine.state(job.execution_id) == "failed"


async def test_a_revoked_lease_counts_nothing_and_is_a_new_attempt(engine: Engine) -> None:
    job = await engine.running()
    ear = await engine.listen(engine.backend.worker_channel(P0, "w1"))
    assert await engine.call(revoke(job.execution_id)) == c.Revoked(job.lease_id, job.lease_epoch)
    assert await ear.heard() == [("w1", f"revoked {job.execution_id}")]
    assert await counts(engine, job.execution_id) == ("revoked", 0, 0)
    (job,) = await engine.claim()
    assert (job.attempt_index, job.attempt_type) == (1, "reclaim")


# ---- hand-backs --------------------------------------------------------------------------------------


async def test_a_job_handed_back_goes_on_in_the_same_attempt(engine: Engine) -> None:
    job = await engine.running()
    assert (await engine.call(unclaim(job))).state == "ready"
    (again,) = await engine.claim(worker_instance_id="w2")
    assert (again.attempt_index, again.attempt_id, again.attempt_type) == (0, job.attempt_id, "resumed")
    assert again.lease_id != job.lease_id and again.lease_epoch > job.lease_epoch


async def test_a_hundred_hand_backs_in_a_row_are_fine_and_the_next_is_a_crash(engine: Engine) -> None:
    job = await engine.running()
    for _ in range(limits.HAND_BACKS_N):
        assert (await engine.call(unclaim(job))).state == "ready"
        (job,) = await engine.claim()
    assert await counts(engine, job.execution_id) == ("active", 0, 0)
    assert (await engine.call(unclaim(job))).state == "reclaimable"
    assert await counts(engine, job.execution_id) == ("reclaimable", 1, 0)


# ---- the grace after an outage -----------------------------------------------------------------------


async def test_after_an_outage_workers_get_an_interval_before_leases_count_as_lost(engine: Engine) -> None:
    """The server was away: nobody could renew, and every worker still has its job."""
    job = await engine.running()
    await engine.advance(TTL + limits.OVERDUE_MS + 1)
    await engine.tick()
    assert await engine.state(job.execution_id) == "active"
    ticked = await engine.tick()
    assert ticked.next_due_ms > engine.now, "a ticker must not spin through the grace"
    renewed = await engine.call(renewal(job))
    assert renewed.expires_at == engine.now + TTL
    await engine.pass_time(TTL - 1)
    await engine.call(completion(job))


async def test_a_fence_is_good_during_the_grace_and_lost_after_it(engine: Engine) -> None:
    job, other = await engine.running(), await engine.running()
    await engine.advance(TTL + limits.OVERDUE_MS + 1)
    await engine.call(completion(job))
    await engine.pass_time(limits.RENEWAL_INTERVAL_MAX_MS + 1_000)
    assert await counts(engine, other.execution_id) == ("reclaimable", 0, 1)
    await engine.refused("stale_lease", completion(other))


async def test_during_the_grace_a_claim_takes_nothing_from_its_holder(engine: Engine) -> None:
    await engine.running()
    await engine.advance(TTL + limits.OVERDUE_MS + 1)
    assert await engine.claim(worker_instance_id="w2") == []
    await engine.advance(limits.RENEWAL_INTERVAL_MAX_MS)
    assert await engine.claim(worker_instance_id="w2") == []
    await engine.advance(1)
    assert len(await engine.claim(worker_instance_id="w2")) == 1


async def test_a_lease_that_is_a_little_late_has_no_grace(engine: Engine) -> None:
    job = await engine.running()
    await engine.advance(TTL + limits.OVERDUE_MS - 1)
    await engine.tick()
    assert await engine.state(job.execution_id) == "reclaimable"


async def test_a_lease_that_a_busy_ticker_has_not_reached_has_no_grace(engine: Engine) -> None:
    """It is overdue as after an outage, but the partition was written to all the time."""
    jobs = [await engine.running() for _ in range(3)]
    await engine.advance(TTL + 1)
    for _ in jobs:
        await engine.tick(limit=1)
        await engine.advance(limits.OVERDUE_MS - 1)
    assert [await engine.state(job.execution_id) for job in jobs] == ["reclaimable"] * 3
    assert "grace_until" not in (await engine.call(c.ReadHeaderArgs(partition=P0))).fields


async def test_a_late_delay_alone_is_no_outage(engine: Engine) -> None:
    await engine.submit(delay_until=START_MS + 10)
    await engine.advance(10 + limits.OVERDUE_MS * 5)
    await engine.tick()
    assert "grace_until" not in (await engine.call(c.ReadHeaderArgs(partition=P0))).fields


# ---- marked by hand ----------------------------------------------------------------------------------


async def test_an_expired_lease_may_be_swept_by_hand_and_only_then(engine: Engine) -> None:
    job = await engine.running()

    async def mark(id: Any = job.execution_id) -> Any:
        return await engine.call(c.MarkLeaseExpiredArgs(execution_id=id))

    assert await mark(missing()) == c.AlreadySatisfied("execution_not_found")
    assert await mark(await engine.submit()) == c.AlreadySatisfied("not_active")
    assert await mark() == c.AlreadySatisfied("not_yet_expired")
    await engine.advance(TTL)
    assert await mark() == c.MarkedExpired()
    assert await counts(engine, job.execution_id) == ("reclaimable", 0, 1)
    (job,) = await engine.claim(lanes=["mail"])
    await engine.advance(TTL + limits.OVERDUE_MS + 1)
    assert await mark() == c.AlreadySatisfied("grace")


# ---- revoke ------------------------------------------------------------------------------------------


async def test_a_revoke_names_the_lease_or_the_worker_it_means(engine: Engine) -> None:
    job = await engine.running()
    assert await engine.refused("stale_lease", revoke(job.execution_id, expected_lease_id="w1.s0.9.9")) == job.lease_id
    assert await engine.refused("stale_lease", revoke(job.execution_id, worker_instance_id="w2")) == "w1"
    named = revoke(job.execution_id, expected_lease_id="", worker_instance_id="w1")
    assert isinstance(await engine.call(named), c.Revoked)
    assert await engine.call(named) == c.AlreadySatisfied("already_revoked")


async def test_a_revoke_of_what_is_not_running_says_so(engine: Engine) -> None:
    await engine.refused("execution_not_found", revoke(missing()))
    job = await engine.running()
    await lose(engine, job, heard=False)
    assert await engine.call(revoke(job.execution_id)) == c.AlreadySatisfied("already_expired")
    await engine.call(cancel(job.execution_id))
    assert await engine.refused("terminal", revoke(job.execution_id)) == "cancelled"
    assert await engine.refused("no_active_lease", revoke(await engine.submit())) == "ready"


# ---- reads and timers --------------------------------------------------------------------------------


async def test_there_is_a_lease_timer_exactly_while_a_lease_is_held(engine: Engine) -> None:
    job = await engine.running(policy=retries(1, backoff=FixedBackoff(delay_ms=100)))
    uuid = job.execution_id.partition(":")[2].partition(":")[2]
    assert await engine.timers() == {f"lease:{uuid}": START_MS + TTL}
    await engine.fail(job)
    assert await engine.timers() == {f"delay:{uuid}": START_MS + 100}


async def test_a_tick_expires_no_more_leases_than_its_limit_and_says_to_come_back(engine: Engine) -> None:
    await engine.submit_many(5)
    jobs = await engine.claim(5)
    await engine.pass_time(TTL - 1_000)
    await engine.advance(1_000)
    ticked = await engine.tick(limit=2)
    assert (ticked.done, ticked.next_due_ms) == (2, engine.now)
    left = await engine.call(c.ListLeasesArgs(partition=P0, expired_only=True))
    assert len(left.items) == 3 and not any(row.heard for row in left.items)
    assert {row.execution_id for row in left.items} <= {job.execution_id for job in jobs}


@pytest.mark.parametrize("server", servers_that_can("oom"), indirect=True)
async def test_a_lease_that_ends_while_the_store_is_full_is_taken_again(engine: Engine) -> None:
    job = await engine.running()
    await engine.pass_time(TTL - 1_000)
    await engine.advance(1_500)
    await engine.command("CONFIG", "SET", "maxmemory", "1")
    try:
        await engine.tick()
        (again,) = await engine.claim(worker_instance_id="w2")
        assert (again.execution_id, again.attempt_index) == (job.execution_id, 1)
        await engine.refused("stale_lease", completion(job))
        await engine.complete(again, b"r" * 1_000)
    finally:
        await engine.command("CONFIG", "SET", "maxmemory", "0")


async def test_a_reason_is_cut_between_characters(engine: Engine) -> None:
    job = await engine.running()
    await engine.call(revoke(job.execution_id, reason="a" + "é" * 150))
    feed = await engine.call(c.ReadEventsArgs(partition=P0))
    (told,) = [text for entry in feed.entries for text in entry.fields if "é" in text]
    assert told.endswith("revoked a" + "é" * 99)
