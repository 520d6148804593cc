"""The worker process of a chaos run: a plain SDK worker, watched, and with worse manners than the SDK has.

`python -m tests.chaos.worker '{"url": ..., "name": ..., ...}'`; evidence goes to the directory FF_CHAOS_DIR names.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import sys
from pathlib import Path
from typing import Any

import msgspec

import ffsdk as ff
from ffcore.contracts.batch import CompleteManyArgs, Completion
from ffcore.errors import EngineError, Unavailable
from ffcore.ids import ExecutionId, partition_of
from tests.chaos import tasks
from tests.chaos.fleet import UNAVAILABLE
from tests.chaos.ledger import Ledger
from tests.chaos.wire import Counted, Watched


class Orders(msgspec.Struct, kw_only=True):
    """What the harness tells a worker."""

    url: str
    name: str
    lane: str
    concurrency: int
    lease_s: float
    seed: int
    repeat: float = 0.03


async def backend_of(app: ff.App, ledger: Ledger) -> Any:
    """The store, counted. A process may be started while the store is away: it waits, as a supervisor would."""
    while True:
        try:
            backend: Any = await app.backend()
        except Unavailable as away:
            ledger.note("wire", away.code, int(away.may_have_applied), "at boot")
            await asyncio.sleep(0.2)
            continue
        if not isinstance(backend._calls, Counted):
            backend._calls = Counted(backend._calls, ledger)
        return backend


async def serve(orders: Orders) -> None:
    ledger = Ledger(Path(os.environ[tasks.DIRECTORY]), orders.name)
    rng = random.Random(f"{orders.seed} {orders.name}")
    app = tasks.app
    app.url = orders.url
    try:
        watched = Watched(await backend_of(app, ledger), ledger, rng, orders.repeat)

        async def opened() -> Any:
            return watched

        app.backend = opened  # type: ignore[method-assign]

        async def late_report(ctx: ff.Context, n: int) -> None:
            """Report the job whose handler is being stopped, by a fence that is most likely void."""
            result = msgspec.json.encode(tasks.result_of(n, ctx.fence.lease_epoch))
            items = [Completion(ExecutionId(ctx.execution_id), ctx.fence.wire, result)]
            args = CompleteManyArgs(
                partition=partition_of(ExecutionId(ctx.execution_id)), lanes=[orders.lane], capability_sets=[], limit=0,
                claim_id=f"{orders.name}.late.{rng.getrandbits(40)}", worker_id=orders.name,
                worker_instance_id=orders.name, lease_ttl_ms=int(orders.lease_s * 1000), items=items,
            )  # fmt: skip
            ledger.note("giveup", ctx.execution_id, ctx.fence.lease_epoch)
            try:
                watched.answered("late", items, await watched._backend.call(args))
            except EngineError as failed:
                ledger.note("wire", failed.code, int(getattr(failed, "may_have_applied", False)), "late report")

        tasks.late_report = late_report
        worker = app.worker(
            lanes=[orders.lane], concurrency=orders.concurrency, lease=orders.lease_s, grace=1.0, name=orders.name,
            prefetch=0 if orders.lane == tasks.RISKY else "auto",
        )  # fmt: skip
        try:
            await worker.run(signals=True)
        except Unavailable:
            if worker.started.is_set():
                raise
            sys.exit(UNAVAILABLE)  # the store went away while it started; it is started again
    except Exception as failed:
        ledger.note("fatal", f"{type(failed).__name__}: {failed}")
        raise


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    asyncio.run(serve(msgspec.json.decode(sys.argv[1], type=Orders)))
