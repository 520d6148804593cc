"""Admission: whether a quota lets an execution start now; asked after the claim, before the handler.

Workers ask for many jobs at once (`AdmitManyArgs`), under the lease they hold; the place is given back by whatever ends
that lease. The other two are for programs that admit by themselves: a place is theirs until they release it, or are
found not to run any more.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from ffcore import checks
from ffcore.args import Args, Outcome, Row
from ffcore.ids import ExecutionId, LeaseEpoch, PartitionKey, QuotaPolicyId, TimestampMs


class Admitted(Outcome, tag="admitted"):
    pass


class AlreadyAdmitted(Outcome, tag="already_admitted"):
    pass


class RateExceeded(Outcome, tag="rate_exceeded"):
    retry_after_ms: int


class ConcurrencyExceeded(Outcome, tag="concurrency_exceeded"):
    pass


CheckAdmissionResult = Admitted | AlreadyAdmitted | RateExceeded | ConcurrencyExceeded


class CheckAdmissionArgs(Args[CheckAdmissionResult]):
    """The quota's own limits hold; those given here can only be tighter, and a window no longer. 0: no other limit.
    `jitter_ms` spreads `retry_after_ms` by up to as much."""

    FUNCTION: ClassVar[str] = "ff_check_admission_and_record"
    OFF_WIRE: ClassVar[frozenset[str]] = frozenset({"now"})

    execution_id: ExecutionId
    now: TimestampMs = TimestampMs(0)
    window_seconds: int
    rate_limit: int
    concurrency_cap: int
    jitter_ms: int | None = None
    at: QuotaPolicyId

    def __post_init__(self) -> None:
        for name in ("window_seconds", "rate_limit", "concurrency_cap"):
            checks.whole(getattr(self, name), name, code="invalid_quota_spec")
        checks.span_ms(self.jitter_ms, "jitter_ms")


class Released(Outcome, tag="released"):
    pass


ReleaseAdmissionResult = Released


class ReleaseAdmissionArgs(Args[ReleaseAdmissionResult]):
    """Give the place back, if there is one. The start stays in the window."""

    execution_id: ExecutionId
    at: QuotaPolicyId


# ---- many at once --------------------------------------------------------------------------------------


class AdmissionRequest(Row):
    """A claimed execution asks for a place."""

    quota_policy_id: QuotaPolicyId
    key: str
    """As its word; "-": the quota itself."""
    execution_id: ExecutionId
    epoch: LeaseEpoch
    until_ms: TimestampMs
    """The end of its lease: from then on the place is looked after, and freed once the execution has let go of it."""
    partition: PartitionKey
    """With `adm`: which queue to wake when a place is free; "" for none."""
    adm: str
    """The admission set the queue is named by, or ``lane:<uuid of the quota>``; "" for none."""


class ItemAdmitted(Row):
    state: Literal["admitted", "already", "rate", "concurrency", "not_found", "error"]
    """already: under the same lease, by an earlier call. rate, concurrency: refused, nothing is taken."""
    retry_after_ms: int
    """When asking again makes sense. For `rate` that is exact, as far as the quota alone goes."""
    gen: int
    """Of a refusal: the number of the next release. A queue that has heard of that one need not wait."""
    detail: str = ""
    """For `error`: the code, and what is wrong."""


class AdmittedMany(Outcome, tag="admitted_many"):
    items: list[ItemAdmitted]


class AdmitManyArgs(Args[AdmittedMany]):
    """Ask for up to 200 executions, of quotas of one partition. The same lease again is answered `already`."""

    partition: PartitionKey
    items: list[AdmissionRequest]
