"""The tasks of a chaos run: handlers that say what they do in a file that survives them.

Declared at the top of the module, so that a child process can import those of isolation="process". The store and
the directory for evidence come from the environment for the same reason.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
import zlib
from collections.abc import Awaitable, Callable
from functools import cache
from pathlib import Path
from typing import Any, Final

import msgspec

import ffsdk as ff
from tests.chaos.ledger import Ledger, now_ms

LANE: Final = "chaos"
RISKY: Final = "risky"
"""Where the poisoned jobs are: they kill whatever worker takes them."""
DIRECTORY: Final = "FF_CHAOS_DIR"
KINDS: Final = ("work", "steady", "apart", "flaky", "poison", "refused", "merge", "parent")
"""Names of the tasks: a coroutine, a thread, a child process, one that fails first, one that kills its worker; and of
members of flows: one that fails for good, one that works on what its upstreams returned, one that spawns children."""

late_report: Callable[[ff.Context, int], Awaitable[None]] | None = None
"""What a worker does whose handler was stopped; see `worker.py`."""

app = ff.App(None)
_again = ff.Retry(max_attempts=10, backoff=0.05, max_backoff=0.5)
CRASHES: Final = 1_000
"""What a job survives here. A run kills workers far more often than any operation does, and four deaths would make a
poisoned job of one that happened to be there; the poisoned ones keep the default."""


class Work(msgspec.Struct):
    n: int
    ms: int
    """How long the handler takes."""


class Family(msgspec.Struct):
    """What a parent is told: its own number and time, and who its children are."""

    n: int
    ms: int
    """How long it takes before it spawns, before it waits, and after that."""
    children: list[tuple[str, int, int]]
    """Task, number and time of each."""
    first: bool
    """Any one of them is enough."""


def result_of(n: int, epoch: int) -> list[int]:
    """What a job's result must be, if the lease of that epoch is the one that counts."""
    return [n, n * n + 1, epoch]


def merged_of(inputs: bytes, epoch: int) -> list[int]:
    """What a merge makes of its inputs, under the lease of that epoch."""
    return [zlib.crc32(inputs), epoch]


@cache
def ledger() -> Ledger:
    return Ledger(Path(os.environ[DIRECTORY]), "handlers")


def _begin(work: Work, ctx: ff.Context) -> int:
    ledger().note("begin", work.n, ctx.execution_id, ctx.fence.lease_epoch, ctx.attempt, now_ms())
    return ctx.fence.lease_epoch


def _end(work: Work, ctx: ff.Context, epoch: int) -> list[int]:
    ledger().note("end", work.n, ctx.execution_id, epoch, now_ms())
    return result_of(work.n, epoch)


@app.task(lane=LANE, retry=_again)
async def work(work: Work, ctx: ff.Context) -> list[int]:
    epoch = _begin(work, ctx)
    try:
        await asyncio.sleep(work.ms / 1000)
    except asyncio.CancelledError:
        # Cancelled, or the lease is lost. A worker without manners reports all the same.
        if late_report is not None:
            await late_report(ctx, work.n)
        raise
    return _end(work, ctx, epoch)


@app.task(lane=LANE, retry=_again)
def steady(work: Work, ctx: ff.Context) -> list[int]:
    epoch = _begin(work, ctx)
    time.sleep(work.ms / 1000)
    return _end(work, ctx, epoch)


@app.task(lane=LANE, retry=_again, isolation="process")
def apart(work: Work, ctx: ff.Context) -> list[int]:
    epoch = _begin(work, ctx)
    time.sleep(work.ms / 1000)
    return _end(work, ctx, epoch)


@app.task(lane=LANE, retry=_again)
async def flaky(work: Work, ctx: ff.Context) -> list[int]:
    epoch = _begin(work, ctx)
    await asyncio.sleep(work.ms / 1000)
    if ctx.attempt == 0:
        raise ff.Failure("the first attempt fails")
    return _end(work, ctx, epoch)


@app.task(lane=LANE, retry=_again)
async def refused(work: Work, ctx: ff.Context) -> None:
    _begin(work, ctx)
    await asyncio.sleep(work.ms / 1000)
    raise ff.Fatal("it always does")


@app.task(lane=LANE, retry=_again)
async def merge(inputs: Any, ctx: ff.Context) -> list[int]:
    """Its number is not told to it: its execution says which it is."""
    epoch, raw = ctx.fence.lease_epoch, msgspec.json.encode(inputs)
    ledger().note("begin", -1, ctx.execution_id, epoch, ctx.attempt, now_ms())
    ledger().note("input", ctx.execution_id, epoch, raw.decode())
    await asyncio.sleep(0.03)
    ledger().note("end", -1, ctx.execution_id, epoch, now_ms())
    return merged_of(raw, epoch)


@app.task(lane=LANE, retry=_again)
async def parent(family: Family, ctx: ff.Context) -> list[Any]:
    """Its result says how each child ended, where it waited for that: its value, or the word for its end."""
    epoch = _begin(Work(family.n, family.ms), ctx)
    await asyncio.sleep(family.ms / 1000)
    children = [
        await ctx.spawn(app.tasks[task], Work(n, ms), key=f"job-{n}") for task, n, ms in family.children
    ]  # fmt: skip
    await asyncio.sleep(family.ms / 1000)
    found = await ctx.wait(ff.any_of(*children) if family.first else ff.all_of(*children))
    await asyncio.sleep(family.ms / 1000)
    ends = [one and (one.value if isinstance(one, ff.Completed) else type(one).__name__.lower()) for one in found]
    ledger().note("end", family.n, ctx.execution_id, epoch, now_ms())
    return [*result_of(family.n, epoch), ends]


@app.task(lane=RISKY, retry=_again)
async def poison(work: Work, ctx: ff.Context) -> Any:
    _begin(work, ctx)
    os.kill(os.getpid(), signal.SIGKILL)


def harden(task: ff.Task[Any, Any]) -> None:
    policy: dict[str, Any] = msgspec.json.decode(task.policy)
    policy["max_reclaim_count"] = policy["timeout_policy"]["max_reclaim_count"] = CRASHES
    task.policy = msgspec.json.encode(policy, order="sorted")


for _task in (work, steady, apart, flaky, refused, merge, parent):
    harden(_task)
