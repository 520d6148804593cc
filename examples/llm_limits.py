"""The limits of a model's provider, kept for every API key: requests in a window, tokens in a window, calls at a time.

    python -m examples.llm_limits             # windows of a minute; WINDOW_S=2 to watch it

The requests are a quota, exact to the request in any window. The tokens are a budget that begins anew with each window:
an answer's length is not known before, so a call reserves its estimate and settles what it used. Nobody polls: what may
not start waits in its queue until the instant at which it may.
"""

from __future__ import annotations

import asyncio
import os
import time

import ffsdk as ff

app = ff.App()
WINDOW_S = float(os.environ.get("WINDOW_S", "60"))
REQUESTS, TOKENS, AT_A_TIME = 10, 1_000, 4


class Prompt(ff.Payload):
    key: str
    text: str


started: dict[str, list[float]] = {}
now = most = 0


@app.task(
    lane="llm",
    quota=[ff.Quota("requests", key="payload.key"), ff.Quota("calls")],
    budget=ff.Budget("tokens", estimate={"tokens": 80}),
)
async def ask(prompt: Prompt, ctx: ff.Context) -> str:
    global now, most
    started.setdefault(prompt.key, []).append(time.monotonic())
    now += 1
    most = max(most, now)
    await asyncio.sleep(0.02)  # the provider
    now -= 1
    await ctx.spend(tokens=len(prompt.text))
    return prompt.text.upper()


def in_any_window(times: list[float], span: float) -> int:
    """The most of them that lie within one span."""
    return max(sum(1 for other in times if one <= other < one + span) for one in times)


async def main() -> None:
    worker = app.worker(concurrency=32)
    running = asyncio.create_task(worker.run())
    async with app.client() as client:
        await client.quota("requests", rate=(REQUESTS, WINDOW_S))
        await client.quota("calls", concurrency=AT_A_TIME)
        await client.budget("tokens", hard={"tokens": TOKENS}, reset=WINDOW_S)
        prompts = [Prompt(key, f"{key} asks {n} " * 4) for n in range(12) for key in ("blue", "green")]
        jobs = await client.submit_many(ask, prompts)
        await asyncio.gather(*(job.result(timeout=4 * WINDOW_S + 30) for job in jobs))
    await worker.stop()
    await running
    for key, times in sorted(started.items()):
        # A window is exact where it is kept, at the admission; a handler starts a moment later, so not the whole of it.
        kept = in_any_window(times, WINDOW_S * 0.75) <= REQUESTS
        print(f"{key}: {len(times)} requests, at most {REQUESTS} in a window: {kept}")
    print(f"at most {AT_A_TIME} at a time: {most <= AT_A_TIME}")


if __name__ == "__main__":
    asyncio.run(main())
