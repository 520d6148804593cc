"""What must be true at the end: the processes' evidence, the store's feed and its records, held against each other.

The rule: nothing is believed because one party says so. An acknowledgement counts from the submitter's file, an
outcome from the store, and who brought it about from both the feed and the worker that was answered.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import msgspec

from ffcore import ids, limits
from ffcore.backend import Backend
from ffcore.contracts.flow import FlowInfo, ReadFlowArgs
from ffcore.contracts.reads import ExecutionOutcome, ExecutionRef, ReadOutcomesArgs
from ffcore.errors import NotFound
from ffcore.ids import ExecutionId, FlowId, partition_of
from ffsdk.task import MAX_RECLAIM_COUNT
from ffsdk.waiters import TERMINAL
from tests.chaos import tasks, verify_flows
from tests.chaos.feed import Feed
from tests.chaos.graphs import Graph
from tests.chaos.ledger import Evidence
from tests.chaos.plan import KINDS, Size, faults_n

STALE: Final = frozenset({"stale_lease", "lease_expired", "lease_revoked", "terminal"})
_ANY: Final = frozenset(KINDS)
_NETWORK: Final = frozenset({"proxy_cut", "proxy_swallow", "server_kill", "disk_full"})
MUST_MEET: Final = {
    "stale": frozenset({"worker_pause"}), "replay": _ANY, "expired": frozenset({"worker_kill", "worker_pause"}),
    "reclaimed": frozenset({"worker_kill", "worker_pause"}), "reset": _NETWORK, "unknown": _NETWORK, "known": _ANY,
    "store_full": frozenset({"memory_full"}), "flow_lost": frozenset({"worker_kill", "worker_pause"}),
    "skipped": _ANY, "waited": _ANY,
}  # fmt: skip
"""A run that never met one of these has shown nothing about it; with the faults that bring it about."""
RARE: Final = {
    "parent_lost": frozenset({"worker_kill"}), "flow_outage": frozenset({"server_kill"}), "flow_replay": _ANY,
    "flow_known": _ANY, "unneeded": _ANY, "flow_cancelled": _ANY,
}  # fmt: skip
"""The same of what a short run may miss by chance."""
LONG_N: Final = 3_000
"""Jobs of a run that is not short."""


def must_meet(size: Size) -> list[str]:
    """What a run with these faults has to meet, if it is to count."""
    wanted = MUST_MEET | (RARE if size.jobs >= LONG_N else {})
    return [name for name, kinds in wanted.items() if kinds & set(faults_n(size))]


class Wrong(msgspec.Struct, frozen=True):
    sort: str
    """lost, duplicated, result, outcome, stranger, waiter, process, feed, invariant, coverage, recovery; of flows also
    flow, order, input."""
    what: str
    id: str = ""


async def outcomes(backend: Backend, wanted: Sequence[str]) -> dict[str, ExecutionOutcome]:
    """State and result of each, however many calls it takes."""
    found: dict[str, ExecutionOutcome] = {}
    waiting = sorted(ExecutionId(i) for i in wanted)
    while waiting:
        partition = partition_of(waiting[0])
        batch = [i for i in waiting[: limits.ROWS_N] if partition_of(i) == partition]
        answer = await backend.call(ReadOutcomesArgs(partition=partition, items=[ExecutionRef(i) for i in batch]))
        found |= {item.execution_id: item for item in answer.items if item.state != "later"}
        waiting = [i for i in waiting if i not in found]
    return found


def expected_ids(evidence: Evidence, partitions: int, graphs: Mapping[int, Graph]) -> dict[str, int]:
    """Every execution that somebody asked for, or may have spawned, with its job number."""
    asked: dict[str, int] = {ids.keyed_id("execution", "default", f"job-{n}", partitions): n for n in evidence.tried}
    for n in evidence.graphs:
        asked |= {str(one): number for one, number in graphs[n].members(partitions).items()}
    return asked


async def read_flows(
    backend: Backend, evidence: Evidence, feed: Feed, graphs: Mapping[int, Graph]
) -> list[verify_flows.Flow]:
    """The flows that were acknowledged, as the store has them."""
    known = {n: flow_id for n, flow_id in evidence.graphs.items() if flow_id}
    members = {i for n in known for i in graphs[n].members(backend.config.fp)}
    stored = await outcomes(backend, [i for i in members if i in feed.moves])
    infos: dict[int, FlowInfo] = {}
    for n, flow_id in known.items():
        with contextlib.suppress(NotFound):
            infos[n] = await backend.call(ReadFlowArgs(flow_id=FlowId(flow_id)))
    return [
        verify_flows.Flow(graphs[n], flow_id, infos.get(n), stored, feed, evidence) for n, flow_id in known.items()
    ]  # fmt: skip


def of_flows(flows: Sequence[verify_flows.Flow], evidence: Evidence) -> Iterator[Wrong]:
    """What is wrong with them."""
    for flow in flows:
        yield from (Wrong(sort, text, one or flow.id) for sort, text, one in flow.wrong())
    infos = {flow.graph.n: flow.info for flow in flows}
    for n, state, counts in evidence.flow_ends:
        info = infos.get(n)
        now = info and (info.public_flow_state, {word: info.counts.get(word, 0) for word in counts})
        if now != (state, counts):
            yield Wrong("waiter", f"flow {n}: told {state} {counts}, the store has {now}")


async def verify(
    backend: Backend, evidence: Evidence, feed: Feed, jobs: int, graphs: Mapping[int, Graph] | None = None
) -> tuple[list[Wrong], Counter[str]]:
    """What is wrong, and how the jobs ended. graphs: the flows of the run, which `of_flows` judges."""
    graphs = graphs or {}
    stored = await outcomes(backend, list(evidence.acked))
    wrong = [Wrong("feed", text) for text in feed.wrong]
    wrong += [Wrong("process", text) for text in evidence.fatal]
    numbers = set(evidence.acked.values())
    numbers.update(number for n, flow_id in evidence.graphs.items() if flow_id for number in graphs[n].numbers)
    if len(numbers) != jobs:
        wrong.append(Wrong("lost", f"{len(numbers)} of {jobs} jobs were ever acknowledged"))
    asked = expected_ids(evidence, backend.config.fp, graphs)
    wrong += [Wrong("stranger", "nobody submitted it", i) for i in feed.moves if i not in asked]
    ended: Counter[str] = Counter()
    for execution_id, n in evidence.acked.items():
        outcome = stored[execution_id]
        kind = evidence.tried[n]
        ended[outcome.state if outcome.state != "failed" else f"failed ({outcome.category})"] += 1
        if outcome.state not in TERMINAL:
            wrong.append(Wrong("lost", f"job {n} ({kind}) is {outcome.state} at the end", execution_id))
            continue
        wrong += _ended_once(execution_id, evidence, feed)
        match outcome.state:
            case "completed":
                wrong += _right_result(execution_id, n, outcome, evidence, feed)
            case "cancelled" if execution_id in evidence.cancelled:
                pass
            case "failed" if outcome.category == "poisoned" and kind == "poison":
                # The first loss of a lease that nobody renewed counts for nothing, and the last ended the job.
                lost = len([m for m in feed.moves[execution_id] if m.now == "active" and m.lease_id != "-"])
                if lost != MAX_RECLAIM_COUNT + 2:
                    wrong.append(Wrong("outcome", f"job {n} is poisoned after {lost} claims", execution_id))
            case _:
                said = f"{outcome.state} {outcome.category} {outcome.reason}".strip()
                wrong.append(Wrong("outcome", f"job {n} ({kind}) ended as {said}", execution_id))
        if kind == "poison" and outcome.state != "failed":
            wrong.append(Wrong("outcome", f"job {n} kills its worker and yet is {outcome.state}", execution_id))
    wrong += _waiters(evidence, stored)
    return wrong, ended


def _ended_once(execution_id: str, evidence: Evidence, feed: Feed) -> Iterator[Wrong]:
    """I9 and I10: one end, and at most one fence was told that it brought it about."""
    ends = feed.ends(execution_id)
    if len(ends) != 1:
        yield Wrong("duplicated", f"ended {len(ends)} times: {[str(m) for m in ends]}", execution_id)
    told = evidence.by_state.get(execution_id, set())
    if len(told) > 1:
        yield Wrong("duplicated", f"{len(told)} leases were told that they completed it: {sorted(told)}", execution_id)
    if told and ends and (ends[0].now != "completed" or told != {ends[0].epoch}):
        yield Wrong("duplicated", f"{sorted(told)} were told completed; the feed says {ends[0]}", execution_id)


def _right_result(
    execution_id: str, n: int, outcome: ExecutionOutcome, evidence: Evidence, feed: Feed
) -> Iterator[Wrong]:
    """The result is that of the lease that counts, and its handler got to its end."""
    ends = feed.ends(execution_id)
    if not ends:
        return
    epoch = ends[0].epoch
    if outcome.result != msgspec.json.encode(tasks.result_of(n, epoch)):
        yield Wrong("result", f"job {n}: {outcome.result!r} is not the result of epoch {epoch}", execution_id)
    run = evidence.runs.get((execution_id, epoch))
    if run is None or (not run.end_ms and (execution_id, epoch) not in evidence.late):
        yield Wrong("result", f"job {n}: no handler came to its end under epoch {epoch}", execution_id)


def _waiters(evidence: Evidence, stored: Mapping[str, ExecutionOutcome]) -> Iterator[Wrong]:
    """Who waited was told what the store has."""
    by_number = {n: execution_id for execution_id, n in evidence.acked.items()}
    for n, state, value in evidence.got:
        outcome = stored[by_number[n]]
        if state != outcome.state or (state == "completed" and value.encode() != outcome.result):
            yield Wrong("waiter", f"job {n}: told {state} {value}, the store has {outcome.state}", by_number[n])


def coverage(evidence: Evidence, feed: Feed) -> dict[str, int]:
    """How often the run met what it is there to meet."""
    moves = [move for of_one in feed.moves.values() for move in of_one]
    states = Counter((report.state, report.detail) for report in evidence.reports)
    refused = sum(n for (state, detail), n in states.items() if state == "error" and detail in STALE)
    renewals = sum(n for code, n in evidence.counts.items() if code.startswith("renewal:"))
    return {
        "stale": refused + renewals,
        "replay": sum(n for (state, _), n in states.items() if state == "replayed"),
        "expired": sum(1 for move in moves if (move.was, move.now) == ("active", "reclaimable")),
        "reclaimed": sum(1 for move in moves if move.was == "reclaimable" and move.now == "active"),
        "reset": evidence.counts["wire_lost"],
        "unknown": evidence.counts["wire_unknown"],
        "known": evidence.counts["submit:known"],
        "store_full": evidence.counts["store_full"],
    }


def overlaps(evidence: Evidence) -> int:
    """Handler runs that started while an earlier one of the same job was still at work: side effects may repeat."""
    by_job: dict[str, list[tuple[int, int]]] = {}
    for run in evidence.runs.values():
        by_job.setdefault(run.execution_id, []).append((run.begin_ms, run.end_ms))
    return sum(
        1 for spans in by_job.values() for (_, end), (begin, _) in zip(sorted(spans), sorted(spans)[1:], strict=False)
        if begin < end
    )  # fmt: skip
