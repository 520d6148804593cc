"""Schedules end to end: on virtual time every instant in order, on a real server once whoever ticks."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest

import ffsdk as ff
from ffbackend_valkey.backend import ValkeyBackend
from ffbackend_valkey.stores import connect
from ffcore.contracts.schedule import FireSchedulesArgs
from ffcore.contracts.upkeep import TickArgs
from ffcore.errors import Unavailable
from ffengine import Ticker
from ffengine.schedules import fire
from ffsdk import sync
from ffsdk.forwarding import Forwarding
from ffsdk.testing import Engine
from tests.integration.proxy import until
from tests.integration.worker_app import working

HOUR = 3600.0


class Runs:
    """An app on virtual time and the instants its scheduled runs were for."""

    def __init__(self) -> None:
        self.app = ff.App()
        self.seen: list[datetime] = []
        self.tags: list[dict[str, str]] = []

        @self.app.task(lane="nightly")
        async def report(day: str, ctx: ff.Context) -> str:
            status = await self.eng.client.job(ctx.execution_id).status()  # pyright: ignore[reportUnknownMemberType]
            self.tags.append(dict(status.tags))
            self.seen.append(self.eng.now)
            return day

        self.report = report
        self.eng: Engine


@pytest.fixture
async def runs() -> AsyncIterator[Runs]:
    runs = Runs()
    async with Engine(runs.app, auto=False) as eng:
        runs.eng = eng
        yield runs


async def test_every_due_instant_is_passed_in_order(runs: Runs) -> None:
    """Three days of every hour and of every night, in one step of virtual time."""
    client, began = runs.eng.client, runs.eng.now
    await client.schedule("hourly", runs.report, "h", every=HOUR)
    await client.schedule("nightly", runs.report, "n", cron="0 3 * * *", tz="Europe/Prague")
    await runs.eng.advance(days=3)
    assert runs.seen == sorted(runs.seen)
    hourly = [at for at, tags in zip(runs.seen, runs.tags, strict=True) if tags["schedule.name"] == "hourly"]
    nightly = [at for at, tags in zip(runs.seen, runs.tags, strict=True) if tags["schedule.name"] == "nightly"]
    assert [at - began for at in hourly] == [timedelta(hours=n + 1) for n in range(72)], "and it does not drift"
    local = [at.astimezone(ZoneInfo("Europe/Prague")) for at in nightly]
    assert [(at.hour, at.minute, at.second) for at in local] == [(3, 0, 0)] * 3
    assert [datetime.fromisoformat(tags["schedule.due"]) for tags in runs.tags] == runs.seen


async def test_the_same_call_again_changes_nothing_and_another_updates_it(runs: Runs) -> None:
    client = runs.eng.client
    first = await client.schedule("s", runs.report, "a", every=HOUR, tags={"shop.a": "b"})
    assert (first.created, first.changed) == (True, False)
    await runs.eng.advance(minutes=30)
    again = await client.schedule("s", runs.report, "a", every=HOUR, tags={"shop.a": "b"})
    assert (again.created, again.changed, again == first) == (False, False, True)
    # Another payload leaves the step of the interval alone: the run comes half an hour from now.
    other = await client.schedule("s", runs.report, "z", every=HOUR, tags={"shop.a": "b"}, priority=3)
    assert (other.created, other.changed) == (False, True)
    await runs.eng.advance(minutes=30)
    assert len(runs.seen) == 1
    job = client.job((await first.describe()).last_job or "", runs.report)
    assert await job.result(timeout=1) == "z"
    assert (await job.status()).priority == 3
    # Another interval counts from the change.
    await client.schedule("s", runs.report, "z", every=2 * HOUR)
    [due] = await first.next()
    assert due == runs.eng.now + timedelta(hours=2)


async def test_what_falls_into_a_pause_is_passed_over_and_can_be_backfilled(runs: Runs) -> None:
    client = runs.eng.client
    began = runs.eng.now
    schedule = await client.schedule("s", runs.report, "a", every=HOUR)
    assert await schedule.pause() == "paused" and await schedule.pause() == "unchanged"
    # Making it again does not wake it.
    await client.schedule("s", runs.report, "a", every=HOUR)
    await runs.eng.advance(hours=5.5)
    info = await schedule.describe()
    assert (runs.seen, info.state, info.next_at) == ([], "paused", None)
    assert await schedule.resume() == "resumed" and await schedule.resume() == "unchanged"
    await runs.eng.advance(hours=1)
    assert [at - began for at in runs.seen] == [timedelta(hours=6)]
    jobs = await schedule.backfill(began + timedelta(hours=1), began + timedelta(hours=6))
    assert [job.created for job in jobs] == [True] * 5 + [False]
    await runs.eng.advance(seconds=1)
    due = [datetime.fromisoformat(tags["schedule.due"]) - began for tags in runs.tags]
    assert due == [timedelta(hours=n) for n in (6, 1, 2, 3, 4, 5)]
    assert (await schedule.next(2))[0] == began + timedelta(hours=7)


async def test_a_trigger_is_a_run_more(runs: Runs) -> None:
    schedule = await runs.eng.client.schedule("s", runs.report, "now", cron="0 3 * * *", paused=True)
    job = await schedule.trigger()
    assert await runs.eng.run_until(job) == ff.Completed("now")
    assert (await schedule.describe()).fires == 0


@pytest.mark.parametrize(("catch_up", "runs_n"), [("none", 0), ("one", 1), ("all", 5)])
async def test_what_was_missed_is_made_up_as_the_schedule_says(runs: Runs, catch_up: Any, runs_n: int) -> None:
    """Five hours and a half in which nobody ticked: the store's clock goes on, its loop does not."""
    client = runs.eng.client
    schedule = await client.schedule("s", runs.report, "a", every=HOUR, catch_up=catch_up)
    began = runs.eng.now
    backend = client.backend
    assert isinstance(backend, ValkeyBackend)
    from ffsdk.connect import VirtualStore

    VirtualStore(runs.eng.url).clock.advance(int(5.5 * HOUR * 1000))  # type: ignore[attr-defined]
    await runs.eng.advance(seconds=1)
    assert len(runs.seen) == runs_n
    due = [datetime.fromisoformat(tags["schedule.due"]) - began for tags in runs.tags]
    assert due == [timedelta(hours=5)] * (runs_n == 1) + [timedelta(hours=n + 1) for n in range(5)] * (runs_n == 5)
    assert await schedule.next() == [began + timedelta(hours=6)]


