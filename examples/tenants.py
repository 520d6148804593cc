"""Tenants with weights: whoever floods a lane queues behind itself, and who pays for more gets more of it.

    python -m examples.tenants

Turns are exact within one partition and hold on the whole across several.
"""

from __future__ import annotations

import asyncio
from collections import Counter

import ffsdk as ff

app = ff.App()
ran: list[str] = []


class Import(ff.Payload):
    tenant: str
    file: int


@app.task(lane="imports", fairness="payload.tenant")
async def load(job: Import) -> None:
    ran.append(job.tenant)


async def main() -> None:
    async with app.client() as client:
        # Four turns of gold for one of everybody else.
        await client.weight("imports", {"gold": 4})
        # The flood is there first: five hundred files of one tenant, then sixty of each of the others.
        jobs = await client.submit_many(load, [Import("flood", n) for n in range(500)])
        jobs += await client.submit_many(load, [Import("gold", n) for n in range(60)])
        jobs += await client.submit_many(load, [Import("small", n) for n in range(60)])
        worker = app.worker(concurrency=1, prefetch=0)
        running = asyncio.create_task(worker.run())
        await asyncio.gather(*(job.result(timeout=50) for job in jobs))
        await worker.stop()
        await running
    first = Counter(ran[:60])
    print("of the first sixty:", ", ".join(f"{tenant} {first[tenant]}" for tenant in ("gold", "small", "flood")))
    print("then:", len(ran) - 60)


if __name__ == "__main__":
    asyncio.run(main())
