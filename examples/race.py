"""A race: several providers are asked at once, the first answer counts, and the others are told to stop.

python -m examples.race
"""

from __future__ import annotations

import asyncio

import ffsdk as ff

app = ff.App()


class Provider(ff.Payload):
    name: str
    takes_s: float
    answers: bool = True


@app.task(lane="quotes", retry=ff.Retry(max_attempts=1))
async def ask(provider: Provider) -> str:
    await asyncio.sleep(provider.takes_s)
    if not provider.answers:
        raise ff.Failure("503", category="upstream")
    return f"{provider.name}: 42.00"


@app.task(lane="quotes")
async def book(offers: list[str]) -> str:
    return f"booked {offers[0]}"


async def main() -> None:
    worker = app.worker()
    running = asyncio.create_task(worker.run())
    async with app.client() as client:
        async with client.flow("quote") as flow:
            asked = [
                flow.add(ask, Provider("broken", 0.0, answers=False), key="broken"),
                flow.add(ask, Provider("quick", 0.3), key="quick"),
                flow.add(ask, Provider("slow", 600), key="slow"),
            ]
            # Nobody waits ten minutes for the slow one: once there is an answer its handler is cancelled.
            booked = flow.add(book, after=ff.any_of(asked, on_satisfied="cancel_remaining"))
        print(await booked.result(timeout=30))
        for provider in asked:
            match await provider.outcome(timeout=30):
                case ff.Completed(value=offer):
                    print("completed:", offer)
                case ff.Failed(reason=reason):
                    print("failed:", reason)
                case ff.Cancelled():
                    print("cancelled: slow")
                case other:
                    print(other)
        print("flow:", (await flow.outcome(timeout=30)).state)
    await worker.stop()
    await running


if __name__ == "__main__":
    asyncio.run(main())
