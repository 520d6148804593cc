"""Room set apart in a budget: who is admitted, what settles it, who is woken, and what mail about it does."""

from __future__ import annotations

import pytest

import ffcore.contracts as c
from ffcore import ids, limits
from ffcore.contracts.mail import Letter
from ffcore.ids import BudgetId, TimestampMs
from tests.lua.engine import P0, START_MS, Engine
from tests.lua.test_budget import (
    B0,
    TEAM,
    Post,
    budget_id,
    created,
    job,
    owed,
    report,
    reserved,
    reserving,
    spent,
    status,
    waking,
)  # fmt: skip

NEVER = TimestampMs(0)


# ---- reservations ----------------------------------------------------------------------------------------


async def test_a_reservation_is_admitted_while_it_fits(engine: Engine) -> None:
    await created(engine, hard={"tokens": 25, "usd": 1})
    first, second, third = await reserved(engine, reserving(1), reserving(2), reserving(3))
    assert (first.state, second.state) == ("granted", "granted")
    assert third == c.ReservedRow("refused", "tokens", 25, 5, NEVER, START_MS + 1)
    now = await status(engine)
    assert (now.reserved, now.reservations, now.waiting) == ({"tokens": 20}, 2, 1)
    (never,) = await reserved(engine, reserving(4, "tokens=26"))
    assert (never.state, never.dimension, never.limit) == ("never", "tokens", 25)
    (unlimited,) = await reserved(engine, reserving(5, "joules=1000"))
    assert unlimited.state == "granted", "a dimension the budget does not have is none of its business"
    assert (await status(engine)).reservations == 2


async def test_without_an_estimate_it_is_asked_whether_there_is_any_left(engine: Engine) -> None:
    await created(engine, hard={"tokens": 10}, reset_interval_ms=60_000)
    (row,) = await reserved(engine, reserving(1, "-"))
    assert row.state == "granted"
    await spent(engine, 1, "tokens=10")
    (row,) = await reserved(engine, reserving(2, "-"))
    assert row == c.ReservedRow("refused", "tokens", 10, 0, START_MS + 60_000, START_MS + 1)  # type: ignore[arg-type]
    (row,) = await reserved(engine, reserving(2, "tokens=1", adm=""))
    assert row.retry_at_ms == START_MS + 60_000
    assert (await status(engine)).waiting == 1, "who gives no queue is not told"


async def test_the_same_lease_is_answered_again_and_a_later_one_replaces_it(engine: Engine) -> None:
    await created(engine, hard={"tokens": 25})
    for _ in range(2):
        (row,) = await reserved(engine, reserving(1, "tokens=20"))
        assert row.state == "granted"
    assert (await status(engine)).reserved == {"tokens": 20}
    (row,) = await reserved(engine, reserving(1, "tokens=22", epoch=2))
    assert row.state == "granted"
    assert (await status(engine)).reserved == {"tokens": 22}
    (late,) = await reserved(engine, reserving(1, "tokens=1", epoch=1))
    assert late.state == "refused", "a lease that is over"
    await report(engine, tokens=10)
    (row,) = await reserved(engine, reserving(1, "tokens=20", epoch=3))
    assert row.state == "refused"
    assert (await status(engine)).reserved == {"tokens": 0}, "the lease before is over all the same"


async def test_what_is_spent_is_taken_from_what_is_reserved(engine: Engine) -> None:
    await created(engine, hard={"tokens": 100, "usd": 1})
    await reserved(engine, reserving(1, "tokens=50,usd=0.5"))
    await spent(engine, 1, "tokens=20")
    now = await status(engine)
    assert (now.usage["tokens"], now.reserved) == (20, {"tokens": 30, "usd": 0.5})
    await spent(engine, 1, "tokens=40,usd=0.1", epoch=0)
    assert (await status(engine)).reserved == {"tokens": 30, "usd": 0.5}, "of another lease"
    await spent(engine, 1, "tokens=41")
    now = await status(engine)
    assert (now.usage["tokens"], now.reserved) == (101, {"tokens": 0, "usd": 0.5}), "more than was estimated"
    assert (await spent(engine, 1, "-", key="")).state == "hard", "how it stands"
    assert (await spent(engine, 1, "usd=0.1")).state == "ok", "of other dimensions there is some left"


