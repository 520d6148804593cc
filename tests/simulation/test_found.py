"""Failures the simulation found, as the short traces it left: each must stay fixed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import ffcore.contracts as c
from ffcore import ids, limits
from ffcore.args import Args
from ffcore.policy import ExecutionPolicy, FixedBackoff, RetryPolicy, RoutingRequirements, TimeoutPolicy
from tests.simulation.gates import digest, fingerprint_of
from tests.simulation.scene import TTL, sets_for
from tests.simulation.wire import Place, place, virtual_library
from tests.simulation.world import BP, FP, QP, START_MS, Refusal, Step, World

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def valkey() -> Iterator[Place]:
    with place() as here:
        yield here


class Trace:
    """Takes steps, each checked against the model, and the engine's checker at the end."""

    def __init__(self, world: World) -> None:
        self.world, self.ms, self._serial = world, START_MS, 0

    def __call__(self, args: Args[Any], after_ms: int = 1) -> Any:
        self.ms += after_ms
        answer = self.world.apply(Step(self.ms, args))
        self.world.hear()
        self.world.check_touched()
        return answer

    def create(self, lane: str, **options: Any) -> Any:
        self._serial += 1
        id: Any = f"{FP[0]}:{self._serial:08x}-0000-7000-8000-000000000000"
        given: dict[str, Any] = {"namespace": "default", "execution_kind": "send", "input_payload": b"p"} | options
        self(c.CreateExecutionArgs(execution_id=id, lane_id=lane, digest=b"d" * 16, **given))  # type: ignore[arg-type]
        return id

    def claim(self, *lanes: str, **options: Any) -> Any:
        self._serial += 1
        given: dict[str, Any] = {"partitions": FP[:1], "capability_sets": [], "limit": 1} | options
        return self(c.ClaimBatchArgs(
            lanes=list(lanes), claim_id=f"w1.s.{self._serial}", worker_id="w", worker_instance_id="w1",
            lease_ttl_ms=TTL, **given))  # fmt: skip

    def tick(self, after_ms: int = 1) -> Any:
        return self(c.TickArgs(partitions=FP[:1], ticker="t1", force=True), after_ms)


@pytest.fixture
def trace(valkey: Place) -> Iterator[Trace]:
    world = World(valkey, virtual_library())
    world.listen([f"ff:{FP[0]}:w:w1", f"ff:{FP[0]}:tick"])
    yield Trace(world)
    world.check_all()
    world.check_invariants()
    world.close()


def fence(job: c.ClaimedJob) -> c.LeaseFence:
    return c.LeaseFence(job.lease_id, job.lease_epoch, job.attempt_id)


def test_what_runs_in_a_lane_is_listed_however_much_runs_in_others(trace: Trace) -> None:
    """The index of what runs is one for all lanes: a page of one lane looked no further than its own size."""
    first = trace.create("a")
    for _ in range(3):
        trace.create("b")
    trace.claim("a")
    trace.claim("b", limit=3)
    seen: list[Any] = []
    cursor = None
    for _ in range(20):
        page = trace(c.ListExecutionsArgs(partition=FP[0], states=["active"], limit=1, cursor=cursor))
        seen += [row.execution_id for row in page.items]
        cursor = page.cursor
        if not cursor:
            break
    assert first in seen and len(seen) == len(set(seen)) == 4


@pytest.mark.parametrize("report", ["delay", "fail", "unclaim"])
def test_a_report_sent_again_after_the_deadline_is_told_of_the_end(trace: Trace, report: str) -> None:
    """It was answered with its first outcome, a failure for good even, though the deadline had ended the execution."""
    policy = ExecutionPolicy(
        timeout_policy=TimeoutPolicy(execution_deadline_ms=500),
        retry_policy=RetryPolicy(max_retries=2, backoff=FixedBackoff(delay_ms=60_000)),
    )  # fmt: skip
    id = trace.create("a", policy=policy)
    (job,) = trace.claim("a").jobs
    given: dict[str, Any] = {"execution_id": id, "attempt_index": job.attempt_index, "fence": fence(job)}
    calls: dict[str, Args[Any]] = {
        "delay": c.DelayExecutionArgs(delay_until=START_MS + 60_000, **given),  # type: ignore[arg-type]
        "fail": c.FailExecutionArgs(failure_reason="it broke", failure_category="error", **given),
        "unclaim": c.UnclaimArgs(execution_id=id, fence=fence(job).wire, reason="hand_back"),
    }
    assert not isinstance(trace(calls[report]), Refusal)
    trace.tick(600)
    assert trace(calls[report]) == Refusal("terminal", "expired")


