"""ff_create_execution, ff_create_many: how an execution comes to be, and what is refused."""

from __future__ import annotations

from hashlib import sha1
from typing import Any

import pytest

import ffcore.contracts as c
from ffcore import limits
from ffcore.errors import StoreFull
from ffcore.policy import RoutingRequirements
from ffcore.states import PublicState
from ffcore.wire import pack_pairs
from tests.lua.conftest import servers_that_can
from tests.lua.engine import P0, START_MS, Engine, cancel, lane_told, missing, timeouts
from tests.lua.test_lane import numbers_of


async def test_a_created_execution_waits_with_everything_it_was_given(engine: Engine) -> None:
    id = await engine.submit(
        namespace="shop",
        priority=7,
        creator_identity="dana",
        tags={"shop.tenant": "a b"},
        version=3,
        payload_encoding="msgpack",
    )
    x = await engine.read(id, "payload")
    assert (x.fields["state"], x.fields["next"], x.fields["priority"], x.fields["version"]) == (
        "ready",
        "initial",
        "7",
        "3",
    )
    assert (x.fields["namespace"], x.fields["payload_encoding"], x.texts["creator"]) == ("shop", "msgpack", "dana")
    assert (x.lane_id, x.tags, x.payload) == ("mail", {"shop.tenant": "a b"}, b"hello")
    assert x.fields["created_at"] == str(START_MS)


async def test_create_answers_the_public_state(engine: Engine) -> None:
    assert await engine.call(engine.creation(id := engine.new_id())) == c.Created(id, PublicState.WAITING)
    later = engine.creation(id := engine.new_id(), delay_until=START_MS + 1)
    assert await engine.call(later) == c.Created(id, PublicState.DELAYED)


async def test_the_same_create_again_is_a_duplicate_in_every_state(engine: Engine) -> None:
    id = engine.new_id()
    await engine.submit(id=id)
    assert await engine.call(engine.creation(id)) == c.Duplicate(id)
    (job,) = await engine.claim()
    assert await engine.call(engine.creation(id)) == c.Duplicate(id)
    await engine.complete(job)
    assert await engine.call(engine.creation(id)) == c.Duplicate(id)


async def test_another_request_under_the_same_id_is_a_conflict_and_changes_nothing(engine: Engine) -> None:
    id = await engine.submit()
    assert (
        await engine.refused("idempotency_conflict", engine.creation(id, digest=b"e" * 16, input_payload=b"other"))
        == id
    )
    assert (await engine.read(id, "payload")).payload == b"hello"


async def test_a_duplicate_is_answered_even_where_a_new_one_would_be_refused(engine: Engine) -> None:
    id = await engine.submit()
    await engine.call(lane_told("mail", state="disabled"))
    assert await engine.call(engine.creation(id)) == c.Duplicate(id)
    await engine.refused("lane_closed", engine.creation())


async def test_a_purged_keyed_execution_keeps_its_key_until_the_window_ends(engine: Engine) -> None:
    """Without the tombstone a submit that is sent again a minute later would run the job twice."""
    id = engine.new_id(key="order-81")
    await engine.submit(id=id, policy={"dedup_window_ms": 100_000})
    (job,) = await engine.claim()
    await engine.complete(job)
    await engine.advance(1_000)
    await engine.call(c.PurgeArgs(partition=P0, lane_id="mail", outcome="completed", before_ms=engine.now))
    assert await engine.call(engine.creation(id)) == c.Duplicate(id)
    await engine.refused("idempotency_conflict", engine.creation(id, digest=b"e" * 16))
    await engine.at(START_MS + 100_000)
    assert await engine.call(engine.creation(id)) == c.Duplicate(id)
    await engine.at(START_MS + 100_001)
    assert isinstance(await engine.call(engine.creation(id)), c.Created)


async def test_a_purged_execution_without_a_key_leaves_nothing(engine: Engine) -> None:
    job = await engine.running()
    await engine.complete(job)
    await engine.call(c.PurgeArgs(partition=P0, lane_id="mail", outcome="completed", before_ms=engine.now))
    assert isinstance(await engine.call(engine.creation(job.execution_id)), c.Created)


