"""Who makes the calls of flows: clients that submit graphs whole, builders that grow them edge by edge, workers that
spawn children and wait for them, operators and readers. Members are run by the workers of all lanes as well."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec

import ffcore.contracts as c
from ffcore.args import Args
from ffcore.flows import implicit_flow
from ffcore.policy import ExecutionPolicy, FixedBackoff, RetryPolicy, TimeoutPolicy
from ffcore.wire import pack_pairs
from tests.simulation.actors import Talk, ask
from tests.simulation.scene import FLOWS, LANES, OPERATOR, TASKS, TTL, Scene
from tests.simulation.world import FP, Refusal

KIND_LETTERS = "sssssaaf"
KINDS = ["success_only", "success_only", "success_only", "always", "on_failure"]
POLICIES = ["cancel_all", "cancel_pending", "flow_only"]


@dataclass
class Known:
    """What programs know of a flow."""

    id: Any
    members: list[Any] = field(default_factory=list)
    edges: list[tuple[Any, Any, Any]] = field(default_factory=list)
    """Edge id, upstream, downstream."""
    revision: int = 0


def any_flow(scene: Scene) -> Known:
    rng = scene.rng
    if not scene.flows or rng.random() < 0.02:
        nobody = scene.nobody()
        return Known(nobody, [f"{nobody[:6]}{scene.any_id()[6:]}"])
    known: Known = rng.choice(scene.flows[-8:] if rng.random() < 0.85 else scene.flows)
    return known


def any_member(scene: Scene) -> Any:
    flow = any_flow(scene)
    return scene.rng.choice(flow.members) if flow.members else scene.any_id()


def at_home(flow: Known, id: Any) -> Any:
    """An id of the flow's partition: of one that lives in another, nobody's."""
    return f"{flow.id[:6]}{id[6:]}"


# ---- graphs as a whole -----------------------------------------------------------------------------------


def graph(scene: Scene) -> tuple[Known, list[c.SubmitFlowWireArgs]]:
    """A random graph and the chunks it is sent in."""
    rng, partition = scene.rng, scene.rng.choice(FP)
    id = f"{partition}:{scene.flow_key()}" if rng.random() < 0.25 else scene.new_id(partition)
    known, rows = Known(id), list[c.NodeRow]()
    plans = [_plan(scene) for _ in range(rng.randrange(1, 4))]
    n = rng.choice([1, 2, 3, 4, 5, 6, 7, 9, 12])
    for number in range(1, n + 1):
        ups = rng.sample(range(1, number), min(number - 1, rng.choice([0, 1, 1, 2, 2, 3])))
        if rng.random() < 0.01:
            ups = [number + rng.randrange(2)]  # no such upstream, or itself
        some = f"Q {rng.randrange(1, len(ups) + 1)} {rng.choice('cl')}" if ups else "A"
        group = rng.choice(["A", "A", "O c", "O l", some]) if ups else "A"
        known.members.append(scene.new_id(partition))
        rows.append(c.NodeRow(
            known.members[-1], rng.randrange(1, len(plans) + 1), b"d" * 16,
            None if ups and rng.random() < 0.7 else b"p" * rng.choice([0, 7]), rng.choice([None, None, "t1"]),
            rng.choice([None, pack_pairs({"s.kind": "x"})]), rng.choice([None, f"n{number}"]), group,
            ",".join(f"{up}{rng.choice(KIND_LETTERS)}" for up in ups),
        ))  # fmt: skip
    chunks = [rows]
    if n > 1 and rng.random() < 0.2:
        cut = rng.randrange(1, n)
        chunks = [rows[:cut], rows[cut:]]
    digest = rng.choice([b"g", b"g", b"h"]) * 16
    edges = sum(len(row.edges.split(",")) for row in rows if row.edges)
    calls = [
        c.SubmitFlowWireArgs(
            flow_id=id, namespace=rng.choice(["default", "shop"]), flow_kind=rng.choice(["", "nightly"]),  # type: ignore[arg-type]
            name=rng.choice(["", "a name"]), digest=digest, chunk=i + 1, last=i + 1 == len(chunks), node_total=n,
            edge_total=edges, tags=rng.choice([{}, {"s.team": "x"}]), creator_identity="", plans=plans, nodes=chunk,
        )
        for i, chunk in enumerate(chunks)
    ]  # fmt: skip
    return known, calls


def _plan(scene: Scene) -> c.FlowPlan:
    rng = scene.rng
    return c.FlowPlan(
        execution_kind=rng.choice(TASKS), lane_id=rng.choice([*LANES, FLOWS, FLOWS]), version=rng.choice([1, 1, 2]),
        priority=rng.choice([0, 0, 2]), policy=rng.choice([None, None, None, RETRY, DEADLINE]),
        delay_until=rng.choice([None, None, None, scene.ms + rng.randrange(2_500)]),
    )  # fmt: skip


def _json(policy: ExecutionPolicy) -> str:
    return msgspec.json.encode(policy, order="sorted").decode()


RETRY = _json(ExecutionPolicy(retry_policy=RetryPolicy(max_retries=2, backoff=FixedBackoff(delay_ms=200))))
DEADLINE = _json(ExecutionPolicy(timeout_policy=TimeoutPolicy(execution_deadline_ms=5_000)))


def _submit(scene: Scene) -> Talk:
    rng = scene.rng
    known, calls = graph(scene)
    scene.sent.append(calls)
    for call in calls if rng.random() < 0.95 else calls[::-1]:
        answer = yield from ask(call)
        if isinstance(answer, Refusal) or rng.random() < 0.05:
            break
        scene.ids += [row.execution_id for row in call.nodes]
        if call.chunk == 1:
            scene.flows.append(known)
        if not call.last and rng.random() < 0.25:
            if rng.random() < 0.7:
                digest = call.digest if rng.random() < 0.8 else b"z" * 16
                yield from ask(c.AbortFlowArgs(flow_id=call.flow_id, digest=digest))
                if rng.random() < 0.3:
                    yield from ask(c.CreateFlowArgs(flow_id=call.flow_id, flow_kind="again", namespace="default"))  # type: ignore[arg-type]
            if rng.random() < 0.5:
                break


def client(scene: Scene, name: str) -> Talk:
    rng = scene.rng
    while True:
        draw = rng.random()
        if draw < 0.3 and scene.alive < scene.crowd:
            yield from _submit(scene)
        elif draw < 0.36 and scene.sent:
            for call in rng.choice(scene.sent[-6:]):
                yield from ask(call)
        elif draw < 0.46:
            yield from ask(c.AwaitFlowArgs(flow_id=any_flow(scene).id, client=name))
        elif draw < 0.52 and scene.alive < scene.crowd:
            yield from ask(_parent(scene))
        elif draw < 0.62:
            yield from ask(c.ReplayExecutionArgs(execution_id=any_member(scene), mode=rng.choice(["resume", "fresh"])))
        elif draw < 0.68:
            yield from ask(c.CancelExecutionArgs(
                execution_id=any_member(scene), reason="not this one", grace_ms=rng.choice([None, 0, 500]),
                source=rng.choice([c.CancelSource("flow_cascade"), OPERATOR])))  # fmt: skip
        elif draw < 0.72:
            yield from ask(c.CancelFlowWireArgs(flow_id=any_flow(scene).id, reason="no longer wanted",
                                                cancellation_policy=rng.choice(POLICIES)))  # fmt: skip
        elif draw < 0.75:
            yield from ask(c.SetFlowTagsArgs(flow_id=any_flow(scene).id, tags={"s.team": rng.choice(["", "y"])}))
        elif draw < 0.8:
            yield from ask(c.AbortFlowArgs(flow_id=any_flow(scene).id, digest=rng.choice([b"g", b"h"]) * 16))
        else:
            yield from ask(rng.choice(READINGS)(scene))


def _parent(scene: Scene) -> Args[Any]:
    id = scene.new_id()
    scene.ids.append(id)
    return c.CreateExecutionArgs(
        execution_id=id, namespace="default", lane_id=FLOWS, execution_kind=scene.rng.choice(TASKS),  # type: ignore[arg-type]
        input_payload=b"parent", digest=b"d" * 16,
    )  # fmt: skip


# ---- step by step ----------------------------------------------------------------------------------------


def builder(scene: Scene, name: str) -> Talk:
    """Grows flows: creates, adds, stages, sets policies, applies; now and then with what it knew a while ago."""
    rng = scene.rng
    while True:
        known = _mine(scene)
        draw = rng.random()
        if known is None or draw < 0.1:
            id = f"{rng.choice(FP)}:{scene.flow_key()}" if rng.random() < 0.5 else scene.new_id()
            answer = yield from ask(c.CreateFlowArgs(flow_id=id, flow_kind="grown", namespace="default"))  # type: ignore[arg-type]
            if isinstance(answer, c.FlowCreated):
                scene.flows.append(Known(id))
                scene.grown.append(scene.flows[-1])
        elif draw < 0.4 and scene.alive < scene.crowd:
            yield from _add(scene, known)
        elif draw < 0.75 and len(known.members) > 1:
            yield from _edge(scene, known)
        elif draw < 0.83:
            yield from ask(_policy(scene, known))
        else:
            yield from ask(rng.choice(BY_HAND)(scene))
        if rng.random() < 0.3:
            yield None


def _mine(scene: Scene) -> Known | None:
    """One of the last that grow; now and then one that nobody has created."""
    if scene.grown and scene.rng.random() < 0.04:
        nobody = scene.nobody()
        known = Known(nobody, [scene.new_id(nobody[:6]) for _ in range(2)])
        known.edges = [(scene.new_uuid(), *known.members)]
        return known
    return scene.rng.choice(scene.grown[-3:]) if scene.grown else None


def _add(scene: Scene, known: Known) -> Talk:
    rng = scene.rng
    if rng.random() < 0.15:
        id = at_home(known, scene.any_id() if rng.random() < 0.5 else any_member(scene))
    else:
        id = scene.new_id(known.id[:6])
        scene.ids.append(id)
        yield from ask(c.CreateExecutionArgs(
            execution_id=id, namespace="default", lane_id=rng.choice([*LANES, FLOWS]), execution_kind=rng.choice(TASKS),  # type: ignore[arg-type]
            input_payload=b"p", digest=b"d" * 16, delay_until=rng.choice([None, scene.ms + 2_000, scene.ms + 9_000]),  # type: ignore[arg-type]
        ))  # fmt: skip
    answer = yield from ask(c.AddExecutionToFlowArgs(flow_id=known.id, execution_id=id))
    if isinstance(answer, c.Added):
        known.members.append(id)
        known.revision += 1


def _edge(scene: Scene, known: Known) -> Talk:
    """Stage an edge, and mostly apply it, under the revision that was seen."""
    rng = scene.rng
    up, down = rng.sample(known.members, 2) if rng.random() < 0.8 else (known.members[0], known.members[-1])
    if rng.random() < 0.7 and known.members.index(up) > known.members.index(down):
        up, down = down, up
    if rng.random() < 0.03:
        up = at_home(known, any_member(scene))
        if up == down:
            return
    if rng.random() < 0.6:
        read = yield from ask(c.ReadFlowArgs(flow_id=known.id))
        if isinstance(read, c.FlowInfo):
            known.revision = read.graph_revision
    kind, id = rng.choice(KINDS) if rng.random() < 0.98 else "child", scene.new_uuid()
    answer = yield from ask(c.StageDependencyEdgeArgs(
        flow_id=known.id, edge_id=id, upstream_execution_id=up, downstream_execution_id=down, dependency_kind=kind,
        expected_graph_revision=known.revision, data_passing_ref=rng.choice([None, None, "result"])))  # fmt: skip
    if not isinstance(answer, c.Staged):
        if rng.random() < 0.2:
            yield from ask(c.ApplyDependencyToChildArgs(
                flow_id=known.id, edge_id=id, downstream_execution_id=down, upstream_execution_id=up,
                graph_revision=known.revision, dependency_kind=kind))  # fmt: skip
        return
    known.revision = answer.new_graph_revision
    known.edges.append((id, up, down))
    if rng.random() < 0.1:
        return
    revision = known.revision + rng.choice([0, 0, 0, 0, 0, 0, 0, 1, -1])
    for _ in range(rng.choice([1, 1, 1, 2])):
        yield from ask(c.ApplyDependencyToChildArgs(
            flow_id=known.id, edge_id=id if rng.random() < 0.97 else scene.new_uuid(), downstream_execution_id=down,
            upstream_execution_id=up, graph_revision=max(0, revision), dependency_kind=kind))  # fmt: skip


def _policy(scene: Scene, known: Known) -> Args[Any]:
    rng = scene.rng
    rest = rng.choice(list(c.OnSatisfied))
    members = known.members or [at_home(known, scene.nobody())]
    if known.edges and rng.random() < 0.4:
        members = [rng.choice(known.edges)[2]]  # one that has edges already
    policies: list[c.EdgeDependencyPolicy] = [
        c.EdgeAllOf(), c.EdgeAnyOf(on_satisfied=rest), c.EdgeQuorum(k=2, on_satisfied=rest)]  # fmt: skip
    return c.SetEdgeGroupPolicyArgs(
        flow_id=known.id, downstream_execution_id=at_home(known, rng.choice([*members, any_member(scene)])),
        policy=rng.choice(policies),
    )  # fmt: skip


def _some_edge(scene: Scene) -> tuple[Any, Any, Any]:
    known = any_flow(scene)
    if not known.edges and scene.grown:
        known = scene.rng.choice(scene.grown[-3:])
    if known.edges and scene.rng.random() < 0.95:
        return scene.rng.choice(known.edges[-4:])
    return scene.new_uuid(), known.id, scene.rng.choice(known.members or [known.id])


def _resolving(scene: Scene) -> Args[Any]:
    id, _, down = _some_edge(scene)
    return c.ResolveDependencyArgs(edge_id=id, at=down, upstream_outcome=scene.rng.choice(c.UPSTREAM_OUTCOMES))


BY_HAND: list[Callable[[Scene], Args[Any]]] = [
    _resolving, _resolving,
    lambda s: c.PromoteBlockedToEligibleArgs(execution_id=any_member(s)),
    lambda s: c.EvaluateFlowEligibilityArgs(execution_id=any_member(s)),
    lambda s: c.EvaluateFlowEligibilityArgs(execution_id=s.any_id()),
]  # fmt: skip


# ---- children --------------------------------------------------------------------------------------------


def worker(scene: Scene, name: str, inbox: list[str]) -> Talk:
    """Claims one job of the flows' lane, lets it spawn, wait for what it spawned, and end in some way."""
    rng, serial = scene.rng, 0
    while True:
        serial += 1
        got = yield from ask(c.ClaimBatchArgs(
            partitions=rng.sample(FP, rng.randrange(1, 3)), limit=1, claim_id=f"{name}.s.{serial}",
            lanes=[FLOWS] if rng.random() < 0.7 else [FLOWS, rng.choice(LANES)], capability_sets=[],
            worker_id=name.partition("-")[0], worker_instance_id=name, lease_ttl_ms=TTL, park=rng.choice([None, name]),
        ))  # fmt: skip
        inbox.clear()
        jobs = got.jobs if isinstance(got, c.ClaimedBatch) else []
        if not jobs:
            yield None
        for job in jobs:
            yield from _run(scene, job)


