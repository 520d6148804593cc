"""Schedules in the store: what is due is answered to whoever ticks, and each instant has one run."""

from __future__ import annotations

from typing import Any

import pytest

import ffcore.contracts as c
from ffcore import ids, limits
from ffcore.schedules import run_id
from ffcore.wire import pack_pairs
from tests.lua.conftest import servers_that_can
from tests.lua.engine import P0, P1, START_MS, Engine, lane_told

HOUR = 3_600_000
DUE = START_MS + 1_000


def new_schedule(engine: Engine, key: str = "nightly") -> Any:
    return engine.new_id(key=key)


def putting(engine: Engine, schedule: Any, due_ms: int = DUE, **options: Any) -> c.PutScheduleArgs:
    given: dict[str, Any] = {
        "name": "nightly", "namespace": "default", "spec": '{"every_ms":3600000}', "digest": "d" * 32,
        "lane_id": "mail", "execution_kind": "send", "payload": b"hello", "due_ms": due_ms, "at_ms": due_ms,
    } | options  # fmt: skip
    return c.PutScheduleArgs(schedule_id=schedule, **given)


async def scheduled(engine: Engine, key: str = "nightly", **options: Any) -> Any:
    id = new_schedule(engine, key)
    put = await engine.call(putting(engine, id, **options))
    assert put.what == "created"
    return id


def firing(schedule: Any, due_ms: int, next_ms: int, **options: Any) -> c.Firing:
    given: dict[str, Any] = {
        "next_at_ms": next_ms, "instant_ms": due_ms, "label": "then", "execution_id": run_id(schedule, due_ms),
    } | options  # fmt: skip
    return c.Firing(schedule, due_ms, next_ms, **given)


async def fired(engine: Engine, *rows: c.Firing) -> list[str]:
    answer = await engine.call(c.FireSchedulesArgs(partition=P0, items=list(rows)))
    return [f"{item.state} {item.detail}".strip() for item in answer.items]


async def read(engine: Engine, schedule: Any) -> c.ScheduleRead:
    return await engine.call(c.ReadScheduleArgs(schedule_id=schedule))


# ---- put ---------------------------------------------------------------------------------------------------


async def test_a_schedule_is_kept_with_what_it_submits(engine: Engine) -> None:
    policy = b'{"max_replay_count":3}'
    id = await scheduled(
        engine, policy=policy, tags=pack_pairs({"shop.a": "b"}), fairness_key="t1", deadline_ms=5_000, version=2,
        priority=7, payload_encoding="cbor",
    )  # fmt: skip
    read_ = await read(engine, id)
    row = read_.row
    assert (row.schedule_id, row.name, row.namespace, row.state, row.task, row.lane_id) == (
        id, "nightly", "default", "active", "send", "mail",
    )  # fmt: skip
    assert (row.due_ms, row.at_ms, row.fires, row.revision, row.created_at) == (DUE, DUE, 0, 1, START_MS)
    assert (read_.payload, read_.policy, read_.tags, read_.deadline_ms) == (b"hello", policy, {"shop.a": "b"}, 5_000)
    assert (read_.version, read_.priority, read_.payload_encoding, read_.fairness_key) == (2, 7, "cbor", "t1")
    assert read_.digest == "d" * 32 and read_.now_ms == START_MS


async def test_the_same_definition_again_changes_nothing_and_another_one_takes_its_place(engine: Engine) -> None:
    id = await scheduled(engine)
    again = await engine.call(putting(engine, id, expected_revision=99, paused=True))
    assert (again.what, again.revision, again.state) == ("unchanged", 1, "active")
    other = await engine.call(
        putting(engine, id, digest="e" * 32, payload=b"bye", due_ms=DUE + HOUR, expected_revision=1)
    )
    assert (other.what, other.revision) == ("updated", 2)
    now = await read(engine, id)
    assert (now.payload, now.row.due_ms, now.row.at_ms) == (b"bye", DUE + HOUR, DUE + HOUR)


async def test_a_change_that_leaves_its_instants_alone_leaves_the_one_that_is_next(engine: Engine) -> None:
    """A new payload must not lose an instant that is due already."""
    id = await scheduled(engine)
    await engine.advance(5_000)
    await engine.call(
        putting(engine, id, digest="e" * 32, due_ms=DUE + HOUR, keep_due=True, expected_revision=1)
    )
    assert [row.due_ms for row in (await engine.tick()).schedules] == [DUE]


