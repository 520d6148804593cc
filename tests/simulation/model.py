"""The state machine once more, in plain Python: what each call must answer and what must stand in the store after it.

Written from `docs/model.md` and `docs/decisions/`, not from the Lua, and kept as simple as it can be: a partition is
a few dicts, every move takes effect at once. `Model.predict(args, server_ms)` answers what the engine must say;
where a document leaves the engine a choice (the draw of a jitter) the expectation names a range instead, and the
model takes over what was chosen (`Say.learn`). This file holds records, moves, time and order; the rules of each
call stand in `rules_*.py`, what a durable execution keeps in `durable.py`.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import msgspec

from ffcore import limits
from ffcore.policy import ExecutionPolicy
from tests.simulation.flows import Flow
from tests.simulation.records import NO_POLICY, QUEUED, Execution, Lane, Partition

UNIT = 16
"""What one job costs in turns (decision 0004)."""


class Say(NamedTuple):
    """An outcome: its tag ("*": the hook knows), the fields that must have these values, and a hook for what the engine
    may choose."""

    tag: str
    fields: dict[str, Any] = {}
    learn: Callable[[Any], str | None] | None = None
    """Called with the answer; says what is wrong with it, or takes over what the engine chose."""


class No(NamedTuple):
    """A refusal."""

    code: str


Expected = Say | No


class Base:
    """Records, moves and time. `moves` counts (from, to); `touched` names what the last call has changed."""

    bounds: Mapping[str, int] = {}
    """The library's limits, some of them smaller than everywhere else so that runs meet them."""

    def __init__(self, partitions: list[str], now: int) -> None:
        self.streamed: list[str] = []
        """Channels of those who read the frames of what has changed."""
        self.partitions = {key: Partition(key, now) for key in partitions}
        self.moves: Counter[tuple[str, str]] = Counter()
        self.touched: dict[str, Execution] = {}
        self.messages: list[tuple[str, str]] = []
        self.rings: list[tuple[str, int]] = []

    # ---- one call

    def open(self, key: str, server_ms: int) -> Partition:
        p = self.partitions[key]
        p.now = max(server_ms + p.offset, p.hwm)
        p.grace, p.grace_new = p.grace_until, False
        if p.now - p.hwm > limits.OVERDUE_MS and p.leases:
            first = min(p.leases.values())
            if first <= p.now - limits.OVERDUE_MS and first > p.grace_until:
                p.grace, p.grace_new = p.now + limits.RENEWAL_INTERVAL_MAX_MS, True
        return p

    def close(self, p: Partition) -> None:
        self.settle(p)
        self.look_at_flows(p)
        if p.fed or p.grace_new:
            p.hwm = p.now
        if p.grace_new:
            p.grace_until = p.grace
        for (lane, cap), n in p.bells.items():
            parked = p.park.get((lane, cap), {})
            for name in sorted(parked, key=lambda name: (parked[name], name), reverse=True)[:n]:
                if parked.pop(name) >= p.now:
                    p.messages.append((f"w:{name}", "work"))
        p.messages += [(f"c:{client}", "\n".join(lines)) for client, lines in p.notices.items()]
        self.messages += [(f"ff:{p.key}:{channel}", text) for channel, text in p.messages]
        if p.soonest is not None:
            self.rings.append((f"ff:{p.key}:tick", p.soonest))
        p.fed, p.grace_new, p.soonest = False, False, None
        p.bells, p.notices, p.messages = {}, {}, []
        self.flush(p)
        p.ticking = False
        p.removed.clear()
        p.stale.clear()
        p.reap_noted.clear()

    def find(self, p: Partition, id: str) -> Execution | None:
        return p.records.get(id[id.index("}") + 2 :])

    # ---- lanes and order

    def lane(self, p: Partition, name: str) -> Lane:
        lane = p.lanes.get(name)
        if lane is None:
            p.lanes_n += 1
            lane = p.lanes[name] = Lane(p.lanes_n, name)
            p.reap[f"idle:{lane.no}"] = p.now + limits.LANE_IDLE_MS
        return lane

    def served(self, lane: Lane, sets: list[str]) -> list[str]:
        return [cap for cap in sets if cap in lane.caps]

    def line(self, lane: Lane, heads: list[str]) -> list[Execution]:
        """What is ready under these capability sets, in claim order."""
        at = {cap: i for i, cap in enumerate(heads)}
        ready = [x for x in lane.ready.values() if x.cap in at]
        ready.sort(key=lambda x: (*x.place[:2], at[x.cap], x.uuid))
        return ready

    def take_turn(self, p: Partition, x: Execution) -> int:
        """The turn of a job that becomes eligible (decision 0004)."""
        lane = x.lane
        if x.fair and not lane.keyed:
            lane.keyed = True
        if not lane.keyed:
            lane.turn += UNIT
            return lane.turn - UNIT
        turns = lane.turns.setdefault(x.band, {})
        if "-" not in turns:
            head = self._stored_head(p, lane, x.klass)
            turns["-"] = lane.turn if head is None else head
        if not x.fair:
            turn = max(lane.turn, turns["-"])
            lane.turn = turn + UNIT
            return turn
        finish = max(turns["-"], turns.get(x.fair, -1))
        weight = lane.weights.get(x.fair, 1)
        # In steps of 2^-9, so that the engine's doubles are exact.
        turns[x.fair] = finish + max(1, math.floor(UNIT / weight * 512 + 0.5)) / 512
        return math.floor(finish)

    def _stored_head(self, p: Partition, lane: Lane, klass: str) -> int | None:
        places = [y.place for y in lane.ready.values() if y.klass == klass and y.uuid not in p.unflushed]
        places += [was[2] for was in p.unflushed.values() if was and was[:2] == (lane.no, klass)]
        return min(places)[1] if places else None

    def serve(self, lane: Lane, popped: list[Execution]) -> None:
        """Virtual time follows what was served."""
        if lane.keyed:
            for i, x in enumerate(popped):
                if i + 1 == len(popped) or popped[i + 1].band != x.band:
                    turns, turn = lane.turns.setdefault(x.band, {}), x.turn or 0
                    now = max(turns.get("-", turn), turn)
                    for name in [name for name, finish in turns.items() if finish < turn]:
                        del turns[name]
                    turns["-"] = now

    # ---- timers and bells

    def ring(self, p: Partition, lane: Lane, cap: str, n: int = 1) -> None:
        p.bells[lane.no, cap] = p.bells.get((lane.no, cap), 0) + n

    def soon(self, p: Partition, due: int) -> None:
        if due < p.ticker_until and (p.soonest is None or due < p.soonest):
            p.soonest = due

    def timer(self, p: Partition, kind: str, x: Execution | str, due: int | None) -> None:
        name = f"{kind}:{x if isinstance(x, str) else x.uuid}"
        if due is None:
            if name in p.timers:
                p.stale[name] = p.timers.pop(name)
        else:
            p.timers[name] = due
            self.soon(p, due)

    def tell(self, p: Partition, worker: str, text: str) -> None:
        if worker:
            p.messages.append((f"w:{worker}", text))

    # ---- moves

    def note(self, p: Partition, text: str) -> None:
        p.feed.append(text)
        p.fed = True

    def create(self, p: Partition, x: Execution, to: str) -> None:
        p.records[x.uuid] = x
        self._enter(p, x, "-", to)

    def move(self, p: Partition, x: Execution, to: str) -> None:
        """Fields of the new state are set by the caller before. A pause keeps what is not running from its queue."""
        if x.paused is not None and (to in QUEUED or to == "delayed"):
            x.paused = x.paused.partition(" ")[0] + (f" {x.reason} {x.at}" if to == "delayed" else "")
            x.reason, to = "paused_by_operator", "blocked"
        was = x.state
        if was in QUEUED:
            x.lane.ready.pop(x.uuid, None)
            p.unflushed.setdefault(x.uuid, (x.lane.no, x.klass, x.place))
        elif was == "active":
            p.leases.pop(x.uuid, None)
            self.lease_ends(p, x)
        elif was == "granted":
            self.timer(p, "grant", x, None)
        elif was == "delayed":
            self.timer(p, "delay", x, None)
        elif was == "blocked":
            p.held.pop(x.uuid, None)
            p.unknown.pop(x.uuid, None)
            self.timer(p, "unknown_task", x, None)
        self._enter(p, x, was, to)

    def _enter(self, p: Partition, x: Execution, was: str, to: str) -> None:
        x.state = to
        self.touched[x.id] = x
        self.moves[was, to] += 1
        if to in QUEUED:
            x.lane.ready[x.uuid] = x
            p.unflushed.setdefault(x.uuid, None)
            if x.adm is None or self.enter_class(p, x):
                self.ring(p, x.lane, x.cap)
        elif to == "active":
            p.leases[x.uuid] = x.at
            self.soon(p, x.at)
        elif to == "granted":
            self.timer(p, "grant", x, x.at)
        elif to == "delayed":
            self.timer(p, "delay", x, x.at)
        if x.unique is not None and (x.terminal or (to == "active" and x.unique == "q")):
            self.frees_key(p, x)
        if x.streams is not None:
            self.read_of(p, x)
        if x.flow is not None:
            self.member_moved(p, x, was, to)
        self.note(p, f"{x.uuid} {was} {to}")

    def flush(self, p: Partition) -> None:
        """Changes of queues are written."""
        p.unflushed.clear()
        self.write_rings(p)

    def write_rings(self, p: Partition) -> None:
        raise NotImplementedError

    def enter_class(self, p: Partition, x: Execution) -> bool:
        raise NotImplementedError

    def lease_ends(self, p: Partition, x: Execution) -> None:
        raise NotImplementedError

    def frees_key(self, p: Partition, x: Execution) -> None:
        raise NotImplementedError

    def read_of(self, p: Partition, x: Execution) -> None:
        raise NotImplementedError

    def member_moved(self, p: Partition, x: Execution, was: str, to: str) -> None:
        raise NotImplementedError

    def settle(self, p: Partition) -> None:
        raise NotImplementedError

    def look_at_flows(self, p: Partition) -> None:
        raise NotImplementedError

    def end_suspension(self, p: Partition, x: Execution) -> None:
        raise NotImplementedError

    def end_waitpoints(self, p: Partition, x: Execution) -> None:
        raise NotImplementedError

    def requeue(self, p: Partition, x: Execution) -> None:
        """Back to its old place, as what it was."""
        if x.turn is None:
            x.turn = self.take_turn(p, x)
        self.move(p, x, "reclaimable" if x.next == "reclaim" else "ready")

    def finish(self, p: Partition, x: Execution, outcome: str, by: str | None = None) -> None:
        """The one door to a terminal state. `by`: the holder's operation that led there, which may be repeated."""
        x.ended_by = by
        self.end_suspension(p, x)
        self.end_waitpoints(p, x)
        x.paused = None
        if x.deadline_at is not None:
            self.timer(p, "deadline", x, None)
        if x.cancel_until is not None:
            self.timer(p, "cancel_grace", x, None)
        self.tell_waiters(p, x, outcome)
        x.cancel_until = x.reason = x.waiter = x.attempt_deadline = x.grant = None
        x.at = p.now
        if outcome != "completed":
            x.result = None
        self.move(p, x, outcome)
        if x.lane.bytes is not None:
            x.size = len(x.payload) + len(x.result or b"")
            x.lane.bytes += x.size
        p.reap.setdefault(f"lane:{x.lane.no}", p.now + limits.RETENTION_MIN_AGE_MS)

    @staticmethod
    def tell_waiters(p: Partition, x: Execution | Flow, outcome: str) -> None:
        if x.waiter is None:
            return
        first, until = x.waiter
        told = [first] if until >= p.now else []
        others = [name for name, end in x.waiters.items() if end >= p.now]
        told += [name for name in sorted(others, key=lambda n: (x.waiters[n], n)) if name not in told]
        if others:
            x.waiters = {}
        for name in told:
            p.notices.setdefault(name, []).append(f"{x.uuid} {outcome}")

    # ---- attempts

    def begin(
        self, p: Partition, x: Execution, lease_id: str, ttl: int, worker: str, attempt_id: str | None = None,
        timeout: int | None = None,
    ) -> None:
        """Lease a record: a new attempt, or the same one under a new epoch when it was interrupted to go on."""
        x.epoch = max(x.epoch + 1, p.now)
        deadline: int | None
        if x.next == "resumed":
            deadline = None if x.left_ms is None else p.now + x.left_ms
        else:
            x.attempt = 0 if x.attempt is None else x.attempt + 1
            x.attempt_id = attempt_id or lease_id
            timeout = timeout or (x.policy.timeout_policy and x.policy.timeout_policy.attempt_timeout_ms)
            deadline = p.now + timeout if timeout else None
        x.at = p.now + (x.policy.lease_ms or ttl)
        if deadline is not None:
            x.at = min(x.at, deadline)
        x.lease_id, x.worker, x.attempt_deadline = lease_id, worker, deadline
        x.left_ms = x.ended_by = x.grant = x.reason = None
        self.move(p, x, "active")

    def left(self, p: Partition, x: Execution) -> int | None:
        return None if x.attempt_deadline is None else max(1, x.attempt_deadline - p.now)

    def cancelled_instead(self, p: Partition, x: Execution, operation: str = "cancel") -> bool:
        """A cancel that was requested wins over every end of a lease that is not a completion or a final failure."""
        if x.cancel_until is None:
            return False
        self.finish(p, x, "cancelled", operation)
        return True

    def reclaims_allowed(self, x: Execution) -> int:
        timeouts = x.policy.timeout_policy
        return min(x.policy.max_reclaim_count, timeouts.max_reclaim_count if timeouts else 100)

    def interrupt(self, p: Partition, x: Execution, to: str, crashes: int, unseen: int) -> None:
        """The lease is gone and the execution goes on under another attempt, unless it has crashed too often."""
        if crashes > self.reclaims_allowed(x):
            x.crashes = crashes
            self.finish(p, x, "failed")
            return
        self.logged(x, "interrupted_reclaimed")
        x.next, x.crashes, x.unseen, x.attempt_deadline, x.left_ms = "reclaim", crashes, unseen, None, None
        if x.turn is None:
            x.turn = self.take_turn(p, x)
        self.move(p, x, to)

    @staticmethod
    def logged(x: Execution, how: str) -> None:
        x.closed, x.closed_n = x.attempt, x.closed_n + 1
        x.log[x.attempt or 0] = how

    def expire_lease(self, p: Partition, x: Execution) -> None:
        if self.cancelled_instead(p, x):
            return
        if x.attempt_deadline is not None and x.attempt_deadline <= p.now:
            self.fail(p, x, "timeout", None)
        elif x.heard == x.epoch:
            self.interrupt(p, x, "reclaimable", x.crashes + 1, 0)
        else:
            # No code is known to have begun it: as in its first attempt, any version of its task may run it.
            x.unpinned = x.unpinned or (x.attempt == 0 and x.next == "initial" and x.d.began is None)
            self.interrupt(p, x, "reclaimable", x.crashes + (x.unseen > 0), x.unseen + 1)

    def fail(
        self, p: Partition, x: Execution, category: str, operation: str | None, given: Any = None,
        after_ms: int | None = None,
    ) -> str:  # fmt: skip
        raise NotImplementedError

    # ---- what is due

    def run_due(self, p: Partition, limit: int) -> int:
        """Leases that ran out, then timers, each up to `limit`, oldest first; what one of them sets is not run."""
        lost: list[str] = []
        ready = self._due({**p.stale, **p.timers}, p.now, limit)
        if p.grace < p.now:
            lost = self._due(p.leases, p.now, limit)
            for uuid in lost:
                self.expire_lease(p, p.records[uuid])
        for name in ready:
            if name not in p.timers:
                continue
            kind, _, uuid = name.partition(":")
            self.timer(p, kind, uuid, None)
            handler: Callable[[Partition, str], None] = getattr(self, f"due_{kind}")
            handler(p, uuid)
        return len(lost) + len(ready)

    @staticmethod
    def _due(timers: dict[str, int], now: int, limit: int) -> list[str]:
        return sorted((name for name, due in timers.items() if due <= now), key=lambda n: (timers[n], n))[:limit]

    def open_states(self) -> Iterator[Execution]:
        """What has not ended yet."""
        for p in self.partitions.values():
            for x in p.records.values():
                if not x.terminal:
                    yield x


def digest_of(text: str) -> str:
    """How capability sets and fairness keys are shortened."""
    return hashlib.sha1(text.encode()).hexdigest()[:12]


def policy_of(given: Any) -> ExecutionPolicy:
    if given is None or given == b"":
        return NO_POLICY
    return given if isinstance(given, ExecutionPolicy) else msgspec.json.decode(given, type=ExecutionPolicy)
