"""Who makes the calls of durable executions: workers with a scripted handler, senders of signals, operators, readers.

The handler of an execution is decided by its id and run alone, so whoever takes over runs the same one from the top:
recorded steps are skipped, the rest is done. The simulation is told of every step that is really run (`Scene.ran`).
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Generator
from dataclasses import replace
from typing import Any, NamedTuple

import ffcore.contracts as c
from ffcore.args import Args
from ffcore.steps import JournalEntry, digest_of, entries_of, step_key
from tests.simulation.actors import REASONS, Talk, ask
from tests.simulation.durable import unpacked
from tests.simulation.gates import (
    KIDS,
    Gate,
    digest,
    fingerprint_of,
    new_gate,
    opening,
    sending,
    sleeping,
    suspending,
    waiting,
)
from tests.simulation.scene import DURABLE, LANES, TTL, Scene
from tests.simulation.world import FP, Refusal


class Op(NamedTuple):
    kind: str
    name: str
    n: int = 0


KINDS = [*["step"] * 4, *["gate"] * 5, *["wait"] * 4, *["emit"] * 2, "once", "flaky", "doomed", "sleep", "summary",
         "suspend", "suspend"]  # fmt: skip


def script(execution_id: str, run: int) -> list[Op]:
    """What the handler of an execution does, the same in every process. Its last runs do not go on as new ones."""
    rng = random.Random(f"{execution_id} {run}")
    ops = [Op(rng.choice(KINDS), rng.choice("xyz"), rng.randrange(3)) for _ in range(rng.randrange(2, 11))]
    if rng.random() < 0.3 and run < 3:
        ops.append(Op("continue", ""))
    return ops


Calls = Generator[Args[Any] | None, Any, Any]


class _Over(Exception):
    """The handler stops here: it waits, has lost its lease, or has ended the run."""


class _Handler:
    """One run of the handler of a claimed job, from the top."""

    def __init__(self, scene: Scene, job: c.ClaimedJob) -> None:
        self.scene, self.rng, self.job = scene, scene.rng, job
        self.entries: dict[str, JournalEntry] = {}
        self.met: Counter[str] = Counter()
        self.gates: list[Gate] = []
        self.op = 0
        self.summary = 0

    def run(self) -> Calls:
        try:
            yield from self._recall()
            for op in script(self.job.execution_id, self.job.run):
                yield from getattr(self, f"_{op.kind}")(op)
                if self.rng.random() < 0.1:
                    yield None
            yield from ask(self.scene.completion(self.job))
        except _Over:
            return

    def _ask(self, args: Args[Any]) -> Calls:
        answer = yield from ask(args)
        if answer is None or isinstance(answer, Refusal):
            if isinstance(answer, Refusal) and answer.code == "journal_full":
                yield from self._continue(Op("continue", ""))
            raise _Over
        return answer

    def _recall(self) -> Calls:
        job = self.job
        head = job.journal
        if head is not None:
            known = entries_of(head.entries)
            while len(known) < head.total:
                limit = self.rng.choice([2, 1_000])
                read = c.ReadJournalArgs(execution_id=job.execution_id, from_seq=len(known) + 1, limit=limit)
                page = yield from self._ask(read)
                if not page.entries:
                    break
                known += entries_of(page.entries, len(known) + 1)
            self.entries = {entry.key: entry for entry in known}
        if self.rng.random() < 0.06:
            version = self.rng.choice([job.version, 1, 2])
            yield from self._ask(c.PinVersionArgs(execution_id=job.execution_id, fence=self.fence, version=version))

    @property
    def fence(self) -> str:
        return self.scene.fence(self.job).wire

    def _key(self, op: Op) -> tuple[str, JournalEntry | None]:
        name = f"{op.kind} {op.name}"
        digest = digest_of([op.name, op.n], {})
        self.met[name + digest] += 1
        key = step_key(name, digest, self.met[name + digest])
        return key, self.entries.get(key)

    def _record(self, op: Op, key: str, status: str = "ok", value: bytes | None = b"done") -> Calls:
        rng = self.rng
        frames = [c.StepFrame("note", rng.choice(["append", "best_effort"]), b"with %d" % i, None)
                  for i in range(rng.choice([0, 0, 0, 1, 2]))]  # fmt: skip
        return (yield from self._ask(c.RecordStepArgs(
            execution_id=self.job.execution_id, fence=self.fence, step=key, kind="step", name=f"{op.kind} {op.name}",
            status=status, value=value, version=self.job.version, lease_ttl_ms=rng.choice([0, TTL, TTL]),
            progress_pct=rng.choice([None, None, 50]), frames=frames,
        )))  # fmt: skip

    # ---- what handlers do

    def _step(self, op: Op) -> Calls:
        key, entry = self._key(op)
        if entry is None or not entry.final:
            self.scene.ran(self.job, key)
            yield from self._record(op, key, value=b"v" * self.rng.choice([1, 1, 40, 400]))

    def _flaky(self, op: Op) -> Calls:
        key, entry = self._key(op)
        if entry is not None and entry.final:
            return
        tries = entry.tries if entry else 0
        self.scene.ran(self.job, key)
        if tries < 1:
            yield from self._record(op, key, "error", b"%d it broke" % (tries + 1))
            yield from ask(self.scene.failure(self.job))
            raise _Over
        yield from self._record(op, key)

    def _doomed(self, op: Op) -> Calls:
        key, entry = self._key(op)
        if entry is not None and entry.status == "ok":
            return
        if entry is None or not entry.final:
            self.scene.ran(self.job, key)
            if op.n or self.rng.random() < 0.5:
                yield from self._record(op, key)
                return
            yield from self._record(op, key, "fatal", b"1:E4:dead5:fatal")
        yield from ask(c.FailExecutionArgs(
            execution_id=self.job.execution_id, fence=self.scene.fence(self.job), attempt_index=self.job.attempt_index,
            failure_reason="a step failed for good", failure_category="fatal"))  # fmt: skip
        raise _Over

    def _once(self, op: Op) -> Calls:
        key, entry = self._key(op)
        if entry is not None and entry.final:
            return
        if entry is not None and entry.status == "intent":
            yield from self._record(op, key, "fatal", b"1:E4:lost5:error")
            return
        told = yield from self._record(op, key, "intent", None)
        if isinstance(told, c.StepReplayed):
            raise _Over  # somebody else has begun it
        self.scene.ran(self.job, key, once=True)
        yield from self._record(op, key)

    def _emit(self, op: Op) -> Calls:
        rng, job = self.rng, self.job
        self.op += 1
        if rng.random() < 0.4:
            yield from self._ask(c.AppendFrameArgs(
                execution_id=job.execution_id, attempt_index=job.attempt_index, lease_id=job.lease_id,
                lease_epoch=job.lease_epoch, attempt_id=job.attempt_id, frame_type="token", timestamp=self.scene.ms,  # type: ignore[arg-type]
                payload=b"\x00\xff%d" % op.n, mode=rng.choice(["append", "best_effort"]),
                correlation_id=rng.choice([None, "c"]), op=rng.choice([None, self.op, self.op]),
            ))  # fmt: skip
            return
        rows = []
        for _ in range(rng.randrange(1, 4)):
            mode: Any = rng.choice(["append", "best_effort"])
            correlation = rng.choice([None, "c"])
            rows.append(
                c.NewFrame(job.execution_id, self.fence, self.op, "token", mode, b"many %d" % op.n, None, correlation)
            )
            self.op += 1
        other = self.scene.any_job()
        if other is not None and other.execution_id[:6] == job.execution_id[:6] and rng.random() < 0.2:
            fence, op = self.scene.fence(other).wire, rng.randrange(1, 4)
            rows.append(c.NewFrame(other.execution_id, fence, op, "late", "append", b"late", None, None))
        yield from ask(c.AppendFramesArgs(partition=job.execution_id[:6], items=rows))  # type: ignore[arg-type]

    def _summary(self, op: Op) -> Calls:
        got = yield from self._ask(c.ReadSummaryArgs(execution_id=self.job.execution_id))
        version = got.summary.version if got.summary is not None else 0
        if self.rng.random() < 0.1:
            version = max(0, version + self.rng.choice([-1, 1]))
        document = b'{"n":%d}' % self.rng.randrange(100)
        yield from ask(c.WriteSummaryArgs(execution_id=self.job.execution_id, fence=self.scene.fence(self.job),
                                          document_json=document, expected_version=version))  # fmt: skip

    def _gate(self, op: Op) -> Calls:
        key, entry = self._key(op)
        if entry is not None and entry.final:
            id, name, kid = (text.decode() for text in unpacked(entry.value))
            gate = Gate(self.job.execution_id, id, name, kid, digest(self.job.execution_id, id, name, kid))
        else:
            gate = new_gate(self.scene, self.job.execution_id, f"{op.name}{op.n} {key[-3:]}")
            self.scene.gates.append(gate)
            yield from self._ask(opening(self.scene, self.job, gate, key, f"{op.kind} {op.name}"))
        if gate.key not in [one.key for one in self.gates]:
            self.gates.append(gate)
        if self.rng.random() < 0.04:
            yield from ask(opening(self.scene, self.job, renamed(gate)))

    def _wait(self, op: Op) -> Calls:
        key, entry = self._key(op)
        gates = self.gates[: 1 + op.n]
        if entry is None and gates:
            got = yield from self._ask(waiting(self.scene, self.job, gates, key, f"{op.kind} {op.name}"))
            self._gave_up(got)
            self.gates = self.gates[1 + op.n :]

    def _sleep(self, op: Op) -> Calls:
        key, entry = self._key(op)
        if entry is None:
            got = yield from self._ask(sleeping(self.scene, self.job, key, f"{op.kind} {op.name}"))
            self._gave_up(got)

    def _gave_up(self, got: Any) -> None:
        """Where the lease is gone the handler stops."""
        if isinstance(got, c.WaitSuspended):
            self.scene.waits.append((got.until or 0, self.job.execution_id))
            raise _Over

    def _suspend(self, op: Op) -> Calls:
        got = yield from self._ask(suspending(self.scene, self.job))
        if isinstance(got, c.WireSuspended):
            raise _Over

    def _continue(self, op: Op) -> Calls:
        yield from ask(c.ContinueAsArgs(execution_id=self.job.execution_id, fence=self.fence, payload=b"next"))
        raise _Over


def worker(scene: Scene, name: str, inbox: list[str]) -> Talk:
    """Claims a job, runs its handler as far as it gets, claims the next."""
    rng = scene.rng
    serial = 0
    while True:
        serial += 1
        lanes = [DURABLE] if rng.random() < 0.8 else [DURABLE, rng.choice(LANES)]
        got = yield from ask(c.ClaimBatchArgs(
            partitions=rng.sample(FP, rng.randrange(1, 3)), limit=1, claim_id=f"{name}.s.{serial}", lanes=lanes,
            capability_sets=[], worker_id=name.partition("-")[0], worker_instance_id=name, lease_ttl_ms=TTL,
            park=rng.choice([None, name]),
        ))  # fmt: skip
        inbox.clear()
        jobs = got.jobs if isinstance(got, c.ClaimedBatch) else []
        if not jobs:
            yield None
        for job in jobs:
            yield from _Handler(scene, job).run()


# ---- senders, operators, readers -------------------------------------------------------------------------


def signaller(scene: Scene, name: str) -> Talk:
    """Sends signals to gates it has heard of, some with tokens of others; and the same again, later."""
    rng = scene.rng
    sent: list[Args[Any]] = []
    while True:
        if not scene.gates:
            yield None
            continue
        if sent and rng.random() < 0.15:
            yield from ask(rng.choice(sent[-10:]))
            continue
        among = scene.asked[-10:] if scene.asked and rng.random() < 0.75 else scene.gates[-12:]
        signal = sending(scene, rng.choice(among if rng.random() < 0.95 else scene.gates))
        sent.append(signal)
        yield from ask(signal)


def operator(scene: Scene, name: str) -> Talk:
    rng = scene.rng
    while True:
        draw = rng.random()
        if draw < 0.12:
            yield from _rotation(scene)
        elif draw < 0.24 and scene.jobs:
            job = rng.choice(scene.jobs[-8:])
            yield from ask(c.RevokeLeaseArgs(execution_id=job.execution_id, worker_instance_id="", reason="stuck"))  # type: ignore[arg-type]
            for _ in range(rng.randrange(1, 6)):
                yield from ask(late(scene, job))
        elif draw < 0.3:
            yield from ask(c.ReplayExecutionArgs(execution_id=scene.any_id(), mode=rng.choice(["resume", "fresh"])))
        elif draw < 0.46:
            id = scene.any_id()
            yield from ask(c.PauseExecutionArgs(execution_id=id, reason="look at it"))
            for _ in range(rng.randrange(3)):
                yield None
            if rng.random() < 0.8:
                yield from ask(c.ResumeExecutionArgs(execution_id=id, trigger_type="operator",
                                                     resume_delay_ms=rng.choice([0, 0, 700])))  # fmt: skip
        elif draw < 0.54:
            yield from _blocked_and_paused(scene)
        else:
            yield from ask(rng.choice(OPERATIONS)(scene))
        yield None


def _blocked_and_paused(scene: Scene) -> Talk:
    """Two stops for one execution: whoever lifts one of them does not lift the other."""
    rng = scene.rng
    page = yield from ask(c.ListExecutionsArgs(partition=rng.choice(FP), states=["ready"], limit=5))
    if page is None or not page.items:
        return
    id = rng.choice(page.items).execution_id
    stops: list[Args[Any]] = [
        c.BlockExecutionArgs(execution_id=id, blocking_reason=rng.choice(REASONS)),
        c.PauseExecutionArgs(execution_id=id, reason="look at it"),
    ]  # fmt: skip
    lifts: list[Args[Any]] = [
        c.UnblockExecutionArgs(execution_id=id, expected_blocking_reason=rng.choice([None, None, *REASONS])),
        c.ResumeExecutionArgs(execution_id=id, trigger_type="operator"),
    ]  # fmt: skip
    for call in stops + rng.sample(lifts, 2)[: rng.randrange(3)]:
        yield from ask(call)


def _rotation(scene: Scene) -> Talk:
    """Another kid signs, in both partitions or, for a while, in one."""
    rng = scene.rng
    if rng.random() < 0.2:
        yield from ask(c.SeedWaitpointHmacSecretWireArgs(
            kid=rng.choice(KIDS), fingerprint=fingerprint_of(rng.choice(KIDS)), at=rng.choice(FP)))  # fmt: skip
        return
    kid = rng.choice(KIDS)
    print_ = fingerprint_of(kid, rng.choice(["", "", "", "other"]))
    for p in FP:
        if rng.random() < 0.9:
            yield from ask(c.RotateWaitpointHmacSecretWireArgs(
                new_kid=kid, fingerprint=print_, grace_ms=rng.choice([0, 1_500, 60_000]), at=p))  # fmt: skip
    scene.kid = kid


def renamed(gate: Gate) -> Gate:
    return replace(gate, key="other name")


def late(scene: Scene, job: c.ClaimedJob | None = None) -> Args[Any]:
    """A report under a fence somebody had, of an execution that may do something else by now."""
    rng, job = scene.rng, job or scene.any_job()
    if job is None:
        return c.NoopArgs(partition=FP[0], data=b"")
    id, fence = job.execution_id, scene.fence(job)
    gate = new_gate(scene, id, rng.choice(["x0 1.1", "again"]))
    if rng.random() < 0.1:
        known = [rng.choice([gate, *scene.gates[-5:]])]
    else:
        known = list({one.key: one for one in scene.gates[-40:] if one.execution_id == id}.values())
    made: list[Callable[[], Args[Any]]] = [
        lambda: c.RecordStepArgs(execution_id=id, fence=fence.wire, step="ab.12." + rng.choice("12"), name="late",
                                 status=rng.choice(["ok", "error", "intent"]), value=b"1 late", lease_ttl_ms=TTL),
        lambda: c.AppendFrameArgs(execution_id=id, attempt_index=job.attempt_index, lease_id=fence.lease_id,
                                  lease_epoch=fence.lease_epoch, attempt_id=fence.attempt_id, frame_type="late",
                                  timestamp=scene.ms, payload=b"late"),  # type: ignore[arg-type]
        lambda: waiting(scene, job, rng.sample(known, min(len(known), 2)), "ab.13.1", "late wait"),
        lambda: sleeping(scene, job, "ab.14." + rng.choice("12"), "late sleep"),
        lambda: suspending(scene, job),
        lambda: opening(scene, job, rng.choice([gate, *known[:1], *[renamed(one) for one in known[:1]]]),
                        *rng.choice([(None, None), ("ab.15.1", "late gate")])),
        lambda: c.ContinueAsArgs(execution_id=id, fence=fence.wire, payload=b"late"),
        lambda: c.PinVersionArgs(execution_id=id, fence=fence.wire, version=rng.choice([1, 2])),
        lambda: c.NoteUnclaimedArgs(execution_id=id, fence=fence.wire, count=1, names="step 'late'"),
        lambda: c.WriteSummaryArgs(execution_id=id, fence=fence, document_json=b"{}",
                                   expected_version=rng.randrange(2)),
    ]  # fmt: skip
    call = rng.choice(made)()
    if isinstance(call, c.CreatePendingWaitpointWireArgs):
        scene.gates.append(gate)
    return call


def _by_operator(scene: Scene) -> Args[Any]:
    job = scene.any_job()
    return late(scene) if job is None else suspending(scene, job, operator=True)


def _closing(scene: Scene) -> Args[Any]:
    gate = scene.rng.choice(scene.gates[-20:]) if scene.gates else new_gate(scene, scene.any_id(), "none")
    id = gate.execution_id if scene.rng.random() < 0.9 else scene.any_id()
    return c.CloseWaitpointArgs(at=id, waitpoint_id=gate.waitpoint_id, reason="not needed")


def _suspended_id(scene: Scene) -> Any:
    """Mostly one that has a gate."""
    gated = scene.gates and scene.rng.random() < 0.6
    return scene.rng.choice(scene.gates[-20:]).execution_id if gated else scene.any_id()


def _overdue(scene: Scene) -> Any:
    """One whose wait is over, which nobody may have swept."""
    over = [id for until, id in scene.waits[-20:] if 0 < until <= scene.ms]
    return over[-1] if over else _suspended_id(scene)


OPERATIONS: list[Callable[[Scene], Args[Any]]] = [
    late, late, late, late, late, late, late, late, late, _by_operator, _closing, _closing,
    lambda s: c.ResumeExecutionArgs(execution_id=_suspended_id(s),
                                    trigger_type=s.rng.choice(["operator", "operator", "auto_resume"]),
                                    resume_delay_ms=s.rng.choice([0, 0, 500])),
    lambda s: c.ExpireSuspensionArgs(execution_id=_suspended_id(s)),
    lambda s: c.ExpireSuspensionArgs(execution_id=_overdue(s)),
    lambda s: c.ExpireSuspensionArgs(execution_id=_overdue(s)),
]  # fmt: skip


def reader(scene: Scene, name: str) -> Talk:
    while True:
        yield from ask(scene.rng.choice(READINGS)(scene))
        yield None


def _reading(scene: Scene) -> Args[Any]:
    after = scene.rng.choice(["-", "-", "+", f"{scene.ms - scene.rng.randrange(3_000)}"])
    return c.ReadStreamArgs(execution_id=scene.any_id(), after=after, limit=scene.rng.choice([2, 1_000]),
                            visibility=scene.rng.choice(list(c.TailVisibility)))  # fmt: skip


READINGS: list[Callable[[Scene], Args[Any]]] = [
    _reading, _reading,
    lambda s: c.ReadFramesArgs(
        execution_id=s.any_id(), attempt_index=s.rng.choice([0, 0, 1, 2]), from_id="-", to_id="+",  # type: ignore[arg-type]
        count_limit=s.rng.choice([1, 100]), visibility=s.rng.choice(list(c.TailVisibility))),
    lambda s: c.ReadJournalArgs(
        execution_id=s.any_id(), from_seq=s.rng.choice([1, 1, 2, 30]), limit=s.rng.choice([1, 1_000])),
    lambda s: c.ObserveSignalsArgs(
        execution_id=_suspended_id(s), skip=s.rng.choice([0, 0, 1]), limit=s.rng.choice([1, 100])),
    lambda s: c.ListSuspendedArgs(
        partition=s.rng.choice(FP), lane_id=s.rng.choice([None, DURABLE, "a"]), limit=s.rng.choice([2, 1_000])),  # type: ignore[arg-type]
    lambda s: c.ListPendingWaitpointsArgs(execution_id=_suspended_id(s), limit=s.rng.choice([None, 1])),
    lambda s: c.ListWaitpointHmacKidsArgs(at=s.rng.choice(FP)),
    lambda s: c.ReadSummaryArgs(execution_id=s.any_id()),
]  # fmt: skip