async def test_whoever_has_read_an_older_definition_replaces_nothing(engine: Engine) -> None:
    id = await scheduled(engine)
    assert await engine.refused("revision_conflict", putting(engine, id, digest="e" * 32)) == "1"
    missing = new_schedule(engine, "other")
    assert await engine.refused("revision_conflict", putting(engine, missing, expected_revision=3)) == "0"


async def test_what_cannot_be_kept_is_refused_by_name(engine: Engine) -> None:
    id = new_schedule(engine)
    bad: list[tuple[str, dict[str, Any]]] = [
        ("name", {"name": ""}), ("name", {"name": "x" * 300}), ("name", {"name": "a\nb"}), ("spec", {"spec": ""}),
        ("spec", {"spec": "x" * 5_000}), ("digest", {"digest": ""}), ("deadline_ms", {"deadline_ms": 0}),
        ("lane_id", {"lane_id": "no lane"}), ("execution_kind", {"execution_kind": ""}), ("version", {"version": 0}),
        ("priority", {"priority": 101}), ("namespace", {"namespace": ""}), ("tags", {"tags": b"x"}),
        ("due_ms", {"due_ms": -1}), ("due_ms", {"at_ms": DUE - 1}), ("admission", {"admission": "x"}),
        ("tags", {"tags": pack_pairs({f"a.b{n}": "" for n in range(63)})}),
    ]  # fmt: skip
    for word, options in bad:
        detail = await engine.refused("invalid_input", putting(engine, id, **options))
        assert word in detail, (word, detail)
    await engine.refused("invalid_tag_key", putting(engine, id, tags=pack_pairs({"NO": "x"})))
    await engine.refused("invalid_policy_json", putting(engine, id, policy=b"{"))
    tokens = b'{"routing_requirements":{"required_capabilities":["a,b"]}}'
    await engine.refused("invalid_capabilities", putting(engine, id, policy=tokens))
    await engine.refused("payload_too_large", putting(engine, id, payload=b"x" * (limits.PAYLOAD_BYTES + 1)))
    elsewhere = ids.keyed_id("schedule", "default", "x", 1, "w")
    assert await engine.refused("invalid_input", putting(engine, elsewhere)) == "partition"


async def test_a_lane_that_takes_nothing_now_may_have_a_schedule(engine: Engine) -> None:
    await engine.submit()
    await engine.call(lane_told("mail", state="draining"))
    await scheduled(engine)


async def test_a_partition_holds_so_many_schedules(engine: Engine) -> None:
    """The list is made as long as it may be, and emptied again: 100,000 schedules would take a minute."""
    key = f"ff:{P0}:schedids"
    for start in range(0, limits.SCHEDULES_N, 5_000):
        await engine.command("ZADD", key, *(w for n in range(start, start + 5_000) for w in (0, f"{n:036}")))
    await engine.refused("too_many_names", putting(engine, new_schedule(engine)))
    await engine.command("DEL", key)


# ---- due ---------------------------------------------------------------------------------------------------


async def test_a_tick_answers_what_is_due_until_it_is_fired(engine: Engine) -> None:
    id = await scheduled(engine)
    assert (await engine.tick()).schedules == []
    await engine.at(DUE)
    for _ in range(2):
        assert (await engine.tick()).schedules == [c.DueSchedule(id, DUE, '{"every_ms":3600000}')]
    assert await fired(engine, firing(id, DUE, DUE + HOUR)) == ["fired"]
    ticked = await engine.tick()
    assert ticked.schedules == []
    assert ticked.next_due_ms <= engine.now + limits.TICKER_MS


async def test_a_tick_comes_back_for_the_next_one_in_time(engine: Engine) -> None:
    await scheduled(engine, due_ms=START_MS + 300)
    assert (await engine.tick()).next_due_ms == START_MS + 300


async def test_a_schedule_that_is_due_soon_wakes_the_ticker(engine: Engine) -> None:
    await engine.tick()
    ear = await engine.listen(engine.backend.ticker_channel(P0))
    await scheduled(engine, due_ms=START_MS + 300)
    assert await ear.heard() == [("tick", str(START_MS + 300))]


async def test_one_tick_answers_at_most_so_many(engine: Engine) -> None:
    for n in range(limits.FIRES_N + 5):
        await scheduled(engine, key=f"s{n}")
    await engine.at(DUE)
    rows = (await engine.tick()).schedules
    assert len(rows) == limits.FIRES_N
    await fired(engine, *(firing(row.schedule_id, DUE, DUE + HOUR) for row in rows))
    assert len((await engine.tick()).schedules) == 5


