"""What durable handlers cost: a recorded step, a wait that a signal ends, and how soon the handler runs again.

The rule: server time is INFO commandstats' (as in `functions`), rates are of one worker process with real handlers, and
the latency is read from one monotonic clock by the sender and the handler, a signal at a time on an idle engine.
"""

from __future__ import annotations

import asyncio
import os
import random
import socket
import struct
import tempfile
import time
from typing import Any

import ffsdk as ff
from bench.functions import PARTITION, WORKER, Driver, creates, fence
from bench.harness import Row, Size, child, processes, quantile, ready, row, serve, server, start, while_running
from ffcore import ids, tokens
from ffcore.args import Args
from ffcore.conditions import compile_condition
from ffcore.contracts.batch import ClaimBatchArgs, ClaimedBatch, ClaimedJob
from ffcore.contracts.condition import Single, Wildcard
from ffcore.contracts.journal import RecordStepArgs
from ffcore.contracts.lease import LeaseFence
from ffcore.contracts.secret import SeedWaitpointHmacSecretWireArgs
from ffcore.contracts.signal import DeliverSignalWireArgs
from ffcore.contracts.suspension import SuspendWaitpoint, SuspendWireArgs
from ffcore.contracts.upkeep import NoopArgs
from ffcore.ids import SignalId, SuspensionId, WaitpointId
from ffcore.steps import digest_of, step_key

LANE = "durable"
KID = "bench"
SECRET = b"s" * 32
KEY = "wpk:approval"
CONDITION = compile_condition(Single(KEY, Wildcard()), [KEY])
STEPS_N = 20


# ---- server time ---------------------------------------------------------------------------------------


def server_time(size: Size) -> list[Row]:
    """Per call, each pipelined; a cycle is suspend with a fresh waitpoint, deliver with a token, claim what resumed."""
    jobs, rounds = size(800, 400), size(7, 3)
    with server(partitions=1) as own:
        driver = Driver(own)
        seed = SeedWaitpointHmacSecretWireArgs(kid=KID, fingerprint=tokens.fingerprint(SECRET), at=PARTITION)
        driver.run("", [seed], 1)
        for _ in range(rounds):
            driver.run("no-op FCALL", [NoopArgs(partition=PARTITION, data=b"")] * jobs, jobs)
            driver.run("", creates(jobs, 16), jobs)
            held = claim(driver, jobs, 16, "")
            for n in range(2):
                held = cycle(driver, held, (1, 16)[n])
            steps(driver, held)
            driver.run("", [step for job in held for step in [_end(job)]], jobs)
    base = driver.usec["no-op FCALL"]
    rows = [row("no-op FCALL", base, "us/call")]
    for fold in (1, 16):
        names = ("suspend", "deliver", "claim resumed")
        parts = [driver.usec[f"{name} x{fold}"] for name in names]
        sums = [sum(p) for p in zip(*parts, strict=True)]
        rows.append(row(f"suspend + deliver + resumed claim, {fold} a claim", sums, "us", "<= 80"))
        rows += [row(f"  {name}", part, "us") for name, part in zip(names, parts, strict=True)]
    rows.append(row("step", driver.usec["step"], "us", "<= 25"))
    return rows


def claim(driver: Driver, jobs: int, batch: int, what: str) -> list[ClaimedJob]:
    calls: list[Args[Any]] = [
        ClaimBatchArgs(partitions=[PARTITION], limit=batch, claim_id=driver.claim_id(), **WORKER)
        for _ in range(0, jobs, batch)
    ]
    answers: list[ClaimedBatch] = driver.run(what, calls, jobs)
    return [job for answer in answers for job in answer.jobs]


