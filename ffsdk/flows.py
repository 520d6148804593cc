"""What users see of a flow: how it ended, and its jobs with the edges between them.

The rule: a listing is a walk, not a snapshot: what moves meanwhile is shown as it was when its page was read.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from typing import TYPE_CHECKING, Final

import msgspec

from ffcore import checks
from ffcore.errors import EngineError, InvalidArgument, NotFound
from ffcore.ids import ExecutionId
from ffcore.states import PublicState

if TYPE_CHECKING:
    from ffcore.backend import Backend
    from ffcore.contracts import flow as contracts
    from ffcore.contracts.dependency import EdgeDependencyPolicy

EDGE_KINDS: Final = {"s": "success_only", "a": "always", "f": "on_failure", "c": "child"}
EDGE_STATES: Final = {"g": "staged", "u": "pending", "S": "satisfied", "s": "satisfied", "I": "impossible"}
STATES: Final = ("open", "running", "blocked", "completed", "failed", "cancelled", "active")
"""Public states of flows, and one word for the first three."""
PAGE_N: Final = 200
ENDS: Final = ("completed", "failed", "cancelled", "expired", "skipped")


class FlowOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """How a flow ended."""

    state: str
    """completed, failed or cancelled. A failure that was provided for is none: one with an `on="failure"` node after
    it, one of a group that needs only some, a spawned job's."""
    counts: dict[str, int]
    """Its jobs by how they ended: completed, failed, cancelled, expired, skipped."""


class MemberEdge(msgspec.Struct, frozen=True):
    """An edge into a member."""

    upstream: str
    kind: str
    """success_only, always, on_failure; `child`: the upstream is a job that the member has spawned."""
    state: str
    """staged, pending, satisfied, impossible."""


class FlowMember(msgspec.Struct, frozen=True, kw_only=True):
    """A job of a flow, as a listing of the flow shows it."""

    id: str
    key: str | None
    """Its name within the flow, where it has one."""
    task: str
    lane: str
    state: PublicState
    number: int
    """From 1, in the order in which they were added; upstreams come first."""
    group: str
    """`all_of`, `any_of` or `quorum 2`; empty: it depends on nothing."""
    group_state: str
    """pending, satisfied or impossible; empty like `group`."""
    edges: list[MemberEdge]
    """In the order of its inputs, then what it has spawned."""


def outcome_of(info: contracts.FlowInfo) -> FlowOutcome:
    """Of a flow that has ended."""
    return FlowOutcome(state=info.public_flow_state, counts={word: info.counts.get(word, 0) for word in ENDS})


def member_of(row: contracts.Member) -> FlowMember:
    from ffcore.flows import Group
    from ffcore.states import vector

    group = Group.parse(row.group) if row.group else None
    return FlowMember(
        id=row.execution_id, key=row.label or None, task=row.task, lane=row.lane_id, number=row.number,
        state=vector(row.state, row.reason or None, row.next or None, row.started).public_state,
        group="" if group is None else _policy_text(group.policy),
        group_state="" if group is None else group.state.value,
        edges=[MemberEdge(edge.upstream_execution_id, EDGE_KINDS[edge.kind], EDGE_STATES[edge.state])
               for edge in row.edges],
    )  # fmt: skip


def _policy_text(policy: EdgeDependencyPolicy) -> str:
    k = getattr(policy, "k", None)
    return policy.variant_str() if k is None else f"{policy.variant_str()} {k}"


def to_replay(members: Iterable[FlowMember]) -> list[ExecutionId]:
    """Those that did not succeed, upstreams first; without those that were cancelled and that nobody misses: what
    depends on them needed only some, and had them."""
    found: dict[str, None] = {}
    cancelled: list[str] = []
    missed: dict[str, bool] = {}
    """Of members that others depend on: whether one of these has not got what it needs."""
    for member in members:
        if member.state in ("failed", "expired", "cancelled"):
            found[member.id] = None
            if member.state == "cancelled":
                cancelled.append(member.id)
        for edge in member.edges:
            needs = member.state != "completed" if edge.kind == "child" else member.group_state != "satisfied"
            missed[edge.upstream] = missed.get(edge.upstream, False) or needs
    for execution_id in cancelled:
        if not missed.get(execution_id, True):
            del found[execution_id]
    return [ExecutionId(execution_id) for execution_id in found]


async def walk(
    backend: Backend, namespace: str, state: str | None, limit: int | None
) -> AsyncIterator[contracts.FlowInfo]:
    """The flows of a namespace, partition by partition."""
    from ffcore.contracts.flow import ListFlowsArgs, ReadFlowArgs

    if state is not None and state not in STATES:
        raise InvalidArgument(f"state {checks.shown(state)}: use one of {', '.join(STATES)}")
    checks.whole(limit, "limit", 1)
    for partition in backend.config.keys("fp"):
        cursor: str | None = None
        while True:
            page = await backend.call(ListFlowsArgs(partition=partition, cursor=cursor, limit=PAGE_N, status=state))
            for info in await backend.call_all([ReadFlowArgs(flow_id=row.flow_id) for row in page.flows]):
                if isinstance(info, NotFound):
                    continue  # purged since its page was read
                if isinstance(info, EngineError):
                    raise info
                if info.namespace != namespace:
                    continue
                yield info
                if limit is not None:
                    limit -= 1
                    if limit == 0:
                        return
            cursor = page.cursor
            if not cursor:
                break
