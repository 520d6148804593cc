"""One budget, two hundred handlers at a time: each takes what it may need and gives back what it did not.

    python -m examples.one_budget

A handler starts when its estimate fits beside what is used and what others have taken. Nothing is counted in a process:
the limit holds across all workers of all machines.
"""

from __future__ import annotations

import asyncio

import ffsdk as ff

app = ff.App()
LIMIT, JOBS, ESTIMATE, COSTS = 10_000, 200, 100, 40


@app.task(lane="summaries", budget=ff.Budget("one-for-all", estimate={"units": ESTIMATE}))
async def summarise(page: int, ctx: ff.Context) -> int:
    await asyncio.sleep(0.02)
    await ctx.spend(units=COSTS)
    return page


async def main() -> None:
    workers = [app.worker(concurrency=50) for _ in range(4)]
    running = [asyncio.create_task(worker.run()) for worker in workers]
    async with app.client() as client:
        budget = await client.budget("one-for-all", hard={"units": LIMIT})
        await budget.reset()
        jobs = await client.submit_many(summarise, range(JOBS))
        results = asyncio.gather(*(job.result(timeout=50) for job in jobs))
        most = 0.0
        while not results.done():
            status = await budget.status()
            most = max(most, status.usage.get("units", 0) + status.reserved.get("units", 0))
        print(f"{len(await results)} jobs, never more than the limit: {most <= LIMIT}")
        # Workers that have stopped have handed in what their last jobs give back.
        for worker in workers:
            await worker.stop()
        await asyncio.gather(*running)
        status = await budget.status()
        print(f"used {status.usage['units']} of {status.hard_limits['units']}, reserved {status.reserved['units']}")


if __name__ == "__main__":
    asyncio.run(main())