def test_a_parked_worker_is_not_forgotten_when_its_set_comes_into_use(trace: Trace) -> None:
    """Parked under a set no job required, then one does: the sweep of idle lanes took its place away."""
    gpu = sets_for(frozenset({"gpu"}))
    needs = ExecutionPolicy(routing_requirements=RoutingRequirements(required_capabilities=frozenset({"gpu"})))
    trace.claim("a", capability_sets=gpu, park="w1")
    trace.create("a", policy=needs, delay_until=START_MS + limits.LANE_IDLE_MS + 5_000)
    trace.ms = START_MS + limits.LANE_IDLE_MS - 500
    assert trace.claim("a", capability_sets=gpu, park="w1").parked
    # The sweep, then the job: the model wants its worker rung, and `hear` compares.
    trace.tick(1_000)
    trace.tick(5_000)


def test_an_attempt_that_had_ended_before_its_execution_is_logged_once(trace: Trace) -> None:
    """A replay logged the last attempt again that a lost lease had logged already."""
    id = trace.create("a")
    trace.claim("a")
    trace(c.RevokeLeaseArgs(execution_id=id, worker_instance_id="", reason="stuck"))  # type: ignore[arg-type]
    trace(c.CancelExecutionArgs(execution_id=id, reason="no use"))
    trace(c.ReplayExecutionArgs(execution_id=id))
    assert len(trace(c.ReadExecutionArgs(execution_id=id, parts="payload,result,attempts")).attempts) == 1


def test_an_expiry_by_hand_during_the_grace_of_a_cancel_is_the_cancel(trace: Trace) -> None:
    """Every other end of the lease was the cancel's, the deadline's too; this one was not."""
    id = trace.create("a")
    trace.claim("a")
    trace(c.CancelExecutionArgs(execution_id=id, reason="no use", source=c.CancelSource("flow_cascade")))
    trace(c.ExpireExecutionArgs(execution_id=id, expire_reason="late"))
    assert trace(c.ReadExecutionArgs(execution_id=id, parts="payload,result,attempts")).fields["state"] == "cancelled"


def test_a_policy_is_one_text_in_every_process() -> None:
    """Its set of required tokens was written in the order of the process's hash salt, so that one policy filled
    several places of the partition's table; two runs of one seed ended in different keyspaces."""
    words = (
        "from ffbackend_valkey.binding import encode; from ffcore.policy import ExecutionPolicy, RoutingRequirements; "
        "print(encode(ExecutionPolicy(routing_requirements=RoutingRequirements("
        "required_capabilities=frozenset('abcdefgh')))))"
    )
    texts = {
        subprocess.run([sys.executable, "-c", words], cwd=ROOT, env={**os.environ, "PYTHONHASHSEED": salt},
                       capture_output=True, text=True, check=True).stdout
        for salt in "123"
    }  # fmt: skip
    assert len(texts) == 1


# ---- durable executions ------------------------------------------------------------------------------------


class Durable:
    """The calls of one durable execution, made for a trace."""

    def __init__(self, trace: Trace, **options: Any) -> None:
        self.trace, self._serial = trace, 0
        trace(c.SeedWaitpointHmacSecretWireArgs(kid="k1", fingerprint=fingerprint_of("k1"), at=FP[0]))
        self.id = trace.create("d", **options)
        self.job: Any = None
        self.claim()

    def claim(self) -> None:
        (self.job,) = self.trace.claim("d").jobs

    def uuid(self) -> Any:
        self._serial += 1
        return f"{self._serial:08x}-0000-4000-8000-000000000000"

    def gate(self, name: str = "ok", **options: Any) -> Any:
        """A waitpoint that is opened by a call of its own; answers its id."""
        id = self.uuid()
        self.trace(c.CreatePendingWaitpointWireArgs(
            execution_id=self.id, fence=fence(self.job), waitpoint_id=id, waitpoint_key=name, kid="k1",
            token_digest=digest(id), **options))  # fmt: skip
        return id

    def suspend(self, condition: str, gate: Any, **options: Any) -> Any:
        given: dict[str, Any] = {"reason_code": "waiting_for_signal"} | options
        return self.trace(c.SuspendWireArgs(
            execution_id=self.id, fence=fence(self.job), suspension_id=self.uuid(), condition=condition.encode(),
            waitpoints=[c.SuspendWaitpoint(gate, "", None, None, False)], **given))  # fmt: skip

    def wait(self, condition: str, gate: Any, **options: Any) -> Any:
        return self.trace(c.WaitArgs(
            execution_id=self.id, fence=fence(self.job), suspension_id=self.uuid(), step="ab.1.1", step_name="wait",
            condition=condition.encode(), waitpoints=[c.WaitedWaitpoint(gate)], **options))  # fmt: skip

    def signal(self, gate: Any, name: str = "ok", source: str = "dana", **options: Any) -> Any:
        return self.trace(c.DeliverSignalWireArgs(
            execution_id=self.id, waitpoint_id=gate, signal_id=self.uuid(), signal_name=name, signal_category="test",
            source_type="user", source_identity=source, token_digest=digest(gate), **options))  # fmt: skip