async def test_a_claim_leaves_schedules_to_the_ticker(engine: Engine) -> None:
    await scheduled(engine)
    await engine.at(DUE)
    assert await engine.claim() == []
    assert len((await engine.tick()).schedules) == 1


# ---- fire --------------------------------------------------------------------------------------------------


async def test_a_fire_submits_what_the_schedule_says_and_goes_on_to_the_next_instant(engine: Engine) -> None:
    id = await scheduled(
        engine, policy=b'{"max_replay_count":3}', tags=pack_pairs({"shop.a": "b"}), fairness_key="t1",
        deadline_ms=60_000, version=2, priority=7, payload_encoding="cbor",
    )  # fmt: skip
    await engine.at(DUE + 30)
    answer = await engine.call(
        c.FireSchedulesArgs(partition=P0, items=[firing(id, DUE, DUE + HOUR, next_at_ms=DUE + HOUR + 5)])
    )
    assert ([item.state for item in answer.items], answer.next_at_ms) == (["fired"], DUE + HOUR + 5)
    run = run_id(id, DUE)
    stored = await engine.read(run, "payload")
    assert stored.fields["state"] == "waiting" or stored.fields["state"] == "ready"
    assert stored.fields["deadline_at"] == str(DUE + 30 + 60_000)
    assert (stored.fields["task"], stored.fields["version"], stored.fields["priority"]) == ("send", "2", "7")
    assert stored.payload == b"hello"
    assert stored.tags == {"shop.a": "b", "schedule.name": "nightly", "schedule.due": "then"}
    row = (await read(engine, id)).row
    assert (row.due_ms, row.at_ms, row.fires) == (DUE + HOUR, DUE + HOUR + 5, 1)
    assert (row.last_ms, row.last_at_ms, row.last_execution_id) == (DUE, DUE + 30, run)


async def test_an_instant_is_fired_once_whoever_fires(engine: Engine) -> None:
    """Two tickers have the same answer in hand; the second must find out that it is the second."""
    id = await scheduled(engine)
    await engine.at(DUE)
    row = firing(id, DUE, DUE + HOUR)
    assert await fired(engine, row) == ["fired"]
    assert await fired(engine, row) == ["moved"]
    # Another one that has come to another run of the same instant, as a catch-up computed a moment later may.
    other = firing(id, DUE, DUE + 2 * HOUR, instant_ms=DUE + HOUR, execution_id=run_id(id, DUE + HOUR))
    assert await fired(engine, other) == ["moved"]
    assert len(await engine.claim(10)) == 1


async def test_several_instants_of_one_schedule_follow_each_other_in_one_call(engine: Engine) -> None:
    id = await scheduled(engine)
    await engine.at(DUE + 3 * HOUR)
    rows = [firing(id, DUE + n * HOUR, DUE + (n + 1) * HOUR) for n in range(4)]
    assert await fired(engine, *rows) == ["fired"] * 4
    row = (await read(engine, id)).row
    assert (row.fires, row.due_ms, row.last_ms) == (4, DUE + 4 * HOUR, DUE + 3 * HOUR)
    assert [job.execution_id for job in await engine.claim(10)] == [run_id(id, DUE + n * HOUR) for n in range(4)]


async def test_an_instant_that_is_passed_over_has_no_run(engine: Engine) -> None:
    id = await scheduled(engine)
    await engine.at(DUE)
    assert await fired(engine, firing(id, DUE, DUE + HOUR, execution_id=None)) == ["passed"]
    row = (await read(engine, id)).row
    assert (row.due_ms, row.fires, row.last_ms) == (DUE + HOUR, 0, 0)


async def test_one_that_cannot_be_computed_now_is_looked_at_later(engine: Engine) -> None:
    id = await scheduled(engine)
    await engine.at(DUE)
    assert await fired(engine, firing(id, DUE, DUE, next_at_ms=DUE + 60_000)) == ["put_off"]
    assert (await engine.tick()).schedules == []
    await engine.at(DUE + 60_000)
    assert [row.due_ms for row in (await engine.tick()).schedules] == [DUE]


