"""Server time and inner calls per job, function by function, on a saturated server.

The rule: microseconds come from INFO commandstats, not from a client's clock, and stand beside a no-op function and a
SET with the same 4 KiB in the same rounds.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence
from typing import Any

import msgspec

from bench.harness import Row, Server, Size, row, server
from ffbackend_valkey.backend import bindings_of
from ffbackend_valkey.library import assemble
from ffcore import ids
from ffcore.args import Args
from ffcore.contracts.batch import (
    ClaimBatchArgs,
    ClaimedBatch,
    ClaimedJob,
    CompleteManyArgs,
    Completion,
    CreateManyArgs,
    NewExecution,
    Renewal,
    RenewManyArgs,
)
from ffcore.contracts.upkeep import NoopArgs, TickArgs
from ffcore.ids import PartitionKey
from ffcore.policy import ExecutionPolicy, RetryPolicy

PARTITION = PartitionKey("{fp:0}")
PAYLOAD = b"x" * 4096
UNLISTED = ""
"""What is done only for what comes after it."""
WORKER = {
    "lanes": ["default"], "capability_sets": [], "worker_id": "w", "worker_instance_id": "bench",
    "lease_ttl_ms": 30_000,
}  # fmt: skip


class Driver:
    """Pipelines calls and reads what they cost the server."""

    def __init__(self, own: Server) -> None:
        self.own, self.bindings = own, bindings_of(assemble())
        self.n = 0
        self.inner: dict[str, dict[str, float]] = {}
        self.usec: dict[str, list[float]] = {}

    def claim_id(self) -> str:
        self.n += 1
        return f"bench.s{self.n % 8}.{self.n}"

    def run(self, what: str, calls: Sequence[Args[Any]], jobs: int) -> list[Any]:
        """Make the calls in one pipeline and note microseconds and inner calls per job under `what`."""
        self.own.db.config_resetstat()
        pipeline = self.own.db.pipeline(transaction=False)
        for call in calls:
            pipeline.execute_command(*self.bindings[type(call)].request(call))
        replies = pipeline.execute()
        stats = self.own.stats()
        outer = [s for name, s in stats.items() if name.startswith("fcall")]
        self.usec.setdefault(what, []).append(sum(s["usec"] for s in outer) / jobs)
        self.inner[what] = {
            name: s["calls"] / jobs for name, s in stats.items() if not name.startswith(("fcall", "config", "info"))
        }
        return [self.bindings[type(call)].outcome(reply) for call, reply in zip(calls, replies, strict=True)]

    def sets(self, jobs: int) -> None:
        self.own.db.config_resetstat()
        pipeline = self.own.db.pipeline(transaction=False)
        for n in range(jobs):
            pipeline.set(f"bench:{n % 50}", PAYLOAD)
        pipeline.execute()
        self.usec.setdefault("SET of 4 KiB", []).append(self.own.stats()["set"]["usec"] / jobs)


def fence(job: ClaimedJob) -> str:
    return f"{job.lease_id} {job.lease_epoch} {job.attempt_id}"


def creates(jobs: int, batch: int) -> list[CreateManyArgs]:
    policy = msgspec.json.encode(ExecutionPolicy(retry_policy=RetryPolicy()))
    return [
        CreateManyArgs(
            partition=PARTITION, namespace="default", lane_id="default", execution_kind="noop", policy=policy,
            items=[NewExecution(ids.new_execution_id(1), os.urandom(16), PAYLOAD) for _ in range(batch)],
        )
        for _ in range(0, jobs, batch)
    ]  # fmt: skip


def one_round(driver: Driver, jobs: int, batch: int) -> None:
    """Submit, claim and complete as many jobs, folded `batch` a call; then once more with a renewal in between, which
    long jobs have and which makes the record of a job a little longer."""
    fold = f"x{batch}"
    claimed = leased(driver, jobs, batch, f"create_many {fold}", f"claim_batch {fold}")
    driver.run(f"complete_many {fold}", completions(driver, claimed), jobs)
    claimed = leased(driver, jobs, batch, UNLISTED, UNLISTED)
    renewals = [
        RenewManyArgs(
            partition=PARTITION, lease_ttl_ms=30_000, items=[Renewal(j.execution_id, fence(j)) for j in c.jobs]
        )
        for c in claimed
    ]  # fmt: skip
    driver.run(f"renew_many {fold}", renewals, jobs)
    driver.run(UNLISTED, completions(driver, claimed), jobs)


def leased(driver: Driver, jobs: int, batch: int, created: str, claimed: str) -> list[ClaimedBatch]:
    driver.run(created, creates(jobs, batch), jobs)
    claims = [
        ClaimBatchArgs(partitions=[PARTITION], limit=batch, claim_id=driver.claim_id(), **WORKER)
        for _ in range(0, jobs, batch)
    ]
    return driver.run(claimed, claims, jobs)


def completions(driver: Driver, claimed: Sequence[ClaimedBatch]) -> list[CompleteManyArgs]:
    return [
        CompleteManyArgs(
            partition=PARTITION, limit=0, claim_id=driver.claim_id(),
            items=[Completion(j.execution_id, fence(j), b'"ok"') for j in c.jobs], **WORKER,
        )
        for c in claimed
    ]  # fmt: skip


def run(size: Size) -> list[Row]:
    jobs = size(1600, 800)
    rounds = size(7, 3)
    with server(partitions=1) as own:
        driver = Driver(own)
        for _ in range(rounds):
            driver.run("no-op FCALL with 4 KiB", [NoopArgs(partition=PARTITION, data=PAYLOAD)] * jobs, jobs)
            driver.sets(jobs)
            for batch in (16, 1):
                one_round(driver, jobs, batch)
            driver.run("tick, nothing due", [TickArgs(partitions=[PARTITION], ticker="bench", force=True)] * 200, 200)
            empty = [
                ClaimBatchArgs(partitions=[PARTITION], limit=16, claim_id=driver.claim_id(), **WORKER)
                for _ in range(200)
            ]
            driver.run("claim_batch, nothing there", empty, 200)
    rows: list[Row] = []
    for batch, target in ((16, "<= 60"), (1, "")):
        parts = [driver.usec[f"{what} x{batch}"] for what in ("create_many", "claim_batch", "complete_many")]
        sums = [sum(step) for step in zip(*parts, strict=True)]
        rows.append(row(f"submit + claim + complete, {batch} a call", sums, "us/job", target))
    for what, samples in driver.usec.items():
        if what == UNLISTED:
            continue
        inner = driver.inner.get(what, {})
        calls = " ".join(f"{name} {n:.2f}" for name, n in sorted(inner.items()))
        if calls:
            calls = f"{sum(inner.values()):.2f} inner calls: {calls}"
        rows.append(row(what, samples, "us/job" if " x" in what else "us/call", note=calls))
    base = statistics.median(driver.usec["no-op FCALL with 4 KiB"])
    folded = rows[0].value
    rows.append(Row("the folded sum in no-op calls", folded / base, "x"))
    return rows
