"""A worker on a real server: timeouts, cancels and revoked leases; the roster and the bells."""

from __future__ import annotations

import asyncio
import logging
import threading

import pytest

import ffsdk as ff
from ffcore.contracts.lease import RevokeLeaseArgs
from ffcore.contracts.operator import LaneStatsArgs
from ffcore.contracts.roster import ListTasksArgs, ListWorkersArgs
from ffcore.ids import ExecutionId, LaneId, WorkerInstanceId, partition_key
from tests.integration.proxy import until
from tests.integration.worker_app import ONCE, SOON, Order, working

# ---- time ------------------------------------------------------------------------------------------------


async def test_an_attempt_that_runs_out_of_time_is_cancelled_and_retried(app: ff.App, lane: str) -> None:
    ended: list[str] = []

    @app.task(lane=lane, timeout=0.2, retry=SOON)
    async def slow(order: Order, ctx: ff.Context) -> int:
        if ctx.attempt == 0:
            try:
                await asyncio.Event().wait()
            finally:
                ended.append("cancelled" if ctx.cancelled else "?")
        return ctx.attempt

    async with app.client() as client, working(app):
        assert await (await client.submit(slow, Order(1))).result(timeout=10) == 1
    assert ended == ["cancelled"]


async def test_an_attempt_out_of_time_fails_with_the_category_timeout(app: ff.App, lane: str) -> None:
    @app.task(lane=lane, timeout=0.2, retry=ONCE)
    async def slow(order: Order) -> None:
        await asyncio.Event().wait()

    async with app.client() as client, working(app):
        outcome = await (await client.submit(slow, Order(1))).outcome(timeout=10)
    assert isinstance(outcome, ff.Failed)
    assert outcome.category == "timeout"


async def test_a_thread_out_of_time_is_asked_to_stop_and_stays_busy_until_it_does(app: ff.App, lane: str) -> None:
    released, seen = threading.Event(), list[bool]()

    @app.task(lane=lane, timeout=0.2, retry=ONCE)
    def slow(order: Order, ctx: ff.Context) -> str:
        if order.number:
            return "second"
        released.wait(10)
        seen.append(ctx.cancelled)
        return "too late"

    async with app.client() as client, working(app, concurrency=1, prefetch=0) as worker:
        outcome = await (await client.submit(slow, Order(0))).outcome(timeout=10)
        assert isinstance(outcome, ff.Failed)
        assert outcome.category == "timeout"
        assert worker._runners.running_n == 1
        released.set()
        await until(lambda: worker._runners.running_n == 0)
        assert await (await client.submit(slow, Order(1))).result(timeout=10) == "second"
    assert seen == [True]


# ---- cancel and revoke -----------------------------------------------------------------------------------


async def test_cancelling_a_running_async_handler_ends_the_job_as_cancelled(app: ff.App, lane: str) -> None:
    started, cleaned = asyncio.Event(), asyncio.Event()

    @app.task(lane=lane)
    async def forever(order: Order) -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            cleaned.set()

    async with app.client() as client, working(app):
        job = await client.submit(forever, Order(1))
        await started.wait()
        assert await job.cancel("enough") == "requested"
        outcome = await job.outcome(timeout=10)
    assert isinstance(outcome, ff.Cancelled)
    assert cleaned.is_set()


async def test_a_handler_that_finishes_in_spite_of_a_cancel_is_completed(app: ff.App, lane: str) -> None:
    started = asyncio.Event()

    @app.task(lane=lane)
    async def stubborn(order: Order) -> str:
        started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            pass
        return "done anyway"

    async with app.client() as client, working(app):
        job = await client.submit(stubborn, Order(1))
        await started.wait()
        await job.cancel("enough")
        assert await job.result(timeout=10) == "done anyway"
        again = await client.submit(stubborn, Order(2))
        started.clear()
        await started.wait()
        await again.cancel("enough")
        assert await again.result(timeout=10) == "done anyway"


async def test_cancelling_a_thread_sets_its_flag_and_an_error_then_means_cancelled(app: ff.App, lane: str) -> None:
    started = threading.Event()

    @app.task(lane=lane)
    def loop(order: Order, ctx: ff.Context) -> None:
        started.set()
        while not ctx.cancelled:
            threading.Event().wait(0.001)
        raise InterruptedError

    async with app.client() as client, working(app):
        job = await client.submit(loop, Order(1))
        await asyncio.to_thread(started.wait, 10)
        await job.cancel("enough")
        assert isinstance(await job.outcome(timeout=10), ff.Cancelled)