async def test_a_delay_is_over_exactly_at_its_time(engine: Engine) -> None:
    id = await engine.submit(delay_until=START_MS + 500)
    assert (await engine.timers())[f"delay:{id.partition(':')[2].partition(':')[2]}"] == START_MS + 500
    await engine.advance(499)
    assert await engine.claim() == []
    await engine.advance(1)
    assert [job.execution_id for job in await engine.claim()] == [id]


async def test_a_delay_in_the_past_is_none(engine: Engine) -> None:
    id = await engine.submit(delay_until=START_MS)
    assert await engine.state(id) == "ready"


async def test_the_policy_gives_priority_delay_and_deadline_where_the_call_does_not(engine: Engine) -> None:
    policy = {"priority": 9, "delay_until": START_MS + 50, **timeouts(execution_deadline_ms=1_000)}
    id = await engine.submit(policy=policy)
    fields = (await engine.read(id)).fields
    assert (fields["priority"], fields["deadline_at"], fields["deadline_ms"]) == ("9", str(START_MS + 1_000), "1000")
    assert fields["state"] == "delayed"


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("lane_id", "", "lane_id"), ("lane_id", "a b", "lane_id"), ("lane_id", "{x}", "lane_id"), ("lane_id", "#1",
        "lane_id"),
        ("lane_id", "x" * 129, "lane_id"), ("execution_kind", "", "execution_kind"), ("execution_kind", "a\n",
        "execution_kind"),
        ("namespace", "", "namespace"), ("namespace", "a}b", "namespace"), ("priority", 101, "priority"),
        ("priority", -101, "priority"), ("creator_identity", "x" * 513, "creator_identity"), ("version", 0, "version"),
        ("version", 10**10, "version"), ("delay_until", -1, "delay_until"), ("delay_until", 2**52, "delay_until"),
        ("execution_deadline_at", -1, "execution_deadline_at"), ("execution_deadline_at", 2**52,
        "execution_deadline_at"),
        ("digest", b"", "digest"), ("digest", b"d" * 33, "digest"), ("payload_encoding", "x" * 129, "payload_encoding"),
    ],
)  # fmt: skip
async def test_bad_input_is_refused_by_name(engine: Engine, field: str, value: Any, said: str) -> None:
    assert await engine.refused("invalid_input", engine.creation(), **{field: value}) == said


@pytest.mark.parametrize("packed", [b"3:a.b", b"x:a.b1:c", b"1:a", b"-1:a1:b", b"1:a1:b" * 65, b":a"])
async def test_tags_that_cannot_be_unpacked_are_refused(engine: Engine, packed: bytes) -> None:
    answer = await engine.raw("ff_create_many", P0, *many(engine.new_id(), tags=b"=" + packed))
    assert answer[1] == [[b"error", b"invalid_input"]]


def many(id: str, payload: bytes = b"", tags: bytes = b"", key: bytes = b"") -> list[Any]:
    """The words of an ff_create_many of one row."""
    return ["default", "mail", "send", 1, "", 0, "", "", "", "", 1, id, b"d" * 16, payload, key, tags, ""]


@pytest.mark.parametrize("key", ["tenant", "Shop.tenant", "shop.", ".x", "shop.a b", "x." + "y" * 130])
async def test_a_tag_key_without_a_namespace_is_refused(engine: Engine, key: str) -> None:
    assert await engine.refused("invalid_tag_key", engine.creation(), tags={key: "v"}) == key


async def test_a_tag_value_that_is_too_long_is_refused_and_any_text_survives(engine: Engine) -> None:
    await engine.refused("invalid_input", engine.creation(), tags={"a.b": "x" * 257})
    tags = {"a.b": "1:x2:yz \n{}=,\0", "a.c": "", "a.d": "é" * 100}
    assert (await engine.read(await engine.submit(tags=tags))).tags == tags