async def test_rows_that_cannot_be_read_are_refused_alone(engine: Engine) -> None:
    await created(engine)
    rows = [
        reserving(1, "tokens"), reserving(1, epoch=-1), reserving(1, partition="x"), reserving(1, adm="a b"),
        reserving(1, id=BudgetId(f"{B0}:x")), c.ReserveRow(TEAM, "x", 1, 0, "", "", "-"), reserving(2),  # type: ignore[arg-type]
    ]  # fmt: skip
    assert [row.state for row in await reserved(engine, *rows)] == ["error"] * 6 + ["granted"]


async def test_a_settled_reservation_is_free_and_wakes_who_waits(engine: Engine) -> None:
    await created(engine, hard={"tokens": 20})
    post = Post(engine)
    await reserved(engine, reserving(1), reserving(2), reserving(3, adm="aaa"), reserving(4, "tokens=20", adm="bbb"))
    settled = await post.deliver(post.settle(1))
    assert settled.wakes == [waking("aaa", 1, 1)], "of two queues one fits now"
    (again,) = await reserved(engine, reserving(3, adm="aaa"))
    assert (again.state, again.gen) == ("granted", START_MS + 2)
    both = await post.deliver(post.settle(2), post.settle(3))
    assert both.wakes == [waking("bbb", 2, 1)], "who has not been woken for longest first, and there is no more room"
    assert (await status(engine)).reserved == {"tokens": 0}


async def test_who_was_refused_is_woken_however_long_its_queue_halts(engine: Engine) -> None:
    await created(engine, hard={"tokens": 10})
    post = Post(engine)
    await reserved(engine, reserving(1), reserving(2))
    await engine.advance(limits.WAITING_MS - 1)
    assert len((await post.deliver(post.settle(1))).wakes) == 1


async def test_who_has_been_woken_and_asked_no_more_is_forgotten(engine: Engine) -> None:
    await created(engine, hard={"tokens": 10})
    post = Post(engine)
    await reserved(engine, reserving(1), reserving(2))
    assert len((await post.deliver(post.settle(1))).wakes) == 1
    await reserved(engine, reserving(3))
    await engine.advance(2 * limits.HALT_MS + 1)
    assert (await post.deliver(post.settle(3))).wakes == []
    await engine.advance(4 * limits.HALT_MS)
    await engine.tick(B0)
    assert (await status(engine)).waiting == 0


@pytest.mark.parametrize("what", ["raise", "change", "reset", "time"])
async def test_more_room_wakes_who_waits(engine: Engine, what: str) -> None:
    await created(engine, hard={"tokens": 10}, reset_interval_ms=4_000)
    await spent(engine, 1, "tokens=10")
    await reserved(engine, reserving(2, "tokens=3"), reserving(2, "tokens=4", partition="{fp:1}"))
    assert await owed(engine) == []
    if what == "raise":
        await engine.call(c.RaiseBudgetArgs(budget_id=TEAM, amounts="tokens=10", key="k"))
    elif what == "change":
        await engine.call(c.ChangeBudgetArgs(budget_id=TEAM, changes=c.budget_changes(hard={"tokens": "20"})))
    elif what == "reset":
        assert await engine.call(c.ResetBudgetArgs(budget_id=TEAM)) == c.Reset(START_MS + 4_000)  # type: ignore[arg-type]
    else:
        await engine.advance(4_000)
    rows = await owed(engine)
    assert [(row.row, row.target, row.kind) for row in rows] == [("", "{fp:0}", "unhalt"), ("", "{fp:1}", "unhalt")]
    assert [row.body.split()[-1] for row in rows] == ["2", "1"]
    assert await owed(engine) == []


async def test_of_many_who_wait_the_rest_is_woken_a_moment_later(engine: Engine) -> None:
    await created(engine, hard={"tokens": 1_000})
    await spent(engine, 1, "tokens=1000")
    for at in range(0, 150, 50):
        await reserved(engine, *(reserving(2, "tokens=1", adm=f"a{n}") for n in range(at, at + 50)))
    await engine.call(c.ResetBudgetArgs(budget_id=TEAM))
    woken = [row.body.split()[0] for _ in range(3) for row in await owed(engine)]
    assert {f"a{n}" for n in range(150)} <= set(woken)


