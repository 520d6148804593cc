"""Faults of admission that were found by reading, each with what would have shown it."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

import ffcore.contracts as c
from ffcore import limits
from ffcore.contracts.mail import Letter
from ffcore.ids import TimestampMs, uuid_of
from tests.lua.engine import P0, START_MS, Engine, cancel, lane_told, retries
from tests.lua.graphs import chunk, info, row
from tests.lua.members import settle
from tests.lua.quotas import Q0, post
from tests.lua.quotas import owed as asked
from tests.lua.test_admission_queues import BUDGET, PAYS, QUOTA, SLOW, free, refusal, refuse, set_of, uuid
from tests.lua.test_budget import B0, TEAM, Post, created, job, reserved, reserving, status
from tests.lua.test_flow import cancelling, empty
from tests.lua.test_schedule import DUE, HOUR, fired, firing, read, scheduled, trigger
from tests.lua.test_unique import holder, take, unique_id

BOTH = f"{PAYS}\n{SLOW}"
BOTH_SET = set_of(f"b {BUDGET}", f"q {QUOTA} tenant%201")


async def classed(engine: Engine, lane: int = 1) -> int:
    return int(await engine.command("HGET", f"ff:{P0}", f"m{lane}") or 0)


async def sagas(engine: Engine, id: Any) -> None:
    """It has done what it may have to undo."""
    await engine.command("HSET", f"ff:{P0}:x:{uuid(id)}", "sg", "1", "x", "1")


# ---- halts -----------------------------------------------------------------------------------------------


async def test_a_queue_let_go_by_one_and_refused_by_the_other_waits_for_the_other(engine: Engine) -> None:
    """The first has been released: its halt, however long, says nothing any more."""
    first = await engine.running(admission=BOTH)
    await refuse(engine, refusal(first, until_ms=engine.now + 3_600_000))
    await free(engine, 1, BOTH_SET)
    (again,) = await engine.claim()
    await refuse(engine, refusal(again, QUOTA, "q", gen=5, until_ms=engine.now + 5_000))
    assert await engine.claim() == []
    await free(engine, 1, BOTH_SET, QUOTA, gen=5)
    assert [each.execution_id for each in await engine.claim()] == [first.execution_id]


async def test_a_refusal_that_no_release_is_told_of_halts_whatever_was_heard_before(engine: Engine) -> None:
    """The quota is gone: its jobs would be claimed and refused as fast as that goes."""
    refused = await engine.running(admission=PAYS)
    await free(engine, 1, gen=7)
    await refuse(engine, refusal(refused, gen=0, until_ms=engine.now + 5_000))
    assert await engine.claim() == []
    await engine.pass_time(5_001)
    assert len(await engine.claim()) == 1


@pytest.mark.parametrize("how", ["by itself", "by a release"])
async def test_who_is_idle_is_rung_when_a_halt_ends_that_nobody_has_looked_at(engine: Engine, how: str) -> None:
    """As many were claimed as were let through, so the queue is halted again and stands where it stood."""
    refused = await engine.running(admission=PAYS)
    others = [await engine.submit(admission=PAYS) for _ in range(2)]
    await refuse(engine, refusal(refused))
    await free(engine, 1)
    assert len(await engine.claim(limit=2)) == 2
    await engine.command("ZADD", f"ff:{P0}:park:1:-", engine.now + 60_000, "w2")
    ear = await engine.listen(f"ff:{P0}:w:w2")
    if how == "by itself":
        await engine.advance(101)
        await engine.tick()
    else:
        await free(engine, 1, gen=2)
    assert await ear.heard() == [("w2", "work")]
    assert [each.execution_id for each in await engine.claim(limit=5)] == others[1:]


async def test_to_forget_a_release_costs_the_same_however_much_is_halted(engine: Engine) -> None:
    refused = [await engine.running(admission=f"q {QUOTA} hold t{n}") for n in range(50)]
    await refuse(engine, *[refusal(one, QUOTA, "q", gen=9, until_ms=engine.now + 86_400_000) for one in refused])
    await free(engine, 1)
    await free(engine, 1, resource=QUOTA)
    await engine.pass_time(limits.HALT_MS)
    await free(engine, 1, gen=2)
    await engine.advance(limits.HALT_MS)
    assert (await engine.tick()).reaped == 2
    assert await engine.command("HLEN", f"ff:{P0}:halts") == 51, "of one there was another meanwhile"
    await engine.pass_time(limits.HALT_MS)
    assert await engine.command("HLEN", f"ff:{P0}:halts") == 50


async def test_a_claim_that_was_refused_is_no_start(engine: Engine) -> None:
    refused = await engine.running(admission=PAYS)
    for _ in range(2):
        await refuse(engine, refusal(refused, until_ms=engine.now + 5_000))
        assert "started_at" not in (await engine.read(refused.execution_id)).fields
        await engine.pass_time(5_001)
        (refused,) = await engine.claim()
        stored = (await engine.read(refused.execution_id)).fields
        assert (stored["started_at"], stored["attempt"]) == (str(refused.lease_epoch), "0")


async def test_a_retry_that_was_refused_has_started_when_its_first_attempt_did(engine: Engine) -> None:
    first = await engine.running(admission=PAYS, policy=retries(3))
    await engine.fail(first)
    await engine.advance(10)
    await engine.tick()
    (again,) = await engine.claim()
    await refuse(engine, refusal(again, until_ms=engine.now + 5_000))
    await engine.pass_time(5_001)
    (last,) = await engine.claim()
    assert last.attempt_index == 1
    assert (await engine.read(first.execution_id)).fields["started_at"] == str(first.lease_epoch)


async def test_what_was_refused_and_never_began_joins_a_flow_that_has_not_begun(engine: Engine) -> None:
    refused = await engine.running(admission=PAYS)
    await refuse(engine, refusal(refused))
    flow = await empty(engine)
    await engine.call(c.AddExecutionToFlowArgs(flow_id=flow, execution_id=refused.execution_id))
    assert (await info(engine, flow)).public_flow_state == "open"


# ---- what is counted -------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["cancelled", "expired"])
async def test_what_is_to_compensate_and_ends_in_line_leaves_the_queue_it_stands_in(engine: Engine, how: str) -> None:
    ran = await engine.running(admission=PAYS)
    await sagas(engine, ran.execution_id)
    await engine.call(cancel(ran.execution_id, "operator_override"))
    assert await engine.state(ran.execution_id) == "ready"
    other = await engine.submit(admission=PAYS)
    if how == "cancelled":
        await engine.call(cancel(ran.execution_id, "operator_override"))
    else:
        await engine.call(c.ExpireExecutionArgs(execution_id=ran.execution_id, expire_reason="late"))
    assert await engine.state(ran.execution_id) == "cancelled"
    assert await classed(engine) == 1
    assert await engine.command("ZCARD", f"ff:{P0}:q:1:-") == 0
    assert [each.execution_id for each in await engine.claim()] == [other]


async def test_what_compensates_settles_nothing_when_it_ends(engine: Engine) -> None:
    """Its lease was admitted by nobody."""
    ran = await engine.running(admission=PAYS)
    await sagas(engine, ran.execution_id)
    await engine.call(cancel(ran.execution_id, "operator_override"))
    (again,) = await engine.claim()
    await engine.complete(again)
    rows = (await engine.call(c.ReadOutboxArgs(partition=P0))).rows
    assert len(rows) == 1 and rows[0].body.endswith(f" {ran.lease_epoch} 0")


async def test_what_one_tick_adds_and_takes_away_is_counted(engine: Engine) -> None:
    """The tick writes what it has counted twice, and the second time it is what it was at first."""
    flow, member = engine.new_id(), engine.new_id()
    await engine.call(chunk(flow, [row(member, admission=PAYS)]))
    await engine.call(cancelling(flow, "flow_only"))
    ends = engine.now + limits.RETENTION_AGE_MS
    await engine.at(ends - 1)
    await settle(engine)
    late = await engine.submit(admission=PAYS, delay_until=ends)
    assert await classed(engine) == 1
    await engine.at(ends)
    await engine.tick()
    assert await engine.state(member) == "cancelled"
    assert await engine.state(late) == "ready"
    assert await classed(engine) == 1


# ---- mail ------------------------------------------------------------------------------------------------


async def test_rows_that_come_behind_very_many_later_ones_are_applied(engine: Engine) -> None:
    """What a partition could not be told for a while comes in any order, and nothing of it is lost."""
    await created(engine, hard={"tokens": 10_000_000})
    await reserved(engine, reserving(1, "tokens=5"))
    numbers = itertools.count(START_MS + 10)
    late = Letter(f"{B0}/0/{START_MS + 10}", "settle", f"b {uuid_of(TEAM)} - {job(1)} 1 0")
    for _ in range(51):
        letters = [Letter(f"{B0}/{n}/{n + 1}", "settle", "b nobody's") for n in itertools.islice(numbers, 200)]
        await engine.call(c.DeliverArgs(partition=B0, source=P0, items=letters))
    answer = await engine.call(c.DeliverArgs(partition=B0, source=P0, items=[late]))
    assert answer.known == 0
    assert (await status(engine)).reserved == {"tokens": 0}
    for n in itertools.islice(numbers, 6):
        await engine.call(c.DeliverArgs(partition=B0, source=P0, items=[Letter(f"{B0}/{n}/{n + 1}", "settle", "b -")]))
    assert await engine.command("EXISTS", f"ff:{B0}:inbox:fp0") == 0


# ---- budgets ---------------------------------------------------------------------------------------------


async def test_a_budget_that_is_made_anew_does_not_begin_its_releases_anew(engine: Engine) -> None:
    """Partitions remember the number of the last one: a refusal with a lower number halts nothing."""
    await created(engine, hard={"tokens": 10})
    mail = Post(engine)
    last = 0
    for n in range(3):
        await reserved(engine, reserving(n), reserving(10, adm="aaa"))
        (wake,) = (await mail.deliver(mail.settle(n))).wakes
        last = int(wake.body.split(" ")[2])
    await engine.call(c.DeleteBudgetArgs(budget_id=TEAM))
    await engine.advance(1000)
    await created(engine, hard={"tokens": 10})
    await reserved(engine, reserving(1))
    (no,) = await reserved(engine, reserving(10, adm="aaa"))
    assert no.state == "refused" and no.gen > last


async def test_who_waits_for_a_budget_that_is_deleted_asks_again(engine: Engine) -> None:
    """What is made in its place knows nothing of them, and their halts may be long."""
    await created(engine, hard={"tokens": 10})
    await reserved(engine, reserving(1), *[reserving(2 + n, adm=f"{n:012x}") for n in range(150)])
    await engine.call(c.DeleteBudgetArgs(budget_id=TEAM))
    assert await engine.violations() == []
    heard: list[str] = []
    for _ in range(2):
        heard += [one.body.split(" ")[0] for one in (await engine.tick(B0)).owed]
    assert sorted(heard) == [f"{n:012x}" for n in range(150)]
    assert await engine.command("EXISTS", f"ff:{B0}:waiting:{uuid_of(TEAM)}") == 0


async def test_who_waits_for_a_budget_that_is_made_anew_is_told_by_that(engine: Engine) -> None:
    await created(engine, hard={"tokens": 10})
    await reserved(engine, reserving(1), reserving(2))
    await engine.call(c.DeleteBudgetArgs(budget_id=TEAM))
    await created(engine, hard={"tokens": 20})
    (told,) = (await engine.tick(B0)).owed
    assert told.body.endswith(" 2"), "as often as it fits"


async def test_of_very_many_queues_that_wait_some_are_not_told_and_know_it(engine: Engine) -> None:
    """A release looks at all that are to be told."""
    await created(engine, hard={"tokens": 10})
    await reserved(engine, reserving(1))
    for at in range(0, 2000, 200):
        rows = await reserved(engine, *[reserving(2 + n, adm=f"{n:012x}") for n in range(at, at + 200)])
        assert all(one.state == "refused" and one.gen == START_MS + 1 for one in rows)
    last, known = await reserved(engine, reserving(3000, adm="ffffffffffff"), reserving(3001, adm="0" * 12))
    assert (last.state, last.gen, known.gen) == ("refused", 0, START_MS + 1)
    assert (await status(engine)).waiting == 2000


async def test_a_reset_that_something_else_of_the_same_tick_came_upon_is_followed_by_the_next(engine: Engine) -> None:
    """A reservation is looked at first, which begins the new period; then comes the timer of the one that is over."""
    await created(engine, hard={"tokens": 10}, reset_interval_ms=4_000)
    await reserved(engine, reserving(1, now=engine.now - 60_000))
    await engine.advance(4_000)
    await engine.tick(B0)
    assert (await engine.timers(B0))[f"reset:{uuid_of(TEAM)}"] == START_MS + 8_000


# ---- unique keys -----------------------------------------------------------------------------------------


async def carry(engine: Engine) -> None:
    """What executions owe to keys is brought to them."""
    rows = (await engine.call(c.ReadOutboxArgs(partition=P0))).rows
    await post(engine, "free", *[each.body for each in rows])
    await engine.call(c.AckOutboxArgs(partition=P0, items=[c.OutboxRef(each.row) for each in rows]))


async def questions(engine: Engine) -> None:
    """What the partition of keys asks when the time for it has come, and what it is answered."""
    await engine.advance(limits.RESERVATION_MS)
    rows = [Letter("", kind, body) for _, kind, body in await asked(engine)]
    assert len(rows) == 1
    for wake in (await engine.call(c.DeliverArgs(partition=P0, source=Q0, items=rows))).wakes:
        await post(engine, wake.kind, wake.body)


@pytest.mark.parametrize("scope", ["queued", "active"])
@pytest.mark.parametrize("how", ["ended", "purged"])
async def test_a_key_taken_again_for_a_job_that_has_let_go_of_it_is_free(engine: Engine, scope: str, how: str) -> None:
    """A submit that is repeated after its job has ended, by a client that dies before it gives the key back."""
    id = engine.new_id(key="order-81")
    assert await take(engine, id, scope)
    await engine.submit(id=id, admission=f"u {unique_id()} {scope}")
    (ran,) = await engine.claim()
    await engine.complete(ran)
    await carry(engine)
    assert await holder(engine) is None
    if how == "purged":
        purging = c.PurgeArgs(partition=P0, lane_id="mail", outcome="completed", before_ms=TimestampMs(engine.now))
        assert len((await engine.call(purging)).execution_ids) == 1
    assert await take(engine, id, scope)
    again = await engine.call(engine.creation(id, admission=f"u {unique_id()} {scope}"))
    assert isinstance(again, c.Duplicate)
    await questions(engine)
    assert await holder(engine) is None


@pytest.mark.parametrize("scope", ["queued", "active", "window", "forever"])
async def test_a_key_of_a_job_in_line_is_held(engine: Engine, scope: str) -> None:
    id = engine.new_id()
    assert await take(engine, id, scope, window_ms=3_600_000 if scope == "window" else 0)
    await engine.submit(id=id, admission=f"u {unique_id()} {scope}")
    await questions(engine)
    assert await holder(engine) == id
    await engine.call(cancel(id))
    await carry(engine)
    assert (await holder(engine) is None) == (scope in ("queued", "active"))


# ---- schedules -------------------------------------------------------------------------------------------


async def test_a_fire_waits_for_room_in_the_line_of_its_lane(engine: Engine) -> None:
    schedule = await scheduled(engine)
    await engine.call(lane_told(max_count=2))  # of two partitions
    first = await engine.submit()
    await engine.at(DUE)
    assert await fired(engine, firing(schedule, DUE, DUE + HOUR)) == ["error lane_full"]
    assert (await read(engine, schedule)).row.due_ms == DUE
    await engine.call(cancel(first))
    assert await fired(engine, firing(schedule, DUE, DUE + HOUR)) == ["fired"]
    answer = await engine.call(trigger(engine, schedule, DUE, DUE + 1))
    assert [(item.state, item.detail) for item in answer.items] == [("duplicate", ""), ("error", "lane_full")]


# ---- flows -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("policy", "becomes"), [("cancel_pending", "cancelled"), ("flow_only", "blocked")])
@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_member_that_was_refused_has_not_begun(engine: Engine, policy: str, becomes: str, when: str) -> None:
    """A cancel of its flow finds it in line, or comes while it asks."""
    flow, member = engine.new_id(), engine.new_id()
    await engine.call(chunk(flow, [row(member, admission=PAYS)]))
    (asks,) = await engine.claim()
    if when == "after":
        await engine.call(cancelling(flow, policy))
    await refuse(engine, refusal(asks, halt=False))
    if when == "before":
        await engine.call(cancelling(flow, policy))
    await settle(engine)
    assert await engine.claim() == []
    assert await engine.state(member) == becomes