@pytest.mark.parametrize(
    "policy",
    [
        "", "nonsense", "7", '"x"', '{"priority":"high"}', '{"max_reclaim_count":"many"}',
        '{"retry_policy":{"max_retries":{}}}',
        '{"lease_ms":1}', '{"lease_ms":1e99}', '{"timeout_policy":{"attempt_timeout_ms":-5}}',
        '{"dedup_window_ms":1.5}',
        '{"retry_policy":{"backoff":{"type":"fixed","delay_ms":"x"}}}', '{"retry_policy":{"retryable_categories":7}}',
        '{"retry_policy":{"backoff":7}}',
    ],
)  # fmt: skip
async def test_a_policy_that_cannot_be_honoured_is_refused_at_the_door(engine: Engine, policy: str) -> None:
    """A bad number that is found only when the lease expires would stop the tick of its whole partition."""
    row = many(engine.new_id())
    row[7] = "=" + policy
    assert (await engine.raw("ff_create_many", P0, *row))[1] == [[b"error", b"invalid_policy_json"]]


async def test_a_policy_that_is_not_json_is_refused(engine: Engine) -> None:
    creation = engine.creation(policy={"max_replay_count": 1})
    await engine.refused("invalid_policy_json", creation, policy="not a policy")


@pytest.mark.parametrize("tokens", [7, [7], [""], ["a,b"], ["a b"], ["x" * 5_000], ["x"] * 257])
async def test_capabilities_that_no_worker_can_have_are_refused(engine: Engine, tokens: Any) -> None:
    import msgspec

    row = many(engine.new_id())
    row[7] = b"=" + msgspec.json.encode({"routing_requirements": {"required_capabilities": tokens}})
    assert (await engine.raw("ff_create_many", P0, *row))[1] == [[b"error", b"invalid_capabilities"]]


async def test_create_refuses_capabilities_and_sizes_alone(engine: Engine) -> None:
    creation = engine.creation(
        policy={"routing_requirements": RoutingRequirements(required_capabilities=frozenset({"gpu"}))}
    )
    from tests.lua.engine import force

    force(creation.policy.routing_requirements, required_capabilities=["a b"])
    await engine.refused("invalid_capabilities", creation)
    too_large = b"x" * (limits.PAYLOAD_BYTES + 1)
    assert await engine.refused("payload_too_large", engine.creation(), input_payload=too_large) == str(len(too_large))
    await engine.submit(input_payload=b"x" * limits.PAYLOAD_BYTES)


@pytest.mark.parametrize("state", ["draining", "disabled"])
async def test_a_closed_lane_takes_nothing_new(engine: Engine, state: str) -> None:
    await engine.call(lane_told("mail", state=state))
    assert await engine.refused("lane_closed", engine.creation()) == state
    await engine.submit(lane_id="other")


async def test_a_paused_lane_takes_work(engine: Engine) -> None:
    await engine.call(lane_told("mail", state="paused"))
    await engine.submit()
    assert await engine.claim() == []


async def test_lane_names_are_bounded(engine: Engine) -> None:
    await engine.submit()
    table = numbers_of(limits.LANES_N - 1)
    await engine.command("HSET", f"ff:{P0}:lanes", *table)
    detail = await engine.refused("too_many_names", engine.creation(lane_id="one-more"))
    assert detail == "4096 lanes are in use here; one that is idle for ten minutes is forgotten"
    await engine.submit()
    await engine.command("HDEL", f"ff:{P0}:lanes", *table[::2])


async def fill_policies(engine: Engine, n: int) -> None:
    """As if so many others had been stored here; nobody uses them."""
    rows: list[Any] = ["n", 1000 + n]
    for i in range(1000, 1000 + n):
        rows += [sha1(f"{i}".encode()).hexdigest()[:20], i, f"#{i}", f"{i}"]
    await engine.command("HSET", f"ff:{P0}:policies", *rows)


