"""The demo's scenario: submit, start workers, kill one half-way, wait, prove.

The rule: moment and victim come from the store, not from a clock or a die; and whatever happens, the processes
started here are ended, by their ids, and the directory is removed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from ffcore import limits
from ffcore.contracts.operator import LaneStatsArgs
from ffcore.contracts.reads import ListedLease, ListLeasesArgs
from ffcore.contracts.roster import ListWorkersArgs
from ffcore.errors import EngineError, InvalidArgument, NotFound
from ffcore.ids import ExecutionId, LaneId

from .app import LANE, File, app, count
from .processes import Failed, Workers, directory_with_store
from .proof import Verdict, examine

if TYPE_CHECKING:
    from ffcore.backend import Backend
    from ffsdk.client import Client

FILE_BYTES_MAX = 16 << 20
"""Larger files say nothing more about the engine."""
START_S = 60.0
RUN_S = 240.0
"""Bounds on waiting: a demo that hangs must end, and say where."""
POLL_S = 0.005
PACE_S = 2.0
"""All files together take at least so long: time enough to see half of it pass, on a busy machine too."""
LINGER_MAX_S = 0.25
ENDED = ("completed", "failed", "cancelled", "expired", "skipped")


class Report(msgspec.Struct, kw_only=True):
    """What happened. Times are seconds; `wrong` says what the proof found, and is empty when all is well."""

    files: int
    bytes: int
    words: int
    seconds: float
    """From letting the workers go until the last result."""
    files_per_s: float
    workers: int
    killed_pid: int
    killed_worker: str
    done_when_killed: int
    leases_held: int
    """By the killed worker, as the store saw them after its death."""
    recovered: int
    freed_s: float
    """From the kill until the store had taken the last of its leases back."""
    recovery_s: float
    """From the kill until the last of its jobs was started again."""
    completed: int
    plain_seconds: float
    wrong: list[str]


def pick_files(root: Path, most: int) -> list[Path]:
    """Readable regular files below a directory, in the order of their names, at most so many."""
    if not root.is_dir():
        raise InvalidArgument(f"{root} is not a directory")
    found: list[Path] = []
    for folder, dirs, names in os.walk(root):
        dirs.sort()
        for name in sorted(names):
            path = Path(folder, name)
            if (
                path.is_symlink()
                or not path.is_file()
                or not os.access(path, os.R_OK)
                or path.stat().st_size > FILE_BYTES_MAX
            ):
                continue
            # The payload is JSON: a name that is no text cannot travel.
            with contextlib.suppress(UnicodeEncodeError):
                str(path).encode()
                found.append(path)
            if len(found) == most:
                return found
    return found


# ---- what the store knows ------------------------------------------------------------------------------


async def depths(backend: Backend) -> dict[str, int]:
    """Jobs of the demo's lane by stored state."""
    total: dict[str, int] = {}
    for answer in await backend.call_all(
        [LaneStatsArgs(partition=p, lane_id=LaneId(LANE)) for p in backend.config.keys("fp")]
    ):
        if isinstance(answer, NotFound):
            continue  # a partition that no file went to
        if isinstance(answer, EngineError):
            raise answer
        for state, n in answer.counts.items():
            total[state] = total.get(state, 0) + n
    return total


def ended(counts: dict[str, int]) -> int:
    return sum(counts.get(state, 0) for state in ENDED)


async def leases(backend: Backend) -> tuple[list[ListedLease], int]:
    """Who holds what, and the store's time."""
    answers = [
        await backend.call(ListLeasesArgs(partition=p, limit=limits.PAGE_MAX_N)) for p in backend.config.keys("fp")
    ]
    return [lease for answer in answers for lease in answer.items], max(answer.now_ms for answer in answers)


async def registered(backend: Backend) -> dict[int, str]:
    """Live workers: process id -> instance."""
    found: dict[int, str] = {}
    for partition in backend.config.keys("w"):
        for row in (await backend.call(ListWorkersArgs(partition=partition, limit=limits.PAGE_MAX_N))).items:
            info: dict[str, Any] = msgspec.json.decode(row.info or b"{}")
            found[int(info.get("pid", 0))] = row.worker_instance_id
    return found


# ---- the scenario --------------------------------------------------------------------------------------