def test_unblocking_something_else_leaves_a_pause(trace: Trace) -> None:
    """Whoever lifted another block, even the engine when a quota is free again, lifted an operator's pause with it."""
    id = trace.create("a")
    trace(c.BlockExecutionArgs(execution_id=id, blocking_reason="waiting_for_quota"))
    trace(c.PauseExecutionArgs(execution_id=id, reason="look at it"))
    trace(c.UnblockExecutionArgs(execution_id=id, expected_blocking_reason="waiting_for_quota"))
    assert trace.claim("a").jobs == []
    trace(c.ResumeExecutionArgs(execution_id=id))
    assert len(trace.claim("a").jobs) == 1


def test_a_worker_that_pins_a_version_was_there(trace: Trace) -> None:
    """A lease that ran out after this call counted as one that was never heard of, and its crash not at all."""
    d = Durable(trace)
    trace(c.PinVersionArgs(execution_id=d.id, fence=fence(d.job).wire, version=2))
    trace.tick(TTL + 1)
    read = trace(c.ReadExecutionArgs(execution_id=d.id, parts="payload,result,attempts"))
    assert (read.fields["state"], read.fields["crashes"]) == ("reclaimable", "1")


def test_a_worker_that_need_not_wait_was_there(trace: Trace) -> None:
    """The same where a suspend call finds that what it wants has come already."""
    d = Durable(trace)
    gate = d.gate()
    d.signal(gate)
    trace.tick(TTL + 1)
    d.claim()
    assert isinstance(d.suspend('[["single",0,1,null]]', gate), c.WireSatisfied)


def test_a_worker_that_waits_again_was_there(trace: Trace) -> None:
    """The same where a wait is asked for that is over, by a handler that runs again."""
    d = Durable(trace)
    gate = d.gate()
    assert isinstance(d.wait('[["single",0,1,null]]', gate), c.WaitSuspended)
    d.signal(gate)
    d.claim()
    assert isinstance(d.wait('[["single",0,1,null]]', gate), c.WaitSatisfied)


def test_a_gate_that_stays_open_counts_what_it_keeps(trace: Trace) -> None:
    """A signal that resumed an execution and stayed was counted on top of those the wait had let go of."""
    d = Durable(trace)
    gate = d.gate()
    d.suspend('[["single",0,1,"ok"]]', gate, consume_matched_signals=False, close_waitpoint_on_resume=False)
    d.signal(gate, "no")
    assert d.signal(gate).effect == "resume_condition_satisfied"


def test_a_replay_still_has_the_signals_its_wait_had_counted(trace: Trace) -> None:
    """The first of two approvals was lost when the wait for the second ran out; and its sender, sending it again, was
    told that it was known. A replay could never go on."""
    d = Durable(trace)
    gate = d.gate("votes", step="ab.2.1", step_name="gate")
    two = '[["count",0,2,"distinct_sources",null,[1]]]'
    d.wait(two, gate, timeout_ms=1_000)
    assert d.signal(gate, source="dana", idempotency_key="click-1").effect == "appended_to_waitpoint"
    trace.tick(1_001)
    assert trace(c.ReadExecutionArgs(execution_id=d.id, parts="payload,result,attempts")).fields["state"] == "failed"
    trace(c.ReplayExecutionArgs(execution_id=d.id))
    d.claim()
    assert isinstance(d.wait(two, gate, timeout_ms=1_000), c.WaitSuspended)
    assert isinstance(d.signal(gate, source="dana", idempotency_key="click-1"), c.SignalDuplicate)
    assert d.signal(gate, source="eve", idempotency_key="click-2").effect == "resume_condition_satisfied"


