"""Who waits for a quota and when it is told, what becomes of places nobody gives back, and how much there may be of all
of that."""

from __future__ import annotations

from typing import Any

import pytest

import ffcore.contracts as c
from ffcore import limits
from ffcore.ids import uuid_of
from tests.lua.engine import P0, P1, Engine
from tests.lua.quotas import (
    Q0,
    admit,
    ask,
    asking,
    check,
    left,
    made,
    owed,
    post,
    read,
    settle,
    settlement,
    verified,
)

# ---- who waits ---------------------------------------------------------------------------------------


async def test_who_was_refused_is_told_of_a_place(engine: Engine) -> None:
    quota = await made(engine, most=1)
    one, two = engine.new_id(), engine.new_id()
    await admit(engine, quota, one)
    refused = await admit(engine, quota, two, adm="abc", partition=P1)
    assert (await read(engine, quota)).waiting == 1
    (word,) = await settle(engine, quota, one)
    assert word == (P1, "abc", uuid_of(quota), refused.gen, 1), "the release is the one the refusal had named"
    assert (await read(engine, quota)).waiting == 0
    assert (await admit(engine, quota, one, 2)).state == "admitted"
    assert await settle(engine, quota, one, 2) == [], "it was told, and has not asked since"
    await admit(engine, quota, one, 3)
    again = await admit(engine, quota, two, adm="abc")
    assert (again.state, again.gen) == ("concurrency", refused.gen + 2)
    await engine.advance(3_600_000)
    (word,) = await settle(engine, quota, one, 3)
    assert word.gen == again.gen, "however long that was"
    assert not {"ref", "run", "subj"} & await left(engine)


async def test_places_that_nobody_takes_are_told_of_to_others(engine: Engine) -> None:
    """Queues that were woken may have nothing left to run; without a job that runs there would be no release."""
    quota = await made(engine, most=1)
    one = engine.new_id()
    await admit(engine, quota, one)
    for n in range(20):
        await engine.advance(1)
        await admit(engine, quota, engine.new_id(), adm=f"a{n}")
    heard = [word.adm for word in await settle(engine, quota, one)]
    assert heard == ["a0", "a1"]
    assert await owed(engine) == []
    await engine.advance(1_000)
    heard = [body.split(" ")[0] for _, _, body in await owed(engine)]
    assert heard == [f"a{n}" for n in range(2, 19)]
    await admit(engine, quota, one, 2)
    await engine.advance(1_000)
    assert await owed(engine) == [], "somebody has taken it"
    assert [word.adm for word in await settle(engine, quota, one, 2)] == ["a19"]
    assert not {"ref", "run", "subj"} & await left(engine)


async def test_a_free_place_is_told_of_when_the_window_lets_somebody(engine: Engine) -> None:
    quota = await made(engine, rate=(2, 10), most=1)
    one, two = engine.new_id(), engine.new_id()
    await admit(engine, quota, one)
    assert (await admit(engine, quota, two, adm="abc")).state == "concurrency"
    assert (await admit(engine, quota, one, 2)).state == "admitted", "its second start fills the window"
    assert await settle(engine, quota, one, 2) == []
    await engine.advance(9_999)
    assert await owed(engine) == []
    await engine.advance(1)
    assert [body.split(" ")[0] for _, _, body in await owed(engine)] == ["abc"]


async def test_a_start_that_is_taken_back_is_told_of(engine: Engine) -> None:
    """It was another limit that refused the job; a day is long for the next to wait for nothing."""
    quota = await made(engine, rate=(1, 86_400))
    one = engine.new_id()
    await admit(engine, quota, one)
    for n in range(3):
        await engine.advance(1)
        assert (await admit(engine, quota, engine.new_id(), adm=f"a{n}")).state == "rate"
    told = await settle(engine, quota, one, undo=True)
    assert [(word.adm, word.allow) for word in told] == [("a2", 1), ("a1", 1)]
    await engine.advance(1_000)
    assert [body.split(" ")[0] for _, _, body in await owed(engine)] == ["a0"]
    assert not {"ref", "win", "subj"} & await left(engine)


async def test_as_many_are_told_as_there_are_places_and_one_to_spare(engine: Engine) -> None:
    quota = await made(engine, most=4)
    ids = [engine.new_id() for _ in range(4)]
    for id in ids:
        await admit(engine, quota, id)
    for n in range(6):
        await engine.advance(1)
        await admit(engine, quota, engine.new_id(), adm=f"a{n}")
    told = await settle(engine, quota, ids[0])
    assert [(word.adm, word.allow) for word in told] == [("a0", 1), ("a1", 1)], "those that wait longest"
    rows = [settlement(quota, id) for id in ids[1:]]
    letters = [c.Letter("", "settle", row) for row in rows]
    wakes = (await engine.call(c.DeliverArgs(partition=Q0, source=P0, items=letters))).wakes
    assert [wake.body.split(" ")[0] for wake in wakes] == ["a2", "a3", "a4", "a5"], "once for all rows of a call"


