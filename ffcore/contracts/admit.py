"""What becomes of jobs that a budget or a quota did not admit. This engine's own."""

from __future__ import annotations

from typing import Literal

from ffcore.args import Args, Outcome, Row
from ffcore.contracts.batch import Fence
from ffcore.ids import ExecutionId, PartitionKey, TimestampMs

# ---- refuse --------------------------------------------------------------------------------------------


class Refusal(Row):
    """One job that may not start now."""

    execution_id: ExecutionId
    fence: Fence
    resource: str
    """Id of the budget or quota that said no."""
    kind: Literal["b", "q", "l"]
    """A budget, a quota, or the quota of the job's lane."""
    gen: int
    """Number of the resource's next release when it said no: once that is heard of there is nothing to wait for."""
    until_ms: TimestampMs
    """When to ask again at the latest, server time; bounded to a day."""
    detail: str = ""
    """For people: what was wanted and what there was."""
    halt: bool = True
    """Nothing of the same admission set (of the lane, for its quota) starts before then or a release."""
    ran: bool = False
    """Its handler had started: what it took of a rate is used up."""


class ItemRefused(Row):
    state: Literal["refused", "replayed", "error"]
    detail: str
    """The state it is in; for `error` the code (`stale_lease`, `terminal`, ...)."""


class RefusedMany(Outcome, tag="refused_many"):
    items: list[ItemRefused]


class RefuseManyArgs(Args[RefusedMany]):
    """Put claimed jobs back to their places: their attempts are not used up, and what had admitted them is released."""

    partition: PartitionKey
    items: list[Refusal]