async def test_policies_nobody_uses_are_forgotten(engine: Engine) -> None:
    """Else the table would be full for good some day. A policy that is used only by a job that moves while the walk is
    under way counts as used."""
    kept = [await engine.submit(policy={"max_replay_count": n}) for n in range(1, 4)]
    for job in await engine.claim(2):
        await engine.complete(job)
    await fill_policies(engine, limits.POLICIES_N // 2)
    await engine.submit(policy={"max_replay_count": 4})
    (row,) = await engine.command("HMGET", f"ff:{P0}", "marking")
    assert row == b"walk"
    await engine.claim(9)
    for _ in range(40):
        await engine.submit(policy={"max_replay_count": 5})
        await engine.tick()
    left = await engine.command("HGETALL", f"ff:{P0}:policies")
    texts = [left[i + 1] for i in range(0, len(left), 2) if left[i].startswith(b"#")]
    assert len(texts) == 5 and len(left) == 2 * (2 * 5 + 1), "of each its number and digest; and the last number"
    assert all(any(b'"max_replay_count":%d,' % n in text for text in texts) for n in range(1, 6))
    for n, id in enumerate(kept, 1):
        assert b'"max_replay_count":%d,' % n in (await engine.read(id)).policy
    header = (await engine.call(c.ReadHeaderArgs(partition=P0))).fields
    assert not {"marking", "swept", "walk_policies"} & header.keys() and header["v"] == "1"
    assert await engine.command("EXISTS", f"ff:{P0}:marks") == 0


async def header(engine: Engine) -> dict[str, str]:
    return (await engine.call(c.ReadHeaderArgs(partition=P0))).fields


async def walked_to(engine: Engine, word: str) -> None:
    """The walk over the records stands there."""
    for _ in range(100):
        await engine.tick(limit=5)
        if f" {word}" in (await header(engine)).get("walk_policies", ""):
            return
    raise AssertionError("the walk never came there")


async def test_policies_of_jobs_put_aside_during_the_walk_are_kept(engine: Engine) -> None:
    """An order that is left stands under another key, which the walk must have before it still."""
    await engine.tick()
    ids = [await engine.submit(policy={"max_replay_count": n}) for n in range(1, 4)]
    await engine.submit_many(60, delay_until=engine.now + 10**9)
    await fill_policies(engine, limits.POLICIES_N // 2)
    await engine.submit(policy={"max_replay_count": 4}, lane_id="other")
    await walked_to(engine, "delayed ")
    await engine.call(lane_told(aged_s=10))
    await engine.command("ZREM", f"ff:{P0}:timers", "order:1")  # the walk ends before the move
    for _ in range(60):
        await engine.tick()
    assert "marking" not in await header(engine)
    await engine.command("ZADD", f"ff:{P0}:timers", engine.now, "order:1")
    for n, id in enumerate(ids, 1):
        assert b'"max_replay_count":%d,' % n in (await engine.read(id)).policy


async def test_the_policy_of_a_job_that_gives_its_turn_away_during_the_walk_is_kept(engine: Engine) -> None:
    """It falls back behind where the walk has been."""
    await engine.tick()
    await engine.call(lane_told(aged_s=10))
    first = await engine.submit(policy={"max_replay_count": 1}, fairness_key="k")
    rest = [await engine.submit(fairness_key="k", priority=n // 19) for n in range(20)]
    await fill_policies(engine, limits.POLICIES_N // 2)
    await engine.submit(policy={"max_replay_count": 4}, lane_id="other", delay_until=engine.now + 10**9)
    await walked_to(engine, "ready:")
    (job,) = await engine.claim()
    assert job.execution_id == rest[-1]
    for _ in range(60):
        await engine.tick()
    assert "marking" not in await header(engine)
    assert b'"max_replay_count":1,' in (await engine.read(first)).policy


async def test_a_policy_beyond_the_table_is_kept_with_its_execution(engine: Engine) -> None:
    await engine.submit(policy={"max_replay_count": 1})
    await fill_policies(engine, limits.POLICIES_N - 1)
    id = await engine.submit(policy={"max_replay_count": 2})
    assert b'"max_replay_count":2' in (await engine.read(id)).policy
    jobs = await engine.claim(2)
    assert {job.policy for job in jobs} == {(await engine.read(job.execution_id)).policy for job in jobs}


# ---- many --------------------------------------------------------------------------------------------


async def test_each_row_of_a_batch_is_answered_on_its_own(engine: Engine) -> None:
    """A refused row must cost its neighbours nothing."""
    known = await engine.submit()
    rows = [
        c.NewExecution(engine.new_id(), b"d" * 16, b"1"),
        c.NewExecution(known, b"d" * 16, b"2"),
        c.NewExecution(known, b"e" * 16, b"3"),
        c.NewExecution("{fp:1}:00000000-0000-7000-8000-000000000000", b"d" * 16, b"4"),  # type: ignore[arg-type]
        c.NewExecution(engine.new_id(), b"d" * 16, b"x" * (limits.PAYLOAD_BYTES + 1)),
        c.NewExecution(engine.new_id(), b"d" * 16, b"6", tags=pack_pairs({"bad": "v"})),
        c.NewExecution(engine.new_id(), b"d" * 40, b"7"),
        c.NewExecution(engine.new_id(), b"d" * 16, b"8", tags=pack_pairs({"a.b": "v"}), fairness_key="t"),
    ]
    batch = c.CreateManyArgs(partition=P0, namespace="default", lane_id="mail", execution_kind="send", items=rows)
    answer = await engine.call(batch)
    assert [(i.state, i.detail) for i in answer.items] == [
        ("created", "waiting"), ("duplicate", "ready"), ("error", "idempotency_conflict"), ("error", "invalid_input"),
        ("error", "payload_too_large"), ("error", "invalid_tag_key"), ("error", "invalid_input"), ("created",
        "waiting"),
    ]  # fmt: skip
    again = await engine.call(batch)
    assert [i.state for i in again.items] == ["duplicate", "duplicate", *["error"] * 5, "duplicate"]


async def test_the_same_id_twice_in_one_batch_is_created_once(engine: Engine) -> None:
    rows = [c.NewExecution(id := engine.new_id(), b"d" * 16, b"1"), c.NewExecution(id, b"d" * 16, b"1")]
    answer = await engine.call(
        c.CreateManyArgs(partition=P0, namespace="default", lane_id="mail", execution_kind="send", items=rows)
    )
    assert [i.state for i in answer.items] == ["created", "duplicate"]


async def test_what_all_rows_share_refuses_all_new_rows(engine: Engine) -> None:
    known = await engine.submit()
    await engine.call(lane_told("mail", state="draining"))
    rows = [c.NewExecution(known, b"d" * 16, b""), c.NewExecution(engine.new_id(), b"d" * 16, b"")]
    given: dict[str, Any] = {"partition": P0, "namespace": "default", "execution_kind": "send", "items": rows}
    answer = await engine.call(c.CreateManyArgs(lane_id="mail", **given))
    assert [(i.state, i.detail) for i in answer.items] == [("duplicate", "ready"), ("error", "lane_closed")]
    answer = await engine.call(c.CreateManyArgs(lane_id="mail", priority=500, **given))
    assert [i.detail for i in answer.items] == ["ready", "invalid_input"]


async def test_a_batch_shares_delay_deadline_and_tags_do_not_leak_between_rows(engine: Engine) -> None:
    rows = [
        c.NewExecution(engine.new_id(), b"d" * 16, b"1", tags=pack_pairs({"a.b": "1"})),
        c.NewExecution(engine.new_id(), b"d" * 16, b"2"),
    ]
    given: dict[str, Any] = {"namespace": "n", "lane_id": "mail", "execution_kind": "send", "creator_identity": ""}
    await engine.call(
        c.CreateManyArgs(
            partition=P0,
            items=rows,
            delay_until=START_MS + 10,
            execution_deadline_at=START_MS + 99,
            priority=3,
            **given,
        )
    )
    first, second = [await engine.read(row.execution_id, "payload") for row in rows]
    assert (first.tags, second.tags, first.payload, second.payload) == ({"a.b": "1"}, {}, b"1", b"2")
    assert first.fields["deadline_at"] == second.fields["deadline_at"] == str(START_MS + 99)
    assert "detail" not in second.fields


@pytest.mark.parametrize("server", servers_that_can("oom"), indirect=True)
async def test_a_full_store_takes_no_new_work_and_lets_the_old_finish(engine: Engine) -> None:
    ids = [await engine.submit() for _ in range(3)]
    await engine.command("CONFIG", "SET", "maxmemory", "1")
    try:
        with pytest.raises(StoreFull) as caught:
            await engine.call(engine.creation())
        assert caught.value.code == "store_full"
        for job in await engine.claim(2):
            await engine.complete(job, b"r" * 1_000)
        assert isinstance(await engine.call(cancel(ids[2])), c.Cancelled)
    finally:
        await engine.command("CONFIG", "SET", "maxmemory", "0")


async def test_an_id_that_nobody_created_is_not_found(engine: Engine) -> None:
    await engine.refused("execution_not_found", c.ReadExecutionArgs(execution_id=missing()))