async def test_a_release_by_name_tells_with_the_next_tick(engine: Engine) -> None:
    quota = await made(engine, most=1)
    one = engine.new_id()
    await engine.call(check(quota, one))
    await admit(engine, quota, engine.new_id(), adm="abc")
    await engine.call(c.ReleaseAdmissionArgs(at=quota, execution_id=one))
    ((target, kind, body),) = await owed(engine)
    assert (target, kind, body.split(" ")[0]) == (P0, "unhalt", "abc")


async def test_whom_the_window_refused_is_told_of_other_limits_only(engine: Engine) -> None:
    """It knows when the window lets it; but a day is long when somebody has raised the limit."""
    quota = await made(engine, rate=(1, 86_400), most=5)
    one = engine.new_id()
    await admit(engine, quota, one)
    assert (await admit(engine, quota, engine.new_id(), adm="abc")).retry_after_ms == 86_400_000
    assert await settle(engine, quota, one) == []
    await engine.advance(3_600_000)
    assert (await read(engine, quota)).waiting == 1
    await engine.call(c.ChangeQuotaArgs(quota_policy_id=quota, max_requests_per_window=2))
    ((target, kind, body),) = await owed(engine)
    adm, uuid, gen, allow = body.split(" ")
    assert (target, kind, adm, uuid) == (P0, "unhalt", "abc", uuid_of(quota)) and int(allow) > 2**52
    assert int(gen) == (await admit(engine, quota, engine.new_id())).gen - 1
    assert await owed(engine) == []
    assert (await read(engine, quota)).waiting == 0


@pytest.mark.parametrize("gone", [False, True])
async def test_all_keys_hear_of_other_limits_some_at_a_time(engine: Engine, gone: bool) -> None:
    quota = await made(engine, rate=(1, 3600))
    for n in range(0, 700, 100):
        rows = [asking(engine, quota, engine.new_id(), key=f"t{n + i}") for i in range(100)]
        again = [asking(engine, quota, engine.new_id(), key=f"t{n + i}", adm=f"a{n + i}") for i in range(100)]
        assert {item.state for item in await ask(engine, *rows)} == {"admitted"}
        assert {item.state for item in await ask(engine, *again)} == {"rate"}
    for n in range(450):
        await admit(engine, quota, engine.new_id(), key="t1", adm=f"b{n}")
    if gone:
        await engine.call(c.DeleteQuotaArgs(quota_policy_id=quota))
        await engine.refused("quota_policy_not_found", c.DeleteQuotaArgs(quota_policy_id=quota))
    else:
        await engine.call(c.ChangeQuotaArgs(quota_policy_id=quota, max_requests_per_window=3))
    heard: list[str] = []
    for _ in range(40):
        some = await owed(engine)
        assert len(some) <= 400
        heard += [body.split(" ")[0] for _, _, body in some]
    assert sorted(heard) == sorted([f"a{n}" for n in range(700)] + [f"b{n}" for n in range(450)])
    assert ("win" in await left(engine)) is not gone
    if gone:
        assert not {"subj", "ref", "quota", "reap", "timers"} & await left(engine)


async def test_a_deleted_quota_lets_nothing_start_and_its_places_end_with_what_runs(engine: Engine) -> None:
    quota = await made(engine, rate=(5, 10), most=1)
    one = engine.new_id()
    await admit(engine, quota, one)
    await admit(engine, quota, engine.new_id(), adm="abc")
    await engine.call(c.DeleteQuotaArgs(quota_policy_id=quota))
    assert (await admit(engine, quota, engine.new_id())).state == "not_found"
    assert [body.split(" ")[0] for _, _, body in await owed(engine)] == ["abc"]
    assert {"run", "subj"} <= await left(engine) and "win" not in await left(engine)
    await made(engine, rate=(5, 10), most=1)
    assert (await admit(engine, quota, engine.new_id())).state == "concurrency", "it runs still"
    await settle(engine, quota, one)
    assert (await admit(engine, quota, engine.new_id())).state == "admitted"


# ---- after a crash -----------------------------------------------------------------------------------


async def test_a_place_past_its_lease_is_asked_for_until_somebody_answers(engine: Engine) -> None:
    """Admitted and never started, or a worker killed: the row that ends the lease was lost with a server."""
    quota = await made(engine, most=1)
    id = engine.new_id()
    await admit(engine, quota, id, 7, key="t1", until_ms=engine.now + 5_000)
    await engine.advance(4_999)
    assert await owed(engine) == []
    await engine.advance(1)
    asked = (P0, "verify", f"{Q0} q {uuid_of(quota)} t1 {id} 7")
    assert await owed(engine) == [asked]
    assert await owed(engine) == []
    await engine.advance(limits.RESERVATION_MS)
    assert await owed(engine) == [asked], "nobody answered"
    assert await verified(engine, quota, id, 7, True, key="t1") == []
    assert await verified(engine, quota, id, 6, False, key="t1") == []
    assert (await read(engine, quota, "t1")).active == 1
    await admit(engine, quota, engine.new_id(), key="t1", adm="abc")
    (word,) = await verified(engine, quota, id, 7, False, key="t1")
    assert word.adm == "abc"
    assert (await read(engine, quota, "t1")).active == 0


