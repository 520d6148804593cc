"""Routing: jobs say what they require, workers what they have, and what nobody can run says why.

python -m examples.gpu_routing
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncIterator

import ffsdk as ff

app = ff.App()
name: contextvars.ContextVar[str] = contextvars.ContextVar("name")


@app.lifespan
async def who() -> AsyncIterator[dict[str, str]]:
    """What a worker's handlers share; here only which worker they run on."""
    yield {"worker": name.get()}


@app.task(lane="models", requires={"gpu", "torch>=2.3"})
async def train(model: str, ctx: ff.Context) -> str:
    return f"{model} was trained on {ctx.state['worker']}"


@app.task(lane="models")
async def report(model: str, ctx: ff.Context) -> str:
    return f"{model} was reported by {ctx.state['worker']}"


@app.task(lane="models", requires={"gpu", "cuda>=13"})
async def tune(model: str) -> None:
    return None


FLEET: dict[str, list[str]] = {
    "laptop": [],
    "old-gpu": ["gpu", "torch==2.2"],
    "new-gpu": ["gpu", "torch==2.10"],  # versions are numbers: 2.10 is above 2.3
}


async def main() -> None:
    workers: list[ff.Worker] = []
    running: list[asyncio.Task[None]] = []
    for machine, has in FLEET.items():
        name.set(machine)
        worker = app.worker(lanes=["models"], capabilities=has, name=machine)
        workers.append(worker)
        running.append(asyncio.create_task(worker.run()))
    await asyncio.gather(*(worker.started.wait() for worker in workers))
    async with app.client() as client:
        jobs = await client.submit_many(train, [f"m{n}" for n in range(20)])
        places = {(await job.result(timeout=30)).rpartition(" ")[2] for job in jobs}
        print("20 models were trained on:", *sorted(places))
        told = await (await client.submit(report, "m0")).result(timeout=30)
        print("reported by one of the three:", told.rpartition(" ")[2] in FLEET)
        stuck = await client.submit(tune, "m0")
        why = await stuck.explain()
        print("tune m0 can run:", why.runnable)
        for reason in why.reasons:
            print(f"{reason.code}: {reason.detail}")
        await stuck.cancel("nobody has the card")
    for worker in workers:
        await worker.stop()
    await asyncio.gather(*running)


if __name__ == "__main__":
    asyncio.run(main())
