"""Slots move between nodes under load. Atomic migration is not noticed; the old way makes callers wait, and never lets
a function run on half of its keys."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest

import ffcore.contracts as c
import ffsdk as ff
from ffbackend_valkey.cluster_backend import ClusterBackend
from ffbackend_valkey.library import library
from ffcore import ids
from ffcore.errors import Unavailable
from ffcore.ids import partition_key
from ffengine.check import Memory, violations
from tests.cluster.cluster import Cluster, Node
from tests.cluster.load import completions, lost, under_load
from tests.conformance.test_calls import creation
from tests.integration.proxy import until

P0 = partition_key(0)
SLOT = ids.slot_of(P0)
MOVES_N = 8


def elsewhere(cluster: Cluster, slot: int) -> Node:
    """A primary that does not serve the slot."""
    owner = cluster.owner(slot)
    return next(node for node in cluster.primaries() if node is not owner)


async def test_atomic_migrations_of_half_the_partitions_are_not_noticed_by_users(
    app: ff.App, backend: ClusterBackend, cluster: Cluster, measured: Callable[[str], None]
) -> None:
    async with under_load(app) as book:
        await until(lambda: len(book.acked) > 200, "some load")
        started = time.monotonic()
        for key in backend.config.keys("fp")[:MOVES_N]:
            slot = ids.slot_of(key)
            await asyncio.to_thread(cluster.migrate, slot, elsewhere(cluster, slot))
        took = time.monotonic() - started
        seen_n = len(book.acked)
        await until(lambda: len(book.acked) > seen_n + 200, "load after it")
    assert book.errors == []
    assert await lost(app, book) == []
    counted = await completions(app)
    assert {ack.id: 1 for ack in book.acked} == counted, "acknowledged is applied, once"
    memory = Memory()
    memory.acknowledged |= {ack.id for ack in book.acked}
    assert await violations(backend, memory=memory) == []
    measured(
        f"atomic migration of {MOVES_N} slots under load, {took:.2f} s in all: "
        f"{len(book.acked)} submits acknowledged = applied, 0 errors, slowest {book.slowest_ms:.0f} ms"
    )


async def test_a_slot_may_move_to_a_node_that_has_just_joined(backend: ClusterBackend, cluster: Cluster) -> None:
    """It has no functions, and atomic migration brings none along."""
    made = await backend.call(creation(f"{P0}:00000000-0000-7000-8000-000000000000"))
    node = await asyncio.to_thread(cluster.start_node)
    try:
        await asyncio.to_thread(cluster.meet, node)
        await asyncio.to_thread(cluster.wait_known, node)
        await asyncio.to_thread(cluster.migrate, SLOT, node)
        stored = await backend.call(c.ReadExecutionArgs(execution_id=made.execution_id))
        assert stored.fields["state"] == "ready"
        there = await backend._loaded_each()
        assert len(there) == 4
        assert {(one.version, one.sha) for _, one in there if one} == {(library().version, library().sha)}
    finally:
        await asyncio.to_thread(cluster.migrate, SLOT, elsewhere(cluster, SLOT))
        await asyncio.to_thread(cluster.forget, node)


async def test_a_legacy_migration_makes_callers_wait_and_writes_nothing_half(
    app: ff.App, backend: ClusterBackend, cluster: Cluster, measured: Callable[[str], None]
) -> None:
    source, to = cluster.owner(SLOT), elsewhere(cluster, SLOT)
    async with under_load(app) as book:
        await until(lambda: len(book.acked) > 200, "some load")
        started = time.monotonic()
        moved_n = await asyncio.to_thread(cluster.migrate_key_by_key, SLOT, to, 0.5)
        took = time.monotonic() - started
        seen_n = len(book.acked)
        await until(lambda: len(book.acked) > seen_n + 200, "load after it")
    assert cluster.owner(SLOT) is to and source is not to
    assert book.errors == []
    assert await lost(app, book) == []
    assert {ack.id: 1 for ack in book.acked} == await completions(app)
    memory = Memory()
    memory.acknowledged |= {ack.id for ack in book.acked}
    assert await violations(backend, memory=memory) == []
    measured(
        f"legacy migration of a slot ({moved_n} keys, held half-way for 0.5 s, {took:.2f} s in all): {len(book.acked)} "
        f"submits acknowledged = applied, 0 errors, slowest {book.slowest_ms:.0f} ms"
    )


@pytest.mark.parametrize("moved", ["header", "record"])
async def test_a_function_does_not_run_while_its_keys_lie_on_two_nodes(
    backend: ClusterBackend, cluster: Cluster, moved: str
) -> None:
    """Whichever keys went first: both nodes refuse the call as a whole, and say so in a way that is waited for."""
    id = f"{P0}:00000000-0000-7000-8000-000000000001"
    await backend.call(creation(id))
    source, to = cluster.owner(SLOT), elsewhere(cluster, SLOT)
    before = await dump(source)
    key = f"ff:{P0}" if moved == "header" else f"ff:{P0}:x:{ids.uuid_of(id)}"
    await asyncio.to_thread(cluster.begin_key_by_key, SLOT, to)
    try:
        source.ask("MIGRATE", "127.0.0.1", to.port, key, 0, 5000)
        calling = asyncio.ensure_future(backend.call(creation(f"{P0}:00000000-0000-7000-8000-000000000002")))
        await asyncio.sleep(0.5)
        assert not calling.done()
        both = await dump(source) | await dump(to)
        assert both == before
        backend._patience, patience = 0.2, backend._patience
        with pytest.raises(Unavailable) as refused:
            await backend.call(creation(f"{P0}:00000000-0000-7000-8000-000000000003"))
        assert refused.value.code in ("tryagain", "ask") and not refused.value.may_have_applied
        backend._patience = patience
    finally:
        await asyncio.to_thread(cluster.migrate_key_by_key, SLOT, to, 0.0)
    assert isinstance(await calling, c.Created)


async def dump(node: Node) -> dict[str, bytes]:
    """Every key of the partition on a node, as it would be migrated."""
    names = [name.decode() for name in node.ask("KEYS", "*") if str(P0).encode() in name]
    found: dict[str, bytes] = {}
    for name in names:
        node.ask("ASKING")  # the side that a slot moves to says nothing of it otherwise
        found[name] = node.ask("DUMP", name)
    return found
