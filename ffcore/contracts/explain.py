"""Why an execution does not run: what a claim would do with it, without doing it. This engine's own."""

from __future__ import annotations

from ffcore.args import Args, Outcome, Row
from ffcore.ids import ExecutionId, TimestampMs


class Verdict(Row):
    """One thing that keeps an execution from starting."""

    code: str
    detail: str
    until: TimestampMs
    """When it ends by itself; 0: somebody has to do something."""
    resource: str
    """Of a halted queue: ``b <uuid>`` or ``q <uuid>``, what its jobs wait for; else empty."""


class Explained(Outcome, tag="explained"):
    now_ms: TimestampMs
    state: str
    """The stored state."""
    verdicts: list[Verdict]
    """In the order a claim would come upon them; empty: nothing of its partition keeps it."""
    ahead: int
    """Jobs of its lane and partition that come before it, halted queues aside; -1: it is not in line."""
    ready: int
    """Jobs in line in its lane and partition, itself among them."""
    admission: str
    """What it has to be admitted by (`ffcore.admission`); empty: nothing."""
    lane_quota: str
    """The quota its lane takes a place of; empty: none."""


class ExplainArgs(Args[Explained]):
    """A dry run of the claim, for one execution. What other partitions say (budgets, quotas, workers) is not asked."""

    execution_id: ExecutionId
