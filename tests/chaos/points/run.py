"""One run of points: let some jobs pass them all, then kill a worker at each, and judge.

`python -m tests.chaos.points.run '{"directory": ..., "code": ..., "size": {...}}'`, as `tests.chaos` starts it from a
copy of the tree; report.json, history.txt and the book are left in the directory.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Final

import msgspec

import ffsdk as ff
from ffbackend_valkey.library import library
from ffbackend_valkey.stores import connect
from ffcore.backend import Backend, StoreConfig
from ffcore.contracts.flow import ReadFlowArgs
from ffcore.contracts.reads import ExecutionOutcome
from ffcore.contracts.stream import ReadStreamArgs
from ffcore.errors import NotFound
from ffcore.flows import implicit_flow
from ffcore.ids import ExecutionId
from ffsdk.recorded import entries_of
from tests.chaos.checker import Checker
from tests.chaos.feed import Feed
from tests.chaos.fleet import Fleet
from tests.chaos.points import judge, plan
from tests.chaos.points.book import Reader
from tests.chaos.points.caller import Orders as CallerOrders
from tests.chaos.points.nest import DEATHS
from tests.chaos.points.nest import Orders as NestOrders
from tests.chaos.points.plan import Order, Size
from tests.chaos.points.report import Report, complaints, table
from tests.chaos.points.tasks import walk
from tests.chaos.recovery import quantile
from tests.chaos.store import Server
from tests.chaos.verify import Wrong, outcomes

SECRETS: Final = "ring"
BUSY_N: Final = 200
"""So many jobs at a time: more would wait for each other, and a kill would meet none of them in its sleep."""


class Task(msgspec.Struct, kw_only=True):
    """What `tests.chaos` asks for."""

    directory: str
    code: str
    size: Size


class Run:
    def __init__(self, task: Task) -> None:
        self._task, self._size = task, task.size
        self._directory = Path(task.directory)
        self._orders: dict[str, Order] = {}
        """By execution."""
        self._points: list[str] = []
        self._found, self._reader = judge.Evidence(), Reader(self._directory)
        self._gave_up = False

    async def run(self) -> Report:
        me = asyncio.current_task()
        assert me is not None
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, me.cancel)
        (self._directory / DEATHS).mkdir()
        ring = self._directory / SECRETS
        ring.touch(0o600)
        ring.write_text(f"k1 {secrets.token_hex(32)}\n")
        environment = {"FF_QUIET": "1", "FF_SECRET_FILE": str(ring)}
        os.environ.update(environment)
        server = Server(self._directory)
        fleet = Fleet(self._directory, Path(self._task.code), environment)
        try:
            await server.start()
            backend = await connect(server.url, init=StoreConfig(fp=self._size.partitions), patience=30.0)
            try:
                return await self._through(server, fleet, backend)
            finally:
                await backend.close()
        finally:
            fleet.close()
            server.close()

    async def _through(self, server: Server, fleet: Fleet, backend: Backend) -> Report:
        size, started = self._size, time.monotonic()
        feed, checker = Feed(backend), Checker(backend, lambda: server.starts_n)
        self._start(fleet, server.url)
        beside = [
            asyncio.create_task(loop, name=name) for name, loop in (
                ("feed", feed.follow()), ("checker", checker.run()), ("watch", self._watch(fleet)),
            )
        ]  # fmt: skip
        async with ff.Client(server.url) as client:
            await self._submit(client, [Order(n=n) for n in range(size.references)])
            await self._ended(feed, beside)
            self._found.take(self._reader.lines())
            self._points = plan.chosen(set[str]().union(*self._found.passed.values()), size)
            for _ in range(size.rounds):
                orders = plan.orders(self._wanted(), size, first=len(self._orders))
                for at in range(0, len(orders), BUSY_N):
                    if not self._gave_up:
                        await self._submit(client, orders[at : at + BUSY_N])
                        await self._ended(feed, beside)
                self._found.take(self._reader.lines())
        seconds = time.monotonic() - started
        for task in beside:
            task.cancel()
        await asyncio.gather(*beside, return_exceptions=True)
        await fleet.stop()
        left = await fleet.left_over(but=server.pid)
        await feed.catch_up()
        history = "".join(f"{execution_id} {move}\n" for execution_id, moves in feed.moves.items() for move in moves)
        (self._directory / "history.txt").write_text(history)
        await checker.check()
        return await self._judge(backend, fleet, feed, checker, left, seconds)

    def _start(self, fleet: Fleet, url: str) -> None:
        size, directory = self._size, str(self._directory)
        fleet.add("ticker", "ffcli.main", "--url", url, "engine", "run")
        nest = NestOrders(
            url=url, directory=directory, workers=size.workers, concurrency=size.concurrency, lease_s=size.lease_s
        )
        fleet.add("nest", "tests.chaos.points.nest", msgspec.json.encode(nest).decode())
        caller = CallerOrders(url=url, directory=directory, seed=size.seed)
        fleet.add("caller", "tests.chaos.points.caller", msgspec.json.encode(caller).decode())

    async def _submit(self, client: ff.Client, orders: list[Order]) -> None:
        jobs = await client.submit_many(walk, orders)
        self._orders |= {job.id: order for job, order in zip(jobs, orders, strict=True)}

    async def _ended(self, feed: Feed, beside: list[asyncio.Task[None]]) -> None:
        """Wait until all that was submitted has ended, as long as anything ends at all."""
        ended_n, moved = -1, time.monotonic()
        while (now_n := sum(1 for execution_id in self._orders if feed.ends(execution_id))) < len(self._orders):
            if now_n != ended_n:
                ended_n, moved = now_n, time.monotonic()
            for loop in beside:
                if loop.done():
                    loop.result()
            if time.monotonic() - moved > self._size.patience_s:
                self._gave_up = True
                return
            await asyncio.sleep(0.1)

    async def _watch(self, fleet: Fleet) -> None:
        parent = os.getppid()
        while True:
            if os.getppid() != parent:
                raise RuntimeError("whoever started this run is gone: nobody waits for its report")
            fleet.look()
            await asyncio.sleep(0.1)

    def _wanted(self) -> dict[str, int]:
        """How many kills are missing, by point."""
        met = Counter(point for _, point in self._found.kills)
        return {point: n for point in self._points if (n := self._size.per_point - met[point]) > 0}

    # ---- the end

    async def _judge(
        self, backend: Backend, fleet: Fleet, feed: Feed, checker: Checker, left: list[int], seconds: float
    ) -> Report:
        size, found = self._size, self._found
        found.take(self._reader.lines())
        stored = await self._stored(backend, feed)
        orders = sorted(self._orders.values(), key=lambda order: order.n)
        wrong = judge.judge(found, stored, orders, self._points, size.per_point)
        known = {*self._orders, *(one for answers in found.born.values() for one, _ in answers)}
        wrong += [Wrong("stranger", "nobody submitted or spawned it", i) for i in feed.moves if i not in known]
        wrong += [Wrong("process", text) for text in fleet.unexpected] + [Wrong("feed", text) for text in feed.wrong]
        if left:
            wrong.append(Wrong("process", f"{left} outlived the process that started them"))
        wrong += [
            Wrong("invariant", f"{v.invariant} {v.partition} {v.id}: {v.detail} (in {n} passes)", v.id)
            for v, n in sorted(checker.found.items())
        ]
        wrong += [Wrong("invariant", f"the checker failed: {text}") for text in sorted(set(checker.broken))]
        met = Counter(point for _, point in found.kills)
        return Report(
            size=size, ok=not wrong, library=library().sha, seconds=seconds, points=len(self._points),
            kills=len(found.kills), fewest=min((met[point] for point in self._points), default=0),
            beside=found.beside_n, jobs=len(orders), claims=found.claims_n,
            children=len(found.born), hatched=found.hatched_n,
            bodies=sum(map(len, found.begun.values())), repeated=judge.repeats(found),
            rerun=sum(1 for one in wrong if one.sort == "rerun"),
            interrupted=sum((order.n, 0, plan.ONCE) not in found.recorded for order in orders),
            stalled=found.stalled_n, signals=sum(map(len, found.sent.values())),
            frames=sum(map(len, found.frames.values())),
            violations=dict(checker.by_invariant), checker_passes=checker.passes_n,
            recovery_ms={
                "n": len(found.recoveries), "p50": quantile(found.recoveries, 0.5),
                "p99": quantile(found.recoveries, 0.99),
            },
            wrong=wrong,
        )  # fmt: skip

    async def _stored(self, backend: Backend, feed: Feed) -> dict[int, judge.Stored]:
        born = self._found.born
        children = {one: key for key, answers in born.items() for one, _ in answers}
        ended = await outcomes(backend, [*self._orders, *children])
        found = dict[int, judge.Stored]()
        for execution_id, order in self._orders.items():
            one = ended[execution_id]
            journal = await entries_of(backend, ExecutionId(execution_id))
            found[order.n] = judge.Stored(
                execution_id=execution_id, state=one.state, result=one.result or b"",
                said=f"{one.category} {one.reason}", frames=await self._frames(backend, execution_id),
                journal=[judge.Entry(entry.name, entry.status, entry.at_ms) for entry in journal],
                ends=len(feed.ends(execution_id)),
                continued=sum(move.why.startswith("continued") for move in feed.moves[execution_id]),
                flow=await self._flow(backend, execution_id),
                children=[
                    _child(name, ended[one], feed) for one, (n, name) in children.items() if n == order.n
                ],
            )  # fmt: skip
        return found

    async def _flow(self, backend: Backend, execution_id: str) -> tuple[str, int]:
        try:
            info = await backend.call(ReadFlowArgs(flow_id=implicit_flow(ExecutionId(execution_id))))
        except NotFound:
            return "unknown", 0
        return info.public_flow_state, info.node_count

    async def _frames(self, backend: Backend, execution_id: str) -> list[judge.Emitted]:
        frames: list[judge.Emitted] = []
        after = "-"
        while True:
            page = await backend.call(ReadStreamArgs(execution_id=ExecutionId(execution_id), after=after))
            for frame in page.frames:
                run, epoch = msgspec.json.decode(frame.payload, type=tuple[int, int])
                frames.append(judge.Emitted(frame.attempt_index, frame.frame_type, run, epoch))
            after = page.cursor
            if not page.more:
                return frames

    def pages(self, report: Report) -> dict[str, list[str]]:
        """What the book says of the executions of which something is wrong."""
        wanted = {str(self._orders[w.id].n): w.id for w in report.wrong if w.id in self._orders}
        found: dict[str, list[str]] = {}
        for line in Reader(self._directory).lines():
            if line[0] not in ("died", "fatal", "letter", "at") and line[1] in wanted:
                found.setdefault(wanted[line[1]], []).append(" ".join(line))
        return found


def _child(name: str, one: ExecutionOutcome, feed: Feed) -> judge.Child:
    moves, ends = feed.moves.get(one.execution_id, []), feed.ends(one.execution_id)
    return judge.Child(
        name, one.state, one.result or b"", sum(move.was == "-" for move in moves), len(ends),
        ends[0].epoch if ends else 0,
    )  # fmt: skip


def main() -> int:
    task = msgspec.json.decode(sys.argv[1], type=Task)
    run = Run(task)
    report = asyncio.run(run.run())
    (Path(task.directory) / "report.json").write_bytes(msgspec.json.encode(report))
    print(table(report), flush=True)
    if report.wrong:
        print(complaints(report, run.pages(report)), flush=True)
    return 0 if report.ok else 1


if __name__ == "__main__":
    sys.exit(main())
