"""Priorities and lanes: within a lane the higher priority goes first; lanes do not wait for each other.

    python -m examples.priorities

The order is exact within one partition and holds on the whole across several.
"""

from __future__ import annotations

import asyncio
from uuid import uuid4

import ffsdk as ff

app = ff.App()
ran: list[str] = []


@app.task(lane="prints")
async def print_page(name: str) -> None:
    ran.append(name)


async def main() -> None:
    lane = f"prints-{uuid4().hex[:8]}"  # one of our own, so that the example can run beside others
    async with app.client() as client:
        # Submitted before anybody works, so that there is something to choose from.
        jobs = await client.submit_many(print_page, [f"draft {n}" for n in range(8)], lane=lane, priority=-10)
        jobs += await client.submit_many(print_page, [f"letter {n}" for n in range(8)], lane=lane)
        jobs += await client.submit_many(print_page, [f"urgent {n}" for n in range(8)], lane=lane, priority=50)
        worker = app.worker(lanes=[lane], concurrency=1, prefetch=0)
        running = asyncio.create_task(worker.run())
        await asyncio.gather(*(job.result(timeout=30) for job in jobs))
        await worker.stop()
        await running
    print("first:", ran[0])
    print("last:", ran[-1])
    print("jobs:", len(ran))


if __name__ == "__main__":
    asyncio.run(main())
