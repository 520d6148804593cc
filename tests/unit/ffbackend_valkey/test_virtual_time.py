"""Virtual time: a store's clock is exact, and idle time is skipped to what is due, in order."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import fakeredis
import pytest

from ffbackend_valkey.memory import MemoryServer
from ffbackend_valkey.virtual_time import IdleSkipper, VirtualClock, autoadvance
from ffcore.errors import InvalidArgument, Unavailable

DAY_MS = 86_400_000


async def turns(n: int = 3) -> None:
    for _ in range(n):
        await asyncio.sleep(0)


def test_time_in_the_store_is_the_virtual_clock_to_the_millisecond() -> None:
    """Milliseconds pass through floating seconds inside fakeredis; none may be lost on the way."""
    clock = VirtualClock(1_732_190_400_000)
    connection = MemoryServer("", clock).blocking()
    for _ in range(2_000):
        now_ms = clock.advance(1)
        seconds, micros = connection.call("TIME")
        assert int(seconds) * 1000 + int(micros) / 1000 == now_ms
        assert connection.call("XADD", "s", "*", "f", "v") == b"%d-0" % now_ms


def test_keys_expire_by_the_virtual_clock() -> None:
    clock = VirtualClock(1_732_190_400_000)
    connection = MemoryServer("", clock).blocking()
    connection.call("SET", "k", "v", "PX", 1_000)
    clock.advance(999)
    assert connection.call("GET", "k") == b"v"
    clock.advance(2)
    assert connection.call("GET", "k") is None


def test_two_stores_have_their_own_time_and_other_users_of_fakeredis_keep_the_real_one() -> None:
    early, late = MemoryServer("", VirtualClock(1_000_000)), MemoryServer("", VirtualClock(2_000_000))
    assert early.blocking().call("TIME") == [b"1000", b"0"]
    assert late.blocking().call("TIME") == [b"2000", b"0"]
    assert abs(fakeredis.FakeRedis(server=fakeredis.FakeServer()).time()[0] - time.time()) < 60


def test_a_clock_follows_the_wall_until_frozen_and_never_runs_back() -> None:
    clock = VirtualClock()
    before_ms = clock.now_ms
    assert abs(before_ms - time.time() * 1000) < 60_000
    assert clock.advance(3_600_000) >= before_ms + 3_600_000
    clock.freeze()
    frozen_ms = clock.now_ms
    assert clock.now_ms == frozen_ms >= before_ms + 3_600_000
    clock.follow()
    assert frozen_ms <= clock.now_ms < frozen_ms + 60_000
    with pytest.raises(InvalidArgument, match="does not run back"):
        clock.advance(-1)


def test_idle_time_is_skipped_to_each_timer_in_order() -> None:
    async def scenario() -> list[tuple[str, int]]:
        clock = VirtualClock(0)
        seen: list[tuple[str, int]] = []

        async def sleeper(name: str, seconds: float) -> None:
            await asyncio.sleep(seconds)
            seen.append((name, clock.now_ms))

        async with IdleSkipper(clock):
            await asyncio.gather(sleeper("month", 30 * 86_400), sleeper("minute", 60), sleeper("tick", 0.25))
            await sleeper("after", 1)
        return seen

    assert asyncio.run(scenario()) == [
        ("tick", 250), ("minute", 60_000), ("month", 30 * DAY_MS), ("after", 30 * DAY_MS + 1_000),
    ]  # fmt: skip


def test_timeouts_are_virtual_too() -> None:
    async def scenario() -> int:
        clock = VirtualClock(0)
        async with IdleSkipper(clock):
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(asyncio.Event().wait(), timeout=3_600)
        return clock.now_ms

    assert asyncio.run(scenario()) == 3_600_000


def test_idle_time_is_skipped_to_what_the_store_says_is_due() -> None:
    """A ticker that sleeps for a minute at most still passes each due instant exactly."""

    async def scenario() -> list[int]:
        clock = VirtualClock(0)
        due = [1_500, 90_000, 90_001]
        stops: list[int] = []

        async def next_due() -> int | None:
            await turns()
            stops.append(clock.now_ms)
            return next((at_ms for at_ms in due if at_ms > clock.now_ms), None)

        async with IdleSkipper(clock, next_due) as skipper:
            await skipper.reach(120_000)
        return stops

    stops = asyncio.run(scenario())
    assert [ms for ms in (0, 1_500, 90_000, 90_001, 120_000) if ms in stops] == [0, 1_500, 90_000, 90_001, 120_000]


def test_a_ceiling_holds_time_until_it_is_raised() -> None:
    """What Engine does when the user moves time by hand."""

    async def scenario() -> None:
        clock = VirtualClock(0)
        rang: list[int] = []
        async with IdleSkipper(clock, ceiling_ms=0) as skipper:
            for seconds in (10, 20, 30):
                asyncio.get_running_loop().call_later(seconds, lambda: rang.append(clock.now_ms))
            await skipper.reach(20_000)
            assert rang == [10_000, 20_000] and clock.now_ms == 20_000
            await turns(50)
            assert clock.now_ms == 20_000
            await skipper.reach(25_000)
            assert rang == [10_000, 20_000] and clock.now_ms == 25_000
            await skipper.reach(30_000)
            assert rang == [10_000, 20_000, 30_000]

    asyncio.run(scenario())


def test_time_is_not_skipped_while_a_thread_works() -> None:
    """A lease of ten seconds must not run out because a sync handler took ten milliseconds."""

    async def scenario() -> None:
        clock = VirtualClock(0)
        started, finish = threading.Event(), threading.Event()

        def handler() -> int:
            started.set()
            finish.wait()
            return clock.now_ms

        def finish_once_started() -> None:
            started.wait()
            finish.set()

        async with IdleSkipper(clock):
            lease = asyncio.ensure_future(asyncio.sleep(3_600))
            work = asyncio.ensure_future(asyncio.to_thread(handler))
            threading.Thread(target=finish_once_started).start()
            assert await work < 3_600_000
            assert not lease.done()
            await lease
            assert clock.now_ms >= 3_600_000

    asyncio.run(scenario())


def test_a_thread_may_wait_for_a_timer_of_the_loop() -> None:
    """Time passes at its real pace while a thread works; standing still would stop both."""

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        async with IdleSkipper(VirtualClock(0)):

            def handler() -> str:
                return asyncio.run_coroutine_threadsafe(asyncio.sleep(0.03, "slept"), loop).result()

            assert await asyncio.to_thread(handler) == "slept"

    asyncio.run(scenario())


def test_a_loop_with_nothing_due_waits_and_is_woken_from_outside() -> None:
    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        async with IdleSkipper(VirtualClock(0)):
            woken = asyncio.Event()
            threading.Thread(target=lambda: loop.call_soon_threadsafe(woken.set)).start()
            await woken.wait()

    asyncio.run(scenario())


def test_one_clock_is_skipped_by_one_loop_and_the_loop_is_left_as_it_was() -> None:
    async def scenario() -> None:
        clock = VirtualClock(0)
        loop: Any = asyncio.get_running_loop()
        selector = loop._selector
        task = asyncio.create_task(autoadvance(clock))
        await asyncio.sleep(3_600)
        with pytest.raises(InvalidArgument, match="another event loop"):
            async with IdleSkipper(clock):
                pass
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled() and loop._selector is selector and clock.now_ms >= 3_600_000
        before_s = loop.time()
        await asyncio.sleep(0.001)
        assert 0 < loop.time() - before_s < 60
        async with IdleSkipper(clock):
            await asyncio.sleep(3_600)

    asyncio.run(scenario())


def test_a_failing_next_due_is_reported_to_whoever_waits() -> None:
    async def scenario() -> None:
        async def next_due() -> int | None:
            raise Unavailable("the store went away")

        with pytest.raises(Unavailable, match="went away"):
            async with IdleSkipper(VirtualClock(0), next_due) as skipper:
                await skipper.reach(1_000)

    asyncio.run(scenario())
