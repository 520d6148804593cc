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
from ffcore import limits
from ffcore.args import Args
from ffcore.policy import ExecutionPolicy, FixedBackoff, RetryPolicy, RoutingRequirements, TimeoutPolicy
from tests.simulation.scene import TTL, sets_for
from tests.simulation.wire import Place, place, virtual_library
from tests.simulation.world import FP, START_MS, Refusal, Step, World

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
