"""Sharded channels: heard at the node of their slot, and followed when it moves or its node dies."""

from __future__ import annotations

import asyncio

import pytest

import ffcore.contracts as c
from ffbackend_valkey.cluster_backend import ClusterBackend
from ffcore import ids
from ffcore.ids import partition_key
from tests.cluster.cluster import Cluster
from tests.cluster.test_migration import elsewhere
from tests.conformance.test_calls import creation
from tests.integration.proxy import until

P0, P1 = partition_key(0), partition_key(1)


async def test_channels_of_every_partition_are_heard(backend: ClusterBackend) -> None:
    got: list[tuple[str, bytes]] = []
    channels = [backend.worker_channel(key, "w1") for key in backend.config.keys("fp")]
    subscription = await backend.subscribe(channels, lambda channel, data: got.append((channel, data)))
    for channel in channels:
        await backend.command("SPUBLISH", channel, "x")
    await until(lambda: len(got) == len(channels), "all messages")
    assert {channel for channel, _ in got} == set(channels)
    await subscription.close()


@pytest.mark.parametrize("why", ["slot moves", "primary dies"])
async def test_a_channel_is_followed_to_its_new_node_and_the_gap_is_told(
    backend: ClusterBackend, cluster: Cluster, why: str
) -> None:
    got: list[bytes] = []
    gaps: list[None] = []
    one, two = backend.client_channel(P0, "c1"), backend.client_channel(P1, "c1")
    subscription = await backend.subscribe([one, two], lambda _, data: got.append(data), lambda: gaps.append(None))
    slot = ids.slot_of(P0)
    owner = cluster.owner(slot)
    if why == "slot moves":
        await asyncio.to_thread(cluster.migrate, slot, elsewhere(cluster, slot))
    else:
        await asyncio.to_thread(owner.kill)
        await asyncio.to_thread(cluster.wait_promoted, owner)
    await until(lambda: bool(gaps), "the gap", 20)
    # The library's own notice, published where the record is changed.
    made = await backend.call(creation(f"{P0}:00000000-0000-7000-8000-000000000000"))
    await backend.call(c.AwaitArgs(partition=P0, client="c1", items=[c.ExecutionRef(made.execution_id)]))
    await backend.call(
        c.CancelExecutionArgs(execution_id=made.execution_id, reason="", source=c.CancelSource.FLOW_CASCADE)
    )
    await until(lambda: bool(got), "the notice", 10)
    await backend.command("SPUBLISH", two, "still here")
    await until(lambda: b"still here" in got, "the message of the other channel", 10)
    assert [data for data in got if data.endswith(b" cancelled")] == got[:1]
    await subscription.close()


async def test_two_listeners_of_one_channel_come_and_go_alone(backend: ClusterBackend, cluster: Cluster) -> None:
    one, two = list[bytes](), list[bytes]()
    channel = backend.worker_channel(P0, "w1")
    first = await backend.subscribe([channel], lambda _, data: one.append(data))
    second = await backend.subscribe([channel], lambda _, data: two.append(data))
    await first.close()
    await asyncio.to_thread(cluster.migrate, ids.slot_of(P0), elsewhere(cluster, ids.slot_of(P0)))

    async def rung() -> bool:
        await backend.command("SPUBLISH", channel, "x")
        return bool(two)

    for _ in range(500):
        if await rung():
            break
        await asyncio.sleep(0.01)
    assert two and not one
    await second.close()
