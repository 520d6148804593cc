"""What the demo proves, read from the store after the fact and held against a plain computation.

The rule: nothing here trusts what the demo's own processes said; only records, results and the files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from ffcore import limits
from ffcore.contracts.reads import ExecutionOutcome, ExecutionRef, ReadExecutionArgs, ReadOutcomesArgs
from ffcore.ids import ExecutionId, partition_of

from .app import Count

if TYPE_CHECKING:
    from ffcore.backend import Backend


class Recovered(msgspec.Struct, frozen=True):
    """A job whose attempt died with the worker, and which another finished."""

    execution_id: str
    freed_at_ms: int
    """When the store took the lease back, by its own clock."""
    again_at_ms: int
    """When the attempt that finished it started."""


class Verdict(msgspec.Struct, kw_only=True):
    """Counts, and everything that is wrong; `wrong` empty is the proof."""

    files: int
    bytes: int
    words: int
    completed: int
    recovered: list[Recovered]
    wrong: list[str]


def plainly(path: Path) -> Count:
    """One file, in one go, in this process: the computation to compare with."""
    data = path.read_bytes()
    return Count(path=str(path), sha256=hashlib.sha256(data).hexdigest(), bytes=len(data), words=len(data.split()))


async def outcomes(backend: Backend, ids: Sequence[ExecutionId]) -> dict[str, ExecutionOutcome]:
    """State and result of each, however many calls it takes."""
    found: dict[str, ExecutionOutcome] = {}
    waiting = sorted(ids)
    while waiting:
        partition = partition_of(waiting[0])
        batch = [i for i in waiting[: limits.ROWS_N] if partition_of(i) == partition]
        answer = await backend.call(ReadOutcomesArgs(partition=partition, items=[ExecutionRef(i) for i in batch]))
        # The first of an answer is never put off, so this ends.
        found |= {item.execution_id: item for item in answer.items if item.state != "later"}
        waiting = [i for i in waiting if i not in found]
    return found


async def recoveries(backend: Backend, ids: Sequence[ExecutionId], worker: str) -> list[Recovered]:
    """Those of the executions that have an attempt which the worker began and did not end."""
    found: list[Recovered] = []
    for execution_id in ids:
        stored = await backend.call(ReadExecutionArgs(execution_id=execution_id, parts="attempts"))
        # index attempt_id worker started_at ended_at how category
        ended = [text.split(" ") for text in stored.attempts]
        freed = [int(p[4]) for p in ended if p[2] == worker and p[5] == "interrupted_reclaimed"]
        if freed:
            again = stored.fields.get("attempt_started_at") or stored.fields.get("started_at") or "0"
            found.append(Recovered(execution_id, freed[-1], int(again)))
    return found


async def examine(backend: Backend, jobs: dict[ExecutionId, Path], completed_n: int, victim: str) -> Verdict:
    """Hold every result against the plain computation. `completed_n` is the lane's own count."""
    read = await outcomes(backend, list(jobs))
    verdict = Verdict(files=len(jobs), bytes=0, words=0, completed=completed_n, recovered=[], wrong=[])
    again: list[ExecutionId] = []
    for execution_id, path in jobs.items():
        outcome = read[execution_id]
        if outcome.state != "completed":
            verdict.wrong.append(f"{path}: {outcome.state} {outcome.category} {outcome.reason}".rstrip())
            continue
        got, expected = msgspec.json.decode(outcome.result, type=Count), plainly(path)
        verdict.bytes, verdict.words = verdict.bytes + got.bytes, verdict.words + got.words
        if got != expected:
            verdict.wrong.append(f"{path}: {got} is not {expected}")
        if outcome.attempts > 1:
            again.append(execution_id)
    if completed_n != len(jobs):
        verdict.wrong.append(f"the lane counts {completed_n} completed jobs for {len(jobs)} files")
    verdict.recovered = await recoveries(backend, again, victim)
    if not verdict.recovered:
        verdict.wrong.append("no job of the killed worker was recovered")
    return verdict
