"""Admission: whether a quota lets an execution start now; asked after the claim, before the handler."""

from __future__ import annotations

from typing import ClassVar

from ffcore import checks
from ffcore.args import Args, Outcome
from ffcore.ids import ExecutionId, QuotaPolicyId, TimestampMs


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
    execution_id: ExecutionId
    at: QuotaPolicyId
