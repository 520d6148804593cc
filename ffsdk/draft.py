"""A flow in the making: the nodes its block has added so far, checked one by one, and the one submit of them all.

The rule: what can be refused without the store is refused at `add`, where the mistake stands.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, cast

import msgspec

from ffcore import checks, ids, limits, wire
from ffcore.errors import InvalidArgument
from ffcore.ids import ExecutionId, FlowId
from ffsdk import payload as payloads
from ffsdk import times
from ffsdk.admit import Terms
from ffsdk.connect import Durability
from ffsdk.fields import text_at
from ffsdk.joins import Join, bare, in_order
from ffsdk.node import Node, Unsent
from ffsdk.submit import JobOptions, SubmitOptions
from ffsdk.task import Task, digest
from ffsdk.unique import Wanted

if TYPE_CHECKING:
    from ffcore.contracts.dependency import EdgeDependencyPolicy
    from ffcore.contracts.graph import SubmitFlowArgs
    from ffsdk.plan import Plan
    from ffsdk.submit import Submitter

On = Literal["success", "always", "failure"]
KINDS: Final = {"success": "success_only", "always": "always", "failure": "on_failure"}
"""What users say of an edge, and what the store calls it."""

STEP_N: Final = 500
"""Nodes put into a request in one go: a few milliseconds."""

After = Node[Any] | Join | Iterable[Node[Any]]
"""What a node comes after: one node, several, or a join of some."""


class _LeftOut:
    """The payload that was not given; None is one."""

    def __repr__(self) -> str:
        return "<left out>"


LEFT_OUT: Final = _LeftOut()


class Added(NamedTuple):
    """One `flow.add`, before the submit."""

    node: Node[Any]
    task: Task[Any, Any] | str
    options: JobOptions
    fairness: str | None
    """Of the payload, for a task of this program; of any other, its descriptor says what to look at."""
    raw: bytes | None
    """The payload as JSON; None: the node gets what its upstreams returned."""
    upstreams: list[tuple[int, str]]
    policy: EdgeDependencyPolicy
    keys: Mapping[str, str | None]
    """Fields of the payload that keys of quotas are read from, for a task of this program."""


class Draft:
    """What a flow's block has collected so far."""

    def __init__(
        self, submitter: Submitter, name: str, tags: Mapping[str, str], terms: Terms, durability: Durability | None,
        patience: times.Duration | None, *, fresh: bool,
    ) -> None:  # fmt: skip
        self.submitter, self.tags, self.durability, self.fresh = submitter, tags, durability, fresh
        self.terms = terms
        """Budgets and quotas that all its nodes have."""
        self.patience_s = 0.0 if patience is None else times.span_ms(patience, "patience") / 1000
        self.added: list[Added] = []
        self.keys: set[str] = set()
        self.unsent = Unsent(name)
        self.entered = self.over = False
        """The block has been left, whatever came of that."""

    def join(self, after: Any) -> Join | None:
        """What a node waits for, checked: nodes of this graph, each once."""
        found = join_of(after)
        if found is None:
            return None
        if len(found.nodes) > limits.FLOW_CHUNK_EDGES_N:
            raise InvalidArgument(
                f"a node after {len(found.nodes)} others, and {limits.FLOW_CHUNK_EDGES_N} is the limit: put nodes "
                "between that join some of them each", code="flow_too_large",
            )  # fmt: skip
        seen = set[ExecutionId]()
        for node in found.nodes:
            if node.place >= len(self.added) or self.added[node.place].node is not node:
                raise InvalidArgument(f"{node!r} is of another flow, or another block: edges stay within one")
            if node.id in seen:
                raise InvalidArgument(f"{node!r} stands twice in after: there is one edge between two nodes")
            seen.add(node.id)
        return found

    def paths(
        self, declared: Task[Any, Any] | None, options: JobOptions, task_name: str, *, left_out: bool
    ) -> Sequence[str]:
        """Fields of a node's payload that keys are read from. InvalidArgument if its upstreams will make that."""
        unique = options.get("unique")
        terms = self.terms if declared is None else declared.terms.beside(self.terms)
        if "budget" in options or "quota" in options:
            own = Terms() if declared is None else declared.terms
            terms = own.instead(options.get("budget"), options.get("quota")).beside(self.terms)
        found = (*terms.paths, unique.path) if unique is not None and unique.path is not None else terms.paths
        if found and left_out:
            raise no_payload(task_name, found[0])
        return found if declared is not None else ()

    def node(self, flow_id: FlowId, task: Task[Any, Any] | None, task_name: str, key: str | None) -> Node[Any]:
        """The next node. Raises InvalidArgument for a key that is taken, and for one node too many."""
        from ffcore.flows import member_id, unkeyed_member_id

        place = len(self.added)
        if place >= limits.FLOW_NODES_N:
            raise InvalidArgument(
                f"a flow holds {limits.FLOW_NODES_N} jobs at most: make several, or give each job more to do",
                code="flow_too_large",
            )
        if key is not None:
            checks.text(key, "key", limits.KEY_BYTES)
            if key in self.keys:
                raise InvalidArgument(f"key {checks.shown(key)} is taken: another node of this flow has it")
            self.keys.add(key)
        made = unkeyed_member_id(flow_id, place) if key is None else member_id(flow_id, key)
        return Node(self.unsent, made, task, flow_id=flow_id, key=key, place=place, task_name=task_name)


