"""What a job must be admitted by, as its worker asks for it, and what the answers mean.

The store's side of the same: lua/shared/admission.lua names queues as `admission_set` does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, cast

from ffcore.admission import BudgetLine, QuotaLine, key_word, number, pack_amounts, parse, parse_amounts
from ffcore.contracts.admission import AdmissionRequest, AdmitManyArgs, ItemAdmitted
from ffcore.contracts.budget import ReservedRow, ReserveManyArgs, ReserveRow
from ffcore.ids import BudgetId, ExecutionId, LeaseEpoch, PartitionKey, QuotaPolicyId, TimestampMs, uuid_of

if TYPE_CHECKING:
    from ffsdk.held import Held

BUDGET: Final = "budget_exceeded"
QUOTA: Final = "quota_exceeded"
"""Categories of failures."""
LANES_QUOTA: Final = "l"
LANE_MARK: Final = " lane"
"""What the store puts behind the line of a lane's own quota."""


class Wanted(NamedTuple):
    """One thing a job must be admitted by."""

    kind: Literal["b", "q", "l"]
    """A budget, a quota, the quota of the job's lane."""
    id: str
    on_exceed: str
    detail: str
    """A budget's estimate as text, a quota's key word; "-": none."""
    adm: str
    """What the queue is named by that is woken when there is room again."""

    @property
    def partition(self) -> PartitionKey:
        return PartitionKey(self.id[: self.id.index("}") + 1])


@lru_cache(maxsize=1024)
def wanted_by(text: str) -> tuple[Wanted, ...]:
    """What a claim's admission text asks for. Keys that are held alone are no matter of the worker's."""
    own, _, last = text.rpartition("\n")
    of_lane = last if last.endswith(LANE_MARK) else ""
    if not of_lane:
        own = text
    lines = [line for line in parse(own) if isinstance(line, BudgetLine | QuotaLine)] if own else []
    adm = admission_set(lines)
    found: list[Wanted] = []
    for line in lines:
        if isinstance(line, BudgetLine):
            found.append(Wanted("b", line.budget_id, line.on_exceed, pack_amounts(line.estimate) or "-", adm))
        else:
            found.append(Wanted("q", line.quota_id, line.on_exceed, _word(line), adm))
    if of_lane:
        quota_id = of_lane.split(" ")[1]
        found.append(Wanted(LANES_QUOTA, quota_id, "hold", "-", f"lane:{uuid_of(ExecutionId(quota_id))}"))
    return tuple(found)


def _word(line: QuotaLine) -> str:
    return "-" if line.key is None else key_word(line.key)


def admission_set(lines: Sequence[BudgetLine | QuotaLine]) -> str:
    """The name the store has for a queue of jobs with these budgets and quotas (lua/shared/admission.lua)."""
    parts = [
        f"b {line.budget_id}" if isinstance(line, BudgetLine) else f"q {line.quota_id} {_word(line)}" for line in lines
    ]
    return hashlib.sha1("\n".join(sorted(parts)).encode(), usedforsecurity=False).hexdigest()[:12] if parts else ""


class Refused(NamedTuple):
    """A no, and what follows from it."""

    wanted: Wanted
    text: str
    """Why, for people, with the numbers."""
    until_ms: int = 0
    """When asking again makes sense, by the store's clock; 0: nobody knows."""
    gen: int = 0
    """Of the next release that changes anything: a queue that has heard of it need not wait. 0: none is told of."""
    final: bool = False
    """It will never be yes."""
    exact: bool = False
    """Asking before `until_ms` is of no use."""
    ran: bool = False
    """Its handler had started, and heard the no."""

    @property
    def category(self) -> str:
        return BUDGET if self.wanted.kind == "b" else QUOTA


def exceeded(held: Held, error: BaseException) -> Refused | None:
    """What a handler's error says no more than that: one of the budgets of its job is used up."""
    if isinstance(error, BaseExceptionGroup):
        inner: tuple[BaseException, ...] = cast("BaseExceptionGroup[BaseException]", error).exceptions
        found = [exceeded(held, one) for one in inner]
        return found[0] if all(found) else None
    budget_id: str = getattr(error, "budget_id", "")
    for wanted in wanted_by(held.job.admission or "") if budget_id else ():
        if wanted.kind == "b" and wanted.id == budget_id:
            return Refused(wanted, str(error), ran=True)
    return None


class Asked:
    """A job that has asked, and what it was told so far."""

    __slots__ = ("held", "left_n", "said", "wanted")

    def __init__(self, held: Held, wanted: tuple[Wanted, ...]) -> None:
        self.held, self.wanted, self.left_n = held, wanted, len(wanted)
        self.said: list[Refused | None] = [None] * len(wanted)


def request(family: str, partition: PartitionKey, places: list[tuple[Asked, int]]) -> ReserveManyArgs | AdmitManyArgs:
    if family == "b":
        reservations: list[ReserveRow] = []
        for asked, n in places:
            job, wanted = asked.held.job, asked.wanted[n]
            reservations.append(ReserveRow(
                BudgetId(wanted.id), job.execution_id, LeaseEpoch(job.lease_epoch), TimestampMs(job.lease_expires_at),
                asked.held.part.key, wanted.adm, wanted.detail,
            ))  # fmt: skip
        return ReserveManyArgs(partition=partition, items=reservations)
    requests: list[AdmissionRequest] = []
    for asked, n in places:
        job, wanted = asked.held.job, asked.wanted[n]
        requests.append(AdmissionRequest(
            QuotaPolicyId(wanted.id), wanted.detail, job.execution_id, LeaseEpoch(job.lease_epoch),
            TimestampMs(job.lease_expires_at), asked.held.part.key, wanted.adm,
        ))  # fmt: skip
    return AdmitManyArgs(partition=partition, items=requests)


def heard(wanted: Wanted, item: ReservedRow | ItemAdmitted, now_ms: int) -> Refused | None:
    """What an answer means; None: yes."""
    state = item.state
    if state in ("granted", "admitted", "already"):
        return None
    if isinstance(item, ReservedRow):
        if state == "refused" or state == "never":
            asked = _estimate(wanted.detail, item.dimension)
            text = f"budget {wanted.id}, {item.dimension}: {asked}{item.available} of {item.limit} left"
            if state == "never":
                text = f"budget {wanted.id}, {item.dimension}: {asked}the limit is {item.limit}"
            return Refused(wanted, text, item.retry_at_ms, item.gen, final=state == "never")
        what = "budget"
    else:
        if state == "rate":
            text = f"quota {wanted.id}{_of_key(wanted)}: its rate is used up"
            return Refused(wanted, text, now_ms + max(1, item.retry_after_ms), item.gen, exact=True)
        if state == "concurrency":
            text = f"quota {wanted.id}{_of_key(wanted)}: all its places are taken"
            return Refused(wanted, text, gen=item.gen)
        what = "quota"
    if state == "not_found":
        return Refused(wanted, f"there is no {what} {wanted.id}: create it, or cancel the job")
    why = item.dimension if isinstance(item, ReservedRow) else item.detail
    return Refused(wanted, f"{what} {wanted.id} cannot be asked: {why}")


def _estimate(amounts: str, dimension: str) -> str:
    """What is wanted of a dimension, for people; nothing where nothing is."""
    return f"{number(found)} wanted, " if (found := parse_amounts(amounts).get(dimension)) is not None else ""


def _of_key(wanted: Wanted) -> str:
    return "" if wanted.detail == "-" else f" for {wanted.detail}"
