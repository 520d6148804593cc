"""One run: a seed decides everything. `run` plays it; a `Failure` says what went wrong and how to see it again."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import ffcore.contracts as c
from ffbackend_valkey.library import Library
from ffcore.args import Args
from ffcore.wire import pack_pairs
from tests.simulation import actors, actors_admission, actors_durable, actors_flows, settle
from tests.simulation.faults import CALL_KINDS, NONE, USUAL, Faults
from tests.simulation.gates import NAMES, SOURCES, fingerprint_of
from tests.simulation.scene import ADMITTED, DURABLE, FLOWS, LANES, TOKENS, TTL, Scene, sets_for
from tests.simulation.violation import Violation
from tests.simulation.wire import Place, dump, fingerprint, place, virtual_library
from tests.simulation.world import FP, WP, Refusal, Step, World


@dataclass
class Report:
    """What one run, or many, did."""

    seeds: list[int] = field(default_factory=list)
    steps: int = 0
    """Decisions of the scheduler: a call, a lost call, a pause or a fault."""
    calls: int = 0
    """Functions called."""
    seconds: float = 0.0
    faults: Counter[str] = field(default_factory=Counter)
    seen: Counter[tuple[str, str]] = field(default_factory=Counter)
    """(function, outcome or refusal)"""
    moves: Counter[tuple[str, str]] = field(default_factory=Counter)
    """(state, next state), as the model moved them: the transitions"""
    on: dict[str, tuple[int, float]] = field(default_factory=dict)
    """By kind of server: functions called, and the seconds they took one process."""
    sha256: str = ""
    """Of the whole keyspace at the end."""
    violation: Violation | None = None
    trace: list[Step] = field(default_factory=list)
    """Of the last run."""

    @property
    def transitions(self) -> int:
        return sum(self.moves.values())

    def add(self, other: Report) -> None:
        self.seeds += other.seeds
        self.steps += other.steps
        self.calls += other.calls
        self.seconds += other.seconds
        for name in ("faults", "seen", "moves"):
            getattr(self, name).update(getattr(other, name))
        for kind, (calls, seconds) in other.on.items():
            before = self.on.get(kind, (0, 0.0))
            self.on[kind] = (before[0] + calls, before[1] + seconds)
        self.violation = self.violation or other.violation
        self.trace, self.sha256 = other.trace, other.sha256


def about_flows(seed: int) -> bool:
    return seed % 6 == 5


def about_admission(seed: int) -> bool:
    return seed % 4 == 2


class _Actor:
    def __init__(self, name: str, make: Callable[[str, list[str]], actors.Talk], weight: int) -> None:
        self.base, self.make, self.weight = name, make, weight
        self.lives = 0
        self.answer: Any = None
        self.lost = False
        self.until_step = 0
        self.until_ms = 0
        self.inbox: list[str] = []
        self.talk: actors.Talk
        self.name = ""
        self.wish: Args[Any] | None = None

    def born(self) -> None:
        self.lives += 1
        self.name = f"{self.base}-{self.lives}"
        self.inbox = []
        self.talk = self.make(self.name, self.inbox)
        self.answer, self.lost = None, False

    def next(self) -> Args[Any] | None:
        if self.lost:
            self.lost, self.answer = False, None
            return self.talk.throw(actors.Lost())
        answer, self.answer = self.answer, None
        return self.talk.send(answer)


class Simulation:
    """The scheduler: picks who acts, decides what goes wrong, keeps virtual time."""

    def __init__(
        self, world: World, seed: int, *, faults: Faults, check_every: int, touched: bool, checker_every: int = 0
    ) -> None:  # fmt: skip
        self.world, self.scene, self.faults = world, Scene(seed), faults
        self.rng = self.scene.rng
        self.check_every, self.touched, self.checker_every = check_every, touched, checker_every
        self.counts: Counter[str] = Counter()
        self.step_n = 0
        self.once: dict[tuple[str, int, str], int] = {}
        """Steps that must not run twice: execution, run, key -> the lease they were begun under."""
        self.admission = about_admission(seed) and not about_flows(seed)
        self.later: list[tuple[int, _Actor | None, Args[Any]]] = []
        """Calls under way: at which step they arrive, and who waits for the answer."""
        scene = self.scene
        self.actors = [
            *[_Actor(f"c{i}", lambda name, _: actors.client(scene, name), 4) for i in range(2)],
            *[_Actor(f"w{i}", lambda name, inbox: actors.worker(scene, name, inbox), 6) for i in range(4)],
            *[_Actor(f"g{i}", lambda name, _: actors.scheduler(scene, name), 4) for i in range(2)],
            *[_Actor(f"t{i}", lambda name, _: actors.ticker(scene, name), 2) for i in range(2)],
            _Actor("op", lambda name, _: actors.operator(scene, name), 4),
            _Actor("r", lambda name, _: actors.reader(scene, name), 2),
            *[_Actor(f"d{i}", lambda name, inbox: actors_durable.worker(scene, name, inbox), 9) for i in range(3)],
            *[_Actor(f"s{i}", lambda name, _: actors_durable.signaller(scene, name), 3) for i in range(2)],
            _Actor("dop", lambda name, _: actors_durable.operator(scene, name), 4),
            _Actor("dr", lambda name, _: actors_durable.reader(scene, name), 2),
        ]
        # Half of the seeds are mostly about durable executions, the other half mostly about all that was there before.
        # Clients and tickers serve both. Every sixth seed is about flows, and has a little of everything else.
        scene.durable, share = (0.8, 0.85) if seed % 2 else (0.25, 0.25)
        shares = {"d": share, "s": share, "c": 0.7, "t": 0.5}
        if about_flows(seed):
            scene.durable = 0.2
            shares = {"f": 0.8, "d": 0.1, "s": 0.1, "c": 0.15, "w": 0.7, "g": 0.3, "t": 0.7, "o": 0.4, "r": 0.2}
            self.actors += [
                *[_Actor(f"fc{i}", lambda name, _: actors_flows.client(scene, name), 6) for i in range(2)],
                *[_Actor(f"fb{i}", lambda name, _: actors_flows.builder(scene, name), 5) for i in range(2)],
                *[_Actor(f"fw{i}", lambda name, inbox: actors_flows.worker(scene, name, inbox), 7) for i in range(2)],
                _Actor("fo", lambda name, _: actors_flows.operator(scene, name), 2),
            ]
        elif self.admission:
            scene.durable = 0.1
            shares = {"m": 0.9, "d": 0.05, "s": 0.05, "c": 0.1, "w": 0.1, "g": 0.1, "t": 0.3, "o": 0.15, "r": 0.05}
            self.actors += [
                *[_Actor(f"mc{i}", lambda name, _: actors_admission.client(scene, name), 5) for i in range(2)],
                *[_Actor(f"mw{i}", lambda name, told: actors_admission.worker(scene, name, told), 9) for i in range(4)],
                *[_Actor(f"mp{i}", lambda name, _: actors_admission.postman(scene, name), 3) for i in range(2)],
                *[_Actor(f"mt{i}", lambda name, _: actors_admission.ticker(scene, name), 4) for i in range(2)],
                _Actor("mo", lambda name, _: actors_admission.operator(scene, name), 5),
                _Actor("ms", lambda name, _: actors_admission.scheduler(scene, name), 4),
            ]
        self.weights = [actor.weight * shares.get(actor.base[0], 1 - share) for actor in self.actors]
        scene.ran = self._ran
        for actor in self.actors:
            self._born(actor)

    @classmethod
    def after(cls, world: World) -> Simulation:
        """One that goes on where a replayed trace has ended, without faults."""
        sim = cls(world, 0, faults=NONE, check_every=0, touched=True)
        sim.scene.ms = world.ms
        return sim

    def _born(self, actor: _Actor) -> None:
        actor.born()
        name = actor.name
        if actor.base[0] in "wgd" or actor.base[:2] in ("fw", "mw"):
            self.world.listen([f"ff:{p}:w:{name}" for p in FP])
        elif actor.base[0] == "c" or actor.base[:2] == "fc":
            self.world.listen([f"ff:{p}:c:{name}" for p in FP])
        elif actor.base == "t0" and actor.lives == 1:
            self.world.listen([f"ff:{p}:tick" for p in FP])

    def seed(self) -> None:
        """Let a first kid sign, as every program does when it starts."""
        for p in FP:
            self._ask(c.SeedWaitpointHmacSecretWireArgs(kid="k1", fingerprint=fingerprint_of("k1"), at=p))

    def _ran(self, job: c.ClaimedJob, key: str, once: bool = False) -> None:
        """A step's body runs. Nobody may run one that was recorded before his lease began or under it, nor begin one
        that must not run twice after another has."""
        self.counts["steps run"] += 1
        x = self.world.model.find(self.world.model.partitions[job.execution_id[:6]], job.execution_id)
        entry = x.d.entries.get(key) if x is not None else None
        if entry is not None and entry.final and entry.epoch <= job.lease_epoch:
            raise Violation("step run again", f"{key} of {job.execution_id} stands as {entry.status} since {entry.at}")
        if once:
            begun = self.once.setdefault((job.execution_id, x.run if x else 0, key), job.lease_epoch)
            if begun != job.lease_epoch:
                epochs = f"{begun} and {job.lease_epoch}"
                raise Violation("step run twice", f"{key} of {job.execution_id}, at epochs {epochs}")

    def age(self, lane: str) -> None:
        """Let a lane serve by age from the beginning; its order is as exact as a strict one's."""
        values = pack_pairs({"aged_s": "2"})
        self._ask(c.PutSettingsArgs(partition=WP, name=f"lane:{lane}", changes=values))
        self._tell_settings()

    def _tell_settings(self) -> None:
        """Bring every partition what it lacks, in the order of the revisions, as a ticker does."""
        since = 0
        for row in self._ask(c.ListSettingsArgs(partition=WP)).records:
            for p in FP:
                self._ask(c.ApplySettingsArgs(partition=p, name=row.name, revision=row.revision, since=since,
                                              values=pack_pairs(row.values)))  # fmt: skip
            since = row.revision

    # ---- one step

    def step(self) -> None:
        self.step_n += 1
        rng, scene = self.rng, self.scene
        self._pass_time()
        if self.later and self.later[0][0] <= self.step_n:
            _, waiting, args = self.later.pop(0)
            answer = self._apply(args)
            if waiting is not None:
                waiting.answer = answer
            return
        (actor,) = rng.choices(self.actors, self.weights)
        if actor.until_step > self.step_n or actor.until_ms > scene.ms:
            return
        args = actor.next()
        if args is None:
            return
        self._send(actor, args)
        if (actor.base[0] in "wd" or actor.base[:2] in ("fw", "mw")) and rng.random() < self.faults.pause:
            self.counts["pause"] += 1
            actor.until_ms = scene.ms + rng.randrange(TTL // 2, 3 * TTL)

    def _pass_time(self) -> None:
        rng, scene, faults = self.rng, self.scene, self.faults
        scene.ms += rng.choice((0, 1, 3, 10, 30, 60)) if rng.random() < 0.985 else rng.randrange(400, 2_600)
        draw = rng.random()
        if draw < faults.jump_forward:
            self.counts["jump_forward"] += 1
            scene.ms += rng.randrange(3_000, 15_000)
        elif draw < faults.jump_forward + faults.jump_back:
            self.counts["jump_back"] += 1
            scene.ms -= rng.randrange(200, 8_000)
        elif draw < faults.jump_forward + faults.jump_back + faults.sleep:
            self.counts["sleep"] += 1
            scene.ms += rng.choice((rng.randrange(60_000, 100_000), 700_000))
        if rng.random() < faults.flush:
            self.counts["flush"] += 1
            self.world.apply(Step(scene.ms, "flush"))
        if faults.restart and rng.random() < faults.restart:
            self.counts["restart"] += 1
            self.world.apply(Step(scene.ms, "restart"))
            self.check()

    def _send(self, actor: _Actor, args: Args[Any]) -> None:
        rng, faults = self.rng, self.faults
        draw, kind = rng.random(), None
        for name in CALL_KINDS:
            draw -= getattr(faults, name)
            if draw < 0:
                kind = name
                self.counts[name] += 1
                break
        if kind == "crash_before":
            self._born(actor)
        elif kind == "lost_before":
            actor.lost = True
        elif kind == "delayed_request":
            self._post(actor, args)
        else:
            answer = self._apply(args)
            if kind == "crash_after":
                self._born(actor)
            elif kind == "lost_after":
                actor.lost = True
            elif kind == "delayed_reply":
                actor.answer = answer
                actor.until_step = self.step_n + rng.randrange(2, 40)
            else:
                actor.answer = answer
                if kind == "duplicate":
                    self._apply(args)
                elif kind == "late_duplicate":
                    self._post(None, args)

    def _post(self, actor: _Actor | None, args: Args[Any]) -> None:
        arrives = self.step_n + self.rng.randrange(2, 60)
        if actor is not None:
            actor.until_step = arrives + 1
        self.later.append((arrives, actor, args))
        self.later.sort(key=lambda one: one[0])

    def _apply(self, args: Args[Any]) -> Any:
        world = self.world
        answer = world.apply(Step(self.scene.ms, args))
        self.scene.know(answer)
        for channel, text in world.hear():
            if self.faults.dropped_bell and self.rng.random() < self.faults.dropped_bell:
                self.counts["dropped_bell"] += 1
                continue
            name = channel.rpartition(":")[2]
            for actor in self.actors:
                if actor.name == name:
                    actor.inbox.append(text)
        if world.checked:
            if self.touched:
                world.check_touched()
            if self.check_every and world.calls % self.check_every == 0:
                self.check(whole=False)
        if self.checker_every and world.calls % self.checker_every == 0:
            self.counts["checker"] += 1
            world.check_invariants()
        if isinstance(answer, c.Created):
            self._acknowledged([answer.execution_id])
        elif isinstance(answer, c.CreatedMany):
            rows = zip(args.items, answer.items, strict=True)  # type: ignore[attr-defined]
            self._acknowledged([row.execution_id for row, item in rows if item.state == "created"])
        if world.calls % 50 == 0:
            self.scene.alive = sum(1 for _ in world.model.open_states()) if world.checked else self.scene.alive // 2
        return answer

    def _acknowledged(self, created: list[str]) -> None:
        """The checker, too, must find them from now on (I10). Of some, somebody reads what they stream."""
        self.world.listen([f"ff:{id[:6]}:s:{id[7:]}" for id in created if self.rng.random() < 0.2])
        self.world.memory.acknowledged.update(created)
        self.scene.alive += len(created)

    def check(self, *, whole: bool = True) -> None:
        self.counts["checks"] += 1
        self.world.check_all(whole=whole)

    # ---- the end: faults stop, time passes, everything comes to an end

    def drain(self) -> None:
        """Whatever happened, no state is a trap (liveness)."""
        while self.later:
            self._apply(self.later.pop(0)[2])
        for p in FP:
            for what in self._ask(c.ListHoldsArgs(partition=p)).items:
                self._ask(c.ReleaseArgs(partition=p, what=what.what))
        for lane in [*LANES, DURABLE, FLOWS, ADMITTED]:
            self._ask(c.PutSettingsArgs(partition=WP, name=f"lane:{lane}", changes=pack_pairs({"state": "active"})))
        self._tell_settings()
        if self.admission:
            settle.quiet(self)
        for calls in self.scene.sent:
            self._apply(c.AbortFlowArgs(flow_id=calls[0].flow_id, digest=calls[0].digest))
        left = self._work_off(40)
        stuck = [row for row in left if row.state not in ("blocked", "suspended")]
        if stuck:
            raise Violation("liveness", f"faults have stopped and these do not come to an end: {stuck}")
        for row in left:
            if row.state == "suspended":
                self._let_go_on(row)
        for row in left:
            # A pause is taken back; whatever else blocks it is lifted.
            self._apply(c.ResumeExecutionArgs(execution_id=row.execution_id))
            self._apply(c.UnblockExecutionArgs(execution_id=row.execution_id))
        left = self._work_off(40)
        while stopped := [row for row in left if row.reason == "paused_by_flow_cancel"]:
            # A cancel of its flow stands. What it leads to may be stopped by it in turn.
            for row in stopped:
                self._ask(c.CancelExecutionArgs(execution_id=row.execution_id, reason="as its flow"))
            left = self._work_off(40)
        if left:
            raise Violation("liveness", f"nothing is blocked any more and these do not come to an end: {left}")
        if self.admission:
            settle.no_leaks(self)

    def _let_go_on(self, row: c.ListedExecution) -> None:
        """What still waits must say for whom: send it every signal there is, and if that is not enough an operator
        must have been asked, or the place where it waited was closed."""
        id = row.execution_id
        read = c.ReadExecutionArgs(execution_id=id, parts="payload,result,attempts")
        rows = self._ask(c.ListPendingWaitpointsArgs(execution_id=id)).entries
        for waitpoint in rows:
            for name in NAMES:
                for source in SOURCES:
                    self._apply(c.DeliverSignalWireArgs(
                        execution_id=id, waitpoint_id=waitpoint.waitpoint_id, signal_id=self.scene.new_uuid(),
                        signal_name=name, signal_category="last", source_type="user", source_identity=source,
                        token_digest="", operator=True))  # fmt: skip
        x = self.world.model.find(self.world.model.partitions[id[:6]], id)
        if self._ask(read).fields["state"] == "suspended" and x is not None and x.d.suspension is not None:
            s = x.d.suspension
            asked = any(node[0] in ("operator_only", "timeout_only") for node in s.nodes)
            shut = any(x.d.waitpoints[w].state == "closed" for w in s.waitpoints)
            full = x.d.signals_n >= x.policy.max_signals_per_execution
            if not (asked or shut or full):
                raise Violation("liveness", f"{id} has every signal it could wait for and goes on waiting: {s.nodes}")
            if self._ask(read).fields.get("paused") is not None:
                self._ask(c.ResumeExecutionArgs(execution_id=id))
            for _ in range(2):
                if self._ask(read).fields["state"] == "suspended":
                    self._ask(c.ResumeExecutionArgs(execution_id=id))

    def _work_off(self, rounds: int) -> list[c.ListedExecution]:
        """A good worker and a good ticker for a while; answers what has not ended."""
        left: list[c.ListedExecution] = []
        for _ in range(rounds):
            for p in FP:
                for _ in range(3):
                    self.scene.ms += 700
                    self._ask(c.TickArgs(partitions=[p], ticker="drain", force=True))
                self.counts["drain"] += 1
                me: dict[str, Any] = {
                    "lanes": [*LANES, "rare", DURABLE, FLOWS, ADMITTED], "capability_sets": sets_for(frozenset(TOKENS)),
                    "limit": 100, "worker_id": "drain", "worker_instance_id": "drain", "lease_ttl_ms": TTL,
                }  # fmt: skip
                answer = self._ask(c.ClaimBatchArgs(partitions=[p], claim_id=f"drain.s.{self.counts['drain']}", **me))
                rows = [c.Completion(job.execution_id, self.scene.fence(job).wire, b"end") for job in answer.jobs]
                me["limit"] = 0
                done = self._ask(c.CompleteManyArgs(
                    partition=p, claim_id=f"drain.t.{self.counts['drain']}", items=rows, **me))  # fmt: skip
                if any(item.state == "error" for item in done.items):
                    raise Violation("liveness", f"a good worker was refused: {done.items}")
            if self.admission:
                settle.tick(self)
                settle.post(self)
            left = [row for p in FP for row in self._open(p)]
            if all(row.state in ("blocked", "suspended") for row in left) and not self._expected(left):
                return left
        return left

    def _open(self, partition: Any) -> list[c.ListedExecution]:
        states = ["ready", "granted", "delayed", "blocked", "active", "suspended"]
        rows: list[c.ListedExecution] = self._ask(
            c.ListExecutionsArgs(partition=partition, states=states, limit=1_000)
        ).items
        return rows

    def _expected(self, left: list[c.ListedExecution]) -> bool:
        """Whether time alone still moves something: a task no worker knew is failed after a while, a wait may end."""
        waiting = {row.execution_id for row in left if row.reason == "waiting_for_capable_worker"}
        waiting |= {row.execution_id for row in left if row.state == "suspended"}
        model = self.world.model
        return any(
            f"{p.key}:{name.partition(':')[2]}" in waiting
            for p in model.partitions.values() for name in p.timers if name.startswith(("unknown_task:", "suspension:"))
        )  # fmt: skip

    def _ask(self, args: Args[Any]) -> Any:
        answer = self._apply(args)
        if isinstance(answer, Refusal):
            raise Violation("liveness", f"{type(args).__name__} was refused {answer}")
        return answer


def run(
    seed: int, steps: int = 1_000, *, library: Library | None = None, on: Place | str = "valkey",
    faults: Faults = USUAL, model: bool = True, touched: bool = True, check_every: int = 20,
    checker_every: int = 250, drain: bool = True,
) -> Report:  # fmt: skip
    """Play one seed on an emptied store. Never raises for what it finds: `Report.violation` holds it.

    on           a `Place` to be used (and emptied), or the kind of one to start: valkey, durable, memory, a program
    model        False: calls are made and not predicted (how fast the store alone is)
    touched      compare the records each call changed with the model's
    check_every  compare everything after so many calls (0: only at the end)
    checker_every  ask the engine's checker after so many calls (0: only at the end)
    """
    with contextlib.ExitStack() as stack:
        here = stack.enter_context(place(on)) if isinstance(on, str) else on
        world = World(here, library or virtual_library(), model=model)
        stack.callback(world.close)
        sim = Simulation(
            world, seed, faults=faults, check_every=check_every, touched=touched, checker_every=checker_every
        )  # fmt: skip
        report = Report(seeds=[seed])
        start = time.perf_counter()
        try:
            sim.seed()
            if seed % 3 == 0:
                sim.age("c")
            for _ in range(steps):
                sim.step()
            if model:
                sim.check()
                world.check_invariants()
                if drain:
                    sim.drain()
                    sim.check()
                    world.check_invariants()
        except Violation as found:
            report.violation = found
        report.seconds = time.perf_counter() - start
        report.steps, report.calls = sim.step_n, world.calls
        report.on = {f"{here.name}{' durable' if here.durable else ''}": (report.calls, report.seconds)}
        report.faults, report.seen, report.moves = sim.counts, world.seen, world.model.moves
        report.trace = world.trace
        report.sha256 = fingerprint(dump(world.wire))
        return report


__all__ = ["Report", "Simulation", "run"]