def cycle(driver: Driver, held: list[ClaimedJob], fold: int) -> list[ClaimedJob]:
    suspends: list[Args[Any]] = []
    delivers: list[Args[Any]] = []
    for job in held:
        waitpoint = WaitpointId(ids.uuid7())
        token = tokens.digest(tokens.mint(SECRET, KID, job.execution_id, waitpoint, KEY))
        suspends.append(SuspendWireArgs(
            execution_id=job.execution_id, fence=LeaseFence(job.lease_id, job.lease_epoch, job.attempt_id),
            suspension_id=SuspensionId(ids.uuid7()), condition=CONDITION, reason_code="waiting_for_approval",
            waitpoints=[SuspendWaitpoint(waitpoint, KEY, KID, token)],
        ))  # fmt: skip
        delivers.append(DeliverSignalWireArgs(
            execution_id=job.execution_id, waitpoint_id=waitpoint, signal_id=SignalId(ids.uuid7()),
            signal_name="approved", signal_category="approval", source_type="web", source_identity="dana",
            payload=b'{"approved":true}', idempotency_key="click-1", token_digest=token,
        ))  # fmt: skip
    driver.run(f"suspend x{fold}", suspends, len(held))
    driver.run(f"deliver x{fold}", delivers, len(held))
    return claim(driver, len(held), fold, f"claim resumed x{fold}")


def steps(driver: Driver, held: list[ClaimedJob]) -> None:
    calls: list[Args[Any]] = [
        RecordStepArgs(
            execution_id=job.execution_id, fence=fence(job), step=step_key("fetch", digest_of((n,), {}), 0),
            name="fetch", value=b'{"status":200}', lease_ttl_ms=30_000,
        )
        for n in range(STEPS_N) for job in held[:50]
    ]  # fmt: skip
    driver.run("step", calls, len(calls))


def _end(job: ClaimedJob) -> Args[Any]:
    from ffcore.contracts.execution import CompleteExecutionArgs

    return CompleteExecutionArgs(
        execution_id=job.execution_id,
        fence=LeaseFence(job.lease_id, job.lease_epoch, job.attempt_id),
        attempt_index=job.attempt_index,
    )


# ---- one worker process --------------------------------------------------------------------------------


def app_of(
    url: str, back: str = "", tokens_of_gates: asyncio.Queue[str] | None = None
) -> tuple[ff.App, dict[str, ff.Task[Any, Any]]]:
    """Tokens go to the socket `back`, or into the queue."""
    app = ff.App(url)
    to = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)

    async def fetch(n: int) -> int:
        return n

    @app.task(name="stepper", lane=LANE)
    async def stepper(steps_n: int, ctx: ff.Context) -> int:
        for n in range(steps_n):
            await ctx.step("fetch", fetch, n)
        return steps_n

    @app.task(name="waits", lane=LANE)
    async def waits(rounds: int, ctx: ff.Context) -> int:
        for n in range(rounds):
            gate = await ctx.gate(f"gate-{n}")
            if tokens_of_gates is not None:
                tokens_of_gates.put_nowait(gate.token)
            else:
                to.sendto(struct.pack("<q", 0) + gate.token.encode(), back)
            await gate.wait()
            if back:
                to.sendto(struct.pack("<q", time.monotonic_ns()), back)
        return rounds

    return app, {"stepper": stepper, "waits": waits}


async def step_rate(url: str, jobs: int) -> float:
    """Recorded steps a second: one process that works, sixteen handlers side by side."""
    app, tasks = app_of(url)
    async with app.client() as client:
        made = await client.submit_many(tasks["stepper"], [STEPS_N] * jobs)
        worker = app.worker(lanes=[LANE], concurrency=16)
        running = asyncio.create_task(worker.run())
        await while_running(worker.started.wait(), running)
        began = time.perf_counter()
        await asyncio.gather(*(job.result(timeout=120) for job in made))
        took = time.perf_counter() - began
        await worker.stop()
        await running
    return jobs * STEPS_N / took