async def test_an_until_far_away_is_looked_at_within_a_day(engine: Engine) -> None:
    quota = await made(engine, most=2)
    await admit(engine, quota, engine.new_id(), until_ms=engine.now + limits.SPAN_MAX_MS)
    await admit(engine, quota, engine.new_id(), until_ms=0)
    assert len(await owed(engine)) == 1
    await engine.advance(limits.LEASE_TTL_MAX_MS)
    assert len(await owed(engine)) == 2


async def test_mail_that_cannot_be_read_is_nothing(engine: Engine) -> None:
    quota = await made(engine, most=1)
    id = engine.new_id()
    await admit(engine, quota, id)
    uuid = uuid_of(quota)
    for rest in ("", " x - y 1 0", f" {uuid} - {id}", f" {uuid} - {id} x 0", f" {uuid} - x 1 0", f" {uuid} - {id} 1 2",
                 f" {uuid} - {id} {'9' * 20} 0"):  # fmt: skip
        body = f"q{rest}"
        assert await post(engine, "settle", body) == [] == await post(engine, "verified", body)
    assert (await read(engine, quota)).active == 1


# ---- bounds ------------------------------------------------------------------------------------------


async def test_keys_seen_once_leave_nothing_after_their_window(engine: Engine, server: str) -> None:
    n = 2_000 if server == "memory" else 20_000
    quota = await made(engine, rate=(5, 60), most=5)
    for at in range(0, n, 100):
        rows = [asking(engine, quota, engine.new_id(), key=f"tenant{i}") for i in range(at, at + 100)]
        assert {item.state for item in await ask(engine, *rows)} == {"admitted"}
        await engine.call(c.DeliverArgs(partition=Q0, source=P0, items=[
            c.Letter("", "settle", settlement(row.quota_policy_id, row.execution_id, key=row.key)) for row in rows
        ]))  # fmt: skip
    assert (await read(engine, quota)).subjects == n
    await engine.advance(59_999)
    await engine.tick(Q0)
    assert (await read(engine, quota)).subjects == n
    await engine.advance(1)
    ticks = 0
    while (await engine.tick(Q0, limit=1_000)).reaped:
        ticks += 1
    assert ticks >= n / 1_000, "some at a time"
    assert await left(engine) == {"quota", "quotas"}


async def test_a_window_of_a_million_holds_nobody_up_and_is_exact(engine: Engine, server: str) -> None:
    """It is counted, not gone through; what has left it is taken out a few at a time."""
    n = 5_000 if server == "memory" else 50_000
    quota = await made(engine, rate=(n + 1, 60))
    await admit(engine, quota, engine.new_id())
    window = f"ff:{Q0}:win:{uuid_of(quota)}:-"
    for at in range(0, n, 1_000):
        words: list[Any] = []
        for i in range(at, at + 1_000):
            words += [engine.now + i % 1_000, f"{engine.new_id()[-36:]}.1"]
        await engine.command("ZADD", window, *words)
    await engine.advance(999)
    assert (await read(engine, quota)).in_window == n + 1
    assert (await admit(engine, quota, engine.new_id())).state == "rate"
    await engine.advance(60_000 - 500)
    status = await read(engine, quota)
    assert status.in_window == n / 2, "of those that came within a second, half"
    before = await engine.command("ZCARD", window)
    assert (await admit(engine, quota, engine.new_id())).state == "admitted"
    assert before - await engine.command("ZCARD", window) == 9, "one came, ten went"
    assert (await read(engine, quota)).in_window == n / 2 + 1
    await engine.tick(Q0, limit=500)
    assert before - await engine.command("ZCARD", window) <= 9 + 500
    assert (await read(engine, quota)).in_window == n / 2 + 1
    await engine.advance(60_000)
    while (await engine.tick(Q0, limit=1_000)).reaped:
        pass
    assert await left(engine) == {"quota", "quotas"}


async def test_of_those_who_wait_so_many_are_remembered(engine: Engine) -> None:
    quota = await made(engine, most=1)
    await admit(engine, quota, engine.new_id())
    refused = f"ff:{Q0}:ref:{uuid_of(quota)}:-"
    words: list[Any] = []
    for n in range(10_000):
        words += [engine.now + 1 + n % 5_000, f"{P0} a{n}"]
    await engine.command("ZADD", refused, *words)
    assert (await admit(engine, quota, engine.new_id(), adm="one-more")).state == "concurrency"
    assert await engine.command("ZCARD", refused) == 10_000
    assert await engine.command("ZSCORE", refused, f"{P0} one-more") is not None
