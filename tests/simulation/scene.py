"""What the actors of a run share: the random source, names, the ids and fences they know, and how calls are made.

Everything is drawn from one `random.Random`; nothing reads a clock, a uuid or the order of a set.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import msgspec

import ffcore.contracts as c
from ffcore import ids
from ffcore.policy import (
    ExecutionPolicy,
    ExponentialBackoff,
    FixedBackoff,
    RetryPolicy,
    RoutingRequirements,
    TimeoutPolicy,
)
from ffcore.wire import pack_pairs
from tests.simulation.model import digest_of
from tests.simulation.world import FP, START_MS

LANES = ["a", "b", "c"]
"""And `rare`, which has a job so seldom that it is forgotten in between."""
DURABLE = "d"
"""The lane of executions whose handler records its steps and waits."""
ADMITTED = "m"
"""The lane of executions that budgets and quotas admit."""
FLOWS = "f"
"""The lane of executions that spawn others."""
TASKS = ["send", "scan", "sync"]
TOKENS = ["gpu", "eu"]
TTL = 3_000
NOBODY = "ffffffff-0000-7000-8000-00000000dead"
HOLDS = ["task:send", "task:scan", "tag:s.kind=x", "tag:s.kind=y"]
OPERATOR = c.CancelSource("operator_override")


def _retry(n: int, backoff: Any, *categories: str) -> RetryPolicy:
    return RetryPolicy(max_retries=n, backoff=backoff, retryable_categories=list(categories))


def _needs(*tokens: str) -> RoutingRequirements:
    return RoutingRequirements(required_capabilities=frozenset(tokens))


EXPONENTIAL = ExponentialBackoff(initial_delay_ms=100, max_delay_ms=4_000, multiplier=2.5)
POLICIES: list[ExecutionPolicy | None] = [
    None, None, None,
    ExecutionPolicy(retry_policy=_retry(2, FixedBackoff(delay_ms=500)), max_reclaim_count=2),
    ExecutionPolicy(retry_policy=_retry(5, EXPONENTIAL), max_reclaim_count=1, max_replay_count=2),
    # Not for timeouts: what is drawn where nobody is answered, the model could not follow.
    ExecutionPolicy(retry_policy=_retry(3, msgspec.structs.replace(EXPONENTIAL, jitter=True), "error", "other")),
    ExecutionPolicy(retry_policy=_retry(4, FixedBackoff(delay_ms=0))), ExecutionPolicy(max_reclaim_count=0),
    ExecutionPolicy(timeout_policy=TimeoutPolicy(attempt_timeout_ms=1_200, max_reclaim_count=3)),
    ExecutionPolicy(timeout_policy=TimeoutPolicy(attempt_timeout_ms=900),
                    retry_policy=_retry(2, FixedBackoff(delay_ms=200))),
    ExecutionPolicy(timeout_policy=TimeoutPolicy(execution_deadline_ms=4_000)),
    ExecutionPolicy(lease_ms=1_000, max_replay_count=1), ExecutionPolicy(routing_requirements=_needs("gpu")),
    ExecutionPolicy(routing_requirements=_needs("eu", "gpu"), max_replay_count=0),
    ExecutionPolicy(routing_requirements=_needs("eu"), priority=3), ExecutionPolicy(dedup_window_ms=4_000),
    ExecutionPolicy(dedup_window_ms=0, max_reclaim_count=3), ExecutionPolicy(max_signals_per_execution=3),
]  # fmt: skip


class Scene:
    def __init__(self, seed: int, *, crowd: int = 60) -> None:
        self.rng = random.Random(seed)
        self.crowd = crowd
        """How many executions may be alive before clients stop creating."""
        self.ms = START_MS
        self.ids: list[str] = []
        self.alive = 0
        self.jobs: list[c.ClaimedJob] = []
        """Leases that were answered to anybody, newest last: what late and foreign reports are made from."""
        self.gates: list[Any] = []
        """Waitpoints somebody has opened (`gates.Gate`)."""
        self.asked: list[Any] = []
        """Of these, those that somebody waits at, or has waited."""
        self.flows: list[Any] = []
        """Flows somebody has made (`actors_flows.Known`)."""
        self.grown: list[Any] = []
        """Of these, those that grow edge by edge."""
        self.sent: list[Any] = []
        """Graphs by their chunks, as they were sent."""
        self.reserved: list[Any] = []
        """Rows of reservations, places and refusals that were sent: what late ones are made from."""
        self.waits: list[tuple[int, Any]] = []
        """Until when an execution waits, as it was answered."""
        self.kid = "k1"
        """The kid that programs believe to sign."""
        self.ran: Callable[..., None] = lambda job, key, once=False: None
        """Told of every step whose body is really run."""
        self._serial = self._suspensions = 0

    durable = 0.6
    """Share of single creations that go to the durable lane."""

    # ---- draws

    def chance(self, p: float) -> bool:
        return self.rng.random() < p

    def new_id(self, partition: str | None = None) -> Any:
        """Un-keyed: a version 7 id, in order of creation."""
        self._serial += 1
        partition = partition or self.rng.choice(FP)
        return f"{partition}:{self._serial:08x}-{self.rng.randrange(1 << 16):04x}-7000-8000-000000000000"

    def new_uuid(self) -> Any:
        self._serial += 1
        return f"{self._serial:08x}-{self.rng.randrange(1 << 16):04x}-4000-8000-000000000000"

    def suspension_id(self) -> Any:
        """Mostly a new one."""
        self._suspensions += self.rng.random() < 0.95
        return f"s-{self._suspensions}"

    def keyed_id(self, key: int) -> Any:
        return f"{FP[key % len(FP)]}:{ids.uuid8(b'key %d' % key)}"

    def flow_key(self) -> Any:
        """The uuid of a flow with a key, one of few."""
        return ids.uuid8(b"flow %d" % self.rng.randrange(6))

    def child_key(self, parent: str, n: int) -> Any:
        return ids.uuid8(f"child {parent} {n}".encode())

    def any_id(self) -> Any:
        """Mostly a recent one; now and then one that nobody created."""
        rng = self.rng
        if not self.ids or rng.random() < 0.02:
            return self.nobody()
        return rng.choice(self.ids[-30:]) if rng.random() < 0.85 else rng.choice(self.ids)

    def nobody(self) -> Any:
        """An execution that nobody created."""
        return f"{self.rng.choice(FP)}:{NOBODY}"

    def any_job(self) -> c.ClaimedJob | None:
        """One of the last that were leased; now and then one of an execution that is not."""
        if not self.jobs:
            return None
        job = self.rng.choice(self.jobs[-20:])
        if self.rng.random() < 0.06:
            return msgspec.structs.replace(job, execution_id=f"{job.execution_id[:6]}:{NOBODY}")
        return job

    def know(self, answer: Any) -> None:
        """Remember leases that an answer brings."""
        self.jobs += getattr(answer, "jobs", None) or getattr(getattr(answer, "claimed", None), "jobs", [])
        del self.jobs[:-60]

    # ---- calls

    def creation(self, key: int | None = None) -> c.CreateExecutionArgs:
        rng = self.rng
        id = self.new_id() if key is None else self.keyed_id(key)
        self.ids.append(id)
        policy = rng.choice(POLICIES)
        priority = rng.choice([0, 0, 0, -2, 1, 100, -100])
        if policy is not None and policy.priority:
            priority = policy.priority
        lane = DURABLE if rng.random() < self.durable else rng.choice([*LANES, *LANES, *LANES, "rare"])
        if lane == DURABLE and policy is not None and policy.routing_requirements:
            policy = None
            priority = 0
        return c.CreateExecutionArgs(
            execution_id=id, namespace=rng.choice(["default", "default", "shop"]),  # type: ignore[arg-type]
            lane_id=lane, execution_kind=rng.choice(TASKS), input_payload=b"p" * rng.choice([0, 5, 90]),  # type: ignore[arg-type]
            digest=rng.choice([b"d", b"d", b"e"]) * 16, priority=priority, policy=policy,
            delay_until=rng.choice([None, None, None, self.ms + rng.randrange(3_000)]),  # type: ignore[arg-type]
            execution_deadline_at=rng.choice([None] * 8 + [self.ms + rng.randrange(200, 6_000)]),  # type: ignore[arg-type]
            # Lane c is plain first-in-first-out; the others have tenants.
            fairness_key=None if lane in ("c", "rare", DURABLE) else rng.choice([None, "t1", "t2", "t3"]),
            tags=rng.choice([{}, {}, {"s.kind": "x"}, {"s.kind": "y", "s.b": "2"}]), version=rng.choice([1, 1, 2]),
        )  # fmt: skip

    def creation_of_many(self) -> c.CreateManyArgs:
        rng, partition, lane = self.rng, self.rng.choice(FP), self.rng.choice(LANES)
        if rng.random() < self.durable / 2:
            lane = DURABLE
        rows = []
        for _ in range(rng.randrange(1, 12)):
            key = rng.randrange(12) if rng.random() < 0.3 else None
            id = self.new_id(partition) if key is None or FP[key % len(FP)] != partition else self.keyed_id(key)
            self.ids.append(id)
            rows.append(c.NewExecution(id, rng.choice([b"d", b"d", b"e"]) * 16, b"p" * rng.choice([0, 9]),
                                       None if lane in ("c", DURABLE) else rng.choice([None, None, "t1", "t2"]),
                                       rng.choice([None, pack_pairs({"s.kind": "x"})])))  # fmt: skip
        policy = rng.choice(POLICIES[:8])
        return c.CreateManyArgs(
            partition=partition, namespace="default", lane_id=lane, execution_kind=rng.choice(TASKS), items=rows,
            policy=None if policy is None else msgspec.json.encode(policy, order="sorted"),
            priority=rng.choice([0, 0, 5]), delay_until=rng.choice([None, None, None, self.ms + rng.randrange(2_000)]),
        )  # fmt: skip

    def fence(self, job: c.ClaimedJob) -> c.LeaseFence:
        return c.LeaseFence(job.lease_id, job.lease_epoch, job.attempt_id)

    def completion(self, job: c.ClaimedJob) -> c.CompleteExecutionArgs:
        return c.CompleteExecutionArgs(
            execution_id=job.execution_id, fence=self.fence(job), attempt_index=job.attempt_index,
            result_payload=self.rng.choice([None, b"r", b"r" * 100]),
        )  # fmt: skip

    def failure(self, job: c.ClaimedJob) -> c.FailExecutionArgs:
        rng = self.rng
        given = _retry(1, FixedBackoff(delay_ms=300)) if rng.random() < 0.1 else None
        return c.FailExecutionArgs(
            execution_id=job.execution_id, fence=self.fence(job), attempt_index=job.attempt_index,
            failure_reason="it broke", failure_category=rng.choice(["error", "error", "error", "other", "fatal"]),
            retry_policy_json=msgspec.json.encode(given).decode() if given else "",
            retry_after_ms=rng.choice([None, None, None, 0, 1_500]),
        )  # fmt: skip

    def delay(self, job: c.ClaimedJob) -> c.DelayExecutionArgs:
        return c.DelayExecutionArgs(
            execution_id=job.execution_id, fence=self.fence(job), attempt_index=job.attempt_index,
            delay_until=self.ms + self.rng.randrange(-500, 2_500),  # type: ignore[arg-type]
        )  # fmt: skip

    def unclaim(self, job: c.ClaimedJob, reason: str | None = None) -> c.UnclaimArgs:
        reason = reason or self.rng.choice(["hand_back", "refused", "unknown_task"])
        return c.UnclaimArgs(execution_id=job.execution_id, fence=self.fence(job).wire, reason=reason)

    def renewal(self, job: c.ClaimedJob) -> c.RenewLeaseArgs:
        return c.RenewLeaseArgs(
            execution_id=job.execution_id, attempt_index=job.attempt_index, fence=self.fence(job), lease_ttl_ms=TTL
        )

    def progress(self, job: c.ClaimedJob) -> c.UpdateProgressArgs:
        return c.UpdateProgressArgs(
            execution_id=job.execution_id, lease_id=job.lease_id, lease_epoch=job.lease_epoch,
            attempt_id=job.attempt_id, progress_pct=self.rng.choice([None, 5]), progress_message="on its way",
        )  # fmt: skip

    def quitting(self, job: c.ClaimedJob) -> c.CancelExecutionArgs:
        """The holder cancels its own job."""
        return c.CancelExecutionArgs(
            execution_id=job.execution_id, reason="no use", lease_id=job.lease_id, lease_epoch=job.lease_epoch,
            attempt_id=job.attempt_id,
        )  # fmt: skip


def sets_for(tokens: frozenset[str]) -> list[str]:
    """Digests of the capability sets these tokens serve, as a worker matches them."""
    kinds = [["eu"], ["gpu"], ["eu", "gpu"]]
    return [digest_of(",".join(kind)) for kind in kinds if set(kind) <= tokens]
