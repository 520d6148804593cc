"""Flows: chains under load and alone, a diamond, a large submit, who is told when a quorum is reached, bytes an edge.

The rule: one process submits and waits, another one works. Times are read from one monotonic clock: what handlers note
comes back over a unix socket. Beside the rate of chains stands what a flow costs each process, because a rate depends
on who else uses the machine.
"""

from __future__ import annotations

import asyncio
import os
import random
import resource
import socket
import struct
import tempfile
import time
from typing import Any

import ffsdk as ff
from bench.harness import Row, Server, Size, child, cpu_s, processes, quantile, ready, row, serve, server, start

LANE = "flows"
CHAIN_N = 10
IN_FLIGHT = 64
WIDTH_N = 998
RACE_N = 100
STAMP = struct.Struct("<qq")


def app_of(url: str, back: str = "") -> tuple[ff.App, dict[str, ff.Task[Any, Any]]]:
    """What a node does: pass on what it got, take whatever comes, or run until it is told to stop."""
    app = ff.App(url)
    to = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    racing, decided, told, all_run = list[int](), list[int](), list[int](), asyncio.Event()

    @app.task(name="pass_on", lane=LANE)
    async def pass_on(number: int) -> int:
        return number + 1

    @app.task(name="count", lane=LANE)
    async def count(numbers: list[int]) -> int:
        return len(numbers)

    @app.task(name="race", lane=LANE)
    async def race(number: int) -> int:
        racing.append(number)
        if len(racing) == RACE_N:
            racing.clear()
            told.clear()
            all_run.set()
        try:
            await all_run.wait()
            if number:
                await asyncio.sleep(600)
            all_run.clear()
            decided[:] = [time.monotonic_ns()]
        except asyncio.CancelledError:
            told.append(time.monotonic_ns())
            if len(told) == RACE_N - 1:
                to.sendto(STAMP.pack(decided[0], told[-1]), back)
            raise
        return number

    return app, {"pass_on": pass_on, "count": count, "race": race}


async def worker(url: str, back: str = "", concurrency: int = 64) -> None:
    app, _ = app_of(url, back)
    await serve(app.worker(lanes=[LANE], concurrency=concurrency))


async def chain(client: ff.Client, task: ff.Task[int, int]) -> str:
    """Submit ten nodes in a row and wait for the end of the last one; how the flow ended."""
    async with client.flow("chain") as flow:
        node = flow.add(task, 0)
        for _ in range(CHAIN_N - 1):
            node = flow.add(task, after=node)
    return (await flow.outcome(timeout=120)).state


# ---- chains --------------------------------------------------------------------------------------------


async def loose(client: ff.Client, task: ff.Task[int, int]) -> str:
    """As many jobs that know nothing of each other."""
    jobs = await client.submit_many(task, range(CHAIN_N))
    await asyncio.gather(*(job.result(timeout=120) for job in jobs))
    return "completed"


async def load(url: str, flows: int, edges: bool = True) -> list[float]:
    """Flows a second from the first submit to the last outcome, and this process's CPU microseconds for each."""
    app, tasks = app_of(url)
    left, way = iter(range(flows)), chain if edges else loose

    async def one_after_another(client: ff.Client) -> None:
        for _ in left:
            assert await way(client, tasks["pass_on"]) == "completed"

    async with app.client() as client:
        await way(client, tasks["pass_on"])
        used, began = own_cpu_s(), time.perf_counter()
        await asyncio.gather(*(one_after_another(client) for _ in range(IN_FLIGHT)))
        return [flows / (time.perf_counter() - began), (own_cpu_s() - used) / flows * 1e6]


