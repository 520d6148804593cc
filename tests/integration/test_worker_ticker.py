"""Tickers on a real server: what is due is done by whoever ticks, also when the one that promised to is gone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest

import ffsdk as ff
from ffbackend_valkey.backend import ValkeyBackend
from ffbackend_valkey.stores import connect
from ffcore.backend import StoreConfig
from ffengine import Ticker
from tests.integration.proxy import own_server, until
from tests.integration.worker_app import working


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with own_server() as server:
        yield f"valkey://127.0.0.1:{server.port}"


@pytest.fixture
async def backend(url: str) -> AsyncIterator[ValkeyBackend]:
    backend = await connect(url, init=StoreConfig(fp=4))
    yield backend
    await backend.close()


async def test_one_of_two_tickers_has_the_partitions_and_the_other_takes_over(backend: ValkeyBackend) -> None:
    first, second = Ticker(backend, "first"), Ticker(backend, "second")
    running = asyncio.create_task(first.run())
    await until(lambda: first.rounds_n > 0)
    also = asyncio.create_task(second.run())
    await until(lambda: second.rounds_n > 0)
    assert all(watch.mine for watch in first._watches.values())
    assert not any(watch.mine for watch in second._watches.values())
    first.stop()
    await running
    await until(lambda: all(watch.mine for watch in second._watches.values()), within=10)
    second.stop()
    await also


async def test_a_delayed_job_runs_when_it_is_due(backend: ValkeyBackend, url: str) -> None:
    app = ff.App(url)

    @app.task(lane="delayed")
    async def late(n: int) -> int:
        return n

    async with app.client() as client, working(app):
        job = await client.submit(late, 5, delay=0.3)
        assert (await job.status()).state == "delayed"
        assert await job.result(timeout=10) == 5


async def test_ten_idle_workers_ask_for_little(backend: ValkeyBackend, url: str) -> None:
    """Counted by the server over a stretch that is as long as a poll: at most twenty commands a second in all."""
    app = ff.App(url)

    @app.task(lane="idle")
    async def nothing(n: int) -> None: ...

    workers = [app.worker(lanes=["idle"]) for _ in range(10)]
    running = [asyncio.create_task(worker.run()) for worker in workers]
    for worker in workers:
        await worker.started.wait()
    await until(lambda: all(part.parked_until for worker in workers for part in worker._slots.parts))

    async def seconds_and_calls() -> tuple[float, int]:
        clock = [int(word) for word in await backend.command("TIME")]
        stats = (await backend.command("INFO", "commandstats")).decode()
        calls = [line for line in stats.splitlines() if line.startswith(("cmdstat_fcall:", "cmdstat_fcall_ro:"))]
        return clock[0] + clock[1] / 1e6, sum(int(line.partition("calls=")[2].partition(",")[0]) for line in calls)

    start_s, start_n = await seconds_and_calls()
    end_s, end_n = start_s, start_n
    while end_s - start_s < 6:
        await asyncio.wait(running, timeout=0.5)
        end_s, end_n = await seconds_and_calls()
    for worker in workers:
        worker.request_stop()
    await asyncio.gather(*running)
    assert (end_n - start_n) / (end_s - start_s) <= 20


async def test_a_partition_that_was_not_reached_hears_of_a_setting_from_whoever_ticks(
    backend: ValkeyBackend, url: str
) -> None:
    """The change stands in the registry; the fan-out is only the fast way."""
    from ffcore.contracts.operator import LaneStatsArgs
    from ffcore.contracts.settings import PutSettingsArgs
    from ffcore.ids import LaneId, PartitionKey
    from ffcore.settings import REGISTRY, lane_name
    from ffcore.wire import pack_pairs

    async def states() -> set[str]:
        keys = backend.config.keys("fp")
        answers = await backend.call_all([LaneStatsArgs(partition=p, lane_id=LaneId("quiet")) for p in keys])
        return {getattr(answer, "state", "unknown") for answer in answers}

    put = PutSettingsArgs(partition=REGISTRY, name=lane_name("quiet"), changes=pack_pairs({"state": "paused"}))
    await backend.call(put)
    assert await states() == {"unknown"}
    ticker = Ticker(backend, "keeper")
    running = asyncio.create_task(ticker.run())
    async with asyncio.timeout(20):
        while await states() != {"paused"}:
            await asyncio.sleep(0.05)
    async with ff.App(url).client() as client:
        lane = client.lane("quiet")
        told = await lane.settings()
        assert (told.state, told.behind) == ("paused", [])
        with pytest.raises(ff.Rejected) as caught:
            await lane.resume(revision=told.revision - 1)
        assert caught.value.code == "revision_conflict"
        again = await lane.resume(revision=told.revision)
        assert again.complete and again.revision == (await lane.settings()).revision
        assert (await lane.keep(age=60, count=1_000)).complete
        assert (await lane.aged(30)).complete
        kept = await lane.settings()
        assert (kept.state, kept.aged, kept.keep_age, kept.keep_count) == ("active", 30, 60.0, 1_000)
        assert (await lane.strict()).complete
        for bad in ({}, {"count": -1}, {"age": -1}):
            with pytest.raises(ff.InvalidArgument):
                await lane.keep(**bad)
        with pytest.raises(ff.InvalidArgument):
            await lane.aged(0)
        assert PartitionKey(backend.config.keys("fp")[0]) in again.reached
    ticker.stop()
    await running
