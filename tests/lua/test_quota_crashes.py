"""Between any two steps of an admission everybody may die: what was taken is given back, by the row the end of a lease
owes, or because the quota asks. The mail is carried as a ticker carries it."""

from __future__ import annotations

from typing import Any

import pytest

import ffcore.contracts as c
from ffcore import limits
from ffcore.admission import QuotaLine, UniqueLine, pack
from ffcore.ids import PartitionKey, TimestampMs
from ffengine.post import Post
from tests.lua.engine import P0, P1, TTL, Engine, cancel, retries, wire
from tests.lua.quotas import Q0, admit, check, left, made, read
from tests.lua.test_unique import holder, take, unique_id


async def carry(engine: Engine, *partitions: PartitionKey) -> None:
    """All that is owed or to be said, until there is nothing more."""
    post = Post(engine.backend)
    for partition in partitions or (P0, Q0, P0):
        await post.deliver(partition, (await engine.tick(partition)).owed)
        await post.empty(partition)


def waiting_for(quota: Any, key: str | None = None) -> str | None:
    return pack([QuotaLine(quota, "hold", key)])


async def ask_for(engine: Engine, quota: Any, job: c.ClaimedJob, key: str = "-") -> c.ItemAdmitted:
    return await admit(engine, quota, job.execution_id, job.lease_epoch, key=key, adm="abc", until_ms=engine.now + TTL)


def refusal(job: c.ClaimedJob, quota: Any, answer: c.ItemAdmitted, engine: Engine) -> Any:
    row = c.Refusal(
        execution_id=job.execution_id, fence=wire(job), resource=quota, kind="q", gen=answer.gen,
        until_ms=TimestampMs(engine.now + answer.retry_after_ms), detail="", halt=True,
    )  # fmt: skip
    return c.RefuseManyArgs(partition=P0, items=[row])


