"""Two of three must agree: each has a gate of their own, and a click that is repeated counts once.

python -m examples.committee
"""

from __future__ import annotations

import asyncio

import ffsdk as ff

app = ff.App()
tokens: asyncio.Queue[tuple[str, str]] = asyncio.Queue()


class Proposal(ff.Payload):
    title: str
    members: list[str]


class Vote(ff.Payload):
    comment: str


@app.task(lane="board")
async def decide(proposal: Proposal, ctx: ff.Context) -> list[str]:
    gates = [await ctx.gate(member, Vote) for member in proposal.members]

    async def invite() -> int:
        for gate in gates:
            await tokens.put((gate.name, gate.token))
        return len(gates)

    await ctx.step("invite", invite)
    votes = await ctx.wait(ff.count(2, gates, distinct="waitpoints"), timeout=3600)
    return [f"{vote.gate}: {vote.value.comment}" for vote in votes]


async def main() -> None:
    worker = app.worker()
    running = asyncio.create_task(worker.run())
    async with app.client() as client:
        job = await client.submit(decide, Proposal("a new roof", ["ada", "grace", "edsger"]))
        invited = dict([await tokens.get() for _ in range(3)])
        for _ in range(2):  # ada clicks twice
            answer = await client.signal(invited["ada"], Vote("yes"), name="yes", key="ada-1", source="web:ada")
            print("ada:", "heard before" if answer.duplicate else "heard")
        vote = Vote("if it is simple")
        answer = await client.signal(invited["edsger"], vote, name="yes", key="edsger-1", source="web:edsger")
        print("edsger:", "heard before" if answer.duplicate else "heard")
        print("\n".join(await job.result(timeout=30)))
    await worker.stop()
    await running


if __name__ == "__main__":
    asyncio.run(main())