async def test_a_job_in_the_buffer_is_cancelled_without_being_started(app: ff.App, lane: str) -> None:
    gate, ran = asyncio.Event(), list[int]()

    @app.task(lane=lane)
    async def hold(order: Order) -> None:
        ran.append(order.number)
        await gate.wait()

    async with app.client() as client, working(app, concurrency=1, prefetch=1) as worker:
        first = await client.submit(hold, Order(1))
        await until(lambda: ran == [1])
        second = await client.submit(hold, Order(2))
        await until(lambda: len(worker._runners.buffer) == 1)
        await second.cancel("not needed")
        assert isinstance(await second.outcome(timeout=10), ff.Cancelled)
        gate.set()
        await first.result(timeout=10)
    assert ran == [1]


async def test_a_revoked_lease_stops_the_handler_and_nothing_is_reported_for_it(
    app: ff.App, lane: str, caplog: pytest.LogCaptureFixture
) -> None:
    started, stopped = list[int](), list[int]()

    @app.task(lane=lane)
    async def forever(order: Order, ctx: ff.Context) -> int:
        started.append(ctx.attempt)
        if ctx.attempt == 0:
            try:
                await asyncio.Event().wait()
            finally:
                stopped.append(ctx.attempt)
        return ctx.attempt

    async with app.client() as client, working(app, concurrency=1):
        job = await client.submit(forever, Order(1))
        await until(lambda: started == [0])
        with caplog.at_level(logging.WARNING, "flowfabric.worker"):
            await client.backend.call(
                RevokeLeaseArgs(
                    execution_id=ExecutionId(job.id), worker_instance_id=WorkerInstanceId(""), reason="test"
                )
            )
            assert await job.result(timeout=10) == 1
        status = await job.status()
    assert stopped == [0]
    assert "is lost" in caplog.text
    assert (status.attempts, status.crashes) == (2, 0)


# ---- being there -----------------------------------------------------------------------------------------


async def test_a_worker_is_in_the_roster_while_it_runs_and_its_tasks_are_published(app: ff.App, lane: str) -> None:
    @app.task(lane=lane, name="published.by.the.roster.test")
    async def nothing(order: Order) -> None: ...

    async with app.client() as client:
        async with working(app) as worker:
            there = await client.backend.call(ListWorkersArgs(partition=partition_key(0, "w")))
            assert worker.instance in [row.worker_instance_id for row in there.items]
        left = await client.backend.call(ListWorkersArgs(partition=partition_key(0, "w")))
        assert worker.instance not in [row.worker_instance_id for row in left.items]
        tasks = await client.backend.call(ListTasksArgs(partition=partition_key(0, "w"), names=[nothing.name]))
    assert [row.task for row in tasks.items] == [nothing.name]


async def test_an_idle_worker_is_parked_and_a_bell_brings_it_the_job(app: ff.App, lane: str) -> None:
    @app.task(lane=lane)
    async def quick(order: Order) -> int:
        return order.number

    async with app.client() as client, working(app) as worker:
        backend = client.backend

        async def parked() -> int:
            stats = [
                await backend.call(LaneStatsArgs(partition=k, lane_id=LaneId(lane))) for k in backend.config.keys("fp")
            ]
            return sum(s.parked for s in stats)

        for number in range(20):
            while await parked() < 4:
                await asyncio.sleep(0.002)
            assert all(part.parked_until for part in worker._slots.parts)
            assert await (await client.submit(quick, Order(number))).result(timeout=4) == number


async def test_a_bell_that_reaches_a_worker_without_room_is_passed_on(app: ff.App, lane: str) -> None:
    """The full worker was parked when it had room; not passed on, the job would wait for the idle one's next poll."""
    gate = asyncio.Event()

    @app.task(lane=lane)
    async def hold(order: Order) -> int:
        if order.number == 0:
            await gate.wait()
        return order.number

    async with app.client() as client, working(app, concurrency=1, prefetch=0) as busy:
        await until(lambda: all(part.parked_until for part in busy._slots.parts))
        blocker = await client.submit(hold, Order(0))
        await until(lambda: busy._runners.running_n == 1)
        async with working(app, concurrency=1, prefetch=0) as idle:
            await until(lambda: all(part.parked_until for part in idle._slots.parts))
            for number in range(1, 30):
                job = await client.submit(hold, Order(number))
                assert await job.result(timeout=3) == number
        gate.set()
        await blocker.result(timeout=10)
