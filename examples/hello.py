"""The smallest whole program: a task, a worker and a submit in one process.

python -m examples.hello
"""

from __future__ import annotations

import asyncio

import ffsdk as ff

app = ff.App()  # FF_URL, or a local store on a terminal


@app.task
async def greet(name: str) -> str:
    return f"hello {name}"


async def main() -> None:
    worker = app.worker()
    running = asyncio.create_task(worker.run())
    async with app.client() as client:
        job = await client.submit(greet, "world")
        print(await job.result(timeout=30))
    await worker.stop()
    await running


if __name__ == "__main__":
    asyncio.run(main())
