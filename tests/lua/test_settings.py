"""What operators set: revisioned records in {w:0}, their copies in the partitions, and how a partition catches up."""

from __future__ import annotations

from typing import Any

import pytest

import ffcore.contracts as c
from ffcore import limits
from ffcore.settings import REGISTRY, applying, catching_up
from ffcore.wire import pack_pairs
from tests.lua.engine import P0, P1, START_MS, W0, Engine, lane_told, told

DEFAULTS = {
    "aged_s": "0", "age_ms": str(limits.RETENTION_AGE_MS), "bytes": "0", "count": "0", "max_bytes": "0",
    "max_count": "0", "quota": "", "state": "active",
}  # fmt: skip
QUOTA = "{q:0}:00000000-0000-8000-8000-000000000001"


def put(name: str = "lane:mail", expected: int | None = None, **changes: Any) -> c.PutSettingsArgs:
    packed = pack_pairs({key: str(value) for key, value in changes.items()})
    return c.PutSettingsArgs(partition=REGISTRY, name=name, changes=packed, expected_revision=expected)


async def listed(engine: Engine, after: int = 0, **options: Any) -> c.SettingsPage:
    return await engine.call(c.ListSettingsArgs(partition=REGISTRY, after_revision=after, **options))


async def reached(engine: Engine, partition: Any = P0) -> int:
    return (await engine.tick(partition)).settings


async def state_in(engine: Engine, partition: Any, lane: str = "mail") -> str:
    return (await engine.call(c.LaneStatsArgs(partition=partition, lane_id=lane))).state  # type: ignore[arg-type]


async def test_each_change_takes_the_next_revision_and_leaves_what_it_does_not_name(engine: Engine) -> None:
    first = await engine.call(put(state="paused"))
    assert first == c.Settings("lane:mail", 1, START_MS, DEFAULTS | {"state": "paused"}, True)
    await engine.advance(5)
    other = await engine.call(put("store", gate_pct=70))
    assert (other.revision, other.values) == (2, {"gate_bytes": "0", "gate_pct": "70"})
    second = await engine.call(put(aged_s=60))
    assert (second.revision, second.changed_at, second.values) == (
        3, START_MS + 5, DEFAULTS | {"state": "paused", "aged_s": "60"},
    )  # fmt: skip
    assert (await engine.call(put(aged_s=60))) == c.Settings("lane:mail", 3, START_MS + 5, second.values, False)


async def test_a_change_may_ask_that_nobody_came_before_it(engine: Engine) -> None:
    await engine.call(put(expected=0, state="paused"))
    said = await engine.refused("revision_conflict", put(expected=0, state="draining"))
    assert said == "at revision 1, not 0: read it again"
    assert not (await engine.call(put(expected=0, state="paused"))).changed, "the first call, sent again"
    assert (await engine.call(put(expected=1, state="active"))).revision == 2


async def test_records_are_listed_by_revision(engine: Engine) -> None:
    for lane in ("a", "b", "a"):
        await engine.call(put(f"lane:{lane}", count=(await listed(engine)).revision + 1))
    page = await listed(engine)
    assert ([(r.name, r.revision, r.values["count"]) for r in page.records], page.revision) == (
        [("lane:b", 2, "2"), ("lane:a", 3, "3")], 3,
    )  # fmt: skip
    assert [r.name for r in (await listed(engine, after=2)).records] == ["lane:a"]
    assert [r.name for r in (await listed(engine, limit=1)).records] == ["lane:b"]
    assert [r.revision for r in (await listed(engine, name="lane:b")).records] == [2]
    assert (await listed(engine, name="lane:none")).records == []
    assert await engine.refused("invalid_input", c.ListSettingsArgs(partition=REGISTRY), limit=0) == "limit"


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("mail", {}, "name is lane:<name>, weights:<name> or store"),
        ("lane:", {}, "name is lane:<name>, weights:<name> or store"),
        ("lane:a b", {}, "name is lane:<name>, weights:<name> or store"),
        ("lane:#1", {}, "name is lane:<name>, weights:<name> or store"),
        ("lane:" + "x" * 129, {}, "name is lane:<name>, weights:<name> or store"),
        ("lane:mail", {"state": "asleep"}, "state"),
        ("lane:mail", {"aged_s": -1}, f"aged_s is a whole number up to {limits.AGED_MAX_S}"),
        ("lane:mail", {"aged_s": limits.AGED_MAX_S + 1}, f"aged_s is a whole number up to {limits.AGED_MAX_S}"),
        ("lane:mail", {"age_ms": limits.SPAN_MAX_MS + 1}, f"age_ms is a whole number up to {limits.SPAN_MAX_MS}"),
        ("lane:mail", {"count": "many"}, "count is a whole number up to 9007199254740991"),
        ("lane:mail", {"bytes": 2**53}, "bytes is a whole number up to 9007199254740991"),
        ("lane:mail", {"gate_pct": 1}, "gate_pct is not a setting"),
        ("lane:mail", {"max_count": -1}, "max_count is a whole number up to 9007199254740991"),
        ("lane:mail", {"quota": "api"}, "quota"),
        ("lane:mail", {"quota": "{b:0}:00000000-0000-8000-8000-000000000001"}, "quota"),
        ("weights:a b", {"t1": 1}, "name is lane:<name>, weights:<name> or store"),
        ("weights:mail", {"t1": "x"}, "a weight is a number from 0.01 to 100"),
        ("weights:mail", {"t1": "1e1"}, "a weight is a number from 0.01 to 100"),
        ("weights:mail", {"t1": 101}, "a weight is a number from 0.01 to 100"),
        ("weights:mail", {"t1": "0.009"}, "a weight is a number from 0.01 to 100"),
        ("weights:mail", {"": 2}, "a fairness key is text of 1 to 512 bytes"),
        ("weights:mail", {"k" * 513: 2}, "a fairness key is text of 1 to 512 bytes"),
        ("weights:mail", {f"t{n}": 2 for n in range(1_001)}, "at most 1000 keys of a lane have weights"),
        ("store", {"gate_pct": 101}, "gate_pct is a whole number up to 100"),
        ("store", {"state": "paused"}, "state is not a setting"),
    ],
)
async def test_what_no_record_has_is_refused(engine: Engine, name: str, changes: dict[str, Any], said: str) -> None:
    assert await engine.refused("invalid_input", put(name, **changes)) == said
    assert await engine.refused("invalid_input", told(name, changes)) == said


