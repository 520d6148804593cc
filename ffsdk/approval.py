"""Waiting for a word: what `on_exceed="suspend"` does with a job that a budget or a quota has refused.

The job suspends at a gate named `budget`, as a handler does at its own, and whoever may answer gates answers with what
is to be added to the limits: ``{"tokens": 1000}``. The next worker that claims the job raises the budget by it, once,
and asks again. At a gate named `quota` any answer will do, and a job that an operator resumes asks again as well. What
was waited for and heard stands in the job's journal, in entries of their own that its handler never sees.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from ffcore import admission, ids, limits
from ffcore.conditions import compile_condition
from ffcore.contracts.budget import RaiseBudgetArgs
from ffcore.contracts.condition import Single
from ffcore.contracts.suspended import parse_wait
from ffcore.contracts.suspension import SuspensionReasonCode, WaitArgs, WaitedWaitpoint
from ffcore.contracts.waitpoint import CreatePendingWaitpointArgs
from ffcore.errors import EngineError, InvalidArgument, Rejected, Suspended
from ffcore.ids import AttemptIndex, BudgetId, ExecutionId, SuspensionId, WaitpointId
from ffcore.steps import digest_of_text, step_key
from ffcore.tokens import GateRecord
from ffsdk.conditions import matcher_of
from ffsdk.slots import call_until_answered

if TYPE_CHECKING:
    from ffsdk.context import Context
    from ffsdk.durable import Durable
    from ffsdk.held import Held
    from ffsdk.task import Task

log = logging.getLogger("flowfabric.worker")

GATES: Final = ("budget", "quota")
"""What the gates are called outside; the second of a job is budget#2."""
_REASONS: Final = {"budget": SuspensionReasonCode.PAUSED_BY_BUDGET, "quota": SuspensionReasonCode.PAUSED_BY_POLICY}
_OPENED, _WAITED, _RAISED = (digest_of_text(what) for what in ("budget gate", "budget wait", "budget raised"))


class Approvals:
    """Those of one worker."""

    def __init__(self, context_of: Callable[[Held, Task[Any, Any]], Context], task_of: Callable[[str], Any]) -> None:
        """context_of(held, task): a context for a job. task_of(name): the task of that name, None if not known here."""
        self._context_of, self._task_of = context_of, task_of

    async def raised(self, held: Held) -> bool:
        """Raise the budgets of a job by what was answered since it was suspended; whether it is still this worker's.
        What cannot be read raises nothing: the job asks, is refused, and waits for another answer."""
        try:
            durable = self._durable(held)
            for id in _suspending(held):
                await _apply(durable, id)
        except EngineError as failed:
            log.warning("%s: its budgets could not be raised: %s", held, failed)
        return held.why is None

    async def suspend(self, held: Held, id: str) -> None:
        """Suspend a job until somebody answers. `held.suspended` tells whether it is; if not, somebody has answered
        already, and the job is to be claimed anew."""
        durable = self._durable(held)
        opened_n, here = 0, _Waits()
        for one in _suspending(held):
            waits = await _apply(durable, one)
            opened_n += waits.n + (waits.gate is not None)
            if one == id:
                here = waits
        with contextlib.suppress(Suspended):
            await _wait(durable, held, id, here, opened_n)

    def _durable(self, held: Held) -> Durable:
        task = self._task_of(held.job.task)
        if task is None:
            raise InvalidArgument(f"this worker does not know the task {held.job.task}")
        return self._context_of(held, task).durable


def _suspending(held: Held) -> list[str]:
    """Budgets and quotas of a job that would suspend it."""
    found: list[str] = []
    for line in admission.parse(held.job.admission or ""):
        if isinstance(line, admission.BudgetLine) and line.on_exceed == "suspend":
            found.append(line.budget_id)
        elif isinstance(line, admission.QuotaLine) and line.on_exceed == "suspend":
            found.append(line.quota_id)
    return found


class _Waits(NamedTuple):
    """What a job has of waits for one budget or quota."""

    n: int = 0
    """Those that are over."""
    gate: GateRecord | None = None
    """The next one's, if it is open already."""


async def _apply(durable: Durable, id: str) -> _Waits:
    """Go through what is recorded of earlier waits, and raise a budget by what has not been added yet."""
    await durable.ready()
    name, n, find = _name(id), 0, durable.journal.find
    while True:
        opened, waited = find(step_key(name, _OPENED, n)), find(step_key(name, _WAITED, n))
        if opened is None:
            return _Waits(n)
        gate = GateRecord.parse(opened.value)
        if waited is None:
            return _Waits(n, gate)
        if gate_of(id) == "budget" and find(step_key(name, _RAISED, n)) is None:
            await _raise(durable, id, n, gate.waitpoint_id, waited.value)
        n += 1


async def _raise(durable: Durable, budget_id: str, n: int, waitpoint_id: str, value: bytes) -> None:
    """Once: the budget remembers the waitpoint for a while, and the journal that it was told."""
    name = _name(budget_id)
    for signal in parse_wait(value).signals[-1:]:
        try:
            given = msgspec.json.decode(signal.payload or b"null", type=dict[str, int | float])
            amounts = admission.pack_amounts(admission.amounts(given, "the raise"))
        except (msgspec.DecodeError, InvalidArgument) as unfit:
            log.warning('the answer at gate budget of %s is no raise, as {"tokens": 1000} is: %s', durable.held, unfit)
            continue
        raise_ = RaiseBudgetArgs(budget_id=BudgetId(budget_id), amounts=amounts, key=waitpoint_id)
        try:
            if amounts:
                await call_until_answered(durable.host.backend, raise_)
        except Rejected as refused:
            log.warning("%s is not raised: %s", budget_id, refused)
    await durable.record(step_key(name, _RAISED, n), "step", name)


async def _wait(durable: Durable, held: Held, id: str, waits: _Waits, opened_n: int) -> None:
    """Wait at the gate that is open, or at another. Raises Suspended, or returns: the answer was there already."""
    name, fence, execution_id = _name(id), durable.fence, ExecutionId(durable.execution_id)
    gate, key = waits.gate, gate_of(id)
    if gate is None:
        made = await durable.call(CreatePendingWaitpointArgs(
            execution_id=execution_id, lease_id=fence.lease_id, lease_epoch=fence.lease_epoch,
            attempt_id=fence.attempt_id, attempt_index=AttemptIndex(held.job.attempt_index),
            waitpoint_id=WaitpointId(ids.uuid7()), waitpoint_key=key if not opened_n else f"{key}#{opened_n + 1}",
            expires_in_ms=limits.SPAN_MAX_MS, step=step_key(name, _OPENED, waits.n), step_name=name,
            version=durable.version,
        ))  # fmt: skip
        gate = GateRecord(made.waitpoint_id, made.waitpoint_key, made.kid)
    await durable.suspend(WaitArgs(
        execution_id=execution_id, fence=fence, suspension_id=SuspensionId(ids.uuid7()),
        step=step_key(name, _WAITED, waits.n), step_name=name, version=durable.version,
        condition=compile_condition(Single(gate.waitpoint_key, matcher_of(None)), [gate.waitpoint_key]),
        reason_code=_REASONS[key],
        waitpoints=[WaitedWaitpoint(WaitpointId(gate.waitpoint_id))],
    ))  # fmt: skip


def gate_of(id: str) -> str:
    return GATES[id.startswith("{q:")]


def _name(id: str) -> str:
    """What the journal calls the waits for one (`ffsdk.journal.OURS`)."""
    return f"{gate_of(id)} {id}"