# ---- flows -----------------------------------------------------------------------------------------------


def submit(trace: Trace, edges: list[str], *, group: str = "A", **options: Any) -> tuple[Any, list[Any]]:
    """A graph of as many nodes as there are texts of edges."""
    flow: Any = f"{FP[0]}:0000f000-0000-7000-8000-000000000000"
    ids: list[Any] = [f"{FP[0]}:{i:08x}-0000-7000-8000-00000000000a" for i in range(1, len(edges) + 1)]
    given: dict[str, Any] = {"chunk": 1, "last": True, "node_total": len(edges), "plan": {}} | options
    rows = [c.NodeRow(id, 1, b"d" * 16, b"p", None, None, None, group if text else "A", text)
            for id, text in zip(ids, edges, strict=True)]  # fmt: skip
    plan = c.FlowPlan(execution_kind="send", lane_id="a", **given.pop("plan"))
    trace(c.SubmitFlowWireArgs(
        flow_id=flow, namespace="default", flow_kind="", name="", digest=b"g" * 16, tags={}, creator_identity="",  # type: ignore[arg-type]
        edge_total=sum(text.count(",") + 1 for text in edges if text), plans=[plan], nodes=rows, **given,
    ))  # fmt: skip
    return flow, ids


def cancelling(id: Any) -> c.CancelExecutionArgs:
    return c.CancelExecutionArgs(execution_id=id, reason="not this one")


def state_of(trace: Trace, id: Any) -> str:
    return str(trace(c.ReadExecutionArgs(execution_id=id, parts="payload,result,attempts")).fields["state"])


def test_tagging_a_flow_in_the_millisecond_of_its_making(trace: Trace) -> None:
    """Nothing of its record had changed, and a write of no fields is an error."""
    flow, _ = submit(trace, ["", "1s"])
    assert trace(c.SetFlowTagsArgs(flow_id=flow, tags={"s.team": "x"}), 0) == c.TagsOk(1)


def test_a_flow_cancelled_alone_ends_with_the_last_that_is_stopped(trace: Trace) -> None:
    """Its last ready member was stopped by the claim, and nobody looked whether anything was left."""
    flow, _ = submit(trace, [""])
    trace(c.CancelFlowWireArgs(flow_id=flow, reason="enough", cancellation_policy="flow_only"))
    assert trace.claim("a").jobs == []
    assert trace(c.ReadFlowArgs(flow_id=flow)).ended


@pytest.mark.parametrize("lift", [c.PromoteBlockedToEligibleArgs, c.UnblockExecutionArgs])
def test_nobody_lets_a_graph_run_that_is_still_being_sent(trace: Trace, lift: Any) -> None:
    """Its roots wait for no upstream, so they were let go."""
    _, (root,) = submit(trace, [""], last=False, node_total=2)
    assert trace(lift(execution_id=root)).code == "deps_not_satisfied"


def test_a_replay_of_what_never_began_waits_for_its_upstreams(trace: Trace) -> None:
    """It was cancelled while it waited; replayed, it was ready before they had ended."""
    _, (_, down) = submit(trace, ["", "1s"])
    trace(cancelling(down))
    assert trace(c.ReplayExecutionArgs(execution_id=down)).public_state == "waiting_children"
    assert state_of(trace, down) == "blocked"


def test_a_group_counts_anew_whom_a_replay_has_reopened(trace: Trace) -> None:
    """How its upstreams had ended before was still counted."""
    _, (one, two, down) = submit(trace, ["", "", "1s,2s"])
    for id in (one, two):
        trace(cancelling(id))
    assert state_of(trace, down) == "skipped"
    for id in (two, one):
        trace(c.ReplayExecutionArgs(execution_id=id))
    assert state_of(trace, down) == "blocked"


def test_nothing_of_a_graph_that_was_given_up_starts(trace: Trace) -> None:
    """Between its end and its removal a member that had waited for another was let go."""
    flow, (_, down) = submit(trace, ["", "1a"], last=False, node_total=3)
    trace(c.AbortFlowArgs(flow_id=flow, digest=b"g" * 16))
    trace(cancelling(f"{FP[0]}:00000001-0000-7000-8000-00000000000a"))
    assert state_of(trace, down) == "blocked"