async def test_settings_have_one_home_and_copies_in_the_partitions(engine: Engine) -> None:
    assert await engine.refused("invalid_input", put(state="paused"), partition=P0) == "settings are kept in {w:0}"
    assert await engine.refused("invalid_input", told("store", {}), partition=W0) == "partition"
    assert await engine.refused("invalid_input", put(), changes=b"9:a") == "values"


async def test_a_copy_is_taken_once_and_never_from_an_older_record(engine: Engine) -> None:
    await engine.submit()
    old, new = await engine.call(put(state="paused")), await engine.call(put(state="draining"))
    assert await engine.call(applying(new, P0)) == c.SettingsApplied(True, 0)
    assert await engine.call(applying(new, P0)) == c.SettingsApplied(False, 0)
    assert await engine.call(applying(old, P0)) == c.SettingsApplied(False, 1)
    assert await state_in(engine, P0) == "draining"
    assert await engine.call(applying(new, P0)) == c.SettingsApplied(False, 2)


async def test_a_partition_that_was_not_reached_says_so_and_catches_up(engine: Engine) -> None:
    """The ticker sees that the store is at a later revision than the partition, and brings what it lacks."""
    for id in (engine.new_id(P0), engine.new_id(P1)):
        await engine.submit(id=id)
    for record in (await engine.call(put(state="draining")), await engine.call(put(state="paused"))):
        await engine.call(applying(record, P0))
    await engine.call(applying(await engine.call(put("store", gate_pct=50)), P0))
    assert (await reached(engine, W0), await reached(engine), await reached(engine, P1)) == (3, 3, 0)
    for call in catching_up((await listed(engine, after=0)).records, P1, 0):
        await engine.call(call)
    assert await reached(engine, P1) == 3
    assert await state_in(engine, P1) == "paused"
    assert (await engine.call(c.ReadHeaderArgs(partition=P1))).fields["gate"] == "50 0"


async def test_a_lane_that_was_set_back_and_forgotten_does_not_hear_of_an_old_change(engine: Engine) -> None:
    """A call of the first fan-out that arrives after everything else."""
    late, last = await engine.call(put(state="paused")), await engine.call(put(state="active"))
    for call in catching_up((await listed(engine)).records, P0, 0):
        await engine.call(call)
    assert await engine.call(applying(last, P0)) == c.SettingsApplied(False, 2)
    assert await engine.call(applying(late, P0)) == c.SettingsApplied(False, 2)
    assert (await engine.call(c.ListLanesArgs(partition=P0))).lanes == [], "nothing but defaults makes no lane"


async def test_bounds_of_the_store_are_shared_out_rounded_up(engine: Engine) -> None:
    await engine.call(applying(await engine.call(put(count=5, bytes=1)), P0))
    assert (await engine.call(c.ReadHeaderArgs(partition=P0))).fields["r1"] == f"{limits.RETENTION_AGE_MS} 3 1"


