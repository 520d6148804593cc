"""A store at its memory limit: new work is refused with a word and a time, everything that ends work goes on.

The rule (docs/decisions, out of memory): only what admits new work may be refused for want of memory. So a full store
is left by working, and never needs an operator to make room first.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator

import pytest

import ffsdk as ff
from ffbackend_valkey.connection import RETRY_AFTER_MS
from ffbackend_valkey.multiplexer import Multiplexer
from ffbackend_valkey.stores import connect
from ffbackend_valkey.url import parse_url
from ffcore.backend import StoreConfig
from ffengine import Ticker
from tests.integration.proxy import own_server, until
from tests.integration.test_faults import keyspace
from tests.integration.worker_app import working

BLOCK = "x" * 10_000
ROOM_BYTES = 2 << 20
"""Above what an idle store uses: a hundred or two of the payloads, far more than buffers of connections vary by."""


class Store:
    """A server of this module's, and its limit."""

    def __init__(self, url: str, direct: Multiplexer) -> None:
        self.url, self._direct = url, direct

    async def used(self) -> int:
        info: bytes = await self._direct.call("INFO", "memory")
        return int(next(line for line in info.split() if line.startswith(b"used_memory:")).partition(b":")[2])

    async def limit(self, maxmemory: int) -> None:
        await self._direct.call("CONFIG", "SET", "maxmemory", maxmemory)

    async def limit_above_used(self, room: int = ROOM_BYTES) -> None:
        await self.limit(await self.used() + room)


@pytest.fixture(scope="module")
def server_url() -> Iterator[str]:
    with own_server() as server:
        yield f"valkey://127.0.0.1:{server.port}"


@pytest.fixture
async def store(server_url: str, caplog: pytest.LogCaptureFixture) -> AsyncIterator[Store]:
    """Initialised and empty, without a limit until a test sets one."""
    caplog.set_level(logging.ERROR, "flowfabric.store")
    direct = await Multiplexer.open(parse_url(server_url))
    await direct.call("CONFIG", "SET", "maxmemory", "0")
    await direct.call("FLUSHALL")
    await (await connect(server_url, init=StoreConfig(fp=2))).close()
    yield Store(server_url, direct)
    await direct.call("CONFIG", "SET", "maxmemory", "0")
    await direct.close()


def make_app(url: str) -> ff.App:
    app = ff.App(url)

    @app.task(lane="shop", retry=ff.Retry(max_attempts=1))
    async def keep(block: str, ctx: ff.Context) -> str:
        return block

    return app


async def fill(client: ff.Client) -> list[ff.Job[str]]:
    """Submit until the store refuses; the jobs it took."""
    taken: list[ff.Job[str]] = []
    while True:
        try:
            taken.append(await client.submit("keep", BLOCK))
        except ff.StoreFull:
            return taken
        assert len(taken) < 10_000, "the limit limits nothing"


async def test_a_full_store_takes_no_new_work_and_says_when_to_try_again(store: Store) -> None:
    async with make_app(store.url).client() as client:
        first = await client.submit("keep", BLOCK, key="first")
        await store.limit_above_used()
        taken = await fill(client)
        assert len(taken) > 20
        await store.limit(1)  # now a short job is too much as well
        before = await keyspace(store.url)
        with pytest.raises(ff.StoreFull) as caught:
            await client.submit("keep", "short", key="new")
        assert (caught.value.code, caught.value.detail) == ("store_full", str(RETRY_AFTER_MS))
        assert "maxmemory" in str(caught.value)
        with pytest.raises(ff.SubmitErrors) as some:
            await client.submit_many("keep", ["a", "b", "c"])
        errors = [error for error in some.value.exceptions if isinstance(error, ff.NotAccepted)]
        assert [(error.index, error.code) for error in errors] == [(n, "store_full") for n in range(3)]
        assert all(isinstance(error.__cause__, ff.StoreFull) for error in errors)
        assert not any(error.may_have_applied for error in errors)
        assert some.value.jobs == [None] * 3
        assert await keyspace(store.url) == before, "a refused submit leaves nothing behind"
        assert len([job async for job in client.jobs()]) == len(taken) + 1, "looking is always possible"
        assert (await first.explain()).reasons[0].code
        await store.limit(0)
        assert (await client.submit("keep", "short", key="new")).created, (
            "the same call goes through once there is room"
        )


async def test_a_full_store_drains_to_empty_and_takes_work_again(store: Store) -> None:
    """Results as large as the payloads: while it drains the store grows further beyond its limit, and may."""
    app = make_app(store.url)
    async with app.client() as client:
        await client.gate(pct=0)  # this is about the server's own limit
        await store.limit_above_used()
        taken = await fill(client)
        limit = await store.used()
        async with working(app):
            assert [await job.result(timeout=60) for job in taken] == [BLOCK] * len(taken)
            assert await store.used() > limit
            with pytest.raises(ff.StoreFull):
                await client.submit("keep", BLOCK)
            purged = await client.purge_many(lane="shop")
            assert purged.done == len(taken)
            assert [job async for job in client.jobs()] == []
            again = await client.submit("keep", BLOCK)
            assert await again.result(timeout=20) == BLOCK