def test_a_replay_starts_nothing_of_a_graph_that_is_still_being_sent(trace: Trace) -> None:
    """A root that was cancelled meanwhile was ready after its replay."""
    _, (root,) = submit(trace, [""], last=False, node_total=2)
    trace(cancelling(root))
    trace(c.ReplayExecutionArgs(execution_id=root))
    assert state_of(trace, root) == "blocked"


def test_who_is_skipped_by_the_publishing_tells_who_depends_on_him(trace: Trace) -> None:
    """His record did not say yet that somebody did: that one waited for ever."""
    flow, (one, two) = submit(trace, ["", "1s"], last=False, node_total=3)
    trace(cancelling(one))
    last: Any = f"{FP[0]}:00000003-0000-7000-8000-00000000000a"
    trace(c.SubmitFlowWireArgs(
        flow_id=flow, namespace="default", flow_kind="", name="", digest=b"g" * 16, tags={}, creator_identity="",
        chunk=2, last=True, node_total=3, edge_total=2, plans=[c.FlowPlan(execution_kind="send", lane_id="a")],
        nodes=[c.NodeRow(last, 1, b"d" * 16, b"p", None, None, None, "A", "2s")],
    ))  # fmt: skip
    assert (state_of(trace, two), state_of(trace, last)) == ("skipped", "skipped")


# ---- admission -------------------------------------------------------------------------------------------

BUDGET: Any = f"{BP}:{ids.uuid8(b'budget')}"
KEY: Any = f"{QP}:{ids.uuid8(b'key')}"


def bring(trace: Trace, source: Any, rows: list[Any]) -> None:
    """Letters and the wakes that answer them, to whom they are for."""
    for row in rows:
        letter = c.Letter(getattr(row, "row", ""), row.kind, row.body)
        answer = trace(c.DeliverArgs(partition=row.target, source=source, items=[letter]))
        bring(trace, row.target, answer.wakes)


def asked_after(trace: Trace) -> None:
    """A minute passes, and whoever is silent is asked whether he holds what he took."""
    got = trace(c.TickArgs(partitions=[BP, QP], ticker="t1", force=True), limits.RESERVATION_MS + 1)
    for row in got.partitions:
        bring(trace, row.partition, row.owed)


def test_a_budget_is_reset_in_time_whatever_looked_at_it_before(trace: Trace) -> None:
    """A reservation's timer of the same tick began the period, and the reset's own one cleared the next."""
    id = trace.create("m", admission=f"b {BUDGET} hold units=1")
    trace(c.CreateBudgetArgs(
        budget_id=BUDGET, scope_type="lane", scope_id="m", enforcement_mode="record", on_hard_limit="hold",
        on_soft_limit="warn", reset_interval_ms=4_000, dimensions=["units"], hard_limits=[5], soft_limits=[0],
    ))  # fmt: skip
    (job,) = trace.claim("m").jobs
    row = c.ReserveRow(BUDGET, id, job.lease_epoch, job.lease_expires_at, FP[0], "", "units=1")  # type: ignore[arg-type]
    trace(c.ReserveManyArgs(partition=BP, items=[row]))
    asked_after(trace)


def test_a_key_is_not_held_by_a_job_that_ended_before(trace: Trace) -> None:
    """Its client died after the answer that there was such a job, before it gave the key back."""
    id = trace.create("a")
    trace(cancelling(id))
    trace(c.TakeUniqueArgs(unique_id=KEY, execution_id=id, scope="active"))
    asked_after(trace)
    assert isinstance(trace(c.ReadUniqueArgs(unique_id=KEY)), c.UniqueFree)


def test_a_set_that_is_halted_costs_others_no_comparison(trace: Trace) -> None:
    """Plain jobs are claimed past it, in their order."""
    held = trace.create("m", admission=f"b {BUDGET} hold units=1")
    (job,) = trace.claim("m").jobs
    trace(c.RefuseManyArgs(partition=FP[0], items=[c.Refusal(
        held, fence(job).wire, BUDGET, "b", 1, ids.TimestampMs(trace.ms + 60_000))]))  # fmt: skip
    plain = [trace.create("m") for _ in range(3)]
    assert [job.execution_id for job in trace.claim("m", limit=5).jobs] == plain
