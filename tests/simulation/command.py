"""The command line: `python -m tests.simulation [--seed N | --runs N] [--steps N] ...`, which is what `make sim` runs.

Without a seed a fixed number of runs: most on Valkey with every call predicted, every record it touched compared and
everything compared every few calls; some on memory://, some on a server that is killed and restarted. With a seed that
run alone, and the hash of its keyspace.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Any

from tests.simulation import coverage
from tests.simulation.faults import Faults
from tests.simulation.run import Report, run
from tests.simulation.shrink import shrunk
from tests.simulation.wire import place, virtual_library

CHUNK = 8
RESTARTING = Faults(restart=0.012)


def _options(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="make sim", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )  # fmt: skip
    parser.add_argument("--seed", type=int, help="play this one and print the hash of its keyspace")
    parser.add_argument("--runs", type=int, default=288, help="seeds to play, from 0 (288)")
    parser.add_argument("--steps", type=int, default=1_000, help="scheduler steps of each (1000)")
    parser.add_argument("--on", default="valkey", help="valkey, durable, memory, or the path of a server program")
    parser.add_argument("--check-every", type=int, default=20, help="compare everything after so many calls")
    parser.add_argument("--fast", action="store_true", help="predict and compare answers only")
    parser.add_argument("--coverage", action="store_true", help="print how often each answer and move was seen")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="processes (2)")
    return parser.parse_args(argv)


def _settings(seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """What a seed is played on; part of what it decides."""
    kind = options.on
    if kind == "valkey" and seed % 25 == 24:
        kind = "memory"
    elif kind == "valkey" and seed % 25 == 12:
        kind = "durable"
    return {
        "on": kind, "faults": RESTARTING if kind == "durable" else Faults(), "touched": not options.fast,
        "check_every": 0 if options.fast else options.check_every,
        "checker_every": 0 if options.fast else 10 * options.check_every,
        # A killed server writes and starts slowly.
        "steps": options.steps // 4 if kind == "durable" else options.steps,
    }  # fmt: skip


def _chunk(seeds: list[int], options: argparse.Namespace) -> Report:
    """Some seeds in one process, on one server as far as they share its kind."""
    total, library = Report(), virtual_library()
    with place(options.on) as shared:
        for seed in seeds:
            settings = _settings(seed, options)
            if settings["on"] == options.on:
                settings["on"] = shared
            report = run(seed, library=library, **settings)
            if report.violation is not None:
                _tell(seed, report, library, settings["on"], options)
            report.trace = []
            total.add(report)
            if report.violation is not None:
                break
    return total


def _tell(seed: int, report: Report, library: Any, on: Any, options: argparse.Namespace) -> None:
    """How a seed failed, its last steps, and the shortest trace that still does."""
    assert report.violation is not None
    lines = [f"seed {seed} failed at call {report.calls}: {report.violation}", "last steps:"]
    lines += [f"  {step}" for step in report.trace[-8:]]
    print("\n".join(lines), flush=True)
    kind = on if isinstance(on, str) else options.on
    with place("valkey" if kind == "memory" else kind) as fresh:
        short = shrunk(report.trace, report.violation, fresh, library)
    print(f"shrunk to {len(short)} of {len(report.trace)} steps:")
    print("\n".join(f"  {step}" for step in short))
    print(f"repeat it with: make sim SEED={seed} STEPS={options.steps}", flush=True)


def _one(options: argparse.Namespace) -> int:
    settings, library = _settings(options.seed, options), virtual_library()
    report = run(options.seed, library=library, **settings)
    if report.violation is not None:
        _tell(options.seed, report, library, settings["on"], options)
    print(f"seed {options.seed}: {report.steps} steps, {report.calls} calls, {report.transitions} transitions")
    print(f"keyspace sha256={report.sha256}")
    return 1 if report.violation else 0


def _many(options: argparse.Namespace) -> int:
    start = time.perf_counter()
    seeds = list(range(options.runs))
    chunks = [seeds[i : i + CHUNK] for i in range(0, len(seeds), CHUNK)]
    total = Report()
    with ProcessPoolExecutor(options.jobs, multiprocessing.get_context("spawn")) as pool:
        running: list[Future[Report]] = [pool.submit(_chunk, chunk, options) for chunk in chunks]
        for done in running:
            total.add(done.result())
            if total.violation is not None:
                for waiting in running:
                    waiting.cancel()
                break
    _report(total, options, time.perf_counter() - start)
    left = coverage.missing(virtual_library(), total.seen, total.moves)
    if left:
        print(f"never reached ({len(left)}): " + ", ".join(left))
    return 1 if total.violation or (left and options.runs >= 288 and options.steps >= 1_000) else 0


def _report(total: Report, options: argparse.Namespace, wall: float) -> None:
    n = len(total.seeds)
    print(f"{n} runs, {total.steps} steps, {total.calls} calls, {total.transitions} transitions in {wall:.1f} s wall "
          f"({options.jobs} processes, {os.cpu_count()} cores)")  # fmt: skip
    print(f"per second of wall time: {n / wall:.1f} runs, {total.steps / wall:.0f} steps, "
          f"{total.calls / wall:.0f} calls, {total.transitions / wall:.0f} transitions")  # fmt: skip
    rates = [f"{kind} {calls / seconds:.0f}" for kind, (calls, seconds) in sorted(total.on.items())]
    print("calls per second of one process: " + ", ".join(rates))
    print("faults: " + ", ".join(f"{name} {count}" for name, count in sorted(total.faults.items())))
    print(f"reached: {len(total.seen)} pairs of function and answer, {len(total.moves)} moves between states")
    if options.coverage:
        for name in sorted({function for function, _ in total.seen}):
            words = [f"{word} {n}" for (function, word), n in sorted(total.seen.items()) if function == name]
            print(f"  {name}: " + ", ".join(words))
        for state in sorted({a for a, _ in total.moves}):
            print(f"  {state} -> " + ", ".join(f"{b} {n}" for (a, b), n in sorted(total.moves.items()) if a == state))
    print(f"violations: {0 if total.violation is None else 1}")


def main(argv: list[str] | None = None) -> int:
    options = _options(sys.argv[1:] if argv is None else argv)
    return _many(options) if options.seed is None else _one(options)
