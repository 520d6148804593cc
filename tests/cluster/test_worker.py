"""Client and worker on a cluster: jobs drain, bells ring, and what a user sees is what he sees on one server."""

from __future__ import annotations

import asyncio

import msgspec

import ffcore.contracts as c
import ffsdk as ff
from ffbackend_valkey.cluster_backend import ClusterBackend
from ffcore import ids
from tests.cluster.cluster import Cluster
from tests.integration.proxy import until
from tests.integration.worker_app import Order, working


async def test_jobs_drain_through_a_worker_from_every_primary(
    app: ff.App, backend: ClusterBackend, cluster: Cluster
) -> None:
    @app.task(lane="orders")
    async def double(order: Order) -> int:
        return order.number * 2

    async with app.client() as client, working(app):
        jobs = await client.submit_many(double, [Order(n) for n in range(400)])
        results = await asyncio.gather(*(job.result(timeout=30) for job in jobs))
    assert results == [n * 2 for n in range(400)]
    owners = {cluster.owner(ids.slot_of(key)) for key in backend.config.keys("fp")}
    assert {cluster.owner(ids.slot_of(ids.partition_of(job.id))) for job in jobs} == owners
    assert len(owners) > 1


async def test_an_idle_worker_is_rung_wherever_the_job_lies(app: ff.App, backend: ClusterBackend) -> None:
    """Its parks last for seconds, a bell takes a moment; both are counted by the calls that claim."""
    started = asyncio.Event()

    @app.task(lane="orders")
    async def double(order: Order) -> int:
        started.set()
        return order.number * 2

    async with app.client() as client, working(app) as worker:
        slots = worker._slots
        await until(lambda: all(part.parked_until > 0 for part in slots.parts), "the worker to be parked everywhere")
        for n in range(24):
            started.clear()
            job = await client.submit(double, Order(n))
            assert await job.result(timeout=10) == 2 * n


async def test_a_long_job_keeps_its_lease_through_the_renewal_thread(app: ff.App) -> None:
    @app.task(lane="orders", lease=1)
    async def slow(order: Order) -> int:
        await asyncio.sleep(2.2)
        return order.number

    async with app.client() as client, working(app):
        jobs = await client.submit_many(slow, [Order(n) for n in range(8)])
        assert await asyncio.gather(*(job.result(timeout=20) for job in jobs)) == list(range(8))
        assert [(await job.status()).attempt for job in jobs] == [0] * 8


async def test_listings_bulk_changes_and_lanes_cover_all_partitions(app: ff.App) -> None:
    @app.task(lane="orders")
    async def never(order: Order) -> None:
        raise AssertionError("nothing runs it")

    async with app.client() as client:
        made = await client.submit_many(never, [Order(n) for n in range(100)])
        assert {job.id async for job in client.jobs(state="waiting", lane="orders")} == {job.id for job in made}
        assert (await client.lane("orders").pause()).complete
        assert (await client.lane("orders").stats()).state == "paused"
        assert (await client.cancel_many(lane="orders", state="waiting")).count == 100
        seen = [event async for event in _first(client.subscribe("completion", after="-"), 100)]
    assert {event.execution_id for event in seen} == {job.id for job in made}


def new_ids(partition: ids.PartitionKey, n: int) -> list[ids.ExecutionId]:
    return [ids.ExecutionId(f"{partition}:{ids.uuid7()}") for _ in range(n)]


async def _first(events: ff.Subscription, n: int):  # type: ignore[no-untyped-def]
    async for event in events:
        yield event
        n -= 1
        if n == 0:
            return


async def test_a_worker_goes_on_with_the_other_primaries_while_one_is_gone_for_good(
    app: ff.App, backend: ClusterBackend, cluster: Cluster
) -> None:
    """A primary and its replica are down: what lies there waits, what lies elsewhere is run, retried and awaited."""
    tried: set[str] = set()

    @app.task(lane="orders", retry=ff.Retry(max_attempts=2, backoff=0.1, jitter=False))
    async def second_time(order: Order, ctx: ff.Context) -> int:
        if ctx.attempt == 0:
            tried.add(ctx.execution_id)
            raise ff.Failure("not yet")
        return order.number

    # The whole shard is away; without this the others would refuse everything until somebody took its slots.
    for node in cluster.nodes:
        node.ask("CONFIG", "SET", "cluster-require-full-coverage", "no")
    victim = cluster.owner(ids.slot_of(ids.partition_key(0)))
    elsewhere = [key for key in backend.config.keys("fp") if cluster.owner(ids.slot_of(key)) is not victim]
    down = [victim, *cluster.replicas_of(victim)]
    async with app.client() as client, working(app, concurrency=8) as worker:
        assert await (await client.submit(second_time, Order(0))).result(timeout=10) == 0
        raws = [msgspec.json.encode(Order(n)) for n in range(10)]
        for node in down:
            await asyncio.to_thread(node.kill)
        gone = [part for part in worker._slots.parts if part.key not in elsewhere]
        asked = {part: part.asked for part in gone}
        await until(
            lambda: all(part.asked > asked[part] or part.flying for part in gone), "the worker to ask in vain", 30
        )
        rows = {
            key: [c.NewExecution(id, b"d" * 16, raw) for id, raw in zip(new_ids(key, len(raws)), raws, strict=True)]
            for key in elsewhere
        }
        for key, items in rows.items():
            created = await backend.call(c.CreateManyArgs(
                partition=key, namespace="default", lane_id="orders", execution_kind="second_time",
                policy=second_time.policy, items=items,
            ))  # fmt: skip
            assert {item.state for item in created.items} == {"created"}
        jobs = [client.job(row.execution_id, second_time) for items in rows.values() for row in items]
        results = await asyncio.gather(*(job.result(timeout=25) for job in jobs))
        assert results == list(range(10)) * len(elsewhere)
        assert {job.id for job in jobs} <= tried
        for node in down:
            await asyncio.to_thread(node.start)
        await asyncio.to_thread(cluster.wait_healthy)