async def test_one_instant_fires_once_and_is_forgotten_a_day_later(runs: Runs) -> None:
    client = runs.eng.client
    at = runs.eng.now + timedelta(hours=1)
    once = await client.schedule("once", runs.report, "a", at=at)
    await runs.eng.advance(hours=2)
    assert runs.seen == [at]
    assert ((await once.describe()).state, await once.next()) == ("ended", [])
    # The same call again, as at the start of a program, is no second run.
    assert not (await client.schedule("once", runs.report, "a", at=at)).created
    assert [s.name async for s in client.schedules(state="ended")] == ["once"]
    await runs.eng.advance(days=1, hours=1)
    assert [s.name async for s in client.schedules()] == []
    with pytest.raises(ff.NotFound, match="schedule_not_found"):
        await once.describe()
    with pytest.raises(ff.InvalidArgument, match="has passed"):
        await client.schedule("once", runs.report, "a", at=at)
    assert len(runs.seen) == 1


async def test_start_end_and_jitter_bound_its_runs(runs: Runs) -> None:
    client, now = runs.eng.client, runs.eng.now
    await client.schedule(
        "s", runs.report, "a", every=HOUR, start=now + timedelta(hours=2), end=now + timedelta(hours=4), jitter=600
    )
    await runs.eng.advance(days=1)
    late = [(at - now - timedelta(hours=n)).total_seconds() for n, at in zip((2, 3, 4), runs.seen, strict=True)]
    assert all(0 <= one <= 600 for one in late) and len(set(late)) == 3
    assert [datetime.fromisoformat(tags["schedule.due"]) - now for tags in runs.tags] == [
        timedelta(hours=n) for n in (2, 3, 4)
    ]


