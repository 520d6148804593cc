"""Chaos: `python -m tests.chaos [--jobs N] [--seconds S] [--seed X] [--mutant NAME] [--json]`, or `make chaos`.

Two runs, one after the other: a worker killed at every point of a durable handler (`points/`), then faults anywhere
while many plain jobs come (`run.py`). This process copies the tree, so that nobody's edit meanwhile is part of a run,
runs the copy, and sees to it that the run ends and leaves nothing behind: a deadline, and at the end every process that
carries the run's mark is ended by its id. Exit status 1: something is wrong, and it was printed with ids and histories.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

import msgspec

from tests.chaos.fleet import end, marked
from tests.chaos.mutants import MUTANTS, mutate
from tests.chaos.plan import KINDS, Size
from tests.chaos.points import plan as points
from tests.chaos.report import Report
from tests.chaos.tree import copy_tree

TIMES_LONG: Final = 10


def size_of(words: argparse.Namespace) -> Size:
    base, times = Size(), TIMES_LONG if words.long else 1
    seconds = words.seconds or base.seconds * times
    return Size(
        jobs=words.jobs or round(base.jobs * seconds / base.seconds), seconds=seconds, seed=words.seed,
        mutant=words.mutant or "", faults=words.faults or {}, patience_s=words.patience, timed=not words.untimed,
    )  # fmt: skip


def sizes_of(words: argparse.Namespace) -> list[Size | points.Size]:
    """The runs that were asked for. A mutant, or a choice of faults, is one run's alone."""
    many = points.Size(per_point=TIMES_LONG if words.long else 1, seed=words.seed, mutant=words.mutant or "")
    if words.mutant:
        return [many if MUTANTS[words.mutant].run == "points" else size_of(words)]
    only = words.only or ("faults" if words.faults else "")
    return [many] * (only != "faults") + [size_of(words)] * (only != "points")


def faults_of(text: str) -> dict[str, int]:
    """``worker_kill=4,worker_pause=8`` as a dict."""
    found = {kind: int(n) for kind, _, n in (part.partition("=") for part in text.split(","))}
    if unknown := found.keys() - KINDS.keys():
        raise argparse.ArgumentTypeError(f"no fault is called {', '.join(unknown)}: use {', '.join(KINDS)}")
    return found


def perform(size: Size | points.Size, *, keep: bool = False, quiet: bool = False) -> tuple[int, bytes]:
    """One run in a directory of its own; its exit status, and its report as JSON, empty if there is none."""
    directory = Path(tempfile.mkdtemp(prefix="ff-chaos-", dir="/tmp"))  # short: a socket's path has its limits
    try:
        status = _run(size, directory, quiet)
        report = directory / "report.json"
        said = report.read_bytes() if report.exists() else b""
        keep = keep or (not size.mutant and (_serious(said) if isinstance(size, Size) else status != 0))
    finally:
        if keep:
            print(f"logs and evidence are kept in {directory}", file=sys.stderr)
        else:
            shutil.rmtree(directory, ignore_errors=True)
    return status, said


def _run(size: Size | points.Size, directory: Path, quiet: bool) -> int:
    code = copy_tree(directory / "code", "tests/integration/proxy.py")
    program = "tests.chaos.run" if isinstance(size, Size) else "tests.chaos.points.run"
    if size.mutant:
        mutate(code, size.mutant)
    order = msgspec.json.encode({"directory": str(directory), "code": str(code), "size": size}).decode()
    process = subprocess.Popen(
        [sys.executable, "-m", program, order], cwd=code, env={**os.environ, "PYTHONPATH": str(code)},
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL if quiet else None,
    )  # fmt: skip
    try:
        return process.wait(size.deadline_s)
    except subprocess.TimeoutExpired:
        print(f"the run did not end within {size.deadline_s:.0f} s", file=sys.stderr)
        return 1
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        end(marked(str(directory)))
        if os.path.ismount(directory / "data"):
            subprocess.run(["umount", "-l", str(directory / "data")], check=False, timeout=10)


def _serious(said: bytes) -> bool:
    """Whether somebody will want the evidence: something is wrong that a slow machine does not explain."""
    if not said:
        return True
    return any(wrong.sort not in ("recovery", "coverage") for wrong in msgspec.json.decode(said, type=Report).wrong)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--jobs", type=int, help="how many; default: 30 for each second")
    parser.add_argument("--seconds", type=float, help="during which jobs come and faults happen; default 150")
    parser.add_argument("--seed", type=int, default=1, help="of jobs and faults")
    parser.add_argument("--long", action="store_true", help=f"{TIMES_LONG} times the size, as many kills at each point")
    parser.add_argument("--only", choices=("points", "faults"), help="one of the two runs; default: both")
    parser.add_argument("--faults", type=faults_of, help="only these: KIND=N,KIND=N; the kinds are in plan.py")
    parser.add_argument("--patience", type=float, default=60.0, help="seconds the drain may take beyond the usual")
    parser.add_argument("--mutant", choices=sorted(MUTANTS), help="break the code first: the run must fail")
    parser.add_argument("--untimed", action="store_true", help="print how long recoveries took, do not judge it")
    parser.add_argument("--keep", action="store_true", help="keep logs and evidence")
    parser.add_argument("--json", action="store_true", help="print each run's report as one JSON object instead")
    words = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # so that what was started is ended
    status = 0
    for size in sizes_of(words):
        one, said = perform(size, keep=words.keep, quiet=words.json)
        status = max(status, one)
        print(said.decode() if words.json else "")
    return status


if __name__ == "__main__":
    sys.exit(main())
