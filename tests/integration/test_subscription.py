"""Subscriptions on a real server: what happens in all partitions, and cursors that go on exactly behind an event."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from typing import Any

import pytest

import ffsdk as ff
from ffcore.args import Args
from ffcore.errors import Rejected
from ffsdk.events import parse_cursor
from tests.integration import test_client as base
from tests.integration.proxy import until

server_url, url, app, client, working = base.server_url, base.url, base.app, base.client, base.working


@pytest.fixture(autouse=True)
def secret(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FF_SECRET_FILE", "FF_SECRETS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FF_SECRET", f"k1:{secrets.token_hex(32)}")


async def test_an_event_of_a_purged_job_still_names_its_lane(client: ff.Client) -> None:
    await client.submit("double", 1, lane="mail")
    await client.cancel_many(lane="mail")
    assert (await client.purge_many(lane="mail")).done == 1
    async with client.subscribe("completion", after="-") as events:
        event = await anext(events)
    assert (event.lane, event.to_state) == ("mail", "cancelled")


async def test_a_subscription_hears_every_partition_once(client: ff.Client) -> None:
    async with client.subscribe("completion") as events:
        jobs = await client.submit_many("double", range(30))
        await client.cancel_many(lane="default")
        heard = [(await anext(events)).execution_id for _ in jobs]
    assert sorted(filter(None, heard)) == sorted(job.id for job in jobs)


async def test_any_cursor_goes_on_exactly_behind_its_event(client: ff.Client, working: None) -> None:
    """Completions are folded: one entry of the feed holds several events, and a cursor may stand between them."""
    jobs = await client.submit_many("double", range(40))
    await asyncio.gather(*(job.outcome(timeout=10) for job in jobs))
    events = client.subscribe("completion", after="-")
    first = [await anext(events) for _ in jobs]
    for at in (0, 7, 20, 38):
        resumed = client.subscribe("completion", after=first[at].cursor)
        rest = [(await anext(resumed)).execution_id for _ in first[at + 1 :]]
        assert sorted(filter(None, rest)) == sorted(str(event.execution_id) for event in first[at + 1 :])


async def test_a_cursor_that_the_feed_has_forgotten_is_refused(client: ff.Client) -> None:
    """Silence would be a gap nobody notices."""

    class Trimmed(base.Counting):
        async def call_all(self, batch: Sequence[Args[Any]]) -> list[Any]:
            return [Rejected.by_code["cursor_expired"]("gone", code="cursor_expired") for _ in batch]

    client._backend = Trimmed(client.backend)  # type: ignore[assignment]
    with pytest.raises(ff.InvalidArgument) as refused:
        await anext(client.subscribe("completion", after="-"))
    assert refused.value.code == "cursor_expired"


async def test_leases_and_operators_have_feeds_of_their_own(client: ff.Client, working: None) -> None:
    leases, operators = client.subscribe("lease", after="-"), client.subscribe("operator", after="-")
    job = await client.submit("double", 4)
    await job.outcome(timeout=10)
    event = await anext(leases)
    assert (event.execution_id, event.to_state) == (job.id, "active") and event.worker
    await client.lane("default").pause()
    event = await anext(operators)
    assert event.execution_id is None and event.lane == "default" and "paused" in event.detail


async def test_a_lease_event_names_the_worker_and_not_its_lease(client: ff.Client, working: None) -> None:
    leases = client.subscribe("lease", after="-")
    job = await client.submit("double", 4)
    await job.outcome(timeout=10)
    (listed,) = [found async for found in client.jobs()]
    assert listed.info is not None and listed.info.worker
    assert (await anext(leases)).worker == listed.info.worker


async def test_a_hold_what_it_stops_and_its_end_are_the_operators_feed(client: ff.Client, working: None) -> None:
    async with client.subscribe("operator") as operators:
        await client.hold(task="double", reason="the provider is down")
        job = await client.submit("double", 4)
        partitions = len(client.backend.config.keys())
        heard = [await anext(operators) for _ in range(partitions + 1)]
        assert [event.detail for event in heard].count("hold task:double") == partitions
        assert [event.detail for event in heard if event.execution_id == job.id] == ["held task:double"]
        await client.release(task="double")
        assert await job.result(timeout=10) == 8
        heard = [await anext(operators) for _ in range(partitions + 1)]
        assert [event.detail for event in heard].count("release task:double") == partitions
        assert [event.detail for event in heard if event.execution_id == job.id] == ["released"]


async def test_signals_have_a_feed_that_says_what_became_of_them(app: ff.App, client: ff.Client) -> None:
    tokens: list[str] = []

    @app.task
    async def asking(_: None, ctx: ff.Context) -> Any:
        gate = await ctx.gate("approval", str, names=["yes"])
        tokens.append(gate.token)
        return await gate.wait()

    worker = app.worker(concurrency=1)
    running = asyncio.create_task(worker.run())
    await worker.started.wait()
    async with client.subscribe("signal") as signals, client.subscribe("lease") as leases:
        job = await client.submit(asking)
        await until(lambda: tokens, "the gate")
        for name in ("maybe so", "yes"):
            await client.signal(tokens[0], "dana", name=name, key=name)
            await client.signal(tokens[0], "dana", name=name, key=name)
        assert await job.result(timeout=10) == "dana"
        heard = [await anext(signals) for _ in range(2)]
        assert [(event.signal, event.execution_id, event.lane) for event in heard] == [
            ("maybe so", job.id, "default"), ("yes", job.id, "default"),
        ]  # fmt: skip
        assert [event.effect for event in heard][1] in ("resume_condition_satisfied", "appended_to_waitpoint")
        assert heard[0].waitpoint_id == heard[1].waitpoint_id and heard[0].waitpoint_id
        again = client.subscribe("signal", after=heard[0].cursor)
        assert (await anext(again)).signal == "yes"
        first = await anext(leases)
        assert (first.to_state, first.signal) == ("active", None)
    await worker.stop()
    await running


async def test_an_operators_deeds_to_a_job_are_told(client: ff.Client) -> None:
    async with client.subscribe("operator", lanes=["mail"]) as operators:
        job = await client.submit("double", 1, lane="mail")
        await job.pause("look at it first")
        await job.resume()
        await client.submit("double", 1, lane="other")
        await client.lane("other").pause()
        await client.lane("mail").pause()
        heard = [await anext(operators) for _ in range(2)]
        assert [(event.execution_id, event.lane, event.detail) for event in heard] == [
            (job.id, "mail", "paused"), (job.id, "mail", "resumed"),
        ]  # fmt: skip
        assert [event.to_state for event in heard] == ["waiting", "waiting"]
        partitions = len(client.backend.config.keys())
        lanes = {(await anext(operators)).lane for _ in range(partitions)}
        assert lanes == {"mail"}


async def test_a_feed_is_narrowed_by_lane_tags_and_namespace(app: ff.App, client: ff.Client) -> None:
    async with ff.connect(app.url) as plain, ff.Client(app.url, namespace="shop") as shop:
        wanted = []
        for which, lane, tags in [
            (plain, "a", {"shop.tenant": "t1"}), (plain, "a", {}), (plain, "b", {"shop.tenant": "t1"}),
            (shop, "a", {"shop.tenant": "t1", "shop.plan": "x"}), (shop, "b", {"shop.tenant": "t2"}),
        ]:  # fmt: skip
            wanted.append(await which.submit("double", 1, lane=lane, tags=tags))
        ids = [job.id for job in wanted]
        for job in wanted:
            await job.cancel()

        async def heard(n: int, **filters: Any) -> list[str | None]:
            events = client.subscribe("completion", after="-", **filters)
            return sorted([(await anext(events)).execution_id for _ in range(n)], key=lambda id: ids.index(str(id)))

        assert await heard(3, lanes=["a"]) == [ids[0], ids[1], ids[3]]
        assert await heard(3, tags={"shop.tenant": "t1"}) == [ids[0], ids[2], ids[3]]
        assert await heard(2, namespace="shop") == [ids[3], ids[4]]
        assert await heard(1, namespace="shop", tags={"shop.tenant": "t1"}, lanes=["a"]) == [ids[3]]
        assert await heard(1, tags={"shop.tenant": "t1"}, namespace="default", lanes=["b"]) == [ids[2]]


async def test_what_retention_removed_has_neither_tags_nor_a_namespace(client: ff.Client) -> None:
    tags = {"shop.tenant": "t1"}
    gone = await client.submit("double", 1, lane="gone", tags=tags)
    await gone.cancel()
    assert (await client.purge_many(lane="gone")).done == 1
    kept = await client.submit("double", 1, lane="kept", tags=tags)
    await kept.cancel()
    assert (await anext(client.subscribe("completion", after="-", tags=tags))).execution_id == kept.id
    assert (await anext(client.subscribe("completion", after="-", namespace="default"))).execution_id == kept.id


@pytest.mark.parametrize("options", [
    {"kind": "frames"}, {"kind": "lease", "lanes": "mail"}, {"kind": "lease", "namespace": "a b"},
    {"kind": "lease", "tags": {"x": "y"}},
])  # fmt: skip
async def test_a_filter_that_makes_no_sense_is_refused(client: ff.Client, options: Any) -> None:
    with pytest.raises(ff.InvalidArgument):
        client.subscribe(**options)


@pytest.mark.parametrize("cursor", ["", "x", "1-1", "1-1.2-2.3-3.4-4.5-5", "1-1.2-2.3-3.4", "a.b.c.d"])
async def test_a_cursor_of_another_store_is_refused(client: ff.Client, cursor: str) -> None:
    with pytest.raises(ff.InvalidArgument, match="cursor"):
        parse_cursor(cursor, client.backend.config.keys())
    with pytest.raises(ff.InvalidArgument):
        await anext(client.subscribe("completion", after=cursor))
