"""Finding the store: URLs, FF_URL, what happens without either, and the blocking client."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import ffsdk as ff
from ffbackend_valkey.stores import connect
from ffcore.backend import StoreConfig
from ffsdk import sync
from ffsdk.connect import resolve_url
from ffsdk.testing import Engine
from tests.integration.proxy import own_server


@pytest.fixture
def fresh_url() -> Iterator[str]:
    """A server that nobody has initialised."""
    with own_server() as server:
        yield f"valkey://127.0.0.1:{server.port}"


def test_a_url_given_wins_over_the_environment() -> None:
    assert resolve_url("memory://a", env={"FF_URL": "memory://b"}) == "memory://a"
    assert resolve_url(None, env={"FF_URL": "memory://b"}) == "memory://b"


def test_a_service_that_lost_its_url_does_not_get_a_store_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ff.InvalidArgument, match="FF_URL"):
        resolve_url(None, env={}, isatty=False)


@pytest.mark.parametrize("sign", ["terminal", "FF_DEV", "verb", "directory"])
def test_a_person_at_work_gets_the_local_store(sign: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if sign == "directory":
        (tmp_path / ".flowfabric").mkdir()
    found = resolve_url(
        None,
        env={"FF_DEV": "1"} if sign == "FF_DEV" else {},
        isatty=sign == "terminal",
        verb="dev" if sign == "verb" else None,
    )
    assert found == "embedded://./.flowfabric"


async def test_each_way_to_fail_is_one_typed_error() -> None:
    with pytest.raises(ff.InvalidArgument, match="accepted are"):
        await ff.connect("http://localhost")
    with pytest.raises(ff.InvalidArgument):
        await ff.connect("")
    with pytest.raises(ff.Unavailable):
        await ff.connect("valkey://127.0.0.1:1")
    with pytest.raises(ff.Incompatible, match="replica"):
        await ff.connect("memory://x", durability="replicated")
    with pytest.raises(ff.InvalidArgument):
        ff.App(namespace="two words")


async def test_a_store_that_was_never_initialised_names_the_remedy(fresh_url: str) -> None:
    with pytest.raises(ff.NotInitialised, match="ff init"):
        await ff.connect(fresh_url)


async def test_an_app_that_could_not_open_its_store_can_try_again(fresh_url: str) -> None:
    app = ff.App(fresh_url)
    with pytest.raises(ff.NotInitialised):
        await app.client()
    await (await connect(fresh_url, init=StoreConfig(fp=2))).close()
    async with app.client() as client:
        assert client.backend.config.fp == 2


async def test_clients_of_one_app_share_its_connections() -> None:
    app = ff.App("memory://shared")
    async with app.client() as one:
        async with app.client() as two:
            assert one.backend is two.backend
        assert (await one.submit("t", 1, lane="x")).created, "the other one's end closed nothing of ours"
    assert not app.in_use


def test_the_blocking_client_does_what_the_other_one_does(fresh_url: str) -> None:
    asyncio.run(_init(fresh_url))
    app = ff.App(fresh_url)

    @app.task
    def double(n: int) -> int:
        return 2 * n

    ready, worker = threading.Event(), app.worker()

    async def work() -> None:
        running = asyncio.create_task(worker.run())
        await worker.started.wait()
        ready.set()
        await running

    thread = threading.Thread(target=asyncio.run, args=(work(),))
    thread.start()
    assert ready.wait(20)
    try:
        with sync.Client(app=app) as client:
            job = client.submit(double, 4)
            assert job.result(timeout=10) == 8
            assert [found.result(timeout=10) for found in client.submit_many(double, [1, 2])] == [2, 4]
            assert {found.id for found in client.jobs(state="completed")} >= {job.id}
            assert client.job(job.id).status().state == "completed"
            events = client.subscribe("completion", after="-")
            assert next(events).to_state == "completed"
            assert client.lane("default").stats().depth["completed"] == 3
            held = client.submit(double, 4, delay=60)
            assert held.cancel("no") == "cancelled" and held.outcome() == ff.Cancelled(reason="no")
            with pytest.raises(ff.SubmitErrors) as some:
                client.submit_many(double, [1, 2], keys=["same", "same"])
            assert some.value.jobs[0].result(timeout=10) == 2
    finally:
        asyncio.run(_stop(worker))
        thread.join(20)
    assert not thread.is_alive()
    with pytest.raises(ff.Unavailable):
        client.submit(double, 4)


async def _init(url: str) -> None:
    await (await connect(url, init=StoreConfig(fp=4))).close()


async def _stop(worker: ff.Worker) -> None:
    worker._loop.call_soon_threadsafe(worker.request_stop)


async def test_the_blocking_client_refuses_to_block_a_loop() -> None:
    """It would wait for ever for the loop it stops."""
    with pytest.raises(ff.InvalidArgument, match="async client"):
        sync.Client("memory://loop")


async def test_the_test_engine_runs_on_a_real_server_in_real_time(tmp_path: Path) -> None:
    """For tests that need what memory:// cannot do."""
    app = ff.App("valkey://never-asked:1")

    @app.task
    async def double(n: int) -> int:
        return 2 * n

    async with Engine(app, url=f"embedded://{tmp_path}") as eng:
        assert await eng.run_until(await eng.client.submit(double, 4), timeout=20) == ff.Completed(8)
        with pytest.raises(ff.InvalidArgument, match="real time"):
            await eng.advance(days=1)


async def test_two_engines_do_not_share_an_app() -> None:
    app = ff.App()
    async with Engine(app):
        with pytest.raises(ff.InvalidArgument, match="open in this loop"):
            await Engine(app).__aenter__()
    assert app.url is None


async def test_a_memory_store_lets_its_time_pass_without_an_engine() -> None:
    app = ff.App("memory://plain")

    @app.task
    async def double(n: int) -> int:
        return 2 * n

    worker = app.worker()
    running = asyncio.create_task(worker.run())
    async with app.client() as client:
        assert await (await client.submit(double, 4, delay=86_400)).result() == 8
    await worker.stop()
    await running


async def test_a_client_opened_twice_at_once_is_closed_by_one_close() -> None:
    app = ff.App("memory://opened-twice")
    client = app.client()
    await asyncio.gather(client.open(), client.open())
    await client.close()
    assert not app.in_use


async def test_an_engine_that_cannot_open_leaves_the_app_as_it_was(tmp_path: Path) -> None:
    app = ff.App("memory://its-own")

    @app.task
    async def nothing() -> None: ...

    before = asyncio.all_tasks()
    with pytest.raises(ff.InvalidArgument, match="real time"):
        async with Engine(app, url=f"embedded://{tmp_path}", auto=False):
            pass
    assert (app.in_use, app.url, app.through) == (False, "memory://its-own", None)
    assert asyncio.all_tasks() == before
