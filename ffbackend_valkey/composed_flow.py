"""Requests about whole flows, which no call of the library takes at once: a graph is sent by chunks, a description read
by pages, a cancel waited for.

The first chunk of a graph opens it and the last one makes it live; until then nothing of it runs. Whoever sends the
same graph again is told which chunk is next, so a sender that was cut off goes on where it was.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final, Protocol, TypeVar

import msgspec

from ffcore import limits
from ffcore.args import Args
from ffcore.contracts.dependency import EdgeGroupSnapshot
from ffcore.contracts.flow import (
    CancelFlowArgs,
    CancelFlowPolicy,
    CancelFlowResult,
    CancelFlowWireArgs,
    CancellationScheduled,
    DescribeFlowArgs,
    FlowAlreadyTerminal,
    FlowCancelled,
    FlowInfo,
    FlowSnapshot,
    Member,
    NoWait,
    PartiallyCancelled,
    ReadFlowArgs,
    ReadMembersArgs,
    WaitTimeout,
)
from ffcore.contracts.graph import (
    AbortFlowArgs,
    FlowDuplicate,
    FlowPlan,
    FlowStaged,
    FlowSubmitted,
    NodeRow,
    SubmitFlowArgs,
    SubmitFlowWireArgs,
)
from ffcore.errors import EngineBug, NotFound, Rejected, StoreFull, Unavailable, rejection
from ffcore.flows import Graph, Group, compiling, flow_digest
from ffcore.ids import ExecutionId, FlowId
from ffcore.states import PublicState

R = TypeVar("R")

TURNS_N: Final = 20
"""Answers that send a sender elsewhere than to the next chunk: others may be sending the same graph."""
ENDED: Final = frozenset(state.value for state in PublicState if state.is_terminal)
PAUSE_S: Final = 0.005
PAUSE_MAX_S: Final = 0.25
"""Between two looks at a flow whose members end; it doubles from the first to the second."""


class Call(Protocol):
    async def __call__(self, args: Args[R], /) -> R: ...


# ---- submit --------------------------------------------------------------------------------------------


async def submit(args: SubmitFlowArgs, call: Call) -> FlowSubmitted | FlowDuplicate:
    """Send a graph chunk by chunk. What a refusal leaves behind is given up; after a lost connection it stays for
    whoever sends the graph again, and is removed if nobody does."""
    chunks = _chunks(args, await _compiled(args))
    at, turns_n = 1, 0
    while True:
        try:
            answer = await call(chunks[at - 1])
        except StoreFull:
            raise  # whoever has patience sends it again, and goes on from here
        except Rejected as refused:
            if refused.code != "stale_graph_revision":
                if at > 1:
                    await _abort(args.flow_id, chunks[0].digest, call)
                raise
            following = _expected(refused)
        else:
            if not isinstance(answer, FlowStaged):
                return answer
            following = answer.next_chunk
        turns_n += following != at + 1
        if not 1 <= following <= len(chunks) or turns_n > TURNS_N:
            raise EngineBug(f"chunk {at} of {len(chunks)} of {args.flow_id} was answered by a call for {following}")
        at = following


async def _compiled(args: SubmitFlowArgs) -> Graph:
    steps = compiling(args.flow_id, args.plans, args.nodes)
    while True:
        try:
            next(steps)
        except StopIteration as done:
            graph: Graph = done.value
            return graph
        await asyncio.sleep(0)


def _expected(refused: Rejected) -> int:
    """The chunk the store waits for: what there was of the graph has been removed, or is further than we thought."""
    if not refused.detail.isdecimal():
        raise refused
    return int(refused.detail)


async def _abort(flow_id: FlowId, digest: bytes, call: Call) -> None:
    """A try: what is left is removed by its timer in any case."""
    with contextlib.suppress(Rejected, Unavailable):
        await call(AbortFlowArgs(flow_id=flow_id, digest=digest))


def _chunks(args: SubmitFlowArgs, graph: Graph) -> list[SubmitFlowWireArgs]:
    """Cut where a count or a size would be passed: the same graph is cut in the same places by everybody."""
    digest = args.digest or flow_digest(graph.rows)
    parts: list[tuple[list[FlowPlan], list[NodeRow]]] = []
    plans: dict[int, int] = {}
    rows: list[NodeRow] = []
    edges_n = size_n = 0

    for row, more_edges in zip(graph.rows, graph.edges, strict=True):
        more = len(row.payload or b"") + len(row.tags or b"") + len(row.admission or "")
        if rows and (
            len(rows) == limits.FLOW_CHUNK_N
            or edges_n + more_edges > limits.FLOW_CHUNK_EDGES_N
            or size_n + more > limits.BATCH_BYTES
            or (row.plan not in plans and len(plans) == limits.FLOW_PLANS_N)
        ):
            parts.append(([args.plans[n] for n in plans], rows))
            plans, rows, edges_n, size_n = {}, [], 0, 0
        place = plans.setdefault(row.plan, len(plans) + 1)
        # The row was made for this and is nobody else's: a copy of each would cost as much as all the rest.
        msgspec.structs.force_setattr(row, "plan", place)
        rows.append(row)
        edges_n += more_edges
        size_n += more
    parts.append(([args.plans[n] for n in plans], rows))
    return [
        SubmitFlowWireArgs(
            flow_id=args.flow_id, namespace=args.namespace, flow_kind=args.flow_kind, name=args.name, digest=digest,
            chunk=n, last=n == len(parts), node_total=len(graph.rows), edge_total=graph.edge_total, tags=args.tags,
            creator_identity=args.creator_identity, plans=used, nodes=nodes,
        )
        for n, (used, nodes) in enumerate(parts, 1)
    ]  # fmt: skip


# ---- describe ------------------------------------------------------------------------------------------


async def _members(flow_id: FlowId, call: Call) -> AsyncIterator[Member]:
    after = 0
    while True:
        page = await call(ReadMembersArgs(flow_id=flow_id, after=after, limit=limits.PAGE_MAX_N))
        for member in page.members:
            yield member
        if not page.next:
            return
        after = page.next


async def describe(args: DescribeFlowArgs, call: Call) -> FlowSnapshot:
    """The record first, then the groups: counts of a flow that runs may be older than its groups."""
    info = await call(ReadFlowArgs(flow_id=args.flow_id))
    groups = [_group(member) async for member in _members(args.flow_id, call) if member.group]
    return FlowSnapshot(
        flow_id=info.flow_id, flow_kind=info.flow_kind, namespace=info.namespace,
        public_flow_state=info.public_flow_state, graph_revision=info.graph_revision, node_count=info.node_count,
        edge_count=info.edge_count, created_at=info.created_at, last_mutation_at=info.last_mutation_at,
        cancelled_at=info.cancelled_at, cancel_reason=info.cancel_reason,
        cancellation_policy=info.cancellation_policy, tags=info.tags, edge_groups=groups,
    )  # fmt: skip


def _group(member: Member) -> EdgeGroupSnapshot:
    group = Group.parse(member.group)
    return EdgeGroupSnapshot(
        downstream_execution_id=member.execution_id, policy=group.policy, total_deps=group.edges,
        satisfied_count=group.ok, failed_count=group.failed, skipped_count=group.skipped,
        running_count=group.unresolved, group_state=group.state, cancelled_count=group.cancelled,
    )  # fmt: skip


# ---- cancel --------------------------------------------------------------------------------------------


async def cancel(args: CancelFlowArgs, call: Call) -> CancelFlowResult:
    """Cancel, and wait for the members as long as the caller wants to."""
    begun = await call(CancelFlowWireArgs(
        flow_id=args.flow_id, reason=args.reason, cancellation_policy=args.cancellation_policy
    ))  # fmt: skip
    members = begun.member_execution_ids
    if not isinstance(begun, FlowAlreadyTerminal):
        policy = begun.cancellation_policy
    elif begun.stored_cancellation_policy:
        policy = begun.stored_cancellation_policy
    else:
        raise rejection("flow_already_terminal", asked="cancel flow", about=args.flow_id)
    if policy == CancelFlowPolicy.FLOW_ONLY:
        return FlowCancelled(policy, members)
    if isinstance(args.wait, NoWait):
        info = await _read(args.flow_id, call)
        if info is None or not _to_end(info, policy):
            return FlowCancelled(policy, members)
        return CancellationScheduled(policy, info.node_count, members)
    timeout = args.wait.timeout_ms / 1000 if isinstance(args.wait, WaitTimeout) else None
    late = await _wait(args.flow_id, policy, timeout, call)
    return PartiallyCancelled(policy, members, late) if late else FlowCancelled(policy, members)


async def _read(flow_id: FlowId, call: Call) -> FlowInfo | None:
    """None: it is gone, so all of it has ended."""
    try:
        return await call(ReadFlowArgs(flow_id=flow_id))
    except NotFound:
        return None


def _to_end(info: FlowInfo, policy: str) -> int:
    """How many members the cancel may still have to end. Among the pending ones some may have begun, and go on."""
    if policy == CancelFlowPolicy.CANCEL_ALL:
        return info.unfinished
    return sum(info.counts.get(word, 0) for word in ("ready", "delayed", "blocked"))


async def _wait(flow_id: FlowId, policy: str, timeout: float | None, call: Call) -> list[ExecutionId]:
    """Look until all that the cancel ends has ended; those that have not when the time is up.

    The counters tell at little cost. Where they stand still above zero, the members themselves are looked at: under
    `cancel_pending` one that waits for its next attempt has begun, and nobody ends it.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    pause, before = PAUSE_S, -1
    while True:
        info = await _read(flow_id, call)
        left = _to_end(info, policy) if info is not None else 0
        if not left:
            return []
        over = deadline is not None and time.monotonic() + pause > deadline
        if over or (left == before and policy == CancelFlowPolicy.CANCEL_PENDING):
            late = await _late(flow_id, policy, call)
            if over or not late:
                return late
        before = left
        await asyncio.sleep(pause)
        pause = min(pause * 2, PAUSE_MAX_S)


async def _late(flow_id: FlowId, policy: str, call: Call) -> list[ExecutionId]:
    everybody = policy == CancelFlowPolicy.CANCEL_ALL
    try:
        return [
            member.execution_id
            async for member in _members(flow_id, call)
            if member.state not in ENDED and (everybody or not member.started)
        ]
    except NotFound:
        return []


FUNCTIONS: Final[dict[type[Args[Any]], tuple[str, ...]]] = {
    SubmitFlowArgs: ("ff_submit_flow", "ff_abort_flow"),
    DescribeFlowArgs: ("ff_read_flow", "ff_read_members"),
    CancelFlowArgs: ("ff_cancel_flow", "ff_read_flow", "ff_read_members"),
}
DOES: Final[dict[type[Args[Any]], Callable[[Any, Call], Awaitable[Any]]]] = {
    SubmitFlowArgs: submit,
    DescribeFlowArgs: describe,
    CancelFlowArgs: cancel,
}