async def test_a_run_is_planned_as_a_submit_is(runs: Runs) -> None:
    client = runs.eng.client
    await client.budget("team", hard={"tokens": 5})
    schedule = await client.schedule(
        "s", runs.report, "a", every=HOUR, lane="elsewhere", priority=5, deadline=60, tags={"shop.tenant": "t1"},
        requires=["gpu"], budget="team",
    )  # fmt: skip
    job = await schedule.trigger()
    status = await job.status()
    assert (status.lane, status.priority, status.tags["shop.tenant"]) == ("elsewhere", 5, "t1")
    stored = await runs.eng.run_until(job)
    assert isinstance(stored, ff.Expired), "no worker has what it requires, and its deadline counts from its making"
    with pytest.raises(ff.NotFound, match="budget"):
        await client.schedule("t", runs.report, "a", every=HOUR, budget="nobody")


async def test_what_cannot_be_is_refused_before_anything_is_sent(runs: Runs) -> None:
    client, now = runs.eng.client, runs.eng.now
    bad: list[tuple[dict[str, Any], str]] = [
        ({}, "exactly one"), ({"cron": "x"}, "cron"), ({"every": 0.01}, "every"),
        ({"at": datetime(2030, 1, 1)}, "zone"),
        ({"every": 5, "unique": ff.Unique("k")}, "unique= is not for schedules"), ({"every": 5, "delay": 5}, "delay="),
        ({"every": 5, "durability": "fsync"}, "durability"), ({"cron": "@daily", "tz": "Mars"}, "time zone"),
        ({"every": 5, "end": now - timedelta(1)}, "no instant"), ({"every": 5, "jitter": 5}, "jitter"),
    ]  # fmt: skip
    for options, said in bad:
        with pytest.raises(ff.InvalidArgument, match=said):
            await client.schedule("s", runs.report, "a", **options)
    with pytest.raises(ff.InvalidArgument, match="name"):
        await client.schedule("", runs.report, "a", every=5)
    schedule = await client.schedule("s", runs.report, "a", every=5)
    with pytest.raises(ff.InvalidArgument, match="in parts"):
        await schedule.backfill(now - timedelta(days=1), now)
    with pytest.raises(ff.InvalidArgument, match="before it starts"):
        await schedule.backfill(now, now - timedelta(days=1))
    with pytest.raises(ff.InvalidArgument, match="state"):
        [s async for s in client.schedules(state="asleep")]
    assert await schedule.remove() is True and await schedule.remove() is False


def test_the_blocking_client_has_them_too() -> None:
    app = ff.App("memory://sync-schedules")

    @app.task(lane="nightly")
    async def report(day: str) -> str:
        return day

    with sync.Client(app=app) as client:
        schedule = client.schedule("s", report, "a", cron="0 3 * * *")
        assert (schedule.created, schedule.name, client.schedule_by_name("s") == schedule) == (True, "s", True)
        assert [one.info.name for one in client.schedules() if one.info] == ["s"]
        assert len(schedule.next(2)) == 2
        assert schedule.pause() == "paused" and schedule.resume() == "resumed"
        job = schedule.trigger()
        assert job.status().tags["schedule.name"] == "s"
        start = datetime(2026, 1, 1, tzinfo=UTC)
        assert len(schedule.backfill(start, start + timedelta(days=2))) == 2
        assert schedule.describe().state == "active" and schedule.remove()


# ---- on a real server --------------------------------------------------------------------------------------


def reporting(app: ff.App, lane: str) -> tuple[ff.Task[int, None], Counter[str]]:
    ran: Counter[str] = Counter()

    @app.task(name=f"report.{lane}", lane=lane)
    async def report(n: int, ctx: ff.Context) -> None:
        ran[ctx.execution_id] += 1

    return report, ran