class Scenario:
    """One run. `say` is told what happens, `advance` how many jobs have ended."""

    def __init__(self, client: Client, workers: Workers, paths: list[Path], say: Callable[[str], None]) -> None:
        self._client, self._backend = client, client.backend
        self._workers, self._paths, self._say = workers, paths, say

    async def run(self, workers_n: int, slots_n: int, advance: Callable[[int], None]) -> Report:
        lane = self._client.lane(LANE)
        # Closed until everybody is there: else the first worker might be half-way before the last has started.
        await lane.pause()
        linger = min(LINGER_MAX_S, round(PACE_S * slots_n / len(self._paths), 4))
        made = await self._client.submit_many(count, [File(path=str(path), linger=linger) for path in self._paths])
        jobs = {job.id: path for job, path in zip(made, self._paths, strict=True)}
        self._say(f"{len(jobs):,} jobs are waiting; starting {workers_n} workers")
        self._workers.start(workers_n)
        pids = {process.pid for process in self._workers.processes}
        await self._until(START_S, "the workers to register", lambda: self._all_there(pids))
        began = time.monotonic()
        await lane.resume()
        pid, worker, lost, killed_ms, done = await self._kill_one(advance)
        self._say(f"killed worker {pid} (SIGKILL) after {done:,} jobs; it held {len(lost)} leases")
        await self._until(RUN_S, "all jobs to end", lambda: self._all_ended(advance), but=pid)
        seconds = time.monotonic() - began
        counts = await depths(self._backend)
        self._say("all jobs have ended; comparing with a plain computation")
        compared = time.monotonic()
        verdict = await examine(self._backend, jobs, counts.get("completed", 0), worker)
        return self._report(
            verdict, seconds, workers_n, pid, worker, lost, killed_ms, done, time.monotonic() - compared
        )

    def _report(
        self,
        verdict: Verdict,
        seconds: float,
        workers_n: int,
        pid: int,
        worker: str,
        lost: list[ExecutionId],
        killed_ms: int,
        done: int,
        compared_s: float,
    ) -> Report:
        missing = sorted(set(lost) - {r.execution_id for r in verdict.recovered})
        wrong = verdict.wrong + [f"{i} was leased by the killed worker and shows no second attempt" for i in missing]
        freed = max((r.freed_at_ms for r in verdict.recovered), default=killed_ms)
        last = max((r.again_at_ms for r in verdict.recovered), default=killed_ms)
        return Report(
            files=verdict.files,
            bytes=verdict.bytes,
            words=verdict.words,
            seconds=round(seconds, 3),
            files_per_s=round(verdict.files / seconds, 1),
            workers=workers_n,
            killed_pid=pid,
            killed_worker=worker,
            done_when_killed=done,
            leases_held=len(lost),
            recovered=len(verdict.recovered),
            freed_s=round((freed - killed_ms) / 1000, 3),
            recovery_s=round((last - killed_ms) / 1000, 3),
            completed=verdict.completed,
            plain_seconds=round(compared_s, 3),
            wrong=wrong,
        )

    async def _until(self, seconds: float, what: str, done: Callable[[], Any], *, but: int | None = None) -> None:
        deadline = time.monotonic() + seconds
        while not await done():
            self._workers.check(but=but)
            if time.monotonic() > deadline:
                raise Failed(f"waited {seconds:g} s for {what}: {await depths(self._backend)}")
            await asyncio.sleep(0.05)

    async def _all_there(self, pids: set[int]) -> bool:
        return pids <= set(await registered(self._backend))

    async def _all_ended(self, advance: Callable[[int], None]) -> bool:
        n = ended(await depths(self._backend))
        advance(n)
        return n >= len(self._paths)

    async def _kill_one(self, advance: Callable[[int], None]) -> tuple[int, str, list[ExecutionId], int, int]:
        """Wait until half is done, then kill the worker that holds most, having made sure that it holds something.

        Stopped before it is killed: between seeing its leases and killing it, it might end them. What it had sent
        before may still arrive, so its leases are read until two reads agree.
        """
        instances = {instance: pid for pid, instance in (await registered(self._backend)).items()}
        deadline = time.monotonic() + RUN_S
        while True:
            self._workers.check()
            done = ended(await depths(self._backend))
            advance(done)
            if done >= len(self._paths):
                raise Failed(
                    f"{done} of {len(self._paths)} jobs ended before a worker could be killed: give it more --files"
                )
            if time.monotonic() > deadline:
                raise Failed(f"half of the jobs did not end within {RUN_S:g} s: {await depths(self._backend)}")
            if done >= len(self._paths) // 2:
                held, _ = await leases(self._backend)
                holders = [lease.worker_instance_id for lease in held if lease.worker_instance_id in instances]
                if holders:
                    worker = max(sorted(set(holders)), key=holders.count)
                    found = await self._stop_and_look(instances[worker], worker)
                    if found is not None:
                        return instances[worker], worker, *found, done
            await asyncio.sleep(POLL_S)

    async def _stop_and_look(self, pid: int, worker: str) -> tuple[list[ExecutionId], int] | None:
        """Stop it; kill it if it holds leases and answer them with the time; else let it go on."""
        process = next(p for p in self._workers.processes if p.pid == pid)
        process.send_signal(signal.SIGSTOP)
        before: list[ExecutionId] | None = None
        while True:
            held, now_ms = await leases(self._backend)
            mine = sorted(lease.execution_id for lease in held if lease.worker_instance_id == worker)
            if mine == before:
                break
            before = mine
            await asyncio.sleep(POLL_S)
        if not mine:
            process.send_signal(signal.SIGCONT)
            return None
        process.kill()
        process.wait()
        return mine, now_ms


@contextlib.asynccontextmanager
async def _client(url: str) -> AsyncGenerator[Client]:
    before, app.url = app.url, url
    try:
        async with app.client() as client:
            yield client
    finally:
        app.url = before


async def demo(
    root: Path,
    files_n: int,
    workers_n: int,
    concurrency: int,
    say: Callable[[str], None],
    advance: Callable[[int], None],
) -> Report:
    """Run it on a store of its own. Raises Failed, InvalidArgument (the directory) and what the engine raises."""
    paths = pick_files(root, files_n)
    if len(paths) < 20 * workers_n:
        raise InvalidArgument(
            f"{root} has {len(paths)} readable files, too few for {workers_n} workers: name another with --dir"
        )
    say(f"{len(paths):,} files below {root}")
    with directory_with_store() as (directory, url):
        workers = Workers(url, directory, concurrency)
        try:
            async with _client(url) as client:
                report = await Scenario(client, workers, paths, say).run(workers_n, workers_n * concurrency, advance)
                workers.stop()  # while the store is still held, so that they can say goodbye to it
                return report
        finally:
            workers.stop()
