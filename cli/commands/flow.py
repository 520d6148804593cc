"""`ff flow`: many executions as one thing, listed, drawn, cancelled and replayed."""

from __future__ import annotations

import heapq
import time
from typing import TYPE_CHECKING, Any

import click

from ffcore import ids, limits
from ffcore.ids import FlowId

from ..options import Group, Settings, pass_settings, replay_mode
from ..render import STYLES, Column, Record, ago, instant
from ..store import client_of, opened, run
from .bulk import agreed

if TYPE_CHECKING:
    from ffcore.backend import Backend
    from ffcore.contracts.flow import CancelFlowResult, CancelFlowWait, FlowInfo, ListedFlow, Member
    from ffcore.ids import PartitionKey
    from ffsdk.views import Bulk

STATES = ("active", "open", "running", "blocked", "completed", "failed", "cancelled")
"""Public states a listing can ask for; `active` is open, running and blocked."""
COUNTS = (
    "ready",
    "delayed",
    "blocked",
    "active",
    "suspended",
    "completed",
    "failed",
    "cancelled",
    "expired",
    "skipped",
)
"""Members by state, as every record counts them."""
POLICIES = {
    "cancel_all": "cancel",
    "cancel_pending": "cancel those that have not begun of",
    "flow_only": "start no more of",
}
"""A cancellation policy, and what it does to members that have not ended."""
AT_ONCE_N = 100
"""Flows asked for their counters at a time."""
MEMBERS_N = 200
"""Members one read brings: some milliseconds of the store's time."""


@click.group(cls=Group)
def flow() -> None:
    """List, show, draw, cancel and replay flows."""


# ---- records -------------------------------------------------------------------------------------------


def listed(info: FlowInfo) -> dict[str, Any]:
    """A listing's record."""
    return {
        "flow_id": info.flow_id,
        "name": info.name or None,
        "kind": info.flow_kind or None,
        "namespace": info.namespace,
        "state": info.public_flow_state,
        "outcome": info.public_flow_state if info.ended else None,
        "nodes": info.node_count,
        "edges": info.edge_count,
        "counts": {word: info.counts.get(word, 0) for word in COUNTS},
        "created_at": instant(info.created_at),
        "ended_at": instant(info.ended_at),
    }


def shown(info: FlowInfo) -> dict[str, Any]:
    """The record of one flow."""
    return {
        **listed(info),
        "graph_revision": info.graph_revision,
        "resolving": info.resolving,
        "payload_bytes": info.payload_bytes,
        "changed_at": instant(info.last_mutation_at),
        "cancelled_at": instant(info.cancelled_at),
        "cancel_reason": info.cancel_reason or None,
        "cancellation_policy": info.cancellation_policy or None,
        "tags": info.tags,
    }


def present(counts: Record) -> str:
    """The counts that are not zero, for people."""
    return " ".join(f"{word}={n}" for word, n in counts.items() if n) or "-"


def checked(text: str, backend: Backend) -> FlowId:
    """An id as typed, checked against the store."""
    return FlowId(ids.check_id(text, partitions=backend.config.fp))


async def info_of(backend: Backend, flow_id: str) -> FlowInfo:
    from ffcore.contracts.flow import ReadFlowArgs

    return await backend.call(ReadFlowArgs(flow_id=checked(flow_id, backend)))


# ---- looking -------------------------------------------------------------------------------------------