async def test_a_schedule_fires_while_a_worker_runs(app: ff.App, lane: str) -> None:
    report, ran = reporting(app, lane)
    async with app.client() as client, working(app, lanes=[lane]):
        schedule = await client.schedule("often", report, 1, every=0.2)
        await until(lambda: len(ran) >= 4, within=20)
        await schedule.remove()
    assert set(ran.values()) == {1}


async def test_two_tickers_at_once_make_each_run_once(app: ff.App, url: str, lane: str) -> None:
    """Both tick by force, and so have the same answers in hand, again and again."""
    report, _ = reporting(app, lane)
    backends = [await connect(url) for _ in range(2)]
    try:
        async with app.client() as client:
            for n in range(20):
                await client.schedule(f"s{n}", report, n, every=0.1, catch_up="all")
            fired_n = 0
            while fired_n < 60:
                fired = await asyncio.gather(*(tick_and_fire(one, f"t{n}") for n, one in enumerate(backends)))
                fired_n += sum(fired)
            info = [s.info async for s in client.schedules()]
            found = [(await job.status()).tags async for job in client.jobs(lane=lane)]
            due = Counter((tags["schedule.name"], tags["schedule.due"]) for tags in found)
            for s in [s async for s in client.schedules()]:
                await s.remove()
        assert (len(info), len(found), set(due.values())) == (20, fired_n, {1})
    finally:
        for backend in backends:
            await backend.close()


async def tick_and_fire(backend: ValkeyBackend, ticker: str) -> int:
    ticked = await backend.call(TickArgs(partitions=backend.config.keys("fp"), ticker=ticker, force=True))
    fired = await asyncio.gather(*(fire(backend, row) for row in ticked.partitions if row.schedules))
    return sum(one.done for one in fired)


class Dies(Forwarding):
    """Loses the store before, or the answer after, its first fire."""

    def __init__(self, backend: Any, after: bool) -> None:
        super().__init__(backend)
        self.after, self.died = after, False

    async def call(self, args: Any) -> Any:
        if not isinstance(args, FireSchedulesArgs) or self.died:
            return await super().call(args)
        self.died = True
        if self.after:
            await super().call(args)
        raise Unavailable("it died", may_have_applied=self.after)


@pytest.mark.parametrize("after", [False, True])
async def test_one_that_dies_between_its_tick_and_its_fire_leaves_nothing_out(
    app: ff.App, url: str, lane: str, after: bool
) -> None:
    report, ran = reporting(app, lane)
    async with app.client() as client, connected(url) as backend:
        schedule = await client.schedule("once", report, 1, at=datetime.now(UTC))
        dying = Dies(backend, after)
        ticker = Ticker(dying, "dying")
        running = asyncio.create_task(ticker.run())
        await until(lambda: dying.died)
        async with working(app, lanes=[lane]):
            await until(lambda: len(ran) == 1, within=20)
            await asyncio.sleep(0)
        ticker.stop()
        await running
        assert ((await schedule.describe()).state, set(ran.values())) == ("ended", {1})


async def test_a_full_store_fires_nothing_and_forgets_nothing(app: ff.App, url: str, lane: str) -> None:
    report, ran = reporting(app, lane)
    async with app.client() as client, connected(url) as backend:
        schedule = await client.schedule("once", report, 1, at=datetime.now(UTC) + timedelta(seconds=0.5))
        before = (await backend.command("CONFIG", "GET", "maxmemory"))[1]
        await backend.command("CONFIG", "SET", "maxmemory", 1)
        try:
            ticker = Ticker(backend, "full")
            running = asyncio.create_task(ticker.run())
            await until(lambda: ticker.rounds_n > 3, within=20)
            assert (await schedule.describe()).fires == 0
        finally:
            await backend.command("CONFIG", "SET", "maxmemory", before)
        async with working(app, lanes=[lane]):
            await until(lambda: len(ran) == 1, within=30)
        ticker.stop()
        await running


class connected:
    """A backend of its own for the length of a block."""

    def __init__(self, url: str) -> None:
        self._url = url

    async def __aenter__(self) -> ValkeyBackend:
        self._backend = await connect(self._url)
        return self._backend

    async def __aexit__(self, *_: object) -> None:
        await self._backend.close()