def _run(scene: Scene, job: c.ClaimedJob) -> Talk:
    rng = scene.rng
    spawned: list[Any] = []
    # What has run for long does not spawn any more, so that families stay small.
    most = rng.choice([0, 0, 1, 2, 3]) if rng.random() < 0.96 else 9
    for n in range(most if scene.alive < scene.crowd and job.run < 3 else 0):
        call = spawning(scene, job, n)
        answer = yield from ask(call)
        if answer is None or isinstance(answer, Refusal):
            return
        if isinstance(answer, c.Spawned):
            scene.ids.append(answer.child_id)
            spawned.append(answer.child_id)
    draw = rng.random()
    if spawned and draw < 0.75:
        children = [] if draw < 0.2 else [c.Child(id) for id in rng.sample(spawned, rng.randrange(1, len(spawned) + 1))]
        if rng.random() < 0.04:
            children.append(c.Child(scene.new_id(job.execution_id[:6])))
        answer = yield from ask(waiting(scene, job, children))
        if not isinstance(answer, c.ChildrenDone):
            return
    end = rng.choice([scene.completion, scene.completion, scene.completion, scene.failure, scene.delay, scene.unclaim,
                      scene.quitting])  # fmt: skip
    yield from ask(end(job))


def spawning(scene: Scene, job: c.ClaimedJob, n: int) -> c.SpawnArgs:
    rng = scene.rng
    partition = job.execution_id[:6]
    own = flow_of(scene, job)
    child = scene.new_id(partition) if rng.random() < 0.85 else f"{partition}:{scene.child_key(job.execution_id, n)}"
    if rng.random() < 0.02:
        child = f"{partition}{any_member(scene)[6:]}"
        child = child if child != job.execution_id else scene.new_id(partition)
    return c.SpawnArgs(
        execution_id=job.execution_id, fence=scene.fence(job).wire, step=f"5b.{n}.{job.run}", step_name=f"spawn {n}",  # type: ignore[arg-type]
        task_version=job.version, lease_ttl_ms=rng.choice([0, TTL]), flow_id=own, child_id=child, namespace="default",  # type: ignore[arg-type]
        lane_id=rng.choice([*LANES, FLOWS]), execution_kind=rng.choice(TASKS), input_payload=b"child",  # type: ignore[arg-type]
        digest=rng.choice([b"d"] * 9 + [b"e"]) * 16, delay_until=rng.choice([None, None, scene.ms + 900]),
        abandon=rng.random() < 0.3, label=rng.choice([None, "kid"]),
    )  # fmt: skip


