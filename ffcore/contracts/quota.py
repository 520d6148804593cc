"""Quotas: how many executions may start in a window, and how many may run at once."""

from __future__ import annotations

from typing import ClassVar

from ffcore import checks
from ffcore.args import Args, Outcome
from ffcore.ids import QuotaPolicyId, TimestampMs


class QuotaPolicyCreated(Outcome, tag="created"):
    quota_policy_id: QuotaPolicyId


class QuotaPolicyAlreadySatisfied(Outcome, tag="already_satisfied"):
    quota_policy_id: QuotaPolicyId


CreateQuotaPolicyResult = QuotaPolicyCreated | QuotaPolicyAlreadySatisfied


class CreateQuotaPolicyArgs(Args[CreateQuotaPolicyResult]):
    """A limit of 0 does not limit."""

    OFF_WIRE: ClassVar[frozenset[str]] = frozenset({"now"})

    quota_policy_id: QuotaPolicyId
    window_seconds: int
    max_requests_per_window: int
    max_concurrent: int
    now: TimestampMs = TimestampMs(0)

    def __post_init__(self) -> None:
        for name in ("window_seconds", "max_requests_per_window", "max_concurrent"):
            checks.whole(getattr(self, name), name, code="invalid_quota_spec")