@flow.command("list")
@click.option("--state", type=click.Choice(STATES))
@click.option("--limit", type=click.IntRange(1, 100_000), default=50, show_default=True)
@pass_settings
def list_(settings: Settings, state: str | None, limit: int) -> None:
    """List flows, newest first."""

    async def read() -> list[Record]:
        async with opened(settings) as backend:
            found = await infos(backend, state, settings.namespace, limit)
        return [listed(info) for info in found]

    columns = [
        Column("flow_id", "id"),
        Column("name", "name"),
        Column("state", "state"),
        Column("nodes", "nodes", right=True),
        Column("counts", "members", present),
        Column("created_at", "created", ago(time.time_ns() // 1_000_000)),
    ]
    settings.out().rows(run(read()), columns, empty="No flows.")


async def infos(backend: Backend, state: str | None, namespace: str | None, limit: int) -> list[FlowInfo]:
    """The newest flows with their counters. One that is purged while we look is left out."""
    from ffcore.contracts.flow import ReadFlowArgs
    from ffcore.errors import EngineError, NotFound

    rows: list[ListedFlow] = []
    for partition in backend.config.keys("fp"):
        rows = await newest(backend, partition, state, rows, None if namespace else limit)
    rows.sort(key=lambda row: (row.created_at, row.flow_id), reverse=True)
    found: list[FlowInfo] = []
    for at in range(0, len(rows), AT_ONCE_N):
        batch = [ReadFlowArgs(flow_id=row.flow_id) for row in rows[at : at + AT_ONCE_N]]
        for answer in await backend.call_all(batch):
            if isinstance(answer, EngineError):
                if not isinstance(answer, NotFound):
                    raise answer
            elif namespace is None or answer.namespace == namespace:
                found.append(answer)
        if len(found) >= limit:
            break
    return found[:limit]


async def newest(
    backend: Backend, partition: PartitionKey, state: str | None, rows: list[ListedFlow], limit: int | None
) -> list[ListedFlow]:
    """These rows and a partition's own, the newest so many. A store lists its flows by id, so all are looked at."""
    from ffcore.contracts.flow import ListFlowsArgs

    cursor: str | None = None
    while True:
        page = await backend.call(
            ListFlowsArgs(partition=partition, cursor=cursor, limit=limits.PAGE_MAX_N, status=state)
        )
        rows = rows + page.flows
        if limit is not None:
            rows = heapq.nlargest(limit, rows, key=lambda row: (row.created_at, row.flow_id))
        cursor = page.cursor
        if not cursor:
            return rows


@flow.command()
@click.argument("flow_id", metavar="ID")
@pass_settings
def show(settings: Settings, flow_id: str) -> None:
    """Show a flow: its state, how its members stand, and how it came to its end."""

    async def read() -> dict[str, Any]:
        async with opened(settings) as backend:
            return shown(await info_of(backend, flow_id))

    record, out = run(read()), settings.out()
    if out.json:
        return out.line(record)
    record["counts"] = present(record["counts"])
    out.record({name: value for name, value in record.items() if value not in (None, {}, "")}, "flow")


# ---- the graph -----------------------------------------------------------------------------------------


def node_record(flow_id: str, member: Member) -> dict[str, Any]:
    """A member of a flow and what it waits for."""
    from ffcore.states import vector
    from ffsdk.flows import EDGE_KINDS, EDGE_STATES

    state = vector(member.state, member.reason or None, member.next or None, member.started)
    return {
        "flow_id": flow_id,
        "number": member.number,
        "execution_id": member.execution_id,
        "label": member.label or None,
        "task": member.task,
        "lane": member.lane_id,
        "state": state.public_state.value,
        "reason": member.reason or None,
        "group": group_record(member.group),
        "upstreams": [
            {
                "execution_id": edge.upstream_execution_id,
                "kind": EDGE_KINDS.get(edge.kind, edge.kind),
                "state": EDGE_STATES.get(edge.state, edge.state),
            }
            for edge in member.edges
        ],
    }


def group_record(text: str) -> dict[str, Any] | None:
    """A member's incoming edges as the store counts them; None: it has none."""
    from ffcore.contracts.dependency import EdgeAllOf, EdgeAnyOf
    from ffcore.flows import Group

    if not text:
        return None
    group = Group.parse(text)
    return {
        "policy": group.policy.variant_str(),
        "k": 1 if isinstance(group.policy, EdgeAnyOf) else getattr(group.policy, "k", None),
        "on_satisfied": None if isinstance(group.policy, EdgeAllOf) else group.policy.on_satisfied.value,
        "edges": group.edges,
        "satisfied": group.ok,
        "impossible": group.impossible,
        "state": group.state.value,
    }


async def members(backend: Backend, flow_id: FlowId, limit: int) -> list[Member]:
    """The first so many members with their edges, in the order of their numbers."""
    from ffcore.contracts.flow import ReadMembersArgs

    found: list[Member] = []
    after = 0
    while len(found) < limit:
        page = await backend.call(
            ReadMembersArgs(flow_id=flow_id, after=after, limit=min(MEMBERS_N, limit - len(found)), edges=True)
        )
        found, after = found + page.members, page.next
        if not after:
            break
    return found[:limit]


@flow.command()
@click.argument("flow_id", metavar="ID")
@click.option("--dot", "as_dot", is_flag=True, help="For Graphviz: ff flow graph ID --dot | dot -Tsvg > flow.svg")
@click.option("--limit", type=click.IntRange(1, limits.FLOW_NODES_N), default=1_000, show_default=True, help="Nodes.")
@pass_settings
def graph(settings: Settings, flow_id: str, as_dot: bool, limit: int) -> None:
    """Draw a flow as a tree. A node stands under its first upstream; an arrow names what else waits for it."""
    from ..flow_graph import Edge, Node, dot, draw

    if as_dot and settings.json:
        raise click.UsageError("--dot or --json, not both")

    async def read() -> tuple[FlowInfo, list[dict[str, Any]]]:
        async with opened(settings) as backend:
            info = await info_of(backend, flow_id)
            found = await members(backend, info.flow_id, limit)
            return info, [node_record(info.flow_id, member) for member in found]

    info, records = run(read())
    out = settings.out()
    if out.json:
        for record in records:
            out.line(record)
        return
    nodes = [
        Node(
            id=record["execution_id"],
            number=record["number"],
            task=record["task"],
            state=record["state"],
            label=record["label"] or "",
            group=f"{group['policy']} {group['k']}" if (group := record["group"]) else "",
            edges=[Edge(edge["execution_id"], edge["kind"], edge["state"]) for edge in record["upstreams"]],
        )
        for record in records
    ]
    title = f"{info.name or info.flow_id} ({info.public_flow_state})"
    left_out = max(0, info.node_count - len(nodes))
    if as_dot:
        for line in dot(nodes, title, left_out):
            click.echo(line)
        return
    out.say(f"{title}: {info.node_count:,} nodes, {info.edge_count:,} edges")
    out.styled([(line.tree, line.state, line.text) for line in draw(nodes, left_out)], STYLES)


# ---- changing its course -------------------------------------------------------------------------------


@flow.command()
@click.argument("flow_id", metavar="ID")
@click.option("--reason", default="", help="Kept with the flow and with each member.")
@click.option("--policy", type=click.Choice(list(POLICIES)), default="cancel_all", show_default=True)
@click.option("--wait", type=click.FloatRange(min=0.001), metavar="SECONDS", help="Until its members have ended.")
@click.option("--dry-run", is_flag=True, help="Show what would happen, and stop.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@pass_settings
def cancel(
    settings: Settings, flow_id: str, reason: str, policy: str, wait: float | None, dry_run: bool, yes: bool
) -> None:
    """Cancel a flow. cancel_all: every member; cancel_pending: those that have not begun; flow_only: none, but no
    further one starts. Members that run are told, and fenced off after a grace."""
    from ffcore.contracts.flow import CancelFlowArgs, CancelFlowPolicy, NoWait, WaitTimeout

    out = settings.out()
    waits: CancelFlowWait = NoWait() if wait is None else WaitTimeout(round(wait * 1000))

    async def change() -> CancelFlowResult | None:
        async with opened(settings) as backend:
            info = await info_of(backend, flow_id)
            if dry_run:
                if out.json:
                    counts = {word: info.counts.get(word, 0) for word in COUNTS}
                    out.line({"flow_id": flow_id, "dry_run": True, "policy": policy, "members": info.unfinished,
                              "counts": counts})  # fmt: skip
                out.say(f"Would {POLICIES[policy]} {info.unfinished} jobs: {present(info.counts)}")
                return None
            if not info.ended and not agreed(out, POLICIES[policy], info.unfinished, yes):
                raise click.Abort
            return await backend.call(
                CancelFlowArgs(
                    flow_id=info.flow_id, reason=reason, cancellation_policy=CancelFlowPolicy(policy), wait=waits
                )
            )

    answer = run(change())
    if answer is not None:
        _tell_cancelled(settings, flow_id, answer)


def _tell_cancelled(settings: Settings, flow_id: str, answer: CancelFlowResult) -> None:
    """The answer of a cancel; members that had not ended in time are exit code 4."""
    from ffcore.contracts.flow import CancellationScheduled, FlowCancelled

    out = settings.out()
    late: list[Any] = []
    match answer:
        case FlowCancelled():
            word, n = "cancelled", len(answer.member_execution_ids)
            said = f"{flow_id} is cancelled."
        case CancellationScheduled():
            word, n = "scheduled", answer.member_count
            said = f"{flow_id} is cancelled; its jobs follow."
        case _:
            word, n, late = "partly", len(answer.member_execution_ids), answer.failed_member_execution_ids
            said = f"{flow_id} is cancelled; {len(late)} of its jobs have not ended yet, such as {late[0]}."
    if out.json:
        out.line({"flow_id": flow_id, "dry_run": False, "answer": word, "policy": answer.cancellation_policy,
                  "members": n, "not_ended": late})  # fmt: skip
    else:
        out.say(said)
    if late:
        click.get_current_context().exit(4)


@flow.command()
@click.argument("flow_id", metavar="ID")
@replay_mode
@pass_settings
def replay(settings: Settings, flow_id: str, mode: Any) -> None:
    """Run the jobs of a flow again that failed, expired or were cancelled; what was skipped waits for them again."""

    async def change() -> Bulk:
        async with client_of(settings) as client:
            await info_of(client.backend, flow_id)  # a flow that is not there has no jobs to refuse
            return await client.flow_by_id(flow_id).replay(mode)

    done, out = run(change()), settings.out()
    if out.json:
        replayed = [id_ for id_ in done.ids if id_ not in done.refused]
        out.line({"flow_id": flow_id, "replayed": replayed, "refused": done.refused})
    else:
        out.say(f"{done.done} jobs of {flow_id} wait to run again.")
        for id_, code in done.refused.items():
            out.say(f"Not changed: {id_}, {code}")
    if done.refused:
        click.get_current_context().exit(1)
