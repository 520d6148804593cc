"""A report every night at three, in the office's own time. Making the schedule again at each start changes nothing.

python -m examples.nightly_schedule work &        # any worker fires what is due; there is no other process to run
python -m examples.nightly_schedule plan          # makes the schedule, or brings it to what stands here
python -m examples.nightly_schedule now           # one run more, at once
python -m examples.nightly_schedule missed 3      # the last three nights
"""

from __future__ import annotations

import asyncio
import sys
from datetime import UTC, datetime, timedelta

import ffsdk as ff

app = ff.App()


class Office(ff.Payload):
    name: str


@app.task(lane="reports")
async def report(office: Office, ctx: ff.Context) -> str:
    return f"the report of {office.name}"


async def plan() -> None:
    async with app.client() as client:
        schedule = await client.schedule(
            "nightly report", report, Office(name="Prague"), cron="0 3 * * *", tz="Europe/Prague", catch_up="one",
            deadline=3600,
        )  # fmt: skip
        what = "made" if schedule.created else "changed" if schedule.changed else "as it was"
        [due] = await schedule.next()
        print(f"{schedule.name} is {what}; the next run is at {due:%H:%M} UTC", flush=True)


async def now() -> None:
    async with app.client() as client:
        job = await client.schedule_by_name("nightly report", report).trigger()
        print(await job.result(timeout=60), flush=True)


async def missed(nights: int) -> None:
    """Nights that have had their run have no other."""
    async with app.client() as client:
        end = datetime.now(UTC)
        jobs = await client.schedule_by_name("nightly report", report).backfill(end - timedelta(days=nights), end)
        for job in jobs:
            text = await job.result(timeout=60)
            print(f"{(await job.status()).tags['schedule.due'][11:16]}: {text}", flush=True)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["work"]:
            app.run_worker(lanes=["reports"])
        case ["plan"]:
            asyncio.run(plan())
        case ["now"]:
            asyncio.run(now())
        case ["missed", nights]:
            asyncio.run(missed(int(nights)))
        case _:
            sys.exit(__doc__)