async def cycle_rate(url: str, jobs: int) -> float:
    """Waits that a signal ends, a second: handlers and sender in one process."""
    opened: asyncio.Queue[str] = asyncio.Queue()
    app, tasks = app_of(url, tokens_of_gates=opened)
    rounds = 5
    async with app.client() as client:
        worker = app.worker(lanes=[LANE], concurrency=64)
        running = asyncio.create_task(worker.run())
        await while_running(worker.started.wait(), running)

        async def sender() -> None:
            while True:
                await client.signal(await opened.get(), True, name="go")

        senders = [asyncio.create_task(sender()) for _ in range(64)]
        began = time.perf_counter()
        made = await client.submit_many(tasks["waits"], [rounds] * jobs)
        await asyncio.gather(*(job.result(timeout=120) for job in made))
        took = time.perf_counter() - began
        for one in senders:
            one.cancel()
        await asyncio.gather(*senders, return_exceptions=True)
        await worker.stop()
        await running
    return jobs * rounds / took


# ---- how soon it runs again ----------------------------------------------------------------------------


async def worker(url: str, back: str) -> None:
    app, _ = app_of(url, back)
    await serve(app.worker(lanes=[LANE]))


async def sender(url: str, back: str, samples: int) -> dict[str, list[float]]:
    """Milliseconds from before the signal is sent to the handler that has waited for it."""
    app, tasks = app_of(url, back)
    here = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    here.bind(back)
    here.setblocking(False)
    loop = asyncio.get_running_loop()
    found: list[float] = []
    noop: list[float] = []
    async with app.client() as client:
        for number in range(-10, samples):
            job = await client.submit(tasks["waits"], 1)
            told = await loop.sock_recv(here, 4096)
            while (await job.status()).state != "suspended":
                await asyncio.sleep(0.002)
            await asyncio.sleep(random.uniform(0.005, 0.015))
            began = time.monotonic_ns()
            await client.signal(told[8:].decode(), True, name="go")
            while True:
                said = await loop.sock_recv(here, 4096)
                (at,) = struct.unpack("<q", said[:8])
                if at:
                    break  # the first message of the re-run names the gate again
            if number >= 0:
                found.append((at - began) / 1e6)
            await job.result(timeout=30)
            began = time.monotonic_ns()
            await client.backend.call(NoopArgs(partition=PARTITION, data=b""))
            noop.append((time.monotonic_ns() - began) / 1e6)
    here.close()
    return {"found": found, "noop": noop}


def latency(size: Size) -> list[Row]:
    samples = size(300, 40)
    with server(partitions=4) as own, tempfile.TemporaryDirectory() as directory:
        env_ring(directory)
        back = os.path.join(directory, "back.sock")
        with processes(start(worker, url=own.url, back=back)) as running:
            ready(running[0])
            got = child(sender, url=own.url, back=back, samples=samples)
    found = got["found"]
    return [
        Row("signal to handler running again, p50", quantile(found, 0.5), "ms", min(found), max(found), "<= 1", "idle"),
        Row("signal to handler running again, p99", quantile(found, 0.99), "ms"),
        Row("no-op call, p50", quantile(got["noop"], 0.5), "ms", min(got["noop"]), max(got["noop"])),
    ]  # fmt: skip


def env_ring(directory: str) -> None:
    ring = os.path.join(directory, "ring")
    with open(os.open(ring, os.O_WRONLY | os.O_CREAT, 0o600), "w") as out:
        out.write(f"{KID} {SECRET.hex()}\n")
    os.environ["FF_SECRET_FILE"] = ring


def run(size: Size) -> list[Row]:
    rows = server_time(size)
    step_rates: list[float] = []
    cycle_rates: list[float] = []
    with tempfile.TemporaryDirectory() as directory:
        env_ring(directory)
        for _ in range(size(5, 2)):
            with server(partitions=4) as own:
                step_rates.append(asyncio.run(step_rate(own.url, size(500, 100))))
                cycle_rates.append(asyncio.run(cycle_rate(own.url, size(1_000, 200))))
    rows.append(row("steps, 16 handlers", step_rates, "steps/s", ">= 10,000"))
    rows.append(row("waits ended by a signal, sender in the same process", cycle_rates, "cycles/s", ">= 5,000"))
    return rows + latency(size)