async def test_the_last_instant_ends_it_and_a_day_later_it_is_forgotten(engine: Engine) -> None:
    id = await scheduled(engine)
    await engine.at(DUE)
    answer = await engine.call(c.FireSchedulesArgs(partition=P0, items=[firing(id, DUE, 0, next_at_ms=0)]))
    assert (answer.items[0].state, answer.next_at_ms) == ("fired", 0)
    assert (await read(engine, id)).row.state == "ended"
    await engine.pass_time(1_000)
    assert (await read(engine, id)).row.state == "ended"
    await engine.at(DUE + limits.RETENTION_AGE_MS + 1)
    await engine.tick()
    await engine.refused("schedule_not_found", c.ReadScheduleArgs(schedule_id=id))


async def test_a_row_nobody_can_act_on_is_answered_alone(engine: Engine) -> None:
    id, gone = await scheduled(engine), new_schedule(engine, "gone")
    await engine.at(DUE)
    rows = [
        firing(gone, DUE, DUE + HOUR), firing(id, DUE, DUE - 1), firing(id, DUE, DUE + HOUR, next_at_ms=DUE),
        firing(id, DUE, DUE + HOUR, label="two words"), firing(id, DUE, DUE + HOUR, execution_id="x"),
        c.Firing("x", DUE, DUE + HOUR, DUE + HOUR, DUE, "then"), firing(id, DUE, DUE + HOUR),  # type: ignore[arg-type]
    ]  # fmt: skip
    assert await fired(engine, *rows) == ["gone", *["error invalid_input"] * 5, "fired"]


async def test_a_lane_that_is_closed_keeps_its_instants_due_and_is_asked_ever_less_often(engine: Engine) -> None:
    id = await scheduled(engine)
    await engine.submit()
    await engine.call(lane_told("mail", state="draining"))
    await engine.at(DUE)
    at = list[int]()
    row = (await read(engine, id)).row
    for _ in range(8):
        assert await fired(engine, firing(id, DUE, DUE + HOUR)) == ["error lane_closed"]
        row = (await read(engine, id)).row
        at.append(row.at_ms - engine.now)
        await engine.at(row.at_ms)
        assert [one.due_ms for one in (await engine.tick()).schedules] == [DUE]
    assert at == [1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 60_000, 60_000]
    assert (row.refused, row.refusal, row.fires) == (8, "lane_closed", 0)
    await engine.call(lane_told("mail", state="active"))
    assert await fired(engine, firing(id, DUE, DUE + HOUR)) == ["fired"]
    row = (await read(engine, id)).row
    assert (row.refused, row.refusal) == (0, "")


async def test_a_store_that_takes_no_new_work_fires_nothing_and_forgets_nothing(engine: Engine) -> None:
    id = await scheduled(engine)
    await engine.at(DUE)
    await engine.command("HSET", f"ff:{P0}", "gate_until", DUE + 3_000, "v", "1 x")
    assert await fired(engine, firing(id, DUE, DUE + HOUR)) == ["error store_full"]
    await engine.refused("store_full", putting(engine, new_schedule(engine, "more")))
    await engine.at(DUE + 2_000)
    assert [item.state for item in (await engine.call(trigger(engine, id))).items] == ["error"]
    await engine.at(DUE + 4_000)
    assert len((await engine.tick()).schedules) == 1
    assert await fired(engine, firing(id, DUE, DUE + HOUR)) == ["fired"]


async def test_a_closed_gate_is_not_asked_for_schedules(engine: Engine) -> None:
    """A tick that looks at memory closes and opens it; between two looks nothing is answered in vain."""
    await scheduled(engine)
    await engine.at(DUE)
    await engine.command("HSET", f"ff:{P1}", "gate_until", DUE + 3_000, "v", "1 x")
    assert len((await engine.tick()).schedules) == 1


@pytest.mark.parametrize("server", servers_that_can("oom"))
async def test_a_full_server_refuses_a_fire_as_a_whole_and_the_instant_stays_due(engine: Engine) -> None:
    id = await scheduled(engine)
    await engine.at(DUE)
    before = await engine.command("CONFIG", "GET", "maxmemory")
    await engine.command("CONFIG", "SET", "maxmemory", 1)
    try:
        await engine.refused("store_full", c.FireSchedulesArgs(partition=P0, items=[firing(id, DUE, DUE + HOUR)]))
        await engine.call(c.PauseScheduleArgs(schedule_id=id))
        await engine.call(c.ResumeScheduleArgs(schedule_id=id, due_ms=DUE, at_ms=DUE, expected_revision=2))
    finally:
        await engine.command("CONFIG", "SET", "maxmemory", before[1])
    assert (await read(engine, id)).row.due_ms == DUE
    assert await fired(engine, firing(id, DUE, DUE + HOUR)) == ["fired"]