@pytest.mark.parametrize("started", [False, True])
async def test_a_worker_that_dies_with_a_place_gives_it_back_with_its_lease(engine: Engine, started: bool) -> None:
    """Admitted and never started, or started and killed."""
    quota = await made(engine, most=1)
    id = await engine.submit(admission=waiting_for(quota, "t1"), policy=retries(3))
    (job,) = await engine.claim()
    assert (await ask_for(engine, quota, job, "t1")).state == "admitted"
    if started:
        await engine.pass_time(TTL // 2)
        await engine.call(c.UpdateProgressArgs(
            execution_id=id, lease_id=job.lease_id, lease_epoch=job.lease_epoch, attempt_id=job.attempt_id,
            progress_pct=1,
        ))  # fmt: skip
    await engine.pass_time(TTL)
    await carry(engine, P0)
    assert (await read(engine, quota, "t1")).active == 0
    (again,) = await engine.claim()
    assert (await ask_for(engine, quota, again, "t1")).state == "admitted"
    await engine.complete(again)
    await carry(engine, P0)
    assert await left(engine) == {"quota", "quotas"}


async def test_a_place_taken_after_the_lease_had_ended_is_found_out(engine: Engine) -> None:
    """The request was long on its way: nothing will ever end that lease again, so the quota asks for it."""
    quota = await made(engine, most=1)
    await engine.submit(admission=waiting_for(quota))
    (job,) = await engine.claim()
    await engine.complete(job)
    await carry(engine, P0)
    assert (await ask_for(engine, quota, job)).state == "admitted"
    await engine.advance(TTL - 1)
    await carry(engine)
    assert (await read(engine, quota)).active == 1
    await engine.advance(1)
    await carry(engine)
    assert (await read(engine, quota)).active == 0


async def test_a_place_is_kept_for_as_long_as_the_lease_is_renewed(engine: Engine) -> None:
    quota = await made(engine, most=1)
    await engine.submit(admission=waiting_for(quota))
    (job,) = await engine.claim()
    await ask_for(engine, quota, job)
    for _ in range(10):
        await engine.call(c.RenewLeaseArgs(
            execution_id=job.execution_id, attempt_index=job.attempt_index, lease_ttl_ms=TTL,
            fence=c.LeaseFence(job.lease_id, job.lease_epoch, job.attempt_id),
        ))  # fmt: skip
        await engine.pass_time(TTL // 2)
        await carry(engine)
        assert (await read(engine, quota)).active == 1
    await engine.complete(job)
    await carry(engine)
    assert (await read(engine, quota)).active == 0


async def test_a_place_without_a_lease_is_kept_for_as_long_as_the_execution_runs(engine: Engine) -> None:
    quota = await made(engine, most=1)
    id = await engine.submit()
    (job,) = await engine.claim(lease_ttl_ms=limits.LEASE_TTL_MAX_MS)
    await engine.call(check(quota, id))
    for _ in range(3):
        await engine.pass_time(limits.RESERVATION_MS)
        await carry(engine)
        assert (await read(engine, quota)).active == 1
    await engine.complete(job)
    await engine.pass_time(limits.RESERVATION_MS)
    await carry(engine)
    assert await left(engine) == {"quota", "quotas"}


async def test_questions_that_cannot_be_read_are_not_answered(engine: Engine) -> None:
    id = await engine.submit()
    other = engine.new_id(P1)
    for body in ("", f"{Q0} q x - {id}", f"{Q0} q x - {id} 5", f"{Q0} b x - {id} 0", f"{Q0} q x - {other} 0"):
        letters = [c.Letter("", "runs", body)]
        assert (await engine.call(c.DeliverArgs(partition=P0, source=Q0, items=letters))).wakes == []


async def test_what_another_limit_refused_gives_back_its_start_and_its_place(engine: Engine) -> None:
    quota, full = await made(engine, rate=(1, 60), most=1), await made(engine, "full", rate=(1, 60))
    await admit(engine, full, engine.new_id())
    await engine.submit(admission=pack([QuotaLine(quota, "hold", None), QuotaLine(full, "hold", None)]))
    (job,) = await engine.claim()
    assert (await ask_for(engine, quota, job)).state == "admitted"
    answer = await ask_for(engine, full, job)
    assert answer.state == "rate"
    assert [item.state for item in (await engine.call(refusal(job, full, answer, engine))).items] == ["refused"]
    await carry(engine, P0)
    status = await read(engine, quota)
    assert (status.active, status.in_window) == (0, 0)
    assert await engine.claim() == [], "its queue waits"
    await engine.pass_time(60_000)
    (job,) = await engine.claim()
    assert (await ask_for(engine, full, job)).state == "admitted"
    await engine.complete(job)
    await carry(engine, P0)


async def test_a_row_that_comes_twice_frees_one_place(engine: Engine) -> None:
    quota = await made(engine, most=2)
    await engine.submit_many(2)
    one, two = await engine.claim(2)
    for job in (one, two):
        await ask_for(engine, quota, job)
    body = f"q {quota.rpartition(':')[2]} - {one.execution_id} {one.lease_epoch} 0"
    for _ in range(2):
        await engine.call(c.DeliverArgs(partition=Q0, source=P0, items=[c.Letter(f"{Q0}/0/5", "settle", body)]))
    assert (await read(engine, quota)).active == 1
    await engine.call(c.DeliverArgs(partition=Q0, source=P0, items=[c.Letter("", "settle", body)]))
    assert (await read(engine, quota)).active == 1


# ---- unique keys -------------------------------------------------------------------------------------


def holding(scope: str) -> str | None:
    return pack([UniqueLine(unique_id(), scope)])


@pytest.mark.parametrize("scope", ["queued", "active", "window", "forever"])
async def test_a_key_taken_for_a_create_that_was_never_sent_is_free_again(engine: Engine, scope: str) -> None:
    await take(engine, engine.new_id(), scope, window_ms=3_600_000 if scope == "window" else 0)
    await engine.advance(limits.RESERVATION_MS)
    await carry(engine)
    assert await holder(engine) is None


@pytest.mark.parametrize("scope", ["queued", "active"])
async def test_a_create_whose_answer_was_lost_holds_its_key(engine: Engine, scope: str) -> None:
    id = engine.new_id()
    await take(engine, id, scope)
    args = engine.creation(id, admission=holding(scope))
    await engine.call(args)
    assert await take(engine, id, scope), "the client begins anew"
    assert isinstance(await engine.call(args), c.Duplicate)
    await engine.advance(limits.RESERVATION_MS)
    await carry(engine)
    assert await holder(engine) == id
    (job,) = await engine.claim()
    await carry(engine)
    assert (await holder(engine) is None) is (scope == "queued"), "from its start it is no longer in line"
    await engine.complete(job)
    await carry(engine)
    assert await holder(engine) is None
    await engine.advance(10 * limits.RESERVATION_MS)
    await carry(engine)


@pytest.mark.parametrize("scope", ["queued", "active"])
async def test_its_end_may_be_told_before_it_was_asked_for(engine: Engine, scope: str) -> None:
    id, other = engine.new_id(), engine.new_id()
    await take(engine, id, scope)
    await engine.call(engine.creation(id, admission=holding(scope)))
    await engine.call(cancel(id))
    await carry(engine)
    assert await holder(engine) is None
    assert await take(engine, other, scope)
    await engine.call(engine.creation(other, admission=holding(scope)))
    await engine.advance(limits.RESERVATION_MS)
    await carry(engine)
    assert await holder(engine) == other


async def test_a_window_outlasts_the_end_of_its_execution(engine: Engine) -> None:
    id = engine.new_id()
    await take(engine, id, "window", window_ms=120_000)
    await engine.call(engine.creation(id, admission=holding("window")))
    (job,) = await engine.claim()
    await engine.complete(job)
    await engine.pass_time(limits.RESERVATION_MS)
    await carry(engine)
    assert await holder(engine) == id
    await engine.pass_time(limits.RESERVATION_MS)
    await carry(engine)
    assert await holder(engine) is None