def own_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def chains(size: Size) -> list[Row]:
    flows = size(3_000, 300)
    rates: list[float] = []
    apart: list[float] = []
    spent: dict[str, list[float]] = {"client": [], "worker": [], "server": []}
    calls: list[float] = []
    inner: list[float] = []
    with server() as own, processes(start(worker, url=own.url)) as running:
        ready(running[0])
        child(load, url=own.url, flows=100)
        for _ in range(size(5, 1)):
            apart.append(child(load, url=own.url, flows=flows, edges=False)[0])
            own.db.config_resetstat()
            before, server_s = cpu_s(running[0].pid), cpu_s(own.pid)
            rate, cpu_us = child(load, url=own.url, flows=flows)
            rates.append(rate)
            spent["client"].append(cpu_us)
            spent["worker"].append((cpu_s(running[0].pid) - before) / flows * 1e6)
            spent["server"].append((cpu_s(own.pid) - server_s) / flows * 1e6)
            stats = own.stats()
            calls.append(sum(stat["calls"] for name, stat in stats.items() if name.startswith("fcall")) / flows)
            inner.append(sum(stat["calls"] for name, stat in stats.items() if not name.startswith("fcall")) / flows)
    rows = [row(f"chains of {CHAIN_N}, {IN_FLIGHT} in flight", rates, "flows/s", ">= 500", f"{flows:,} a round")]
    rows += [row(f"  CPU of the {who}", samples, "us/flow") for who, samples in spent.items()]
    rows.append(row("  calls of functions", calls, "calls/flow", note="both processes fold theirs"))
    rows.append(row("  commands in them", inner, "calls/flow"))
    rows.append(row(f"for comparison: {CHAIN_N} jobs without edges", apart, "times/s", note="each result awaited"))
    return rows


async def alone(url: str, samples: int) -> dict[str, list[float]]:
    """Milliseconds of one chain at a time, and of one job of the same worker beside it."""
    app, tasks = app_of(url)
    found: dict[str, list[float]] = {"chain": [], "job": []}
    async with app.client() as client:
        for number in range(-20, samples):
            await asyncio.sleep(random.uniform(0.005, 0.015))
            began = time.monotonic_ns()
            await chain(client, tasks["pass_on"])
            took = (time.monotonic_ns() - began) / 1e6
            await asyncio.sleep(random.uniform(0.005, 0.015))
            began = time.monotonic_ns()
            await (await client.submit(tasks["pass_on"], 0)).result(timeout=30)
            if number >= 0:
                found["chain"].append(took)
                found["job"].append((time.monotonic_ns() - began) / 1e6)
    return found


def idle(size: Size) -> list[Row]:
    with server() as own, processes(start(worker, url=own.url)) as running:
        ready(running[0])
        found = child(alone, url=own.url, samples=size(300, 40))
    took = found["chain"]
    p50, p99 = quantile(took, 0.5), quantile(took, 0.99)
    note = f"{len(took)} chains, submit to outcome of the flow"
    return [
        Row(f"one chain of {CHAIN_N} on an idle engine, p50", p50, "ms", min(took), max(took), "<= 8", note),
        Row(f"one chain of {CHAIN_N} on an idle engine, p99", p99, "ms", target="<= 15"),
        Row("  for comparison: one job, submit to result, p50", quantile(found["job"], 0.5), "ms"),
    ]


# ---- wide and large ------------------------------------------------------------------------------------


async def diamonds(url: str, samples: int) -> dict[str, list[float]]:
    """Milliseconds of one node, then 998 beside each other, then one that gets what they returned."""
    app, tasks = app_of(url)
    found: dict[str, list[float]] = {"submit": [], "outcome": []}
    async with app.client() as client:
        for number in range(-1, samples):
            await asyncio.sleep(0.1)
            began = time.monotonic_ns()
            async with client.flow("diamond") as flow:
                first = flow.add(tasks["pass_on"], 0)
                last = flow.add(tasks["count"], after=[flow.add(tasks["pass_on"], after=first) for _ in range(WIDTH_N)])
            submitted = time.monotonic_ns()
            assert (await flow.outcome(timeout=60)).state == "completed"
            ended = time.monotonic_ns()
            assert await last.result() == WIDTH_N
            if number >= 0:
                found["submit"].append((submitted - began) / 1e6)
                found["outcome"].append((ended - began) / 1e6)
    return found


def diamond(size: Size) -> list[Row]:
    with server() as own, processes(start(worker, url=own.url)) as running:
        ready(running[0])
        before, server_s = cpu_s(running[0].pid), cpu_s(own.pid)
        samples = size(15, 3)
        found = child(diamonds, url=own.url, samples=samples)
        cpu = (cpu_s(running[0].pid) - before) / (samples + 1) * 1000
        spent = (cpu_s(own.pid) - server_s) / (samples + 1) * 1000
    return [
        row(f"diamond of 1, {WIDTH_N}, 1, submit to outcome", found["outcome"], "ms", "<= 400"),
        row("  of it: until the submit is answered", found["submit"], "ms"),
        Row("  CPU of the worker", cpu, "ms"),
        Row("  CPU of the server", spent, "ms"),
    ]


