"""A primary is killed under load: its replica takes over, and the users' work goes on without their doing anything."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import ffsdk as ff
from ffbackend_valkey.cluster_backend import ClusterBackend
from ffbackend_valkey.library import library
from ffcore import ids
from ffcore.ids import partition_key
from tests.cluster.cluster import Cluster
from tests.cluster.load import completions, lost, under_load
from tests.integration.proxy import until

P0 = partition_key(0)


async def test_work_goes_on_after_a_primary_was_killed(
    app: ff.App, backend: ClusterBackend, cluster: Cluster, measured: Callable[[str], None]
) -> None:
    victim = cluster.owner(ids.slot_of(P0))
    hit = [key for key in backend.config.keys("fp") if cluster.owner(ids.slot_of(key)) is victim]
    async with under_load(app) as book:
        await until(lambda: len(book.acked) > 300, "some load")
        killed = time.monotonic()
        await asyncio.to_thread(victim.kill)
        await asyncio.to_thread(cluster.wait_promoted, victim)
        promoted = time.monotonic()
        await until(lambda: book.told_after(promoted, hit), "a submit to a partition that failed over", 30)
        await asyncio.sleep(1)
        await asyncio.to_thread(cluster.restart, victim)
    served = book.first_after(promoted, hit).told
    assert book.errors == [], "every submit was repeated until it was accepted"
    gone = await lost(app, book)
    counted = await completions(app)
    assert {ack.id for ack in book.acked} - set(gone) <= set(counted)
    assert [id for id, n in counted.items() if n > 1] == []
    there = await backend._loaded_each()
    assert len(there) == 3
    assert {(one.version, one.sha) for _, one in there if one} == {(library().version, library().sha)}
    measured(
        f"kill -9 of a primary: {len(book.acked)} submits acknowledged, {len(gone)} lost (plain mode, loopback), "
        f"0 completed twice, 0 errors; promotion after {promoted - killed:.2f} s, "
        f"service {served - promoted:.2f} s after it; slowest submit {book.slowest_ms:.0f} ms"
    )
