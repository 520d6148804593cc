"""Budgets: limits on what executions spend, over several dimensions, reset at an interval.

Dimensions and their numbers are parallel lists, one entry each. Amounts are decimals of at most six places below 2**53:
whole ones are exact all the way, others up to nine billion.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import msgspec

from ffcore import checks, limits
from ffcore.admission import amounts, pack_amounts
from ffcore.args import Args, Outcome, Row
from ffcore.contracts.dependency import AlreadyApplied
from ffcore.errors import InvalidArgument
from ffcore.ids import BudgetId, PartitionKey, TimestampMs, uuid7

_NOW: frozenset[str] = frozenset({"now"})
Number = int | float


def _parallel(what: str, names: Sequence[str], **columns: Sequence[Number]) -> None:
    """One amount of each column for each dimension."""
    if len(set(names)) != len(names):
        raise InvalidArgument(f"{what} names a dimension twice: {list(names)!r:.200}")
    for column, values in columns.items():
        if len(values) != len(names):
            raise InvalidArgument(f"{len(values)} {column} for {len(names)} {what}: give one each")
        amounts(dict(zip(names, values, strict=True)), column)


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
    """record: what was spent is recorded, also beyond a limit. refuse: a report that passes a hard limit is not."""
    on_hard_limit: str
    """hold | fail | suspend | cancel: kept for whoever attaches the budget."""
    on_soft_limit: str
    """warn | none."""
    reset_interval_ms: int
    """0: never reset. Counted from the creation, so that a late reset moves nothing."""
    dimensions: list[str]
    hard_limits: list[Number]
    """0: none."""
    soft_limits: list[Number]
    now: TimestampMs = TimestampMs(0)
    name: str = ""
    namespace: str = "default"

    def __post_init__(self) -> None:
        _parallel("dimensions", self.dimensions, hard_limits=self.hard_limits, soft_limits=self.soft_limits)
        checks.span_ms(self.reset_interval_ms, "reset_interval_ms")
        for value, what in ((self.scope_type, "scope_type"), (self.enforcement_mode, "enforcement_mode"),
                            (self.on_hard_limit, "on_hard_limit"), (self.on_soft_limit, "on_soft_limit")):
            checks.text(value, what, limits.NAME_BYTES)


class BudgetStatus(Outcome, tag="budget"):
    budget_id: str
    scope_type: str
    scope_id: str
    enforcement_mode: str
    usage: dict[str, Number]
    hard_limits: dict[str, Number]
    soft_limits: dict[str, Number]
    breach_count: int
    soft_breach_count: int
    last_breach_at: str | None
    last_breach_dim: str | None
    next_reset_at: str | None
    created_at: str | None
    name: str = ""
    namespace: str = "default"
    on_hard_limit: str = "hold"
    on_soft_limit: str = "warn"
    reset_interval_ms: int = 0
    reserved: dict[str, Number] = {}  # noqa: RUF012 - msgspec copies it
    """What running executions may still spend of their estimates."""
    reservations: int = 0
    period: int = 1
    """Counts resets."""
    waiting: int = 0
    """Queues that were refused a moment ago."""


class ReadBudgetArgs(Args[BudgetStatus]):
    budget_id: BudgetId


class BudgetsPage(Outcome, tag="budgets"):
    budgets: list[BudgetStatus]
    cursor: str | None
    """Ask on with it; None at the end."""


class ListBudgetsArgs(Args[BudgetsPage]):
    """Budgets of one partition, in the order of their ids."""

    partition: PartitionKey
    cursor: str | None = None
    limit: int = limits.PAGE_N


class BudgetChanged(Outcome, tag="changed"):
    budget: BudgetStatus


class ChangeBudgetArgs(Args[BudgetChanged]):
    """Bring a budget to what is given; what is not named stays.

    `changes`: hard_limits, soft_limits (amounts, all that hold from now on), reset_interval_ms, enforcement_mode,
    on_hard_limit, on_soft_limit. `budget_changes` makes it.
    """

    budget_id: BudgetId
    changes: dict[str, str]


class BudgetRaised(Outcome, tag="raised"):
    hard_limits: dict[str, Number]
    replayed: bool


class RaiseBudgetArgs(Args[BudgetRaised]):
    """Add to hard limits, once per `key`, which is remembered for a year."""

    budget_id: BudgetId
    amounts: str
    key: str


class BudgetDeleted(Outcome, tag="deleted"):
    pass


class DeleteBudgetArgs(Args[BudgetDeleted]):
    """Forget a budget. What runs goes on; what must be admitted by it is held until it is there again."""

    budget_id: BudgetId


class Spender(Row):
    execution_id: str
    amounts: dict[str, Number]


class Spenders(Outcome, tag="spenders"):
    spenders: list[Spender]
    rest: dict[str, Number]
    """Reported by nobody in particular, or by executions too small to be kept apart."""


class TopSpendersArgs(Args[Spenders]):
    """Who spent most of what is limited in this period, largest share first."""

    budget_id: BudgetId
    limit: int = limits.PAGE_N


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
    current_usage: Number
    soft_limit: Number


class HardBreach(Outcome, tag="hard_breach"):
    """A hard limit is passed. `applied`: it was recorded all the same, because it has been spent."""

    dimension: str
    current_usage: Number
    hard_limit: Number
    applied: bool = False


ReportUsageResult = UsageOk | SoftBreach | HardBreach | AlreadyApplied


class ReportUsageArgs(Args[ReportUsageResult]):
    """Record what was spent; the same `dedup_key` again changes nothing. Without one the call gets one of its own, so
    that it counts once if it must be sent again."""

    FUNCTION: ClassVar[str] = "ff_report_usage_and_check"
    OFF_WIRE: ClassVar[frozenset[str]] = _NOW

    dimensions: list[str]
    deltas: list[Number]
    now: TimestampMs = TimestampMs(0)
    dedup_key: str | None = None
    at: BudgetId

    def __post_init__(self) -> None:
        _parallel("dimensions", self.dimensions, deltas=self.deltas)
        checks.text(self.dedup_key, "dedup_key")
        if self.dedup_key is None:
            msgspec.structs.force_setattr(self, "dedup_key", uuid7())


class ReportUsageAdminArgs(Args[ReportUsageResult]):
    """The same on an operator's behalf, outside any attempt."""

    FUNCTION: ClassVar[str] = "ff_report_usage_and_check"
    OFF_WIRE: ClassVar[frozenset[str]] = _NOW

    dimensions: list[str]
    deltas: list[Number]
    dedup_key: str | None = None
    now: TimestampMs = TimestampMs(0)
    at: BudgetId

    def __post_init__(self) -> None:
        _parallel("dimensions", self.dimensions, deltas=self.deltas)
        checks.text(self.dedup_key, "dedup_key")
        if self.dedup_key is None:
            msgspec.structs.force_setattr(self, "dedup_key", uuid7())