async def test_whatever_ends_work_goes_on_in_a_full_store(store: Store) -> None:
    """Claims, renewals, cancels, failures, retries, delays that end, holds, purges: none waits for memory."""
    app = ff.App(store.url)
    gate, waiting = asyncio.Event(), list[str]()

    @app.task(lane="slow")
    async def slow(name: str, ctx: ff.Context) -> str:
        waiting.append(name)
        if name == "cancelled":
            await asyncio.Event().wait()
        await gate.wait()
        return f"{name} {ctx.attempt}"

    @app.task(lane="slow", retry=ff.Retry(max_attempts=2, backoff=0.01, jitter=False))
    async def fail(always: bool, ctx: ff.Context) -> int:
        if always or ctx.attempt == 0:
            raise ff.Failure("as it should")
        return ctx.attempt

    async with app.client() as client:
        held = await client.submit(slow, "renewed")
        cancelled = await client.submit(slow, "cancelled")
        delayed = await client.submit(fail, False, delay=0.3)
        failed = await client.submit(fail, True)
        queued = await client.submit(slow, "queued")
        paused = await client.submit(slow, "elsewhere", lane="paused")
        await store.limit(1)
        with pytest.raises(ff.StoreFull):
            await client.submit(slow, "late")
        async with working(app, lease=0.3) as worker:  # one that starts in a full store
            await until(lambda: set(waiting) >= {"renewed", "cancelled", "queued"}, "claims")
            [lease] = [one for one in worker._held.values() if one.job.execution_id == held.id]
            first = lease.deadline
            await until(lambda: lease.deadline > first + 0.6, "renewals beyond the first lease")
            assert await cancelled.cancel("no room") == "requested"
            assert isinstance(await cancelled.outcome(timeout=20), ff.Cancelled)
            assert await paused.cancel("no room") == "cancelled"
            assert await delayed.result(timeout=20) == 1, "a delay and a retry"
            with pytest.raises(ff.JobFailed):
                await failed.result(timeout=20)
            assert (await client.hold(task="slow")).complete and (await client.release(task="slow")).complete
            assert (await client.lane("paused").pause()).complete
            gate.set()
            assert await held.result(timeout=20) == "renewed 0"
            assert await queued.result(timeout=20) == "queued 0"
        with pytest.raises(ff.StoreFull):
            await client.submit(slow, "late")
        assert (await client.purge_many(state=["completed", "failed", "cancelled"])).done == 6
        assert [job async for job in client.jobs()] == []


async def test_the_gate_closes_before_the_store_is_full_and_patience_waits_for_it(store: Store) -> None:
    """Work that is there has the rest of the memory to itself; a submit with patience gets in once it is done."""
    app = make_app(store.url)
    async with app.client() as client:
        await store.limit_above_used(64 << 20)
        await client.gate(bytes=await store.used() + ROOM_BYTES)
        taken: list[ff.Job[str]] = []
        async with ff.App(store.url).client() as other:  # a ticker of its own, and no worker yet
            ticking = asyncio.ensure_future(tick(other))
            try:
                while len(taken) < 5_000:
                    taken.append(await client.submit("keep", BLOCK))
            except ff.StoreFull as full:
                assert full.retry_after == 1.0 and "high-water mark" in str(full)
            else:
                raise AssertionError("the gate never closed")
            assert await store.used() < 64 << 20, "the server itself would have taken more"
            await client.gate(bytes=1)
            with pytest.raises(ff.SubmitErrors) as some:
                await client.submit_many("keep", ["a", "b"], patience=0.5)
            assert {error.code for error in some.value.exceptions} == {"store_full"}  # type: ignore[attr-defined]
            patient = asyncio.ensure_future(client.submit("keep", "short", patience=60))
            many = asyncio.ensure_future(client.submit_many("keep", ["a", "b", "c"], patience=60))
            await asyncio.sleep(1.2)
            assert not patient.done() and not many.done()
            assert (await client.cancel_many(lane="shop")).done == len(taken)
            assert (await client.purge_many(lane="shop")).done == len(taken)
            assert (await client.settings()).gate_bytes == 1
            await client.gate(bytes=0)
            job, jobs = await patient, await many
            ticking.cancel()
        async with working(app):
            assert await job.result(timeout=20) == "short"
            assert [await one.result(timeout=20) for one in jobs] == ["a", "b", "c"]


async def tick(client: ff.Client) -> None:
    await Ticker(client.backend, "gate-keeper").run()
