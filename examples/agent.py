"""An agent: it plans, calls tools, and streams its answer. Whoever kills its worker loses no finished step.

python -m examples.agent work &
python -m examples.agent ask "what is in the box?"     # prints the answer as it is written
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path

import ffsdk as ff

app = ff.App()
LOG = Path(os.environ.get("AGENT_LOG", "agent.log"))
"""One line for each call of a tool or a model: what a bill would count."""
PACE_S = float(os.environ.get("AGENT_PACE_S", "0.05"))


class Question(ff.Payload):
    text: str
    rounds: int = 4


def model(prompt: str) -> str:
    """Stands for a call that costs money; a plain function runs in a thread."""
    with LOG.open("a") as bill:
        bill.write(f"{ff.step_info().effect_key} {prompt}\n")
    time.sleep(PACE_S)
    return f"thought about {prompt}"


@app.task(lane="agents", lease=2, retry=ff.Retry(max_attempts=5, backoff=0.1))
async def agent(question: Question, ctx: ff.Context) -> str:
    notes: list[str] = []
    for n in range(question.rounds):
        notes.append(await ctx.step("think", model, f"{question.text} ({n})"))
        await ctx.emit({"round": n, "pid": os.getpid()}, type="round")
    for word in " ".join(notes).split():
        await ctx.emit(word, type="token")
    await ctx.summary({"rounds": len(notes)})
    return f"{len(notes)} rounds"


async def ask(text: str) -> None:
    async with app.client() as client:
        job = await client.submit(agent, Question(text))
        async for frame in job.stream():
            print(frame.type, frame.value, flush=True)
        print(await job.result(timeout=60), await job.summary(), flush=True)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["work"]:
            app.run_worker(lanes=["agents"])
        case ["ask", text]:
            asyncio.run(ask(text))
        case _:
            sys.exit(__doc__)
