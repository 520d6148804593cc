"""What ten idle workers cost: commands a second at the server, CPU of the server and of each worker.

The rule: ten separate processes, as ten pods would be; counted once they have settled, from INFO and /proc.
"""

from __future__ import annotations

import time

import ffsdk as ff
from bench.harness import Row, Size, cpu_s, processes, ready, row, serve, server, start

WORKERS = 10


async def worker(url: str, lane: str) -> None:
    """An idle worker of one lane."""
    app = ff.App(url)

    @app.task(name="nothing", lane=lane)
    async def nothing(payload: int) -> None:
        return None

    await serve(app.worker(lanes=[lane]))


def run(size: Size) -> list[Row]:
    seconds = size(20, 4)
    with server() as own, processes() as running:
        for n in range(0, WORKERS, 2):
            pair = [start(worker, url=own.url, lane="idle") for _ in range(min(2, WORKERS - n))]
            running += pair
            for process in pair:
                ready(process)
        time.sleep(size(5, 3))  # claims, roster entries and tickers fall into step
        pids = [process.pid for process in running]
        own.db.config_resetstat()
        began, server_s, workers_s = time.monotonic(), cpu_s(own.pid), [cpu_s(pid) for pid in pids]
        time.sleep(seconds)
        took = time.monotonic() - began
        stats = own.stats()
        server_share = (cpu_s(own.pid) - server_s) / took * 100
        shares = [(cpu_s(pid) - before) / took * 100 for pid, before in zip(pids, workers_s, strict=True)]
    sent = {name: s["calls"] / took for name, s in stats.items() if name in ("fcall", "fcall_ro", "ping")}
    inner = {name: s["calls"] / took for name, s in stats.items() if name not in (*sent, "info", "config|resetstat")}
    by_name = " ".join(f"{name} {calls:.1f}" for name, calls in sorted(sent.items()))
    return [
        Row("commands of 10 idle workers", sum(sent.values()), "commands/s", target="<= 20", note=by_name),
        Row("  inside their functions", sum(inner.values()), "commands/s"),
        Row("CPU of the server", server_share, "% of a core", target="<= 1"),
        row("CPU of one worker", shares, "% of a core", "<= 1", "median of ten"),
        Row("CPU of all ten workers", sum(shares), "% of a core"),
    ]
