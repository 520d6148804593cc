"""What 50,000 jobs behind an exhausted budget cost the claims of all others in their lane.

The rule: three servers take turns in every round: one without them, one with as many jobs in another lane, one with
them in the lane itself. The functions' own time is compared first, a worker's drain beside it. The queue is halted for
as long as it takes: what asking again costs, one job every few seconds, is left out.
"""

from __future__ import annotations

from collections.abc import Sequence

import ffsdk as ff
from bench.backlog import drain
from bench.functions import PARTITION, WORKER, Driver, completions, creates, fence
from bench.harness import Row, Size, child, interleave, row, server
from ffcore.admission import BudgetLine, parse
from ffcore.contracts.admit import Refusal, RefuseManyArgs
from ffcore.contracts.batch import ClaimBatchArgs
from ffcore.ids import TimestampMs

LANE = "default"
BATCH = 16


def spent_task(url: str) -> tuple[ff.App, ff.Task[int, None]]:
    app = ff.App(url)

    @app.task(name="spent", lane=LANE, budget=ff.Budget("empty", estimate={"units": 1}))
    async def spent(number: int) -> None:
        return None

    return app, spent


async def queue_behind(url: str, jobs: int) -> None:
    """That many jobs of a budget that is used up for the next day, and one refusal, which halts their queue."""
    app, spent = spent_task(url)
    async with app.client() as client:
        budget = await client.budget("empty", hard={"units": 1})
        await budget.report(units=1)
        for at in range(0, jobs, 5_000):
            await client.submit_many(spent, range(at, min(at + 5_000, jobs)))
        claimed = await client.backend.call(
            ClaimBatchArgs(partitions=[PARTITION], limit=1, claim_id="bench.first.1", **WORKER)
        )
        (job,) = claimed.jobs
        assert job.admission is not None
        line = parse(job.admission)[0]
        assert isinstance(line, BudgetLine)
        await client.backend.call(RefuseManyArgs(partition=PARTITION, items=[Refusal(
            job.execution_id, fence(job), line.budget_id, "b", 1, TimestampMs(job.lease_expires_at + 20 * 3600 * 1000),
        )]))  # fmt: skip


async def queue_elsewhere(url: str, jobs: int) -> None:
    """As many that wait in a lane nobody serves: what is left is what they cost by being there."""
    app = ff.App(url)

    @app.task(name="waits", lane="elsewhere")
    async def waits(number: int) -> None:
        return None

    async with app.client() as client:
        for at in range(0, jobs, 5_000):
            await client.submit_many(waits, range(at, min(at + 5_000, jobs)))


class Others:
    """Plain jobs of one server, claimed and completed 16 a call."""

    def __init__(self, driver: Driver) -> None:
        self.driver = driver

    def claim_us(self, jobs: int) -> float:
        driver = self.driver
        driver.run("create", creates(jobs, BATCH), jobs)
        claims = [
            ClaimBatchArgs(partitions=[PARTITION], limit=BATCH, claim_id=driver.claim_id(), **WORKER)
            for _ in range(0, jobs, BATCH)
        ]
        claimed = driver.run("claim", claims, jobs)
        driver.run("complete", completions(driver, claimed), jobs)
        return driver.usec["claim"][-1]


def slower(without: Sequence[float], beside: Sequence[float]) -> list[float]:
    return [(one / other - 1) * 100 for one, other in zip(beside, without, strict=True)]


def run(size: Size) -> list[Row]:
    held, jobs, rounds = size(50_000, 5_000), size(1_600, 800), size(15, 3)
    with server(partitions=1) as empty, server(partitions=1) as elsewhere, server(partitions=1) as crowded:
        child(queue_behind, url=crowded.url, jobs=held)
        child(queue_elsewhere, url=elsewhere.url, jobs=held)
        servers = {"no others": empty, f"{held:,} in another lane": elsewhere, f"{held:,} held in theirs": crowded}
        others = {what: Others(Driver(own)) for what, own in servers.items()}
        found = interleave(rounds, {what: lambda one=one: one.claim_us(jobs) for what, one in others.items()})

        def rate(what: str) -> float:
            return float(child(drain, url=servers[what].url, jobs=size(5_000, 1_000), flight=64, lanes=[LANE]))

        drains = interleave(size(5, 1), {what: lambda what=what: rate(what) for what in servers})
    _, other_lane, same_lane = servers
    rows = [row(f"claim, {BATCH} a call, {what}", samples, "us/job") for what, samples in found.items()]
    more = slower(found[other_lane], found[same_lane])
    rows.append(row("  held in their lane, not in another, round by round", more, "% more", "0"))
    rows += [row(f"drain, 64 in flight, {what}", samples, "jobs/s") for what, samples in drains.items()]
    fewer = slower(drains[same_lane], drains[other_lane])
    return [*rows, row("  held in their lane, not in another, round by round", fewer, "% fewer", "0")]