def flow_of(scene: Scene, job: c.ClaimedJob) -> Any:
    """The flow of a job, or the one it gets with its first child."""
    return job.flow_id or implicit_flow(job.execution_id)


def waiting(scene: Scene, job: c.ClaimedJob, children: list[c.Child]) -> c.MoveToWaitingChildrenArgs:
    rng = scene.rng
    fence = None if rng.random() < 0.03 else scene.fence(job)
    return c.MoveToWaitingChildrenArgs(
        execution_id=job.execution_id, fence=fence, attempt_index=job.attempt_index, children=children,
        need=rng.choice([0, 0, 1]) if children else 0,
        source=OPERATOR if fence is None and rng.random() < 0.5 else c.CancelSource("lease_holder"),
    )  # fmt: skip


# ---- operators and readers -------------------------------------------------------------------------------


def operator(scene: Scene, name: str) -> Talk:
    """Late reports of spawning workers, moves by hand."""
    rng = scene.rng
    while True:
        job = scene.any_job()
        if job is None:
            yield None
            continue
        if rng.random() < 0.2:
            yield from ask(c.RevokeLeaseArgs(execution_id=job.execution_id, worker_instance_id="", reason="stuck"))  # type: ignore[arg-type]
        call: Args[Any] = spawning(scene, job, rng.randrange(12))
        if rng.random() < 0.5:
            call = waiting(scene, job, [])
            if rng.random() < 0.4:
                call = msgspec.structs.replace(call, fence=None, source=OPERATOR)
        yield from ask(call)
        yield None


