"""Who makes the calls: clients, workers, schedulers with grants, tickers, operators, readers.

An actor is a generator: it yields the Args of its next call, or None to wait, and is sent the answer. `Lost` is
thrown in where no answer came: it sends the same again, as the SDK does, or goes on without knowing. A crash closes
the generator; a new one takes its name and knows nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

import ffcore.contracts as c
from ffcore.args import Args
from ffcore.wire import pack_pairs
from tests.simulation.scene import HOLDS, LANES, OPERATOR, TASKS, TOKENS, TTL, Scene, sets_for
from tests.simulation.world import COUNTS, FP, WP, Refusal

Talk = Generator[Args[Any] | None, Any, None]


class Lost(Exception):
    """No answer came: the call may have taken effect."""


def ask(args: Args[Any], tries: int = 3) -> Generator[Args[Any] | None, Any, Any]:
    """Make one call and send it again while its answer is lost; None when it is given up."""
    for _ in range(tries):
        try:
            return (yield args)
        except Lost:
            continue
    return None


# ---- clients ---------------------------------------------------------------------------------------------


def client(scene: Scene, name: str) -> Talk:
    """Submits, waits, cancels, replays."""
    rng = scene.rng
    while True:
        draw = rng.random()
        if draw < 0.36 and scene.alive < scene.crowd:
            key = rng.randrange(12) if rng.random() < 0.35 else None
            yield from ask(scene.creation(key))
        elif draw < 0.6 and scene.alive < scene.crowd:
            yield from ask(scene.creation_of_many())
        elif draw < 0.74:
            some = [scene.any_id() for _ in range(rng.randrange(1, 4))]
            some = [id for id in some if id.startswith(some[0][:6])]
            yield from ask(c.AwaitArgs(partition=some[0][:6], client=name, items=[c.ExecutionRef(id) for id in some]))
        elif draw < 0.8:
            yield from ask(cancelling(scene))
        elif draw < 0.86:
            yield from ask(c.ReplayExecutionArgs(execution_id=scene.any_id()))
        elif draw < 0.93:
            some = [scene.any_id() for _ in range(3)]
            some = [id for id in some if id.startswith(some[0][:6])]
            yield from ask(c.ReadOutcomesArgs(partition=some[0][:6], items=[c.ExecutionRef(id) for id in some]))
        else:
            yield from ask(c.ReadExecutionArgs(execution_id=scene.any_id(), parts="payload,result,attempts"))


def cancelling(scene: Scene) -> c.CancelExecutionArgs:
    return c.CancelExecutionArgs(
        execution_id=scene.any_id(), reason="no longer wanted",
        source=scene.rng.choice([c.CancelSource("flow_cascade"), c.CancelSource("flow_cascade"), OPERATOR]),
        grace_ms=scene.rng.choice([None, 0, 700]),
    )  # fmt: skip


# ---- workers ---------------------------------------------------------------------------------------------


def worker(scene: Scene, name: str, inbox: list[str]) -> Talk:
    """Claims in batches, runs a while, reports in every way there is. `inbox` is what it was told."""
    rng = scene.rng
    tokens = frozenset(rng.sample(TOKENS, rng.randrange(len(TOKENS) + 1)))
    lanes = rng.sample(LANES, rng.randrange(1, len(LANES) + 1))
    queues: dict[str, Any] = {"lanes": lanes, "capability_sets": sets_for(tokens)}
    me: dict[str, Any] = queues | {
        "worker_id": name.partition("-")[0], "worker_instance_id": name, "lease_ttl_ms": TTL,
    }  # fmt: skip
    held: list[c.ClaimedJob] = []
    serial = 0
    yield from ask(c.AnnounceTasksArgs(partition=rng.choice(FP), tasks=[f"{rng.choice(TASKS)}@{rng.choice('12')}"]))
    while True:
        ordered = [job for job in held if any(job.execution_id in text for text in inbox)]
        inbox.clear()
        if not held or (len(held) < 7 and rng.random() < 0.3):
            serial += 1
            claim = c.ClaimBatchArgs(
                partitions=rng.sample(FP, rng.randrange(1, 3)), limit=rng.randrange(1, 8),
                claim_id=f"{name}.s.{serial}", park=rng.choice([None, name, name]), **me,
            )  # fmt: skip
            answer = yield from ask(claim)
            if isinstance(answer, c.ClaimedBatch):
                held += answer.jobs
                if answer.parked and not inbox:
                    yield None
            continue
        job = rng.choice(ordered or held)
        draw = rng.random()
        if draw < 0.26:
            partition = job.execution_id[:6]
            mine = [other for other in held if other.execution_id.startswith(partition)]
            serial += 1
            answer = yield from ask(c.CompleteManyArgs(
                partition=partition, limit=rng.randrange(0, 4), claim_id=f"{name}.s.{serial}",
                park=rng.choice([None, name]),
                items=[c.Completion(one.execution_id, scene.fence(one).wire, rng.choice([None, b"r"])) for one in mine],
                **me,
            ))  # fmt: skip
            if answer is not None:
                held = [other for other in held if other not in mine]
                held += answer.claimed.jobs if isinstance(answer, c.CompletedMany) else []
        elif draw < 0.34:
            partition = job.execution_id[:6]
            mine = [one for one in held if one.execution_id.startswith(partition)]
            rows = [c.Renewal(one.execution_id, scene.fence(one).wire) for one in mine]
            answer = yield from ask(c.RenewManyArgs(partition=partition, lease_ttl_ms=TTL, items=rows))
            if isinstance(answer, c.RenewedMany):
                gone = {row.execution_id for row, item in zip(rows, answer.items, strict=True) if item.state == "error"}
                held = [one for one in held if one.execution_id not in gone]
        elif draw < 0.44:
            answer = yield from ask(rng.choice([scene.renewal, scene.progress])(job))
            if isinstance(answer, Refusal):
                held.remove(job)
        elif draw < 0.52:
            yield None
        elif draw < 0.54:
            yield from ask(c.PassBellArgs(partition=rng.choice(FP), **queues))
        else:
            end = rng.choice([scene.completion, scene.completion, scene.failure, scene.failure, scene.delay,
                              scene.unclaim, scene.quitting])  # fmt: skip
            held.remove(job)
            yield from ask(end(job))


RESCUES: list[Callable[[c.ClaimedJob], Args[Any]]] = [
    lambda job: c.RevokeLeaseArgs(execution_id=job.execution_id, worker_instance_id="", reason="rescued"),  # type: ignore[arg-type]
    lambda job: c.MarkLeaseExpiredArgs(execution_id=job.execution_id),
]
"""How a scheduler makes sure that an execution can be reclaimed."""


def scheduler(scene: Scene, name: str) -> Talk:
    """The two-step claim: a grant, then the lease; the same for what is reclaimable."""
    rng = scene.rng
    n = 0
    while True:
        n += 1
        tokens = frozenset(rng.sample(TOKENS, rng.randrange(len(TOKENS) + 1)))
        who: dict[str, Any] = {"worker_id": rng.choice([name, "other"]), "worker_instance_id": name}
        ttl = rng.choice([50, 1_000, 3_000])
        id, lane, draw = scene.any_id(), rng.choice(LANES), rng.random()
        reclaim = False
        job = scene.any_job()
        if job is not None and draw >= 0.55 and rng.random() < 0.7:
            id = job.execution_id  # more likely to have lost its lease than any other
        if draw < 0.35:
            got = yield from ask(c.ClaimForWorkerArgs(
                lane_id=lane, worker_capabilities=tokens, grant_ttl_ms=ttl, at=rng.choice(FP), **who))  # type: ignore[arg-type]  # fmt: skip
            if isinstance(got, c.WorkerGranted):
                id = got.grant.execution_id
        elif draw < 0.55:
            for worker in [who["worker_id"], "rival"][: rng.choice([1, 1, 1, 2])]:
                yield from ask(c.IssueClaimGrantArgs(
                    execution_id=id, lane_id=lane, partition=id[:6], grant_ttl_ms=ttl, worker_capabilities=tokens,  # type: ignore[arg-type]
                    **(who | {"worker_id": worker})))  # fmt: skip
        else:
            reclaim = True
            if job is not None and rng.random() < 0.6:
                yield from ask(rng.choice(RESCUES)(job))
            for worker in [who["worker_id"], "rival"][: rng.choice([1, 1, 1, 2])]:
                yield from ask(c.IssueReclaimGrantArgs(
                    execution_id=id, lane_id=lane, grant_ttl_ms=ttl, worker_capabilities=tokens,  # type: ignore[arg-type]
                    **(who | {"worker_id": worker})))  # fmt: skip
        if rng.random() < 0.1:
            if rng.random() < 0.3:  # a grant that lapses while it is paused
                yield from ask(c.PauseExecutionArgs(execution_id=id, reason="not now"))
            continue
        read = yield from ask(c.ReadExecutionArgs(execution_id=id, parts="payload,result,attempts"))
        fields = read.fields if isinstance(read, c.StoredExecution) else {}
        index, attempt = int(fields.get("attempt", "-1")), f"{name}.g.{n}.a"
        lease: dict[str, Any] = {
            "execution_id": id, "lane_id": lane, "lease_id": f"{name}.g.{n}.0", "lease_ttl_ms": TTL,
        }  # fmt: skip
        if rng.random() < 0.1:
            index += 1
        if rng.random() < 0.1:
            who["worker_id"] = "stranger"
        call: Args[Any]
        if (fields.get("next") == "resumed" and rng.random() < 0.8) or rng.random() < 0.08:
            if rng.random() < 0.2:
                index += 1  # rare: few claims by grant are of what was suspended
            call = c.ClaimResumedExecutionArgs(
                current_attempt_index=max(0, index), remaining_attempt_timeout_ms=rng.choice([None, None, 0, 800]),  # type: ignore[arg-type]
                **lease, **who)  # fmt: skip
        elif reclaim or rng.random() < 0.08:
            call = c.ReclaimExecutionArgs(
                attempt_id=attempt, old_worker_instance_id=name, current_attempt_index=max(0, index),  # type: ignore[arg-type]
                max_reclaim_count=rng.choice([None, None, 0, 5]), **lease, **who)  # fmt: skip
        else:
            call = c.ClaimExecutionArgs(
                attempt_id=attempt, expected_attempt_index=index + 1,  # type: ignore[arg-type]
                attempt_timeout_ms=rng.choice([None, None, 1_000]),
                execution_deadline_at=rng.choice([None, None, None, scene.ms + 3_000]), **lease, **who)  # fmt: skip
        got = yield from ask(call)
        taken = _leased(got)
        if taken is None:
            continue
        fence = taken
        for _ in range(rng.randrange(3)):
            yield None
        end: list[Callable[[], Args[Any]]] = [
            lambda fence=fence, id=id: c.CompleteExecutionArgs(  # type: ignore[misc]
                execution_id=id, fence=fence, attempt_index=0, result_payload=b"g"),  # type: ignore[arg-type]
            lambda fence=fence, id=id: c.UnclaimArgs(execution_id=id, fence=fence.wire, reason="hand_back"),  # type: ignore[misc]
            lambda fence=fence, id=id: c.DelayExecutionArgs(  # type: ignore[misc]
                execution_id=id, fence=fence, attempt_index=0, delay_until=scene.ms + 200),  # type: ignore[arg-type]
        ]  # fmt: skip
        if rng.random() < 0.8:
            yield from ask(rng.choice(end)())


def _leased(got: Any) -> c.LeaseFence | None:
    if isinstance(got, c.Claimed | c.ResumedClaimed):
        return got.execution.fence
    return got.handle.fence if isinstance(got, c.ReclaimClaimed) else None


# ---- tickers ---------------------------------------------------------------------------------------------


def ticker(scene: Scene, name: str) -> Talk:
    rng = scene.rng
    while True:
        answer = yield from ask(c.TickArgs(
            partitions=rng.choice([FP, FP, FP[:1], [*FP, WP]]), ticker=name,
            limit=rng.choice([200, 200, 200, 1, 4, 20]), force=rng.random() < 0.1,
        ))  # fmt: skip
        if isinstance(answer, c.Ticked) and rng.random() < 0.05:
            yield from ask(c.AckOutboxArgs(partition=rng.choice(FP), items=[c.OutboxRef("none")]))
        yield None
        if rng.random() < 0.02:
            # Away for a while: claims do what is due, or nobody.
            for _ in range(rng.randrange(10, 60)):
                yield None


# ---- operators -------------------------------------------------------------------------------------------


def operator(scene: Scene, name: str) -> Talk:
    rng = scene.rng
    while True:
        draw = rng.random()
        if draw < 0.08:
            changes: dict[str, str] = rng.choice([
                {"state": "active"}, {"state": "active"}, {"state": "active"}, {"state": "paused"},
                {"state": "draining"}, {"state": "disabled"},
                {"count": str(rng.randrange(5)), "age_ms": rng.choice(["0", "65000"])},
                {"bytes": rng.choice(["0", "120"])},
            ])  # fmt: skip
            yield from setting(scene, f"lane:{rng.choice(LANES)}", changes)
        elif draw < 0.09:
            yield from setting(scene, "store", {"gate_pct": rng.choice(["0", "90"])})
        elif draw < 0.25 and scene.jobs:
            yield from _taken_away(scene)
        else:
            yield from ask(rng.choice(OPERATIONS)(scene))
        yield None


def setting(scene: Scene, name: str, changes: dict[str, str]) -> Talk:
    """Change a record of settings and bring it to the partitions, one of which may not hear of it."""
    rng = scene.rng
    expected = rng.choice([None, None, None, 0, 1])
    put = c.PutSettingsArgs(partition=WP, name=name, changes=pack_pairs(changes), expected_revision=expected)
    got = yield from ask(put)
    if not isinstance(got, c.Settings):
        return
    for partition in FP:
        if rng.random() < 0.85:
            yield from ask(c.ApplySettingsArgs(partition=partition, name=name, revision=got.revision,
                                               since=got.revision - 1, values=pack_pairs(got.values)))  # fmt: skip


def _taken_away(scene: Scene) -> Talk:
    """A lease is revoked, and its holder reports under it without knowing; then somebody may have it."""
    rng, job = scene.rng, scene.rng.choice(scene.jobs[-8:])
    yield from ask(c.RevokeLeaseArgs(
        execution_id=job.execution_id, expected_lease_id=rng.choice([None, job.lease_id]),
        worker_instance_id=rng.choice(["", job.lease_id.split(".")[0], "somebody-else"]), reason="stuck",  # type: ignore[arg-type]
    ))  # fmt: skip
    for _ in range(rng.randrange(5)):
        yield from ask(_report(scene, job))
    if rng.random() < 0.5:
        next_one: list[Callable[[], Args[Any]]] = [
            lambda: c.BlockExecutionArgs(execution_id=job.execution_id, blocking_reason="paused_by_operator"),
            lambda: c.CancelExecutionArgs(execution_id=job.execution_id, reason="stuck", source=OPERATOR),
            lambda: c.ExpireExecutionArgs(execution_id=job.execution_id, expire_reason="late"),
        ]  # fmt: skip
        yield from ask(rng.choice(next_one)())


def _late(scene: Scene) -> Args[Any]:
    """A report under a fence somebody had: of a dead worker, or an old message."""
    job = scene.any_job()
    if job is None:
        return c.NoopArgs(partition=FP[0], data=b"")
    return _report(scene, job)


def _report(scene: Scene, job: c.ClaimedJob) -> Args[Any]:
    make: Callable[[c.ClaimedJob], Args[Any]] = scene.rng.choice([
        scene.completion, scene.failure, scene.delay, scene.unclaim, scene.renewal, scene.progress, scene.quitting,
    ])  # fmt: skip
    return make(job)


def _override(scene: Scene) -> Args[Any]:
    """What an operator may do without a fence, and what others may not."""
    rng, id = scene.rng, scene.any_id()
    source = OPERATOR if rng.random() < 0.8 else c.CancelSource("lease_holder")
    draw = rng.random()
    if draw < 0.3:
        return c.CompleteExecutionArgs(execution_id=id, attempt_index=0, source=source)  # type: ignore[arg-type]
    if draw < 0.6:
        return c.FailExecutionArgs(execution_id=id, attempt_index=0, failure_reason="by hand",  # type: ignore[arg-type]
                                   failure_category=rng.choice(["error", "fatal"]), source=source)  # fmt: skip
    if draw < 0.9:
        return c.DelayExecutionArgs(execution_id=id, attempt_index=0, delay_until=scene.ms + 300, source=source)  # type: ignore[arg-type]
    return c.RenewLeaseArgs(execution_id=id, attempt_index=0, fence=None, lease_ttl_ms=TTL)  # type: ignore[arg-type]


def _tagging(scene: Scene) -> Args[Any]:
    tags = {"s.kind": scene.rng.choice(["x", "y", ""]), "s.c": scene.rng.choice(["", "3"])}
    return c.SetExecutionTagsArgs(execution_id=scene.any_id(), tags=tags)


def _overdue(scene: Scene) -> Args[Any]:
    """End a lease by hand; mostly one that has run out and was not swept."""
    lost = [job for job in scene.jobs if job.lease_expires_at <= scene.ms]
    id = scene.rng.choice(lost[-8:]).execution_id if lost and scene.rng.random() < 0.8 else scene.any_id()
    return c.MarkLeaseExpiredArgs(execution_id=id)


def _rerouting(scene: Scene, id: Any) -> Args[Any]:
    return c.BlockRouteArgs(execution_id=id, lane_id="", partition=id[:6], reason_detail="none",  # type: ignore[arg-type]
                            reason_code="waiting_for_locality_match")  # fmt: skip


REASONS = ["paused_by_operator", "waiting_for_capable_worker", "waiting_for_locality_match", "waiting_for_quota"]
OPERATIONS: list[Callable[[Scene], Args[Any]]] = [
    lambda s: c.HoldArgs(partition=s.rng.choice(FP), what=s.rng.choice(HOLDS), reason="stop"),
    lambda s: c.ReleaseArgs(partition=s.rng.choice(FP), what=s.rng.choice(HOLDS)),
    lambda s: c.ReleaseArgs(partition=s.rng.choice(FP), what=s.rng.choice(HOLDS)),
    lambda s: c.ReleaseArgs(partition=s.rng.choice(FP), what=s.rng.choice(HOLDS)),
    lambda s: c.BlockExecutionArgs(execution_id=s.any_id(), blocking_reason=s.rng.choice(REASONS)),
    lambda s: c.UnblockExecutionArgs(execution_id=s.any_id(),
                                     expected_blocking_reason=s.rng.choice([None, None, None, *REASONS])),
    lambda s: c.UnblockExecutionArgs(execution_id=s.any_id()),
    lambda s: c.UnblockExecutionArgs(execution_id=s.any_id(), expected_blocking_reason=s.rng.choice(REASONS)),
    lambda s: _rerouting(s, s.any_id()),
    lambda s: c.ChangePriorityArgs(execution_id=s.any_id(), new_priority=s.rng.randrange(-3, 4),
                                   lane_id=s.rng.choice(["", "", "", *LANES])),  # type: ignore[arg-type]
    cancelling, _late, _late, _late, _override, _override, _tagging, _overdue, _overdue, _overdue, _overdue,
    lambda s: c.ExpireExecutionArgs(execution_id=s.any_id(), expire_reason=s.rng.choice(["attempt_timeout", "late"])),
    lambda s: c.ExpireExecutionArgs(execution_id=s.rng.choice(s.jobs[-8:]).execution_id if s.jobs else s.any_id(),
                                    expire_reason="attempt_timeout"),
    lambda s: c.PurgeArgs(partition=s.rng.choice(FP), lane_id=s.rng.choice(LANES),  # type: ignore[arg-type]
                          outcome=s.rng.choice(["completed", "failed", "cancelled", "expired"]), before_ms=s.ms,  # type: ignore[arg-type]
                          limit=s.rng.choice([1, 5]), dry_run=s.rng.random() < 0.2),
    lambda s: c.AnnounceTasksArgs(partition=s.rng.choice(FP), tasks=[f"{t}@{v}" for t in TASKS for v in (1, 2)]),
]  # fmt: skip


# ---- readers ---------------------------------------------------------------------------------------------


def reader(scene: Scene, name: str) -> Talk:
    """Listings, the roster, the feed: nothing a reader asks changes anything."""
    while True:
        yield from ask(scene.rng.choice(READINGS)(scene))
        yield None


READINGS: list[Callable[[Scene], Args[Any]]] = [
    lambda s: c.ScanEligibleArgs(lane_id=s.rng.choice(LANES), partition=s.rng.choice(FP), limit=s.rng.choice([2, 100])),  # type: ignore[arg-type]
    lambda s: c.ListExecutionsArgs(partition=s.rng.choice(FP), lane_id=s.rng.choice([None, *LANES]),  # type: ignore[arg-type]
                                   states=s.rng.choice([[], ["ready"], ["active", "blocked"], ["failed"]]),
                                   tag=s.rng.choice([None, None, "s.kind=x"]), limit=s.rng.choice([3, 1_000])),
    lambda s: c.ListLeasesArgs(partition=s.rng.choice(FP), lane_id=s.rng.choice([None, "a"]),  # type: ignore[arg-type]
                               expired_only=s.rng.random() < 0.3),
    lambda s: c.LaneStatsArgs(partition=s.rng.choice(FP), lane_id=s.rng.choice([*LANES, "nowhere"])),  # type: ignore[arg-type]
    lambda s: c.ListLanesArgs(partition=s.rng.choice(FP)), lambda s: c.ListHoldsArgs(partition=s.rng.choice(FP)),
    lambda s: c.ListCapabilitySetsArgs(partition=s.rng.choice(FP), lanes=s.rng.sample(LANES, 2)),
    lambda s: c.ReadHeaderArgs(partition=s.rng.choice(FP)),
    lambda s: c.ReadEventsArgs(partition=s.rng.choice(FP), limit=5),
    lambda s: c.ExecutionHistoryArgs(execution_id=s.any_id(), limit=5),
    lambda s: c.NoopArgs(partition=FP[0], data=b"x"),
    lambda s: c.ReadExecutionArgs(execution_id=s.any_id(), parts="payload,result,attempts"),
    lambda s: c.RegisterWorkerArgs(partition=WP, worker_instance_id=f"r{s.rng.randrange(3)}", info=b"{}",  # type: ignore[arg-type]
                                   ttl_ms=s.rng.choice([0, 500, 2_000])),
    lambda s: c.ListWorkersArgs(partition=WP), lambda s: c.ListTasksArgs(partition=WP),
    lambda s: c.PublishTasksArgs(partition=WP, items=[c.TaskRow(s.rng.choice(TASKS), s.rng.randrange(1, 4), b"{}")]),
    lambda s: c.InitPartitionArgs(partition=s.rng.choice(FP), counts=s.rng.choice(["other", COUNTS])),
    lambda s: c.ListSettingsArgs(partition=WP, name=s.rng.choice([None, "store", "lane:a"]),
                                 after_revision=s.rng.randrange(3)),
]  # fmt: skip

