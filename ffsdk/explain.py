"""Why a job does not run now: a dry run of the claim, and what budgets, quotas and workers say, put together.

The dry run is one read of the job's partition, consistent in itself. The others come after it: the answer is advice
for a person, never a decision of the engine.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from ffcore import ids, limits, views
from ffcore.capabilities import Capabilities
from ffcore.errors import InvalidArgument, NotFound
from ffcore.ids import ExecutionId, FlowId
from ffcore.states import BlockingReason, LifecyclePhase
from ffsdk.explain_limits import limits_told, workers_told
from ffsdk.recorded import recovery_of, waitpoints_of
from ffsdk.times import from_ms
from ffsdk.views import Explanation, Reason

if TYPE_CHECKING:
    from ffcore.backend import Backend
    from ffcore.contracts.dependency import Upstream
    from ffcore.contracts.explain import Explained
    from ffcore.contracts.operator import ListedHold
    from ffcore.contracts.reads import StoredExecution
    from ffsdk.views import Waitpoint

WORKERS_N = 1000
"""Workers looked at; a lane with more than this has one."""
UPSTREAMS_N = 100
"""Upstreams it still waits for, in the order of its inputs, that are looked for."""
PAGES_N = 20
"""Reads this may take: their results come along."""
CHILDREN_N = 20
"""Spawned jobs it still waits for that are looked at, one read each."""
NAMED_N = 5
"""Of those it still waits for, so many are named."""


async def explain(backend: Backend, stored: StoredExecution) -> Explanation:
    """See `Job.explain`."""
    from ffcore.contracts.explain import ExplainArgs

    state = views.state_of(stored)
    recovery = await recovery_of(backend, stored)
    if state.public_state.is_terminal:
        ended = Reason(code="ended", detail=state.public_state.value)
        return Explanation(runnable=False, reasons=[ended], recovery=recovery)
    if state.lifecycle_phase is LifecyclePhase.ACTIVE:
        until = from_ms(views.lease_expires_at(stored))
        reasons = [Reason(code="running", detail=stored.worker_instance_id, until=until)]
        if "paused" in stored.fields:
            reasons.append(Reason(code="pause_pending", detail=pause_reason(stored)))
        return Explanation(runnable=False, reasons=reasons, recovery=recovery)
    dry, workers, waitpoints, upstreams = await asyncio.gather(
        backend.call(ExplainArgs(execution_id=stored.execution_id)), live_workers(backend),
        waitpoints_of(backend, stored), awaited_by(backend, stored),
    )  # fmt: skip
    found = explain_from(stored, dry, workers, waitpoints, upstreams, await limits_told(backend, dry))
    return msgspec.structs.replace(found, recovery=recovery)


async def name_hold(backend: Backend, stored: StoredExecution) -> StoredExecution:
    """The same job; if a hold blocks it, its blocking detail says which. The record only says that one did."""
    from ffcore.contracts.operator import ListHoldsArgs

    reason = views.state_of(stored).blocking_reason
    if reason is BlockingReason.PAUSED_BY_OPERATOR and not views.blocking_detail(stored):
        holds = await backend.call(ListHoldsArgs(partition=ids.partition_of(stored.execution_id)))
        names = holding(stored, holds.items)
        if names:
            stored.texts["blocking"] = "held by " + "; ".join(names)
    return stored


async def awaited_by(backend: Backend, stored: StoredExecution) -> list[Upstream]:
    """The upstreams, and spawned jobs, that have not ended yet and keep this job from running; none where nothing of
    that kind does."""
    from ffcore.contracts.dependency import ReadUpstreamsArgs

    if views.state_of(stored).blocking_reason is not BlockingReason.WAITING_FOR_CHILDREN:
        return []
    if stored.fields.get("next") == "resumed":
        return await _children_awaited(backend, stored)
    found: list[Upstream] = []
    after = 0
    for _ in range(PAGES_N):
        args = ReadUpstreamsArgs(execution_id=stored.execution_id, after=after, limit=limits.PAGE_MAX_N)
        try:
            page = await backend.call(args)
        except NotFound:
            break  # purged since it was read
        found += [one for one in page.upstreams if one.edge_state in "gu"]
        after = page.next
        if not after or len(found) >= UPSTREAMS_N:
            break
    return found[:UPSTREAMS_N]


async def _children_awaited(backend: Backend, stored: StoredExecution) -> list[Upstream]:
    """Of the jobs a handler has spawned, those that have not ended."""
    from ffcore.contracts.dependency import ListEdgesArgs, Upstream
    from ffcore.contracts.reads import ReadExecutionArgs

    partition = ids.partition_of(stored.execution_id)
    flow_id = FlowId(f"{partition}:{stored.fields['flow']}")
    alive: list[ExecutionId] = []
    cursor: str | None = None
    for _ in range(PAGES_N):
        page = await backend.call(ListEdgesArgs(
            flow_id=flow_id, execution_id=stored.execution_id, direction="incoming", cursor=cursor,
            limit=limits.PAGE_MAX_N,
        ))  # fmt: skip
        alive += [edge.upstream_execution_id for edge in page.edges if edge.dependency_kind == "child"
                  and edge.edge_state == "pending"]  # fmt: skip
        cursor = page.cursor
        if not cursor or len(alive) >= CHILDREN_N:
            break
    read = await asyncio.gather(
        *(backend.call(ReadExecutionArgs(execution_id=one)) for one in alive[:CHILDREN_N]), return_exceptions=True
    )
    return [
        Upstream(order=at, execution_id=one.execution_id, task=one.fields["task"], label=one.texts.get("label", ""),
                 kind="c", state=one.fields["state"], edge_state="u", has_result=False, encoding="", result=b"")
        for at, one in enumerate(read, 1) if not isinstance(one, BaseException)
    ]  # fmt: skip


def holding(stored: StoredExecution, holds: list[ListedHold]) -> list[str]:
    """The holds that keep this job from starting, each with its reason."""
    mine = {f"task:{stored.fields['task']}", *(f"tag:{key}={value}" for key, value in stored.tags.items())}
    return [f"{hold.what}: {hold.reason}" if hold.reason else hold.what for hold in holds if hold.what in mine]


def explain_from(
    stored: StoredExecution, dry: Explained, workers: list[dict[str, Any]],
    waitpoints: Sequence[Waitpoint] = (), upstreams: Sequence[Upstream] = (), limits_: Sequence[Reason] = (),
) -> Explanation:  # fmt: skip
    """The answer for a job that neither runs nor has ended. `dry`: what the claim would do; `limits_`: what budgets and
    quotas say."""
    f, state = stored.fields, views.state_of(stored)
    reasons: list[Reason] = []
    if f["state"] == "delayed":
        reasons.append(Reason(code=state.blocking_reason.value, until=from_ms(views.due_at(stored))))
    elif f["state"] == "suspended":
        reasons.append(waiting(stored, waitpoints))
        if "paused" in f:
            reasons.append(Reason(code="paused_by_operator", detail=pause_reason(stored)))
    elif f["state"] == "blocked":
        detail = views.blocking_detail(stored) or waits_for(upstreams)
        reasons.append(Reason(code=state.blocking_reason.value, detail=detail))
    elif f["state"] == "granted":
        reasons.append(Reason(code="granted", detail="reserved for one worker"))
    # Halts of its queue are told with the numbers of what it waits for.
    reasons += [Reason(code=one.code, detail=one.detail, until=from_ms(one.until)) for one in dry.verdicts
                if not one.resource]  # fmt: skip
    reasons += limits_
    here = [worker for worker in workers if stored.lane_id in worker.get("lanes", ())]
    requires = required_of(stored)
    able = [worker for worker in here if not missing(worker.get("capabilities", ()), requires)]
    if not here:
        reasons.append(Reason(code="no_worker", detail=f"no live worker serves lane {stored.lane_id}"))
    elif not able:
        met = [[token for token in requires if offered(worker.get("capabilities", ())).meets(token)]
               for worker in here]  # fmt: skip
        reasons.append(Reason(code="no_capable_worker", detail=workers_told(met, requires)))
    else:
        # No code has begun it: whichever version of the task a worker has will do.
        begun = "attempt" in f and "unpinned" not in f
        version = int(f.get("version", "1")) if begun else None
        if not any(knows(worker, f["task"], version) for worker in able):
            what = f["task"] if version is None else f"{f['task']} in version {version}"
            reasons.append(Reason(code="unknown_task", detail=f"no live worker of its lane knows {what}"))
    if reasons:
        return Explanation(runnable=False, reasons=reasons)
    place = f"number {dry.ahead + 1:,} of {dry.ready:,} in line in its partition" if dry.ahead >= 0 else "in line"
    return Explanation(
        runnable=True,
        reasons=[Reason(code="waiting_for_worker", detail=f"{place}; {len(able)} workers serve it")],
    )


def waiting(stored: StoredExecution, waitpoints: Sequence[Waitpoint]) -> Reason:
    """What a suspended job waits for, and until when."""
    state, until = views.state_of(stored), from_ms(stored.fields.get("suspend_until"))
    if state.blocking_reason is BlockingReason.PAUSED_BY_OPERATOR:
        return Reason(code="waiting_for_operator", detail="resume it, or cancel it", until=until)
    active = [one for one in waitpoints if one.state == "active"]
    if active:
        gates = ", ".join(f"{one.gate} ({' or '.join(one.names)})" if one.names else one.gate for one in active)
        return Reason(code=state.blocking_reason.value, detail=f"gates: {gates}", until=until)
    if until is not None:
        return Reason(code="sleeping", until=until)
    return Reason(code=state.blocking_reason.value, detail="nothing it waits for can come: resume it, or cancel it")


def waits_for(upstreams: Sequence[Upstream]) -> str:
    """Upstreams by name and state, the first few of them."""
    named = [f"{one.label or one.execution_id} ({one.state})" for one in upstreams[:NAMED_N]]
    more = len(upstreams) - len(named)
    return ", ".join(named) + (f" and {more} more" if more else "")


def pause_reason(stored: StoredExecution) -> str:
    """Why an operator paused it."""
    return stored.texts.get("blocking", "")


def required_of(stored: StoredExecution) -> list[str]:
    """The capability tokens of its policy."""
    policy: dict[str, Any] = msgspec.json.decode(stored.policy) if stored.policy else {}
    routing: dict[str, Any] = policy.get("routing_requirements") or {}
    return sorted(routing.get("required_capabilities") or ())


def missing(capabilities: Iterable[str], requires: Iterable[str]) -> list[str]:
    """The tokens of `requires` that a worker with these capabilities does not satisfy."""
    found = offered(capabilities)
    return [token for token in requires if not found.meets(token)]


def offered(capabilities: Iterable[str]) -> Capabilities:
    """What a worker says it has; nothing where that cannot be read: another program may have registered it."""
    try:
        return Capabilities(capabilities)
    except InvalidArgument:
        return Capabilities(())


def knows(worker: dict[str, Any], task: str, version: int | None) -> bool:
    """Whether it has the task, in this version or (None) in any. One that does not say what it has may have it."""
    tasks: list[str] | None = worker.get("tasks")
    if tasks is None:
        return True
    if version is None:
        return any(one.rpartition("@")[0] == task for one in tasks)
    return f"{task}@{version}" in tasks


async def live_workers(backend: Backend) -> list[dict[str, Any]]:
    """What live workers say of themselves (`RegisterWorkerArgs.info`), at most WORKERS_N of them."""
    from ffsdk.submit import REGISTRY
    from ffsdk.workers import roster, said

    return [said(worker) for worker in await roster(backend, REGISTRY, WORKERS_N)]