async def test_records_are_bounded_and_those_that_say_nothing_make_room(engine: Engine) -> None:
    await engine.call(put("lane:idle", state="paused"))
    await engine.call(put("lane:idle", state="active"))
    row = await engine.command("HGET", f"ff:{REGISTRY}:settings", "lane:idle")
    busy = row.replace(b"6:active", b"6:paused")
    rows = [word for n in range(limits.LANES_N - 1) for word in (f"lane:l{n}", busy)]
    await engine.command("HSET", f"ff:{REGISTRY}:settings", *rows)
    await engine.call(put("lane:new", state="paused"))
    assert (await listed(engine, name="lane:idle")).records == []
    said = await engine.refused("too_many_names", put("lane:more", state="paused"))
    assert said == "4096 records of settings: set some back to their defaults"


async def test_a_lane_beyond_the_bound_of_a_partition_is_refused_there(engine: Engine) -> None:
    from tests.lua.test_lane import numbers_of

    await engine.submit()
    table = numbers_of(limits.LANES_N - 1)
    await engine.command("HSET", f"ff:{P0}:lanes", *table)
    await engine.refused("too_many_names", lane_told("new", state="paused"))
    await engine.call(lane_told("new"))
    await engine.command("HDEL", f"ff:{P0}:lanes", *table[::2])


async def test_weights_are_a_record_of_the_keys_that_do_not_weigh_one(engine: Engine) -> None:
    first = await engine.call(put("weights:mail", t2="2.50", t1="0.01", t3="1"))
    assert (first.revision, first.values) == (1, {"t1": "0.01", "t2": "2.5"})
    assert not (await engine.call(put("weights:mail", t2="2.5"))).changed, "what is not named stays"
    second = await engine.call(put("weights:mail", t1="1.0", t4="100"))
    assert (second.revision, second.values) == (2, {"t2": "2.5", "t4": "100"})
    (row,) = (await listed(engine, name="weights:mail")).records
    assert row.values == second.values
    assert (await engine.call(put("weights:mail", t2="", t4=1))).values == {}


async def test_a_partition_has_the_weights_it_was_told_last_and_no_others(engine: Engine) -> None:
    key = f"ff:{P0}:weights:1"
    first = await engine.call(put("weights:mail", t1=2, t2="0.5"))
    second = await engine.call(put("weights:mail", t1=1, t3=4))
    assert await engine.call(applying(first, P0, since=0)) == c.SettingsApplied(True, 1)
    assert await engine.command("HLEN", key) == 2
    assert await engine.call(applying(second, P0)) == c.SettingsApplied(True, 2)
    assert await engine.call(applying(first, P0)) == c.SettingsApplied(False, 2)
    assert sorted(await engine.command("HVALS", key)) == [b"0.5", b"4"]
    none = await engine.call(put("weights:mail", t2=1, t3=1))
    await engine.call(applying(none, P0))
    assert await engine.command("EXISTS", key) == 0
    await engine.call(applying(await engine.call(put("lane:other", state="paused")), P1))
    assert await engine.call(applying(await engine.call(put("weights:new", t1=1)), P1, since=0)) == c.SettingsApplied(
        False, 5
    ), "of a lane nobody uses here there is nothing to say"


async def test_records_of_weights_that_say_nothing_make_room(engine: Engine) -> None:
    await engine.call(put("weights:old", t1=2))
    await engine.call(put("weights:old", t1=1))
    rows = [word for n in range(limits.LANES_N - 1) for word in (f"lane:l{n}", f"{n + 10} 0 5:state6:paused")]
    for at in range(0, len(rows), 2_000):
        await engine.command("HSET", f"ff:{W0}:settings", *rows[at : at + 2_000])
    await engine.call(put("lane:new", state="paused"))
    await engine.refused("too_many_names", put("lane:newer", state="paused"))
    assert (await listed(engine, name="weights:old")).records == []


async def test_a_page_of_large_records_ends_before_its_answer_is_too_large(engine: Engine) -> None:
    weights = {f"{n:03}" + "k" * 500: 2 for n in range(1_000)}
    for lane in ("a", "b", "c"):
        await engine.call(put(f"weights:{lane}", **weights))
    page = await listed(engine)
    assert [row.name for row in page.records] == ["weights:a", "weights:b"]
    assert [row.name for row in (await listed(engine, after=2)).records] == ["weights:c"]


async def test_a_lane_is_told_its_quota_and_forgets_it(engine: Engine) -> None:
    await engine.submit()
    await engine.call(lane_told(quota=QUOTA))
    id = await engine.submit()
    assert (await engine.call(c.ExplainArgs(execution_id=id))).lane_quota == QUOTA
    await engine.call(lane_told(quota=""))
    assert (await engine.call(c.ExplainArgs(execution_id=id))).lane_quota == ""