# ---- runs of the caller's choice ---------------------------------------------------------------------------


def trigger(engine: Engine, schedule: Any, *instants: int, **options: Any) -> c.RunScheduleArgs:
    rows = [c.ScheduleRun(run_id(schedule, at), at, "then") for at in instants or (engine.now,)]
    return c.RunScheduleArgs(schedule_id=schedule, items=options.get("items", rows))


async def test_a_run_of_the_callers_choice_leaves_the_instants_alone(engine: Engine) -> None:
    id = await scheduled(engine)
    await engine.call(c.PauseScheduleArgs(schedule_id=id))
    answer = await engine.call(trigger(engine, id, DUE - HOUR, DUE - 2 * HOUR))
    assert [item.state for item in answer.items] == ["created", "created"]
    assert (await read(engine, id)).row.due_ms == DUE
    again = await engine.call(trigger(engine, id, DUE - HOUR))
    assert [item.state for item in again.items] == ["duplicate"]
    assert len(await engine.claim(10)) == 2
    await engine.refused("schedule_not_found", trigger(engine, new_schedule(engine, "none")))
    bad = await engine.call(trigger(engine, id, items=[c.ScheduleRun(run_id(id, 1), 1, "")]))
    assert [(item.state, item.detail) for item in bad.items] == [("error", "invalid_input")]


async def test_an_instant_that_was_backfilled_is_not_run_again_when_it_comes(engine: Engine) -> None:
    id = await scheduled(engine)
    await engine.call(trigger(engine, id, DUE))
    await engine.at(DUE)
    assert await fired(engine, firing(id, DUE, DUE + HOUR)) == ["duplicate"]
    assert (await read(engine, id)).row.due_ms == DUE + HOUR
    assert len(await engine.claim(10)) == 1


async def test_a_run_whose_options_the_store_no_longer_takes_is_an_error_of_that_run(engine: Engine) -> None:
    id = await scheduled(engine)
    await engine.submit()
    await engine.call(lane_told("mail", state="disabled"))
    answer = await engine.call(trigger(engine, id))
    assert [(item.state, item.detail) for item in answer.items] == [("error", "lane_closed")]


# ---- pause, resume, remove ---------------------------------------------------------------------------------


async def test_a_paused_schedule_fires_nothing_and_goes_on_where_it_is_told(engine: Engine) -> None:
    id = await scheduled(engine)
    paused = await engine.call(c.PauseScheduleArgs(schedule_id=id))
    assert (paused.changed, paused.state, paused.revision) == (True, "paused", 2)
    assert (await engine.call(c.PauseScheduleArgs(schedule_id=id))).changed is False
    await engine.at(DUE + 3 * HOUR)
    assert (await engine.tick()).schedules == []
    assert await fired(engine, firing(id, DUE, DUE + HOUR)) == ["moved"]
    next_ms = DUE + 4 * HOUR

    def resuming(revision: int, due_ms: int = next_ms, at_ms: int = next_ms) -> c.ResumeScheduleArgs:
        return c.ResumeScheduleArgs(schedule_id=id, due_ms=due_ms, at_ms=at_ms, expected_revision=revision)

    assert await engine.refused("revision_conflict", resuming(1)) == "2"
    await engine.refused("invalid_input", resuming(2, at_ms=1))
    resumed = await engine.call(resuming(2))
    assert (resumed.changed, resumed.state) == (True, "active")
    assert (await engine.call(resuming(2))).changed is False
    assert (await engine.tick()).schedules == []
    await engine.at(next_ms)
    assert [row.due_ms for row in (await engine.tick()).schedules] == [next_ms]
    gone = new_schedule(engine, "gone")
    await engine.refused("schedule_not_found", c.PauseScheduleArgs(schedule_id=gone))
    resume_gone = c.ResumeScheduleArgs(schedule_id=gone, due_ms=1, at_ms=1, expected_revision=0)
    await engine.refused("schedule_not_found", resume_gone)


async def test_one_that_has_no_instant_left_ends_when_it_is_resumed(engine: Engine) -> None:
    id = await scheduled(engine, paused=True)
    await engine.call(c.ResumeScheduleArgs(schedule_id=id, due_ms=0, at_ms=0, expected_revision=1))
    assert (await read(engine, id)).row.state == "ended"
    # A definition with instants to come begins it anew; a pause of one that has ended changes nothing.
    assert (await engine.call(c.PauseScheduleArgs(schedule_id=id))).state == "ended"
    await engine.call(putting(engine, id, digest="e" * 32, expected_revision=2))
    assert (await read(engine, id)).row.state == "active"
    await engine.at(START_MS + limits.RETENTION_AGE_MS + 1)
    await engine.tick()
    assert (await read(engine, id)).row.state == "active"


