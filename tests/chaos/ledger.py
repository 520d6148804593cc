"""Evidence: what each process saw, in a file of its own, one line for each fact.

A line is one append of a few dozen bytes, so a process may be killed at any moment and what it wrote before stands.
Whoever reads takes only whole lines. The first word says what the line is:

    begin N ID EPOCH ATTEMPT AT      a handler starts (job number, execution, fence's epoch, instant in ms)
    end N ID EPOCH AT                it has its result, which it has not reported
    report ID EPOCH STATE DETAIL     a completion was answered: completed, replayed, or error and its code
    giveup ID EPOCH                  a handler was stopped, and its worker is about to report all the same
    late ID EPOCH STATE DETAIL       what that was answered
    renewal ID EPOCH CODE            a renewal was refused
    wire CODE APPLIED TEXT           a call failed on its connection; APPLIED: it may have taken effect
    try N KIND                       the submitter is about to submit
    ack N ID new|known               the store acknowledged it
    full N                           the store was over its memory limit
    cancel N ID                      the submitter is about to cancel
    got N STATE VALUE                the submitter waited for it, and this came
    input ID EPOCH JSON              what a handler was given of its upstreams
    graph N                          the submitter is about to submit a flow, whose first number this is
    whole N ID new|known             the store acknowledged it
    halt N POLICY                    the submitter is about to cancel it
    halted N WORD                    what that was answered
    ended N STATE COUNTS             the submitter waited for the flow, and this came
    fatal TEXT                       the process ends because of an error of its own
"""

from __future__ import annotations

import os
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import NamedTuple

import msgspec


def now_ms() -> int:
    return time.time_ns() // 1_000_000


class Ledger:
    """The file of one process."""

    def __init__(self, directory: Path, who: str) -> None:
        path = directory / f"{who}.{os.getpid()}.facts"
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def note(self, *words: object) -> None:
        os.write(self._fd, " ".join(map(str, words)).replace("\n", " ").encode(errors="replace") + b"\n")


class Run(NamedTuple):
    """One run of a handler. `end_ms` 0: it never got there."""

    n: int
    execution_id: str
    epoch: int
    begin_ms: int
    end_ms: int


class Report(NamedTuple):
    execution_id: str
    epoch: int
    state: str
    detail: str
    late: bool


class Evidence:
    """All facts of a run."""

    def __init__(self) -> None:
        self.runs: dict[tuple[str, int], Run] = {}
        """By execution and epoch."""
        self.reports: list[Report] = []
        self.acked: dict[str, int] = {}
        """Job number by execution id."""
        self.tried: dict[int, str] = {}
        """Kind by job number."""
        self.cancelled: set[str] = set()
        self.late: set[tuple[str, int]] = set()
        """Execution and epoch of reports made for handlers that never got to their end."""
        self.got: list[tuple[int, str, str]] = []
        self.inputs: dict[tuple[str, int], bytes] = {}
        """By execution and epoch."""
        self.graphs: dict[int, str] = {}
        """Flows that were submitted, by their first number; their id once that was acknowledged, else empty."""
        self.halts: dict[int, str] = {}
        """Flows that somebody was about to cancel; what it was answered, if it was."""
        self.flow_ends: list[tuple[int, str, dict[str, int]]] = []
        self.counts: Counter[str] = Counter()
        self.fatal: list[str] = []
        self.by_state: dict[str, set[int]] = defaultdict(set)
        """Epochs whose report was answered completed or replayed, by execution."""


def read(directory: Path) -> Evidence:
    """All evidence of a run's directory."""
    found = Evidence()
    for path in sorted(directory.glob("*.facts")):
        for line in path.read_bytes().split(b"\n")[:-1]:
            _take(found, line.decode(errors="replace").split(" "), path.name)
    return found


def _take(found: Evidence, words: list[str], where: str) -> None:
    match words:
        case ["begin", n, execution_id, epoch, _, at]:
            found.runs[execution_id, int(epoch)] = Run(int(n), execution_id, int(epoch), int(at), 0)
        case ["end", n, execution_id, epoch, at]:
            run = found.runs[execution_id, int(epoch)]
            found.runs[execution_id, int(epoch)] = run._replace(end_ms=int(at))
        case ["report" | "late" as word, execution_id, epoch, state, *detail]:
            found.reports.append(Report(execution_id, int(epoch), state, " ".join(detail), word == "late"))
            if state in ("completed", "replayed"):
                found.by_state[execution_id].add(int(epoch))
        case ["giveup", execution_id, epoch]:
            found.late.add((execution_id, int(epoch)))
        case ["renewal", _, _, code]:
            found.counts[f"renewal:{code}"] += 1
        case ["wire", code, applied, *_]:
            found.counts["wire_unknown" if applied == "1" else f"wire:{code}"] += 1
            if code == "unavailable":
                found.counts["wire_lost"] += 1
        case ["try", n, kind]:
            found.tried[int(n)] = kind
        case ["ack", n, execution_id, fresh]:
            found.acked[execution_id] = int(n)
            found.counts[f"submit:{fresh}"] += 1
        case ["full", _]:
            found.counts["store_full"] += 1
        case ["cancel", _, execution_id]:
            found.cancelled.add(execution_id)
        case ["got", n, state, *value]:
            found.got.append((int(n), state, " ".join(value)))
        case ["input", execution_id, epoch, *text]:
            found.inputs[execution_id, int(epoch)] = " ".join(text).encode()
        case ["graph" | "halt" as word, n, *_]:
            (found.graphs if word == "graph" else found.halts).setdefault(int(n), "")
        case ["whole", n, flow_id, fresh]:
            found.graphs[int(n)] = flow_id
            found.counts[f"flow:{fresh}"] += 1
        case ["halted", n, answer]:
            found.halts[int(n)] = answer
        case ["ended", n, state, *counts]:
            found.flow_ends.append((int(n), state, msgspec.json.decode("".join(counts), type=dict[str, int])))
        case ["fatal", *text]:
            found.fatal.append(f"{where}: {' '.join(text)}")
        case _:
            raise ValueError(f"{where} has a line that nobody writes: {words}")
