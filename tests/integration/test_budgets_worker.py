"""Many jobs, several worker processes, one budget; half of the processes killed with -9 in the middle of it.

The rule: what is reserved and what is used never pass the limit together, whoever dies, and nothing stays reserved once
the leases of the dead have ended. As a program this file is one of the workers: URL, NAMESPACE and a directory.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Generator
from pathlib import Path
from typing import Final

import ffsdk as ff
from tests.integration.proxy import until
from tests.integration.worker_app import Order

ROOT: Final = Path(__file__).resolve().parents[2]
JOBS, WORKERS, LIMIT, ESTIMATE, SPENT = 200, 4, 10_000, 100, 30
LEASE_S: Final = 1.0


def app_of(url: str, namespace: str, directory: str) -> ff.App:
    app = ff.App(url, namespace=namespace)

    @app.lifespan
    async def ready() -> AsyncIterator[None]:
        Path(directory, f"ready.{os.getpid()}").touch()
        yield

    @app.task(lane=namespace, lease=LEASE_S, budget=ff.Budget("team", estimate={"tokens": ESTIMATE}))
    async def work(order: Order, ctx: ff.Context) -> int:
        Path(directory, f"{order.number}.{ctx.fence.lease_epoch}.job.{os.getpid()}").touch()
        await asyncio.sleep(0.05)
        await ctx.spend(tokens=SPENT)
        await asyncio.sleep(0.05)
        return order.number

    return app


@contextlib.contextmanager
def workers(url: str, namespace: str, directory: Path) -> Generator[list[subprocess.Popen[bytes]]]:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.integration.test_budgets_worker", url, namespace, str(directory)]
    started = [subprocess.Popen(command, cwd=ROOT, env=env) for _ in range(WORKERS)]
    try:
        yield started
    finally:
        for process in started:
            if process.poll() is None:
                process.terminate()
        for process in started:
            process.wait(30)


async def test_no_worker_that_dies_leaves_anything_reserved_and_the_limit_holds_throughout(
    url: str, lane: str, tmp_path: Path
) -> None:
    app = app_of(url, lane, str(tmp_path))
    sums: list[tuple[float, float]] = []
    async with app.client() as client:
        team = await client.budget("team", hard={"tokens": LIMIT})

        async def watch() -> None:
            while True:
                status = await team.status()
                sums.append((status.usage.get("tokens", 0), status.reserved.get("tokens", 0)))
                await asyncio.sleep(0.005)

        watching = asyncio.create_task(watch())
        with workers(url, lane, tmp_path) as processes:
            pids = {str(process.pid) for process in processes}
            await until(lambda: {f.suffix[1:] for f in tmp_path.glob("ready.*")} == pids, "every worker is there", 60)
            jobs = await client.submit_many(app.tasks["work"], [Order(n) for n in range(JOBS)])
            doomed = pids - {str(process.pid) for process in processes[WORKERS // 2 :]}
            await until(lambda: doomed <= {f.suffix[1:] for f in tmp_path.glob("*.job.*")}, "they have jobs", 30)
            for process in processes[: WORKERS // 2]:
                process.send_signal(signal.SIGKILL)
            for job in jobs:
                assert await job.result(timeout=60) >= 0
            async with asyncio.timeout(10):
                while (await team.status()).reservations:
                    await asyncio.sleep(0.05)
        watching.cancel()
        status, spenders = await team.status(), await team.spenders(JOBS)
    assert max(used + reserved for used, reserved in sums) <= LIMIT
    assert max(reserved for _, reserved in sums) > 1_000, "they did not race at all"
    assert status.reserved.get("tokens", 0) == 0
    assert len(spenders) == JOBS
    assert sum(one.amounts["tokens"] for one in spenders) == status.usage["tokens"] >= JOBS * SPENT
    assert status.usage["tokens"] % SPENT == 0
    assert status.breach_count == 0


if __name__ == "__main__":
    app_of(*sys.argv[1:]).run_worker(lanes=[sys.argv[2]], concurrency=16, lease=LEASE_S, grace=5)
