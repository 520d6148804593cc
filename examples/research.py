"""An agent that asks others: it splits its question, spawns another agent for each part, and waits for their answers
without a slot. Those do the same until a question is small enough.

python -m examples.research "why is the sky blue and the grass green and the sea salt"
"""

from __future__ import annotations

import asyncio
import sys

import ffsdk as ff

app = ff.App()


class Question(ff.Payload):
    text: str
    depth: int = 0


class Answer(ff.Payload):
    text: str
    agents: int
    depth: int


def think(text: str) -> str:
    """Stands for a call of a model."""
    return f"<{text.strip()}>"


@app.task(lane="research")
async def investigate(question: Question, ctx: ff.Context) -> Answer:
    head, _, rest = question.text.partition(" and ")
    if not rest:
        return Answer(await ctx.step("think", think, question.text), 1, question.depth)
    # Recorded before it runs: a worker that takes over finds the agents that are there, and starts none twice.
    parts = [await ctx.spawn(investigate, Question(part, question.depth + 1)) for part in (head, rest)]
    answers = [await part.result() for part in parts]
    text = " ".join(answer.text for answer in answers)
    return Answer(text, 1 + sum(a.agents for a in answers), max(a.depth for a in answers))


async def main(text: str) -> None:
    # One slot is enough, however deep it goes: whoever waits for others holds none.
    worker = app.worker(concurrency=1)
    running = asyncio.create_task(worker.run())
    async with app.client() as client:
        job = await client.submit(investigate, Question(text))
        answer = await job.result(timeout=60)
    await worker.stop()
    await running
    print(answer.text)
    print(f"{answer.agents} agents, {answer.depth} levels below the first")


if __name__ == "__main__":
    asyncio.run(main(" ".join(sys.argv[1:]) or "why is the sky blue and the grass green and the sea salt"))
