"""A quorum: a document counts as stored when two of three replicas have it; the third may be late, or down.

python -m examples.replicas
"""

from __future__ import annotations

import asyncio

import ffsdk as ff

app = ff.App()
late = asyncio.Event()
"""Stands for a replica that is slow: it stores when the others have long been told."""


class Write(ff.Payload):
    replica: str
    text: str


@app.task(lane="replicas", retry=ff.Retry(max_attempts=1))
async def store(write: Write) -> str:
    if write.replica.startswith("down"):
        raise ff.Failure("no route to host", category="upstream")
    if write.replica == "late":
        await late.wait()
    return write.replica


@app.task(lane="replicas")
async def acknowledge(stored_on: list[str]) -> str:
    return f"stored on {' and '.join(stored_on)}"


async def write(client: ff.Client, name: str, replicas: list[str], needed: int) -> tuple[ff.Job[str], ff.Flow]:
    async with client.flow(name) as flow:
        stores = [flow.add(store, Write(replica, "a new roof"), key=replica) for replica in replicas]
        # The late one is let run: it is a copy more, and nobody waits for it.
        done = flow.add(acknowledge, after=ff.quorum(needed, stores, on_satisfied="let_run"))
    return done, flow


async def main() -> None:
    worker = app.worker()
    running = asyncio.create_task(worker.run())
    async with app.client() as client:
        done, flow = await write(client, "two of three", ["a", "b", "late"], 2)
        print(await done.result(timeout=30))
        print("then:", (await flow.describe()).public_flow_state)
        late.set()
        print("in the end:", (await flow.outcome(timeout=30)).state)
        # Two of three are down: nothing can be acknowledged any more, and nobody waits in vain.
        done, flow = await write(client, "two are down", ["a", "down-1", "down-2"], 2)
        print("one of three:", type(await done.outcome(timeout=30)).__name__.lower())
        print("flow:", (await flow.outcome(timeout=30)).state)
    await worker.stop()
    await running


if __name__ == "__main__":
    asyncio.run(main())
