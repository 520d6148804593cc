"""The renewal thread: asleep only while nothing is held, and then woken by the first job."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, cast

from ffcore.backend import Backend
from ffcore.contracts.batch import ClaimedJob, ItemRenewed, RenewedMany, RenewManyArgs
from ffcore.ids import PartitionKey, TimestampMs
from ffsdk.held import Held
from ffsdk.renewal import Renewals, RenewalThread
from ffsdk.slots import Part


class Job:
    execution_id, lease_id, lease_epoch, attempt_id = "{fp:0}:1", "l", 1, "a"


class Calls:
    """The store, and what the thread asked of it."""

    def __init__(self) -> None:
        self.renewed_n = 0

    def blocking(self) -> Calls:
        return self

    def call(self, args: RenewManyArgs) -> RenewedMany:
        self.renewed_n += len(args.items)
        return RenewedMany(TimestampMs(0), [ItemRenewed("renewed", "", 60_000) for _ in args.items])

    def close(self) -> None:
        return None


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


async def test_a_thread_that_sleeps_is_woken_by_the_first_job_and_looks_by_itself_while_one_is_held() -> None:
    calls, held = Calls(), dict[str, Held]()
    lost: list[str] = []
    renewals = Renewals(
        held, lease_ms=60_000, clock=time.monotonic, lost=lambda _, why: lost.append(why), cancel=lambda _: None
    )
    thread = RenewalThread(renewals, cast("Backend", calls), loop=asyncio.get_running_loop(), shortest_s=0.06)
    thread.start()
    try:
        for n in range(1, 4):
            await until(lambda: thread._asleep)
            now = time.monotonic()
            held["l"] = Held(cast("ClaimedJob", Job()), Part(PartitionKey("{fp:0}")), now + 60, now, 0.0)
            thread.nudge(60.0)
            await until(lambda n=n: calls.renewed_n == n)  # type: ignore[misc]
            # Due again, and nobody says so: it looks by itself as long as something is held.
            held["l"].renew_at = 0.0
            calls.renewed_n = n - 1
            await until(lambda n=n: calls.renewed_n == n)  # type: ignore[misc]
            assert not thread._asleep
            del held["l"]
    finally:
        thread.stop()
        thread.join(10)
    assert not thread.is_alive() and not lost