async def test_one_that_begins_without_an_instant_has_ended(engine: Engine) -> None:
    id = await scheduled(engine, due_ms=0)
    assert (await read(engine, id)).row.state == "ended"


async def test_a_schedule_that_is_removed_leaves_its_runs_and_nothing_else(engine: Engine) -> None:
    id = await scheduled(engine)
    await engine.call(trigger(engine, id))
    assert (await engine.call(c.RemoveScheduleArgs(schedule_id=id))).was_there
    assert not (await engine.call(c.RemoveScheduleArgs(schedule_id=id))).was_there
    assert await engine.command("KEYS", "ff:*sched*") == []
    assert len(await engine.claim(10)) == 1
    assert await fired(engine, firing(id, DUE, DUE + HOUR)) == ["gone"]


# ---- lists -------------------------------------------------------------------------------------------------


async def test_schedules_are_listed_page_by_page(engine: Engine) -> None:
    made = {await scheduled(engine, key=f"s{n}", name=f"s{n}") for n in range(5)}
    seen: list[Any] = []
    cursor: str | None = None
    while True:
        page = await engine.call(c.ListSchedulesArgs(partition=P0, cursor=cursor, limit=2))
        assert len(page.schedules) <= 2
        seen += [row.schedule_id for row in page.schedules]
        cursor = page.cursor
        if not cursor:
            break
    assert set(seen) == made and seen == sorted(seen)
    await engine.refused("invalid_input", c.ListSchedulesArgs(partition=P0, limit=0))
    await engine.refused("invalid_offset", c.ListSchedulesArgs(partition=P0, cursor="x"))


# ---- what a check sees -------------------------------------------------------------------------------------


async def test_a_check_finds_what_a_schedule_has_lost_and_a_repair_puts_it_right(engine: Engine) -> None:
    id = await scheduled(engine)
    uuid = ids.uuid_of(id)
    ended = ids.uuid_of(await scheduled(engine, key="ended", due_ms=0))
    cases: list[tuple[tuple[Any, ...], str]] = [
        (("ZREM", f"ff:{P0}:schedules", uuid), "is active and never due"),
        (("ZREM", f"ff:{P0}:schedids", uuid), "is not on the list of schedules"),
        (("ZREM", f"ff:{P0}:reap", f"schedule:{ended}"), "nothing will ever look at it again"),
        (("ZADD", f"ff:{P0}:schedules", 1, ended), "ended and still due"),
        (("ZADD", f"ff:{P0}:schedids", 0, ids.uuid_of(new_schedule(engine, "x"))), "there is no record"),
        (("SET", f"ff:{P0}:schedtext:{ids.uuid_of(new_schedule(engine, 'x'))}", "x"), "its schedule is gone"),
        (("HSET", f"ff:{P0}:sched:{ids.uuid_of(new_schedule(engine, 'x'))}", "name", "x"), "cannot be read"),
    ]
    for damage, said in cases:
        await engine.command(*damage)
        found = [wrong for wrong in await looked(engine) if said in wrong.detail]
        assert found, (said, await engine.violations())
        answer = await engine.call(c.RepairArgs(partition=P0, object=found[0].object, invariant=found[0].invariant))
        assert isinstance(answer, c.Repaired), (said, answer)
        await engine.tick()
        assert await engine.violations() == [], said
    await engine.command("DEL", f"ff:{P0}:schedtext:{uuid}")
    found = [wrong for wrong in await looked(engine) if "nothing says what it submits" in wrong.detail]
    await engine.call(c.RepairArgs(partition=P0, object=found[0].object, invariant=found[0].invariant))
    await engine.tick()
    await engine.refused("schedule_not_found", c.ReadScheduleArgs(schedule_id=id))


async def looked(engine: Engine) -> list[Any]:
    """All that a check of the partition finds."""
    found: list[Any] = []
    cursor: str | None = None
    while True:
        page = await engine.call(c.CheckArgs(partition=P0, cursor=cursor, limit=500))
        found += page.wrong
        cursor = page.cursor or None
        if cursor is None:
            return found
