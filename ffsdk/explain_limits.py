"""What budgets and quotas say of a job that is not running: one read of each, told with its numbers.

The rule: each text names the budget or quota, what is used, what is allowed, and what this job asks for, so that
whoever reads it knows which number would have to change.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from ffcore import admission
from ffcore.errors import NotFound
from ffcore.ids import BudgetId, QuotaPolicyId
from ffsdk.times import from_ms
from ffsdk.views import Reason

if TYPE_CHECKING:
    from ffcore.backend import Backend
    from ffcore.contracts.explain import Explained, Verdict
    from ffcore.contracts.quota import QuotaStatus


async def limits_told(backend: Backend, found: Explained) -> list[Reason]:
    """The budgets and quotas that keep this job from starting, in the order they are asked."""
    lines: list[admission.Line] = admission.parse(found.admission) if found.admission else []
    if found.lane_quota:
        lines.append(admission.QuotaLine(found.lane_quota, "hold", None))
    halts = {verdict.resource: verdict for verdict in found.verdicts if verdict.resource}
    told = await asyncio.gather(*(_told(backend, line, halts, found.now_ms) for line in lines))
    reasons = [reason for reason in told if reason is not None]
    # A halt whose resource is not among its lines: another job's line was merged into the set. Its own text, then.
    known = {_resource(line) for line in lines}
    return reasons + [
        Reason(code=one.code, detail=one.detail, until=from_ms(one.until))
        for resource, one in halts.items() if resource not in known
    ]  # fmt: skip


def _resource(line: admission.Line) -> str:
    if isinstance(line, admission.BudgetLine):
        return "b " + line.budget_id.rpartition(":")[2]
    return "q " + line.quota_id.rpartition(":")[2] if isinstance(line, admission.QuotaLine) else ""


async def _told(backend: Backend, line: admission.Line, halts: Mapping[str, Verdict], now_ms: int) -> Reason | None:
    from ffcore.contracts.budget import ReadBudgetArgs
    from ffcore.contracts.quota import ReadQuotaArgs

    halt = halts.get(_resource(line))
    try:
        if isinstance(line, admission.BudgetLine):
            budget = await backend.call(ReadBudgetArgs(budget_id=BudgetId(line.budget_id)))
            return budget_reason(budget, line.estimate, halt)
        if isinstance(line, admission.QuotaLine):
            word = None if line.key is None else admission.key_word(line.key)
            quota = await backend.call(ReadQuotaArgs(quota_policy_id=QuotaPolicyId(line.quota_id), key=word))
            return quota_reason(quota, line.key, now_ms, halt)
    except NotFound:
        what, id_ = ("budget", line.budget_id) if isinstance(line, admission.BudgetLine) else ("quota", line[0])
        return Reason(code=f"{what}_not_found", detail=f"{what} {id_} is gone: create it again, or cancel the job")
    return None


def said(value: float | str) -> str:
    """A number as people read it: thousands apart, no zeros behind the point."""
    number = admission.number(value) if isinstance(value, str) else value
    whole = int(number)
    return f"{whole:,}" if number == whole else f"{number:,.6f}".rstrip("0")


def budget_reason(budget: Any, estimate: Mapping[str, str], halt: Verdict | None) -> Reason | None:
    """Why a budget refuses a job with this estimate; None: it does not."""
    told: list[str] = []
    code = "waiting_for_budget"
    for dimension, hard in sorted(budget.hard_limits.items()):
        used, reserved = budget.usage.get(dimension, 0), budget.reserved.get(dimension, 0)
        asks = admission.number(estimate.get(dimension, "0"))
        if not hard or (used < hard and used + reserved + asks <= hard):
            continue
        text = f"{dimension} {said(used)} used" + (f" + {said(reserved)} reserved" if reserved else "")
        told.append(f"{text} of {said(hard)}" + (f", this job asks {said(asks)}" if asks else ""))
        if asks > hard:
            code = "never_within_budget"
            told[-1] += ", more than there will ever be"
    resets = _instant(budget.next_reset_at)
    if told:
        end = f"; resets {resets.isoformat(timespec='seconds').replace('+00:00', 'Z')}" if resets else ""
        return Reason(code=code, detail=f"budget {budget.name}: {'; '.join(told)}{end}", until=resets)
    if halt is None:
        return None
    until = from_ms(halt.until)
    return Reason(code=code, detail=f"budget {budget.name} has room again: the queue opens within seconds", until=until)


def _instant(text: str | None) -> datetime | None:
    """An instant of a status, milliseconds as text; none where there is none."""
    return from_ms(int(text)) if text and text != "0" else None


def quota_reason(quota: QuotaStatus, key: str | None, now_ms: int, halt: Verdict | None) -> Reason | None:
    """Why a quota refuses a job with this key; None: it does not."""
    name = f"quota {quota.name}" + (f" (key {key})" if key is not None else "")
    told: list[str] = []
    until: datetime | None = None
    if quota.max_requests_per_window and quota.in_window >= quota.max_requests_per_window:
        told.append(
            f"{quota.in_window:,} of {quota.max_requests_per_window:,} in {quota.window_seconds:,} s; "
            f"next place in {quota.next_free_ms / 1000:.1f} s"
        )
        at = from_ms(now_ms)
        until = None if at is None else at + timedelta(milliseconds=quota.next_free_ms)
    if quota.max_concurrent and quota.active >= quota.max_concurrent:
        told.append(f"{quota.active:,} of {quota.max_concurrent:,} run")
        until = None  # when one of them ends, nobody knows
    if told:
        return Reason(code="waiting_for_quota", detail=f"{name}: {', '.join(told)}", until=until)
    if halt is None:
        return None
    detail = f"{name} has a place again: the queue opens within seconds"
    return Reason(code="waiting_for_quota", detail=detail, until=from_ms(halt.until))


def workers_told(here: Sequence[Sequence[str]], requires: Sequence[str]) -> str:
    """Which of the required capabilities are missing, and how many workers have each; ``here``: what the workers of the
    lane have, one entry each, as the tokens of `requires` that they meet."""
    counts = {token: sum(token in met for met in here) for token in requires}
    missing = [token for token in requires if counts[token] == 0]
    n = len(here)
    if missing:
        return "; ".join(f"requires {token}: 0 of {n} workers {'has' if n == 1 else 'have'} it" for token in missing)
    most = max(here, key=len)
    lacks = ", ".join(token for token in requires if token not in most)
    each = ", ".join(f"{token} ({counts[token]} of {n})" for token in requires)
    return f"requires {each}: no worker has all of them, the nearest lacks {lacks}"