class Reset(Outcome, tag="reset"):
    next_reset_at: TimestampMs


ResetBudgetResult = Reset


class ResetBudgetArgs(Args[ResetBudgetResult]):
    """Begin a new period now. Sent twice it would forget what was spent in between."""

    REPEATABLE: ClassVar[bool] = False
    OFF_WIRE: ClassVar[frozenset[str]] = _NOW

    budget_id: BudgetId
    now: TimestampMs = TimestampMs(0)


# ---- on behalf of executions -------------------------------------------------------------------------


class SpendRow(Row):
    """What one execution spent. `key` is remembered for it. `amounts` "-" asks how the budget stands, without a key."""

    budget_id: BudgetId
    execution_id: str
    epoch: int
    key: str
    amounts: str


class SpentRow(Row):
    state: str
    """ok | soft | hard: recorded, now or before, and what limit is passed (hard in mode refuse: not recorded). already:
    the key was recorded before, and none is. error: `dimension` is the code."""
    dimension: str
    usage: Number
    limit: Number
    unknown: str
    """Dimensions the budget does not have, joined by commas: not recorded."""


class SpentMany(Outcome, tag="spent_many"):
    items: list[SpentRow]


class SpendManyArgs(Args[SpentMany]):
    """Record what executions spent; it is taken from what their lease reserved, as far as that goes."""

    partition: PartitionKey
    items: list[SpendRow]


class ReserveRow(Row):
    """Room for one execution under one lease, until it is looked at. `amounts` "-": only whether there is any."""

    budget_id: BudgetId
    execution_id: str
    epoch: int
    until_ms: TimestampMs
    partition: str
    adm: str
    """The queue that waits if it is refused, and where; "": nobody is told."""
    amounts: str


class ReservedRow(Row):
    state: str
    """granted | refused | never (the estimate is above the limit) | not_found | error (`dimension` is the code)."""
    dimension: str
    limit: Number
    available: Number
    retry_at_ms: TimestampMs
    """The next reset, where that is what helps; 0: when something is released, spent less, or raised."""
    gen: int
    """Of the next release: a wake with it or a later one makes this answer out of date."""


class ReservedMany(Outcome, tag="reserved_many"):
    items: list[ReservedRow]


class ReserveManyArgs(Args[ReservedMany]):
    """Ask budgets of one partition for room, each row by itself: all of its amounts or none."""

    partition: PartitionKey
    items: list[ReserveRow]


def budget_changes(
    *, hard: dict[str, str] | None = None, soft: dict[str, str] | None = None, reset_interval_ms: int | None = None,
    enforcement_mode: str | None = None, on_hard_limit: str | None = None, on_soft_limit: str | None = None,
) -> dict[str, str]:  # fmt: skip
    """The changes of a `ChangeBudgetArgs`. Limits are amounts as `ffcore.admission.amounts` makes them."""
    found: dict[str, str | None] = {
        "hard_limits": None if hard is None else pack_amounts(hard),
        "soft_limits": None if soft is None else pack_amounts(soft),
        "reset_interval_ms": None if reset_interval_ms is None else str(reset_interval_ms),
        "enforcement_mode": enforcement_mode, "on_hard_limit": on_hard_limit, "on_soft_limit": on_soft_limit,
    }  # fmt: skip
    return {name: value for name, value in found.items() if value is not None}
