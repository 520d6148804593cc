"""An approval with a deadline: the handler waits without a slot, and a person says yes from another process.

python -m examples.approval work &
python -m examples.approval order 81 42000        # waits; the mail lies in ./mail/81
python -m examples.approval approve mail/81       # from any process that can read the mail
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import ffsdk as ff

app = ff.App()
MAIL = Path(os.environ.get("MAIL_DIR", "mail"))
DEADLINE_S = float(os.environ.get("APPROVAL_S", "3600"))


class Order(ff.Payload):
    id: str
    cents: int


class Verdict(ff.Payload):
    approved: bool
    by: str


def send_mail(order: Order, token: str) -> str:
    MAIL.mkdir(parents=True, exist_ok=True)
    (MAIL / order.id).write_text(token)
    return f"mail/{order.id}"


@app.task(lane="orders", deadline=24 * 3600)
async def place(order: Order, ctx: ff.Context) -> str:
    if order.cents >= 10_000:
        # Opened before anyone is told, so that no answer can come too early.
        gate = await ctx.gate("manager", Verdict)
        await ctx.step("ask", send_mail, order, gate.token)
        try:
            verdict = await gate.wait(timeout=DEADLINE_S, on_timeout="resume")
        except ff.GateTimeout:
            return f"order {order.id}: nobody answered in time"
        if verdict is None or not verdict.approved:
            return f"order {order.id}: refused"
        return f"order {order.id}: placed, approved by {verdict.by}"
    return f"order {order.id}: placed"


async def submit(id: str, cents: str) -> None:
    async with app.client() as client:
        job = await client.submit(place, Order(id, int(cents)), key=f"approval-{id}")
        print(await job.result(timeout=60), flush=True)


async def approve(token: str, by: str = "dana") -> None:
    async with app.client() as client:
        answer = await client.signal(token, Verdict(True, by), name="approved", key="click-1", source=f"web:{by}")
        print(answer.effect)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["work"]:
            app.run_worker(lanes=["orders"])
        case ["order", id, cents]:
            asyncio.run(submit(id, cents))
        case ["approve", mail, *by]:
            asyncio.run(approve(Path(mail).read_text(), *by))
        case _:
            sys.exit(__doc__)