async def test_a_reset_keeps_its_rhythm_and_what_is_reserved(engine: Engine) -> None:
    await created(engine, hard={"tokens": 100}, reset_interval_ms=1_000)
    await reserved(engine, reserving(1, "tokens=30"))
    await spent(engine, 1, "tokens=10")
    await engine.advance(2_300)
    now = await status(engine)
    assert (now.usage, now.reserved, now.period) == ({"tokens": 0}, {"tokens": 20}, 2), "a reader sees what is due"
    assert now.next_reset_at == str(START_MS + 3_000), "counted from its creation"
    assert (await engine.call(c.TopSpendersArgs(budget_id=TEAM))).spenders == []
    await report(engine, tokens=5)
    await engine.tick(B0)
    now = await status(engine)
    assert (now.usage, now.reserved, now.next_reset_at) == ({"tokens": 5}, {"tokens": 20}, str(START_MS + 3_000))
    post = Post(engine)
    await post.deliver(post.settle(1))
    assert (await status(engine)).usage == {"tokens": 5}, "what the last period reserved is not taken from this one"
    await engine.refused("budget_not_found", c.ResetBudgetArgs(budget_id=budget_id(9)))


async def test_a_reservation_past_its_lease_is_asked_for_and_never_freed_by_time(engine: Engine) -> None:
    await created(engine, hard={"tokens": 10})
    await reserved(engine, reserving(1, lease_ms=5_000), reserving(2))
    await engine.advance(5_000)
    uuid = ids.uuid_of(TEAM)
    for _ in range(3):
        (row,) = await owed(engine)
        assert (row.row, row.target, row.kind) == ("", P0, "verify")
        assert row.body == f"{B0} b {uuid} - {job(1)} 1"
        assert await owed(engine) == []
        await engine.advance(limits.RESERVATION_MS)
    post = Post(engine)

    async def say(held: int, epoch: int = 1) -> c.Delivered:
        return await post.deliver(Letter("", "verified", f"b {uuid} - {job(1)} {epoch} {held}"))

    await say(0, epoch=2)
    assert (await status(engine)).reservations == 1, "about another lease"
    await say(1)
    await engine.advance(limits.RESERVATION_MS - 1)
    assert await owed(engine) == []
    (again,) = await reserved(engine, reserving(2))
    assert again.state == "refused"
    answer = await say(0)
    assert answer.wakes == [waking("a1b2c3d4e5f6", 1, 1)]
    assert (await status(engine)).reserved == {"tokens": 0}


async def test_a_reservation_without_a_lease_to_come_is_looked_at_soon(engine: Engine) -> None:
    await created(engine)
    await reserved(engine, reserving(1, lease_ms=-50_000), reserving(2, lease_ms=10**12))
    assert await owed(engine) == []
    await engine.advance(1_000)
    assert len(await owed(engine)) == 1
    await engine.advance(limits.LEASE_TTL_MAX_MS)
    assert len(await owed(engine)) == 2


# ---- delivered ---------------------------------------------------------------------------------------------


async def test_delivered_spends_count_once(engine: Engine) -> None:
    await created(engine)
    post = Post(engine)
    await reserved(engine, reserving(1, "tokens=10"))
    rows = [post.spend(1, "tokens=4"), post.spend(1, "tokens=4"), post.settle(1)]
    assert (await post.deliver(*rows)).known == 0
    assert (await post.deliver(*rows)).known == 3
    now = await status(engine)
    assert (now.usage, now.reserved) == ({"tokens": 4}, {"tokens": 0}), "its key is an execution's own as well"
    assert (await spent(engine, 1, "tokens=4", key="k")).state == "already"


async def test_what_is_about_nothing_is_taken_for_nothing(engine: Engine) -> None:
    await created(engine)
    post = Post(engine)
    before = await status(engine)
    uuid = ids.uuid_of(TEAM)
    bodies = [
        ("settle", "b"), ("settle", f"b {uuid} - {job(1)} 1 0"), ("spend", "x"),
        ("spend", f"{uuid} {job(1)} 1 k tokens"), ("spend", f"{uuid} x 1 k tokens=1"), ("verified", "b"),
        ("verified", f"b {uuid} - {job(1)} 1 0"), ("settle", f"b {ids.uuid_of(budget_id(9))} - {job(1)} 1 0"),
    ]  # fmt: skip
    answer = await post.deliver(*(post.row(kind, body) for kind, body in bodies))
    assert (answer.known, answer.wakes, answer.left) == (0, [], [])
    assert await status(engine) == before
