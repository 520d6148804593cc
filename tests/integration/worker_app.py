"""What the tests of the worker share: tasks at the top of a module, which child processes can import, and a way to run
a worker for the length of a block. As a program, with URL, LANE and GRACE as arguments, it is a worker."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import msgspec

import ffsdk as ff
from ffsdk.worker import Worker

ONCE = ff.Retry(max_attempts=1)
SOON = ff.Retry(max_attempts=3, backoff=0.001, jitter=False)

app = ff.App(None)


class Order(msgspec.Struct):
    number: int
    note: str = ""


class Numbers(msgspec.Struct):
    a: int
    b: int = 0


@app.task(lane="processes", isolation="process")
def add_up(numbers: Numbers, ctx: ff.Context) -> int:
    ctx.progress(50, f"in {os.getpid()}")
    return numbers.a + numbers.b


@app.task(lane="processes", isolation="process")
async def add_up_async(numbers: Numbers) -> dict[str, int]:
    await asyncio.sleep(0)
    return {"sum": numbers.a + numbers.b, "pid": os.getpid()}


@app.task(lane="processes", isolation="process", retry=ff.Retry(max_attempts=1))
def spin(path: str) -> None:
    """Runs until it is killed; the file says that it runs."""
    with open(path, "w") as file:
        file.write(str(os.getpid()))
    while True:
        time.sleep(0.01)


@app.task(lane="processes", isolation="process", retry=ff.Retry(max_attempts=1))
def die(code: int) -> None:
    os._exit(code)


@app.task(lane="processes", isolation="process", retry=ff.Retry(max_attempts=1))
def use_state(_: int, ctx: ff.Context) -> str:
    return str(ctx.state)


@app.task(lane="processes", isolation="process", retry=ff.Retry(max_attempts=1))
async def step_apart(number: int, ctx: ff.Context) -> int:
    return await ctx.step("one", asyncio.sleep, 0, number)


@app.task(lane="processes", isolation="process")
def spend_apart(tokens: int, ctx: ff.Context) -> str:
    said = ctx.sync.spend(tokens=tokens)
    try:
        ctx.spend(seconds=1, tokens=1)
    except ff.InvalidArgument:
        return f"soft {', '.join(said.soft)}; none has seconds"
    return ""


@app.task(lane="processes", isolation="process")
async def spend_apart_async(tokens: int, ctx: ff.Context) -> str:
    said = await ctx.spend(tokens=tokens)
    try:
        await ctx.spend(seconds=1, tokens=1)
    except ff.InvalidArgument:
        return f"soft {', '.join(said.soft)}; none has seconds"
    return ""


@app.task(lane="processes", isolation="process")
def count_down(left: int) -> int:
    if left:
        raise ff.ContinueAs(left - 1)
    return left


@app.task(lane="processes", isolation="process")
def fail_badly(reason: str) -> None:
    raise ff.Fatal(reason)


@app.task(lane="killed", lease=1)
async def stall(path: str, ctx: ff.Context) -> int:
    """The first attempt never ends; a later one says which it is."""
    if ctx.attempt == 0:
        with open(path, "w") as file:
            file.write(str(os.getpid()))
        await asyncio.Event().wait()
    return ctx.attempt


@contextlib.asynccontextmanager
async def working(app: ff.App, **options: Any) -> AsyncIterator[Worker]:
    """A worker that takes jobs inside the block and is stopped after it."""
    options.setdefault("grace", 5)
    worker = app.worker(**options)
    running = asyncio.create_task(worker.run())
    started = asyncio.create_task(worker.started.wait())
    await asyncio.wait((running, started), return_when=asyncio.FIRST_COMPLETED)
    started.cancel()
    if running.done():
        await running
    try:
        yield worker
    finally:
        if not running.done():
            await worker.stop()
        await running


if __name__ == "__main__":
    app.url = sys.argv[1]
    app.run_worker(lanes=[sys.argv[2]], grace=float(sys.argv[3]))
