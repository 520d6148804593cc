"""Calls on a cluster: claims over several partitions, threads, checks at boot, and URLs that are not quite right."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import ffcore.contracts as c
from ffbackend_valkey.cluster_backend import ClusterBackend
from ffbackend_valkey.stores import check_server, connect
from ffcore import ids
from ffcore.errors import Incompatible, Unavailable
from ffcore.ids import partition_key
from tests.cluster.cluster import Cluster
from tests.cluster.test_migration import elsewhere
from tests.conformance.test_calls import claiming, creation
from tests.integration.proxy import own_server

P0, P1 = partition_key(0), partition_key(1)


def new_id(partition: str, n: int) -> str:
    return f"{partition}:{n:08x}-0000-7000-8000-000000000000"


# ---- several partitions ----------------------------------------------------------------------------------


async def test_a_claim_over_partitions_of_several_nodes_is_answered_again_when_it_is_repeated(
    backend: ClusterBackend,
) -> None:
    for n in range(6):
        await backend.call(creation(new_id(P0 if n % 2 else P1, n)))
    first = (await backend.call(claiming(1, limit=4))).jobs
    again = (await backend.call(claiming(1, limit=4))).jobs
    assert len(first) == 4 and [job.lease_id for job in again] == [job.lease_id for job in first]
    assert {ids.partition_of(job.execution_id) for job in first} == {P0, P1}
    assert len((await backend.call(claiming(2, limit=4))).jobs) == 2


async def test_a_claim_whose_answer_was_lost_looks_where_it_was_lost_before_it_leases_anything(
    backend: ClusterBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the jobs leased there would be nobody's until their leases end."""
    await backend.call(creation(new_id(P1, 1)))
    send = backend._calls.call

    def losing(*command: Any) -> asyncio.Future[Any]:
        reply = send(*command)
        if command[1] != "ff_claim_batch" or P1 not in command[3]:
            return reply

        async def lose() -> Any:
            await reply
            raise Unavailable("the connection was lost", may_have_applied=True)

        return asyncio.ensure_future(lose())

    monkeypatch.setattr(backend._calls, "call", losing)
    monkeypatch.setattr(backend, "_patience", 0.0)
    with pytest.raises(Unavailable):
        await backend.call(claiming(1, limit=1))
    monkeypatch.undo()
    await backend.call(creation(new_id(P0, 2)))
    (job,) = (await backend.call(claiming(1, limit=1))).jobs
    assert job.execution_id == new_id(P1, 1)


async def test_a_tick_over_partitions_of_several_nodes_answers_in_their_order(backend: ClusterBackend) -> None:
    keys = backend.config.keys("fp")
    ticked = await backend.call(c.TickArgs(partitions=keys, ticker="t1", force=True))
    assert [row.partition for row in ticked.partitions] == keys


# ---- threads ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("why", ["slot moves", "primary dies"])
async def test_a_thread_renews_leases_wherever_their_partition_goes(
    backend: ClusterBackend, cluster: Cluster, why: str
) -> None:
    await backend.call(creation(new_id(P0, 1)))
    (job,) = (await backend.call(claiming(1))).jobs
    renewal = c.Renewal(job.execution_id, f"{job.lease_id} {job.lease_epoch} {job.attempt_id}")
    args = c.RenewManyArgs(partition=P0, lease_ttl_ms=30_000, items=[renewal])
    calls = backend.blocking()

    def renew_until_answered() -> str:
        """As the renewal thread does: what fails is tried again a little later."""
        for _ in range(200):
            try:
                return calls.call(args).items[0].state
            except Unavailable:
                asyncio.run(asyncio.sleep(0.05))
        raise AssertionError("it was never answered")

    assert await asyncio.to_thread(renew_until_answered) == "renewed"
    owner = cluster.owner(ids.slot_of(P0))
    if why == "slot moves":
        await asyncio.to_thread(cluster.migrate, ids.slot_of(P0), elsewhere(cluster, ids.slot_of(P0)))
    else:
        await asyncio.to_thread(owner.kill)
    assert await asyncio.to_thread(renew_until_answered) == "renewed"
    calls.close()
    with pytest.raises(Unavailable):
        calls.call(args)


# ---- boot ------------------------------------------------------------------------------------------------


async def test_every_primary_is_checked(backend: ClusterBackend, cluster: Cluster) -> None:
    bad = cluster.primaries()[-1]
    bad.ask("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    try:
        with pytest.raises(Incompatible, match="noeviction"):
            await connect(cluster.url)
    finally:
        bad.ask("CONFIG", "SET", "maxmemory-policy", "noeviction")
    assert len({text.partition(": ")[0] for text in await check_server(backend, "accepted")}) == 3


async def test_a_library_that_one_primary_lost_is_loaded_there_by_whoever_connects(
    backend: ClusterBackend, cluster: Cluster
) -> None:
    for node in cluster.primaries()[1:]:
        node.ask("FUNCTION", "FLUSH")
    await (await connect(cluster.url)).close()
    assert all(node.ask("FUNCTION", "LIST") for node in cluster.primaries())


async def test_any_node_of_the_cluster_leads_to_all_of_it(backend: ClusterBackend, cluster: Cluster) -> None:
    """A replica too; nodes of the URL that are gone are passed over."""
    replica = next(node for node in cluster.nodes if node not in cluster.primaries())
    other = await connect(f"valkey+cluster://127.0.0.1:1,{replica.address}")
    assert other.config == backend.config
    assert isinstance(await other.call(creation(new_id(P1, 7))), c.Created)
    await other.close()


async def test_urls_that_lead_nowhere_say_so() -> None:
    with pytest.raises(Unavailable, match=r"127\.0\.0\.1:1"):
        await connect("valkey+cluster://127.0.0.1:1")
    with own_server() as server, pytest.raises(Incompatible, match=f"valkey://127.0.0.1:{server.port}"):
        await connect(f"valkey+cluster://127.0.0.1:{server.port}")


async def test_a_cluster_that_is_addressed_as_one_server_is_refused_with_the_remedy(cluster: Cluster) -> None:
    with pytest.raises(Incompatible, match=r"valkey\+cluster://"):
        await connect(f"valkey://{cluster.nodes[0].address}")