async def graph(url: str, nodes: int, edges: int) -> list[float]:
    """Milliseconds to submit a random graph, building it included, and of it without."""
    app, tasks = app_of(url)
    rng = random.Random(7)
    async with app.client() as client:
        async with client.flow("warm") as flow:
            flow.add(tasks["pass_on"], 0)
        began = time.monotonic_ns()
        async with client.flow("large") as flow:
            made: list[ff.Node[int]] = []
            left = edges
            for number in range(nodes):
                # Evenly spread over what is to come; every node has a payload, so that graphs differ in edges only.
                degree = min(number, -(-left // (nodes - number)))
                left -= degree
                ups = [made[i] for i in rng.sample(range(number), degree)]
                made.append(flow.add(tasks["pass_on"], number, after=ups))
            built = time.monotonic_ns()
        ended = time.monotonic_ns()
        assert (await flow.describe()).edge_count == edges
    return [(ended - began) / 1e6, (ended - built) / 1e6]


def large(size: Size) -> list[Row]:
    nodes, edges = size(10_000, 2_000), size(20_000, 4_000)
    took: list[float] = []
    sent: list[float] = []
    spent: list[float] = []
    for _ in range(size(5, 2)):
        with server() as own:
            before = cpu_s(own.pid)
            all_ms, sent_ms = child(graph, url=own.url, nodes=nodes, edges=edges)
            spent.append((cpu_s(own.pid) - before) * 1000)
        took.append(all_ms)
        sent.append(sent_ms)
    return [
        row(f"submit of {nodes:,} nodes, {edges:,} edges", took, "ms", "<= 2,000", "with building it"),
        row("  of it: sending", sent, "ms"),
        row("  CPU of the server", spent, "ms"),
    ]


# ---- a quorum ------------------------------------------------------------------------------------------


async def races(url: str, back: str, samples: int) -> list[float]:
    """Milliseconds from the first of a hundred handlers being done until the other 99 have been told."""
    app, tasks = app_of(url)
    here = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    here.bind(back)
    here.setblocking(False)
    loop = asyncio.get_running_loop()
    found: list[float] = []
    async with app.client() as client:
        for number in range(-1, samples):
            async with client.flow("race") as flow:
                ways = [flow.add(tasks["race"], n) for n in range(RACE_N)]
                flow.add(tasks["count"], after=ff.any_of(ways, on_satisfied="cancel_remaining"))
            async with asyncio.timeout(60):
                decided, last = STAMP.unpack(await loop.sock_recv(here, STAMP.size))
            assert (await flow.outcome(timeout=60)).state == "completed"
            if number >= 0:
                found.append((last - decided) / 1e6)
    here.close()
    return found


def quorum(size: Size) -> list[Row]:
    with server() as own, tempfile.TemporaryDirectory(prefix="ffbench") as directory:
        back = os.path.join(directory, "back")
        with processes(start(worker, url=own.url, back=back, concurrency=RACE_N + 20)) as running:
            ready(running[0])
            found = child(races, url=own.url, back=back, samples=size(20, 3))
    note = f"from the handler's return to the last of {RACE_N - 1}"
    return [
        Row("any of 100 decided: all others told, p50", quantile(found, 0.5), "ms", min(found), max(found), "<= 100",
            note),
    ]  # fmt: skip


# ---- memory --------------------------------------------------------------------------------------------


def memory(size: Size) -> list[Row]:
    """Graphs of the same nodes with no edge, one a node on the average, and five."""
    nodes = size(10_000, 2_000)
    used: dict[int, float] = {}
    for each in (0, 1, 5):
        with server() as own:
            used[each] = bytes_of(own, nodes, each * nodes)
    first = (used[1] - used[0]) / nodes
    fifth = (used[5] - used[0]) / (5 * nodes)
    more = (used[5] - used[1]) / (4 * nodes)
    return [
        Row("bytes an edge, one a node", first, "bytes", target="<= 400", note="the group with it"),
        Row("bytes an edge, five a node", fifth, "bytes", target="<= 400"),
        Row("  bytes each edge more", more, "bytes"),
        Row("  bytes a node without edges", used[0] / nodes, "bytes", note=f"over {nodes:,} nodes"),
    ]


def bytes_of(own: Server, nodes: int, edges: int) -> float:
    child(graph, url=own.url, nodes=4, edges=0)  # lanes, tables and feeds are there
    before = int(own.db.info("memory")["used_memory"])
    child(graph, url=own.url, nodes=nodes, edges=edges)
    return int(own.db.info("memory")["used_memory"]) - before


def run(size: Size) -> list[Row]:
    return [*chains(size), *idle(size), *diamond(size), *large(size), *quorum(size), *memory(size)]
