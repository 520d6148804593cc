"""A durable sleep: it holds no worker, and no restart shortens or loses it.

python -m examples.reminder work &
python -m examples.reminder remind dana 3      # kill and start the worker meanwhile
"""

from __future__ import annotations

import asyncio
import sys

import ffsdk as ff

app = ff.App()


class Reminder(ff.Payload):
    who: str
    after_s: float


@app.task(lane="reminders")
async def remind(reminder: Reminder, ctx: ff.Context) -> str:
    await ctx.step("welcome", str.upper, reminder.who)
    await ctx.sleep(reminder.after_s)
    return f"{reminder.who}: your trial ends"


async def submit(who: str, after_s: str) -> None:
    async with app.client() as client:
        job = await client.submit(remind, Reminder(who, float(after_s)))
        print(job.id, flush=True)
        print(await job.result(timeout=120), flush=True)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["work"]:
            app.run_worker(lanes=["reminders"])
        case ["remind", who, after_s]:
            asyncio.run(submit(who, after_s))
        case _:
            sys.exit(__doc__)