READINGS: list[Callable[[Scene], Args[Any]]] = [
    lambda s: c.ReadFlowArgs(flow_id=any_flow(s).id),
    lambda s: c.ReadMembersArgs(flow_id=any_flow(s).id, after=s.rng.choice([0, 0, 2]), limit=s.rng.choice([2, 100]),
                                edges=s.rng.random() < 0.5),
    lambda s: c.ListFlowsArgs(partition=s.rng.choice(FP), limit=s.rng.choice([2, 1_000]),
                              status=s.rng.choice([None, None, "active", "completed", "failed"])),
    lambda s: _describing(s), lambda s: _listing(s),
    lambda s: c.ReadUpstreamsArgs(execution_id=any_member(s), limit=s.rng.choice([1, 100])),
    lambda s: c.EvaluateFlowEligibilityArgs(execution_id=any_member(s)),
]  # fmt: skip


def _describing(scene: Scene) -> Args[Any]:
    known = any_flow(scene)
    id = scene.rng.choice(known.edges)[0] if known.edges and scene.rng.random() < 0.9 else scene.new_uuid()
    return c.DescribeEdgeArgs(flow_id=known.id, edge_id=id)


def _listing(scene: Scene) -> Args[Any]:
    known = any_flow(scene)
    return c.ListEdgesArgs(
        flow_id=known.id, execution_id=scene.rng.choice(known.members or [known.id]),
        direction=scene.rng.choice(["incoming", "outgoing"]), limit=scene.rng.choice([1, 100]),
    )  # fmt: skip
