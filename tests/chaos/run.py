"""One chaos run: start everything, make the faults, let it drain, and hold the evidence against the store.

`python -m tests.chaos.run '{"directory": ..., "code": ..., "size": {...}}'`, as `tests.chaos` starts it from a copy of
the tree; report.json and history.txt, every transition of every job, are left in the directory.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Final

import msgspec

from ffbackend_valkey.library import library
from ffbackend_valkey.stores import connect
from ffbackend_valkey.url import parse_url
from ffcore import limits
from ffcore.backend import Backend, StoreConfig
from ffcore.contracts.upkeep import ReadHeaderArgs
from ffcore.errors import Unavailable
from tests.chaos import tasks, verify
from tests.chaos.checker import Checker
from tests.chaos.faults import Faults
from tests.chaos.feed import Feed
from tests.chaos.fleet import Fleet
from tests.chaos.graphs import Graph
from tests.chaos.graphs import graphs as drawn
from tests.chaos.ledger import read
from tests.chaos.plan import Size, schedule
from tests.chaos.proxy import Network
from tests.chaos.recovery import RECONNECT_MS, measure, quantile
from tests.chaos.report import Report, complaints, table
from tests.chaos.store import Server
from tests.chaos.submitter import HOLD
from tests.chaos.submitter import Orders as SubmitOrders
from tests.chaos.verify import Wrong
from tests.chaos.verify_flows import coverage
from tests.chaos.worker import Orders as WorkerOrders

MARGIN_MS: Final = 1_000
"""Recovery may take a lease and this."""
AHEAD_S: Final = 4.0
"""Faults may be this far ahead of the jobs: the server is away at times, and nothing is submitted then."""
POISON_EACH: Final = 650
"""One job of so many kills its worker."""


class Order(msgspec.Struct, kw_only=True):
    directory: str
    code: str
    size: Size


class Run:
    def __init__(self, order: Order) -> None:
        self._order, self._size = order, order.size
        self._directory = Path(order.directory)
        self._graces: set[tuple[int, int]] = set()

    async def run(self) -> tuple[Report, Feed]:
        me = asyncio.current_task()
        assert me is not None
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, me.cancel)
        size = self._size
        server = Server(self._directory)
        network = Network(parse_url(server.url))
        fleet = Fleet(self._directory, Path(self._order.code), {"FF_QUIET": "1"})
        try:
            await server.start()
            backend = await connect(server.url, init=StoreConfig(fp=size.partitions), patience=30.0)
            await network.start()
            try:
                return await self._through(server, network, fleet, backend)
            finally:
                await backend.close()
                await network.close()
        finally:
            fleet.close()
            server.close()

    async def _through(
        self, server: Server, network: Network, fleet: Fleet, backend: Backend
    ) -> tuple[Report, Feed]:
        size, started = self._size, time.monotonic()
        faults, feed, checker = Faults(server, fleet, network), Feed(backend), Checker(backend, lambda: server.starts_n)
        self._start(fleet, server.url, network.target.display)
        beside = [
            asyncio.create_task(loop, name=name) for name, loop in (
                ("feed", feed.follow()), ("checker", checker.run()), ("watch", self._watch(fleet, backend, feed)),
            )
        ]  # fmt: skip

        def clock() -> float:
            self._died(beside)
            return self._clock(feed, time.monotonic() - started)

        await faults.follow(schedule(size), clock)
        await faults.heal()
        healed = time.monotonic()
        while time.monotonic() < healed + size.drain_s:
            self._died(beside)
            if all(m.done for m in fleet.members if m.name == "submitter") and feed.live_n == 0:
                break
            await asyncio.sleep(0.1)
        seconds, drained = time.monotonic() - started, time.monotonic() - healed
        for task in beside:
            task.cancel()
        await asyncio.gather(*beside, return_exceptions=True)
        await fleet.stop()
        left = await fleet.left_over(but=server.pid)
        await feed.catch_up()
        checker.memory.acknowledged.update(read(self._directory).acked)
        await checker.check()
        return await self._judge(backend, server, fleet, faults, feed, checker, left, seconds, drained), feed

    def _start(self, fleet: Fleet, direct: str, proxied: str) -> None:
        size = self._size
        for number in range(size.tickers):
            fleet.add(f"ticker{number}", "ffcli.main", "--url", (direct, proxied)[number % 2], "engine", "run")
        for number in range(size.workers):
            self._worker(fleet, f"worker{number}", (direct, proxied)[number % 2], tasks.LANE, size.concurrency)
        self._worker(fleet, "risky", direct, tasks.RISKY, 1)
        orders = self._orders(proxied)
        fleet.add("submitter", "tests.chaos.submitter", msgspec.json.encode(orders).decode())

    def _orders(self, url: str) -> SubmitOrders:
        size = self._size
        return SubmitOrders(
            url=url, jobs=size.jobs, per_s=size.jobs / (size.seconds * 0.95), seed=size.seed,
            poison_each=POISON_EACH, lease_s=size.lease_s,
        )  # fmt: skip

    def _worker(self, fleet: Fleet, name: str, url: str, lane: str, concurrency: int) -> None:
        orders = WorkerOrders(
            url=url, name=name, lane=lane, concurrency=concurrency, lease_s=self._size.lease_s, seed=self._size.seed
        )
        fleet.add(name, "tests.chaos.worker", msgspec.json.encode(orders).decode())

    def _clock(self, feed: Feed, elapsed: float) -> float:
        """The run's time for faults: seconds, but no further than the jobs have come. On a slow machine both take
        longer, and each job meets as many faults as on a fast one."""
        if elapsed > self._size.slowest_s:
            return elapsed
        return min(elapsed, AHEAD_S + len(feed.moves) / self._size.jobs * self._size.seconds)

    async def _watch(self, fleet: Fleet, backend: Backend, feed: Feed) -> None:
        """Restart who has ended, hold the submitter back while there is enough to do, note the graces given."""
        looked, hold, parent = 0.0, self._directory / HOLD, os.getppid()
        while True:
            if os.getppid() != parent:
                raise RuntimeError("whoever started this run is gone: nobody waits for its report")
            fleet.look()
            if feed.busy_n > self._size.busy_n or feed.live_n > self._size.live_n:
                hold.touch()
            else:
                hold.unlink(missing_ok=True)
            if time.monotonic() - looked > 0.5:
                looked = time.monotonic()
                try:
                    async with asyncio.timeout(2.0):
                        for partition in backend.config.keys("fp"):
                            header = await backend.call(ReadHeaderArgs(partition=partition))
                            if until := int(header.fields.get("grace_until", "0")):
                                self._graces.add((until - limits.RENEWAL_INTERVAL_MAX_MS, until))
                except (Unavailable, TimeoutError):
                    pass
            await asyncio.sleep(0.05)

    def _died(self, loops: list[asyncio.Task[None]]) -> None:
        """A loop that has ended says why; without it the run would wait in vain."""
        for loop in loops:
            if loop.done():
                loop.result()

    async def _judge(
        self, backend: Backend, server: Server, fleet: Fleet, faults: Faults, feed: Feed, checker: Checker,
        left: list[int], seconds: float, drained: float,
    ) -> Report:  # fmt: skip
        size, evidence = self._size, read(self._directory)
        graphs = {one.n: one for one in drawn(self._orders("")) if isinstance(one, Graph)}
        wrong, ended = await verify.verify(backend, evidence, feed, size.jobs, graphs)
        flows = await verify.read_flows(backend, evidence, feed, graphs)
        wrong += verify.of_flows(flows, evidence)
        wrong += [Wrong("process", text) for text in fleet.unexpected]
        if left:
            wrong.append(Wrong("process", f"{left} outlived the workers that started them"))
        wrong += [
            Wrong("invariant", f"{v.invariant} {v.partition} {v.id}: {v.detail} (in {n} passes)", v.id)
            for v, n in sorted(checker.found.items())
        ]
        wrong += [Wrong("invariant", f"the checker failed: {text}") for text in sorted(set(checker.broken))]
        met = verify.coverage(evidence, feed) | coverage(flows, evidence, faults.outages)
        wrong += [Wrong("coverage", f"the run never met: {name}") for name in verify.must_meet(size) if not met[name]]
        wrong += [Wrong("coverage", f"a fault could not be made: {text}") for text in faults.missed]
        away = [(since, until + RECONNECT_MS) for since, until in faults.outages] + sorted(self._graces)
        recovered = measure(feed, faults.deaths, faults.pauses, away)
        bound = size.lease_s * 1000 + MARGIN_MS
        if size.timed and (p99 := quantile(recovered.claimed, 0.99)) > bound:
            wrong.append(Wrong("recovery", f"p99 of recovery is {p99:.0f} ms, the bound is {bound:.0f} ms"))
        sorts = Counter(one.sort for one in wrong)
        return Report(
            size=size, ok=not wrong, library=library().sha, seconds=seconds, drained_s=drained,
            jobs=size.jobs, jobs_per_s=len(feed.moves) / seconds, ended=dict(ended), flows=len(flows),
            flows_ended=Counter(flow.info.public_flow_state for flow in flows if flow.info),
            members=sum(len(flow.members) for flow in flows),
            members_ended=Counter(one.state for flow in flows for one in flow.members),
            children_ended=Counter(one.state for flow in flows for one in flow.children.values() if one.moves),
            handler_runs=len(evidence.runs), overlapping_runs=verify.overlaps(evidence),
            faults=dict(faults.done), missed=faults.missed, poisoned_kills=fleet.poisoned_n,
            kills_with_leases=recovered.kills_with_leases,
            pauses_with_losses=recovered.pauses_with_losses,
            outage_s=sum(until - since for since, until in faults.outages) / 1000, graces=len(self._graces),
            coverage=met,
            refused_late=sum(1 for r in evidence.reports if r.late and r.state == "error"),
            lost=sorts["lost"], duplicated=sorts["duplicated"], violations=dict(checker.by_invariant),
            checker_passes=checker.passes_n, requeued_ms=_quantiles(recovered.requeued),
            recovery_ms=_quantiles(recovered.claimed), recovery_apart_ms=_quantiles(recovered.apart),
            disk=server.disk.kind, wrong=wrong,
        )  # fmt: skip


def _quantiles(values: list[float]) -> dict[str, float]:
    return {
        "n": len(values), "p50": quantile(values, 0.5), "p99": quantile(values, 0.99), "max": max(values, default=0.0),
    }  # fmt: skip


def main() -> int:
    order = msgspec.json.decode(sys.argv[1], type=Order)
    report, feed = asyncio.run(Run(order).run())
    (Path(order.directory) / "report.json").write_bytes(msgspec.json.encode(report))
    history = "".join(f"{execution_id} {move}\n" for execution_id, moves in feed.moves.items() for move in moves)
    (Path(order.directory) / "history.txt").write_text(history)
    print(table(report), flush=True)
    if report.wrong:
        print(complaints(report, feed), flush=True)
    return 0 if report.ok else 1


if __name__ == "__main__":
    sys.exit(main())