def name_of(task: Any) -> str:
    """What a task is called; InvalidArgument for what is none."""
    if isinstance(task, Task):
        name: str = task.name
        return name
    if not isinstance(task, str):
        raise InvalidArgument(f"task is {checks.shown(task, 60)}: pass what @app.task made, or the task's name")
    return ids.check_name(task, "task")


def encoded(declared: Task[Any, Any] | None, task_name: str, payload: Any) -> bytes:
    """A payload as JSON; of a task this program declares, checked against its type."""
    if declared is not None:
        return declared.encode_payload(payload)
    return payloads.encode(payload, f"the payload of task {task_name}", limits.PAYLOAD_BYTES)


# ---- what a node comes after -----------------------------------------------------------------------------


def join_of(after: Any) -> Join | None:
    """What a node waits for, as a join; None: nothing."""
    after = bare(after)
    if isinstance(after, Join):
        return after
    alone: list[Any] = [after]
    if isinstance(alone[0], Node):
        return Join("all_of", alone, 1)
    if after is None or isinstance(after, str) or not hasattr(after, "__iter__"):
        raise InvalidArgument(f"after is {checks.shown(after)}: use a node, a list of nodes, or ff.any_of(...)")
    nodes: list[Any] = [bare(node) for node in in_order(after)]
    for node in nodes:
        if not isinstance(node, Node):
            hint = ": a join stands alone, put a task after it" if isinstance(node, Join) else ""
            hint = ": give one flat list" if type(node) in (list, tuple) else hint
            raise InvalidArgument(f"after has {checks.shown(node)} in it, which is no node of a flow{hint}")
    return Join("all_of", cast("list[Node[Any]]", nodes), len(nodes)) if nodes else None


def policy_of(join: Join | None) -> EdgeDependencyPolicy:
    """How many of its upstreams a node needs, as the store takes it."""
    from ffcore.contracts.dependency import EdgeAllOf, EdgeAnyOf, EdgeQuorum, OnSatisfied

    if join is None or join.word == "all_of":
        return EdgeAllOf()
    on_satisfied = OnSatisfied(join.on_satisfied)
    return EdgeAnyOf(on_satisfied) if join.word == "any_of" else EdgeQuorum(join.k, on_satisfied)


def kind_of(on: Any) -> str:
    kind = KINDS.get(on) if isinstance(on, str) else None
    if kind is None:
        raise InvalidArgument(f"on is {checks.shown(on)}: use {', '.join(KINDS)}")
    return kind


