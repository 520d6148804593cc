"""`python -m bench [NAME...] [--quick] [--json]`: run the benchmarks named, or all, and print what they found."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence

from bench import harness
from bench.harness import Row, Size

NAMES = (
    "drain", "submit", "latency", "functions", "memory", "backlog", "partitions", "recovery", "idle", "ticks",
    "waiters", "streams", "durable", "flows", "routing", "fairness", "budgets", "admission", "behind", "schedules",
    "purge", "startup",
)  # fmt: skip


def drain(size: Size) -> list[Row]:
    """Claim to complete, one worker process, beside what a list can do."""
    script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "drain.py")
    command = [sys.executable, script, "--json", "--jobs", str(size(10_000, 3_000)), "--rounds", str(size(5, 1))]
    path = os.pathsep.join(filter(None, [str(harness.ROOT), os.environ.get("PYTHONPATH", "")]))
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path, "FF_QUIET": "1"}
    )
    rows: list[Row] = []
    for line in done.stdout.splitlines():
        if line.startswith("{"):
            found = json.loads(line)
            note = f"{found['ratio']} x the baseline" if found["what"] != "baseline" else "BLMPOP, INCR; 16 tasks"
            rows.append(Row(found["what"], found["per_second"], "jobs/s", found["low"], found["high"], "", note))
    return rows


def run(name: str, size: Size) -> list[Row]:
    if name == "drain":
        return drain(size)
    rows: list[Row] = importlib.import_module(f"bench.{name}").run(size)
    return rows


def stall_rows() -> list[Row]:
    worst = sorted(harness.stalls, key=lambda stall: -stall.ms)
    rows = [Row("commands over 10 ms, all benchmarks", len(worst), "commands", note="slow log, preparations apart")]
    rows += [Row(f"worst: {s.bench}", s.ms, "ms", note=s.command) for s in worst[:5]]
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--quick", action="store_true", help="small sizes, about a minute: shows that it runs")
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    args = parser.parse_args(argv)
    unknown = set(args.names) - set(NAMES)
    if unknown:
        parser.error(f"no benchmark {', '.join(sorted(unknown))}: choose from {', '.join(NAMES)}")
    os.environ["FF_QUIET"] = "1"  # servers without a disk are meant here
    size, began = Size(args.quick), time.monotonic()
    about = harness.machine()
    if args.json:
        print(json.dumps({"bench": "machine", **about, "quick": args.quick}), flush=True)
    else:
        print(", ".join(f"{key} {value}" for key, value in about.items()) + (", quick" if args.quick else ""))
        print("median (low to high) [target]", flush=True)
    failed: list[str] = []
    for name in args.names or NAMES:
        started = time.monotonic()
        with harness.measuring(name):
            try:
                rows = run(name, size)
            except Exception as error:
                # The others are still worth having.
                failed.append(name)
                print(f"{name} broke: {type(error).__name__}: {error}", file=sys.stderr)
                if isinstance(error, subprocess.CalledProcessError):
                    print(error.stderr, file=sys.stderr)
                continue
        if not args.json:
            print(f"{name} ({time.monotonic() - started:.0f} s)")
        harness.print_rows(name, rows, args.json)
    if not args.json:
        print("stalls")
    harness.print_rows("stalls", stall_rows(), args.json)
    end = Row("took", time.monotonic() - began, "s", note=f"load now {os.getloadavg()[0]:.2f}")
    harness.print_rows("run", [end], args.json)
    if failed:
        sys.exit(f"broke: {', '.join(failed)}")


if __name__ == "__main__":
    main()
