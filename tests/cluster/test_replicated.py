"""What a failover loses: everything a replica had not got yet in plain mode, nothing of what was confirmed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable

import pytest

import ffcore.contracts as c
import ffsdk as ff
from ffbackend_valkey.cluster_backend import ClusterBackend
from ffbackend_valkey.confirm import UNCONFIRMED
from ffbackend_valkey.library import library
from ffbackend_valkey.stores import connect
from ffcore import ids
from ffcore.errors import NotFound, Unavailable
from ffcore.ids import partition_key
from tests.cluster.cluster import Cluster, Node
from tests.conformance.test_calls import creation
from tests.integration.proxy import until
from tests.integration.worker_app import Order, working

P0 = partition_key(0)


def new_id(n: int) -> str:
    return f"{P0}:{n:08x}-0000-7000-8000-000000000000"


@pytest.fixture
async def confirmed(cluster: Cluster, backend: ClusterBackend) -> AsyncIterator[ClusterBackend]:
    """A backend of the same store whose writes wait for a replica."""
    confirmed = await connect(cluster.url, durability="replicated", patience=1.0)
    assert isinstance(confirmed, ClusterBackend)
    yield confirmed
    await confirmed.close()


def the_replica(cluster: Cluster) -> Node:
    """Of the primary that serves P0."""
    (replica,) = cluster.replicas_of(cluster.owner(ids.slot_of(P0)))
    return replica


def test_what_is_not_confirmed_are_writes_of_the_library() -> None:
    for name in UNCONFIRMED:
        assert not library().signatures[name].reads_only, name


async def test_a_confirmed_submit_is_on_the_replica_when_it_is_answered(
    confirmed: ClusterBackend, cluster: Cluster
) -> None:
    replica = the_replica(cluster)
    replica.ask("READONLY")
    for n in range(50):
        await confirmed.call(creation(new_id(n)))
        assert replica.ask("EXISTS", f"ff:{P0}:x:{ids.uuid_of(new_id(n))}") == 1


async def test_without_a_replica_a_confirmed_submit_says_that_it_may_have_applied(
    confirmed: ClusterBackend, backend: ClusterBackend, cluster: Cluster
) -> None:
    """Nor does a repeated one pass for confirmed: its replay is a write too, which no replica has."""
    replica = the_replica(cluster)
    replica.pause()
    try:
        for _ in range(2):
            with pytest.raises(Unavailable) as doubt:
                await confirmed.call(creation(new_id(1)))
            assert (doubt.value.code, doubt.value.may_have_applied) == ("not_replicated", True)
        assert (await backend.call(c.ReadExecutionArgs(execution_id=new_id(1)))).fields["state"] == "ready"
        assert isinstance(await backend.call(creation(new_id(2))), c.Created), "plain writes go on"
    finally:
        replica.unpause()
    assert isinstance(await confirmed.call(creation(new_id(1))), c.Duplicate)


async def test_repeats_of_every_kind_of_confirmed_write_wait_for_a_replica(
    confirmed: ClusterBackend, backend: ClusterBackend, cluster: Cluster
) -> None:
    """A repeat that wrote nothing would be vouched for by what is on no replica (WAIT looks at the connection's last
    write): each of these was applied by another connection just before."""
    made = [creation(new_id(n)) for n in range(4)]
    for one in made:
        await backend.call(one)
    claim = c.ClaimBatchArgs(
        partitions=[P0], lanes=["mail"], capability_sets=[], limit=4, claim_id="w1.s.1", worker_id="w",
        worker_instance_id="w1", lease_ttl_ms=30_000,
    )  # fmt: skip
    jobs = (await backend.call(claim)).jobs
    fences = [c.LeaseFence(job.lease_id, job.lease_epoch, job.attempt_id) for job in jobs]
    row = c.Completion(jobs[1].execution_id, fences[1].wire, b"r")
    writes = [
        made[0],
        c.CreateManyArgs(
            partition=P0, namespace="default", lane_id="mail", execution_kind="send",
            items=[c.NewExecution(made[1].execution_id, made[1].digest, b"hello")],
        ),
        c.CompleteExecutionArgs(
            execution_id=jobs[0].execution_id, fence=fences[0], attempt_index=0, result_payload=b"r"
        ),
        c.CompleteManyArgs(
            partition=P0, lanes=["mail"], capability_sets=[], limit=0, claim_id="w1.s.2", worker_id="w",
            worker_instance_id="w1", lease_ttl_ms=30_000, items=[row],
        ),
        c.FailExecutionArgs(
            execution_id=jobs[2].execution_id, fence=fences[2], attempt_index=0, failure_reason="no",
            failure_category="error",
        ),
        c.CancelExecutionArgs(
            execution_id=jobs[3].execution_id, reason="no", source=c.CancelSource.OPERATOR_OVERRIDE
        ),
    ]  # fmt: skip
    for write in writes:
        await backend.call(write)
    replica = the_replica(cluster)
    replica.pause()
    confirmed._patience = 0.0
    passed: list[str] = []
    try:
        for write in writes:
            (answer,) = await confirmed.call_all([write])
            if not isinstance(answer, Unavailable):
                passed.append(f"{type(write).__name__}: {answer}")
            for confirming in confirmed._calls._confirming.values():
                assert confirming._link is not None
                confirming._link.kill("the next one shall not profit from what this one wrote")
    finally:
        replica.unpause()
    assert passed == []


async def test_one_submit_may_ask_for_more_than_its_client(app: ff.App, cluster: Cluster) -> None:
    @app.task(lane="orders")
    async def double(order: Order) -> int:
        return order.number * 2

    async with app.client() as client, working(app):
        job = await client.submit(double, Order(4), durability="replicated")
        many = await client.submit_many(double, [Order(n) for n in range(40)], durability="replicated")
        assert await job.result(timeout=10) == 8
        assert await asyncio.gather(*(one.result(timeout=20) for one in many)) == [2 * n for n in range(40)]


async def test_a_whole_app_may_be_replicated(cluster: Cluster, backend: ClusterBackend) -> None:
    app = ff.App(cluster.url, durability="replicated")

    @app.task(lane="orders")
    async def double(order: Order) -> int:
        return order.number * 2

    async with app.client() as client, working(app):
        jobs = await client.submit_many(double, [Order(n) for n in range(100)])
        assert await asyncio.gather(*(job.result(timeout=20) for job in jobs)) == [2 * n for n in range(100)]


@pytest.mark.parametrize("mode", ["plain", "replicated"])
async def test_what_is_lost_with_a_primary_whose_replica_lags(
    mode: str, measured: Callable[[str], None]
) -> None:
    """A cluster of its own. One primary is reached through a proxy that hands the replication stream on late; the
    machine it is on is lost with all that was under way."""
    with Cluster(lag_first_s=0.02) as cluster:
        victim = cluster.nodes[0]
        backend = await connect(
            cluster.url, init=True, durability="replicated" if mode == "replicated" else "accepted", patience=6
        )
        hit = [key for key in backend.config.keys("fp") if cluster.owner(ids.slot_of(key)) is victim]
        acked: list[str] = []
        slowest, stopping = 0.0, False

        async def submitter(me: int) -> None:
            nonlocal slowest
            n = 0
            while not stopping:
                n += 1
                id = f"{hit[n % len(hit)]}:{n:08x}-{me:04x}-7000-8000-000000000000"
                asked = time.monotonic()
                try:
                    await backend.call(creation(id))
                except Unavailable:
                    continue
                acked.append(id)
                slowest = max(slowest, time.monotonic() - asked)

        tasks = [asyncio.create_task(submitter(me)) for me in range(16)]
        await until(lambda: len(acked) > 1500, "acknowledged submits", 30)
        await asyncio.to_thread(victim.kill)  # its proxy forgets what it holds
        before, stopping = len(acked), True
        await asyncio.gather(*tasks)
        await asyncio.to_thread(cluster.wait_promoted, victim)
        there = await asyncio.gather(*(exists(backend, id) for id in acked))
        gone_n = there.count(False)
        await backend.close()
        if mode == "replicated":
            assert gone_n == 0
        measured(
            f"primary lost with a replica 20 ms behind, {mode}: {len(acked)} submits acknowledged ({before} before), "
            f"{gone_n} lost; slowest {slowest * 1000:.0f} ms"
        )


async def exists(backend: ClusterBackend, id: str) -> bool:
    try:
        await backend.call(c.ReadExecutionArgs(execution_id=id))
    except NotFound:
        return False
    return True
