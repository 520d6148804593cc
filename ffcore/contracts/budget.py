"""Budgets: limits on what executions spend, over several dimensions, reset at an interval.

Dimensions and their numbers are parallel lists, one entry each.
"""

from __future__ import annotations

from typing import ClassVar

import msgspec

from ffcore import checks, limits
from ffcore.args import Args, Outcome
from ffcore.contracts.dependency import AlreadyApplied
from ffcore.ids import BudgetId, TimestampMs

_NOW: frozenset[str] = frozenset({"now"})


class BudgetCreated(Outcome, tag="created"):
    budget_id: BudgetId


class BudgetAlreadySatisfied(Outcome, tag="already_satisfied"):
    budget_id: BudgetId


CreateBudgetResult = BudgetCreated | BudgetAlreadySatisfied


class CreateBudgetArgs(Args[CreateBudgetResult]):
    OFF_WIRE: ClassVar[frozenset[str]] = _NOW

    budget_id: BudgetId
    scope_type: str
    scope_id: str
    enforcement_mode: str
    on_hard_limit: str
    on_soft_limit: str
    reset_interval_ms: int
    """0: never reset."""
    dimensions: list[str]
    hard_limits: list[int]
    soft_limits: list[int]
    now: TimestampMs = TimestampMs(0)

    def __post_init__(self) -> None:
        checks.parallel("dimensions", self.dimensions, hard_limits=self.hard_limits, soft_limits=self.soft_limits)
        checks.span_ms(self.reset_interval_ms, "reset_interval_ms")
        for value, what in ((self.scope_type, "scope_type"), (self.enforcement_mode, "enforcement_mode"),
                            (self.on_hard_limit, "on_hard_limit"), (self.on_soft_limit, "on_soft_limit")):
            checks.text(value, what, limits.NAME_BYTES)


class BudgetStatus(Outcome, tag="budget"):
    budget_id: str
    scope_type: str
    scope_id: str
    enforcement_mode: str
    usage: dict[str, int]
    hard_limits: dict[str, int]
    soft_limits: dict[str, int]
    breach_count: int
    soft_breach_count: int
    last_breach_at: str | None
    last_breach_dim: str | None
    next_reset_at: str | None
    created_at: str | None


class UsageDimensions(msgspec.Struct, frozen=True, kw_only=True):
    """What an attempt spent."""

    input_tokens: int = 0
    output_tokens: int = 0
    wall_ms: int | None = None
    custom: dict[str, int] = {}
    dedup_key: str | None = None

    def __post_init__(self) -> None:
        for name in ("input_tokens", "output_tokens", "wall_ms"):
            checks.whole(getattr(self, name), name)
        for name, value in self.custom.items():
            checks.whole(value, name)

    def flat(self) -> dict[str, int]:
        """Every dimension by name; the named ones count like custom ones, none is dropped."""
        named = {"input_tokens": self.input_tokens, "output_tokens": self.output_tokens, "wall_ms": self.wall_ms or 0}
        return {name: value for name, value in {**named, **self.custom}.items() if value}


# ---- report ------------------------------------------------------------------------------------------


class UsageOk(Outcome, tag="ok"):
    pass


class SoftBreach(Outcome, tag="soft_breach"):
    """Recorded; a soft limit is passed."""

    dimension: str
    current_usage: int
    soft_limit: int


class HardBreach(Outcome, tag="hard_breach"):
    """A hard limit is passed. `applied`: it was recorded all the same, because it has been spent."""

    dimension: str
    current_usage: int
    hard_limit: int
    applied: bool = False


ReportUsageResult = UsageOk | SoftBreach | HardBreach | AlreadyApplied


class ReportUsageArgs(Args[ReportUsageResult]):
    """Record what was spent; the same `dedup_key` again changes nothing."""

    FUNCTION: ClassVar[str] = "ff_report_usage_and_check"
    OFF_WIRE: ClassVar[frozenset[str]] = _NOW

    dimensions: list[str]
    deltas: list[int]
    now: TimestampMs = TimestampMs(0)
    dedup_key: str | None = None
    at: BudgetId

    def __post_init__(self) -> None:
        checks.parallel("dimensions", self.dimensions, deltas=self.deltas)
        checks.text(self.dedup_key, "dedup_key")


class ReportUsageAdminArgs(Args[ReportUsageResult]):
    """The same on an operator's behalf, outside any attempt."""

    FUNCTION: ClassVar[str] = "ff_report_usage_and_check"
    OFF_WIRE: ClassVar[frozenset[str]] = _NOW

    dimensions: list[str]
    deltas: list[int]
    dedup_key: str | None = None
    now: TimestampMs = TimestampMs(0)
    at: BudgetId

    def __post_init__(self) -> None:
        checks.parallel("dimensions", self.dimensions, deltas=self.deltas)
        checks.text(self.dedup_key, "dedup_key")


class Reset(Outcome, tag="reset"):
    next_reset_at: TimestampMs


ResetBudgetResult = Reset


class ResetBudgetArgs(Args[ResetBudgetResult]):
    OFF_WIRE: ClassVar[frozenset[str]] = _NOW

    budget_id: BudgetId
    now: TimestampMs = TimestampMs(0)