# ---- the submit ------------------------------------------------------------------------------------------


async def request(draft: Draft, flow_id: FlowId, namespace: str, name: str) -> tuple[SubmitFlowArgs, list[Wanted]]:
    """The whole graph, and the keys that nodes of it hold alone. By name, it may ask the store for published tasks,
    once for each."""
    from ffcore.contracts.graph import FlowNode, FlowPlan, SubmitFlowArgs
    from ffcore.ids import Namespace

    submitter = draft.submitter
    now_ms = submitter.now_ms  # relative times of one flow count from one instant
    places: dict[Any, int] = {}
    plans: list[FlowPlan] = []
    known: dict[tuple[Any, str], Plan] = {}
    nodes: list[FlowNode] = []
    alone: list[Wanted] = []
    for n, one in enumerate(draft.added, 1):
        if not n % STEP_N:
            await asyncio.sleep(0)
        plan = await _plan(draft, one, now_ms, known)
        shared = plan.shared
        place = places.setdefault(shared, len(plans))
        if place == len(plans):
            plans.append(FlowPlan(
                execution_kind=shared.task, lane_id=shared.lane, version=shared.version, priority=shared.priority,
                policy=shared.policy.decode() or None, delay_until=shared.delay_until,
                execution_deadline_at=shared.deadline_at,
            ))  # fmt: skip
        node_tags = one.options.get("tags")
        nodes.append(FlowNode(
            execution_id=one.node.id, plan=place, digest=digest(shared.task, one.raw or b"", shared.lane, flow_id),
            payload=one.raw, fairness_key=_fairness(plan, one),
            tags=wire.pack_pairs(node_tags) if node_tags else None, label=one.node.key, upstreams=one.upstreams,
            policy=one.policy,
            admission=plan.admission if plan.keyed is None and plan.unique is None
            else _admission(submitter, plan, one, alone),
        ))  # fmt: skip
    return SubmitFlowArgs(
        flow_id=flow_id, namespace=Namespace(namespace), flow_kind=name, name=name, tags={**draft.tags}, plans=plans,
        nodes=nodes,
    ), alone  # fmt: skip


def _admission(submitter: Submitter, plan: Plan, one: Added, alone: list[Wanted]) -> str | None:
    """What a node must be admitted by. A key it holds alone is put to the others."""
    at = one.keys.__getitem__
    if plan.declared is None and ((plan.keyed is not None) or (plan.unique is not None and plan.unique.path)):
        if one.raw is None:
            raise no_payload(plan.shared.task, "payload")
        payload = msgspec.json.decode(one.raw)
        at = functools.partial(text_at, payload=payload)
    wanted = submitter.wanted(plan, one.node.id, at)
    if wanted is not None:
        alone.append(wanted)
    return plan.text(at, wanted)


async def _plan(draft: Draft, one: Added, now_ms: int, known: dict[tuple[Any, str], Plan]) -> Plan:
    """What a node shares with others of its task and options; each such pair is worked out once."""
    options = cast("SubmitOptions", {name: value for name, value in one.options.items() if name != "tags"})
    key = (one.task, repr(sorted(options.items())) if options else "")
    found = known.get(key)
    if found is None:
        found = known[key] = await draft.submitter.plan(one.task, options, now_ms, also=draft.terms)
    return found


def _fairness(plan: Plan, one: Added) -> str | None:
    if plan.declared is not None or plan.fairness is None or one.raw is None:
        return one.fairness
    return text_at(plan.fairness, msgspec.json.decode(one.raw))


def no_payload(task_name: str, path: str) -> InvalidArgument:
    return InvalidArgument(
        f"task {task_name} has a key that is read from {path}, and its upstreams make the payload: give it another one "
        f"here, as in quota=ff.Quota(name, key='...')"
    )


def check_name(name: Any) -> str:
    checks.text("" if name is None else name, "the flow's name", limits.NAME_BYTES)
    return cast("str", name)
