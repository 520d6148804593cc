"""What operators, tickers, waiting clients and readers must be answered: holds, lanes, replay, purge, tick, reads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ffcore import limits
from tests.simulation.between import Rules
from tests.simulation.model import Expected, No, Say
from tests.simulation.records import NO_RETENTION, QUEUED, TERMINAL, Execution, Partition


class OperatorRules(Rules):
    # ---- holds

    def call_hold(self, p: Partition, a: Any) -> Expected:
        if a.what in p.holds:
            return Say("already_held")
        if len(p.holds) >= limits.HOLDS_N:
            return No("too_many_names")
        p.holds[a.what] = a.reason
        self.note(p, "o")
        return Say("held")

    def call_release(self, p: Partition, a: Any) -> Expected:
        if p.holds.pop(a.what, None) is None:
            return Say("not_held")
        self.note(p, "o")
        p.releases += 1
        self.timer(p, "release", "held", p.now)
        return Say("released")

    def due_release(self, p: Partition, name: str) -> None:
        """Let go what nothing holds any more, the longest unlooked-at first."""
        looked = [uuid for uuid, release in p.held.items() if release < p.releases]
        looked = sorted(looked, key=lambda uuid: (p.held[uuid], uuid))[: limits.ROWS_N]
        for uuid in looked:
            x = p.records[uuid]
            if p.holds and self.held_by(p, x):
                p.held[uuid] = p.releases
            else:
                x.reason = None
                self.requeue(p, x)
        if len(looked) == limits.ROWS_N:
            self.timer(p, "release", name, p.now)

    def call_list_holds(self, p: Partition, a: Any) -> Expected:
        return Say("holds", {"items": [(what, p.holds[what]) for what in sorted(p.holds)]})

    # ---- lanes

    def call_list_lanes(self, p: Partition, a: Any) -> Expected:
        names = sorted(p.lanes)[: a.limit]
        return Say("lanes", {"lanes": [(name, p.lanes[name].state) for name in names]})

    def call_lane_stats(self, p: Partition, a: Any) -> Expected:
        lane = p.lanes.get(a.lane_id)
        if lane is None:
            return No("lane_not_found")
        counts = dict.fromkeys(["ready", "active", "granted", "delayed", "blocked", "suspended", *TERMINAL], 0)
        for x in p.records.values():
            if x.lane is lane:
                counts["ready" if x.state in QUEUED else x.state] += 1
        return Say("lane_stats", {"state": lane.state, "counts": counts, "now_ms": p.now})

    def call_list_capability_sets(self, p: Partition, a: Any) -> Expected:
        lanes = [p.lanes[name] for name in a.lanes if name in p.lanes]
        sets = [(lane.name, digest, lane.caps[digest]) for lane in lanes for digest in sorted(lane.caps)]
        return Say("capability_sets", {"revision": max([lane.revision for lane in lanes], default=0), "sets": sets})

    # ---- one execution

    def call_change_priority(self, p: Partition, a: Any) -> Expected:
        x = self.find(p, a.execution_id)
        if x is None:
            return No("execution_not_found")
        if a.lane_id not in ("", x.lane.name):
            return No("invalid_input")
        if x.terminal:
            return No("terminal")
        if a.new_priority != x.priority:
            if x.state in QUEUED:
                p.unflushed.setdefault(x.uuid, (x.lane.no, x.klass, x.place))
            x.priority = a.new_priority
            if x.state in QUEUED and (x.adm is None or self.enter_class(p, x)):
                self.ring(p, x.lane, x.cap)
            self.touched[x.id] = x
            self.note(p, f"{x.uuid} {x.state} {x.state}")
        return Say("changed", {"execution_id": x.id})

    def call_replay_execution(self, p: Partition, a: Any) -> Expected:
        x = self.find(p, a.execution_id)
        if x is None:
            return No("execution_not_found")
        if not x.terminal:
            return No("execution_not_terminal")
        if x.replays >= x.policy.max_replay_count:
            return No("max_replays_exhausted")
        if x.flow is not None and (x.flow.policy is not None or x.flow.state == "purging"):
            return No("flow_already_terminal")
        never_ran = x.state == "skipped" or not x.lease_id
        if never_ran and x.edges.decided == "impossible":
            return No("deps_not_satisfied")
        waits = bool(x.edges.applied()) and not x.edges.decided
        if x.flow is not None and x.flow.state == "staging":
            waits = True  # nothing of it runs before it is published
        if x.attempt not in (None, -1, x.closed):
            self.logged(x, {"completed": "ended_success", "cancelled": "ended_cancelled"}.get(x.state, "ended_failure"))
        if a.mode == "fresh":
            self.begin_anew(p, x)
        elif x.attempt is not None:
            self.reopen(p, x)
            self.reopen_waitpoints(p, x)
        x.category = x.cancelled_by = ""
        self.unend(p, x)
        if not (x.edges.outgoing and x.state == "completed"):
            x.result = None  # what others work with stays until there is something else
        x.next, x.ended_by, x.left_ms, x.eligible_at = "replay", None, None, p.now
        x.replays, x.run = x.replays + 1, x.run + 1
        x.retries = x.crashes = x.unseen = x.hand_backs = 0
        x.turn, was = self.take_turn(p, x), x.state
        if waits:
            x.reason = "waiting_for_children"
        self.move(p, x, "blocked" if waits else "ready")
        if x.edges.children():
            x.edges.awaits = None
            if a.mode == "fresh":
                p.settling.append(("children", x, ""))
        if x.edges.outgoing:
            p.settling.append(("reopen", x, was))
        return Say("replayed", {"public_state": "waiting_children" if waits else "waiting"})

    def unend(self, p: Partition, x: Execution) -> None:
        """What it kept is counted anew at its next end, and its deadline is as long as it was."""
        if x.lane.bytes is not None and x.size is not None:
            x.lane.bytes = max(0, x.lane.bytes - x.size)
        x.size = x.deadline_at = None
        if x.deadline_ms is not None:
            x.deadline_at = p.now + x.deadline_ms
            self.timer(p, "deadline", x, x.deadline_at)

    def call_set_execution_tags(self, p: Partition, a: Any) -> Expected:
        x = self.find(p, a.execution_id)
        if x is None:
            return No("execution_not_found")
        x.tags = {name: text for name, text in {**x.tags, **a.tags}.items() if text}
        return Say("ok", {"count": len(x.tags)})

    # ---- retention

    def forget(self, p: Partition, x: Execution, *, buried: bool = True) -> None:
        if x.lane.bytes is not None and x.size is not None:
            x.lane.bytes = max(0, x.lane.bytes - x.size)
        del p.records[x.uuid]
        window = x.policy.dedup_window_ms
        if not buried:
            return
        self.bury(p, x.uuid, x.digest, x.at + (limits.DEDUP_WINDOW_MS if window is None else window))

    @staticmethod
    def bury(p: Partition, uuid: str, digest: bytes, until: int) -> None:
        if uuid[14] == "8" and until > p.now:
            bucket = uuid[-3:]
            p.tombs.setdefault(bucket, {})[uuid] = (until, digest)
            name = f"tomb:{bucket}"
            if name not in p.reap or (name in p.reap_noted and p.reap[name] > until):
                p.reap[name] = until

    def call_purge(self, p: Partition, a: Any) -> Expected:
        lane = p.lanes.get(a.lane_id)
        if lane is None:
            return Say("purged", {"execution_ids": [], "remaining": 0})
        before = min(a.before_ms, p.now)
        match = [x for x in self.oldest(p, lane) if x.state == a.outcome and x.at <= before]
        free = [x for x in match if x.flow is None]
        gone = free[: a.limit]
        looked = match[: match.index(gone[-1]) + 1] if len(gone) == a.limit else match
        left = len(match) - len([x for x in looked if x.flow is not None])
        if not a.dry_run:
            members = match[: match.index(gone[0])] if gone else match
            members = [x for x in members if x.at < p.now]  # others may end in this millisecond
            if members:
                lane.passed[a.outcome] = (members[-1].at, members[-1].uuid)
            for x in gone:
                self.forget(p, x)
            left -= len(gone)
        return Say("purged", {"execution_ids": [x.id for x in gone], "remaining": left})

    def reap_lane(self, p: Partition, number: str, limit: int) -> int:
        lane = next(lane for lane in p.lanes.values() if lane.no == int(number))
        limit = min(limit, limits.TICK_N)
        age, count, most = lane.retention
        ended = self.oldest(p, lane)
        rest = sum(x.lane is lane and x.terminal for x in (*p.records.values(), *p.removed))
        spare = rest - count if count > 0 else 0
        over = lane.bytes - most if lane.bytes is not None and most > 0 else 0
        looked = gone = 0
        again, stepped = None, False
        passed = dict(lane.passed)
        for x in ended[:limit]:
            old_enough, by_age = x.at <= p.now - limits.RETENTION_MIN_AGE_MS, 0 < age <= p.now - x.at
            if not old_enough or not (by_age or spare > 0 or over > 0):
                again = p.now + limits.RETENTION_MIN_AGE_MS
                if not old_enough:
                    again = x.at + limits.RETENTION_MIN_AGE_MS
                elif age > 0:
                    again = x.at + age
                break
            f = None if x in p.removed else x.flow
            if f is not None and not by_age:
                # Too much is kept here, and these are the oldest: their flow goes, if it may.
                if f.state == "ended" and self.flow_may_go(p, f):
                    f.state = "purging"
                    self.mutated(p, f)
                    self.reap_later(p, f"flow:{f.uuid}", p.now)
                if f.state == "purging":
                    again = p.now + 1000
                    break
            looked += 1
            if f is not None:
                passed[x.state], stepped = (x.at, x.uuid), True
                continue
            if x not in p.removed:
                over -= x.size or 0
                self.forget(p, x)
            gone, spare = gone + 1, spare - 1
        if again is None and (looked == limit or looked < len(ended)):
            again = p.now + (0 if gone else 1000)
            lane.passed = passed
        elif stepped or passed:
            # Where count or bytes are limited, flows that live now may have ended at the next look.
            lane.passed = {} if count > 0 or most > 0 else passed
            again = again or (p.now + limits.RETENTION_MIN_AGE_MS if rest - gone > 0 else None)
        if again is not None:
            self.reap_later(p, f"lane:{number}", max(p.now, min(again, p.now + limits.RETENTION_MIN_AGE_MS)))
        return looked

    def reap_idle(self, p: Partition, number: str, limit: int) -> int:
        """A lane that says nothing any more is forgotten; its number is not given again. The engine writes first what
        this call has collected."""
        self.settle(p)
        self.look_at_flows(p)
        p.removed.clear()
        lane = next((lane for lane in p.lanes.values() if lane.no == int(number)), None)
        if lane is None:
            return 1
        parked = any(until >= p.now for until in p.park.get((lane.no, "-"), {}).values())
        said = lane.aged is not None or lane.state != "active" or lane.retention != NO_RETENTION or parked
        if said or lane.weights or lane.quota or any(x.lane is lane for x in p.records.values()):
            self.reap_later(p, f"idle:{number}", p.now + limits.LANE_IDLE_MS)
            return 1
        del p.lanes[lane.name]
        p.reap.pop(f"lane:{number}", None)
        for key in [key for key in p.park if key[0] == lane.no]:
            del p.park[key]
        for ring in [ring for ring in p.rings if ring[0] == lane.no]:
            del p.rings[ring]
        return 1

    def reap_later(self, p: Partition, name: str, due: int) -> None:
        p.reap[name] = due
        p.reap_noted.add(name)

    def reap_tomb(self, p: Partition, bucket: str, limit: int) -> int:
        tombs = p.tombs.get(bucket, {})
        n = len(tombs)
        kept = {uuid: tomb for uuid, tomb in tombs.items() if tomb[0] >= p.now}
        p.tombs[bucket] = kept
        if kept:
            self.reap_later(p, f"tomb:{bucket}", max(min(until for until, _ in kept.values()), p.now + 60_000))
        return n

    def reap_claim(self, p: Partition, slot: str, limit: int) -> int:
        at = p.claims[slot][1]
        if at > p.now - 2 * limits.LEASE_TTL_MS:
            self.reap_later(p, f"claim:{slot}", at + 2 * limits.LEASE_TTL_MS + 1)
        else:
            del p.claims[slot]
        return 1

    def reap_waiters(self, p: Partition, uuid: str, limit: int) -> int:
        for one in (p.records.get(uuid), p.flows.get(uuid)):
            if one is not None:
                one.waiters = {name: until for name, until in one.waiters.items() if until >= p.now}
                if one.waiters:
                    self.reap_later(p, f"waiters:{uuid}", max(one.waiters.values()) + 1000)
        return 1

    def reap_workers(self, p: Partition, name: str, limit: int) -> int:
        dead = [worker for worker, until in p.workers.items() if until <= p.now - limits.WAITER_MS]
        for worker in dead:
            del p.workers[worker]
        if p.workers:
            self.reap_later(p, "workers:all", p.now + limits.WAITER_MS)
        return len(dead)

    # ---- tick

    def ticks(self, ps: list[Partition], a: Any) -> Expected:
        share = max(1, a.limit // len(ps))
        partitions = [self._tick(p, a, share) for p in ps]

        def heard(got: Any) -> str | None:
            found = (self.heard_from(p, row.owed) for p, row in zip(ps, got.partitions, strict=True))
            return next((wrong for wrong in found if wrong), None)

        return Say("ticked", {"partitions": partitions}, heard)

    def _tick(self, p: Partition, a: Any, limit: int) -> dict[str, Any]:
        answer: dict[str, Any] = {"partition": p.key, "mine": True, "now_ms": p.now, "settings": p.reached}
        p.owed = []
        if p.ticker not in (None, a.ticker) and p.ticker_until > p.now and not a.force:
            return answer | {"mine": False, "next_due_ms": p.ticker_until}
        self._steady(p)
        p.ticker, p.ticker_until, p.fed, p.ticking = a.ticker, 0, True, True
        done = self.run_due(p, limit)
        self.settle(p)
        self.look_at_flows(p)
        if not p.key.startswith("{fp"):
            # What budgets and quotas sweep, and when, is left to the engine.
            p.ticker_until = p.now + limits.TICKER_MS
            return answer
        answer |= {"done": done, "reaped": self._run_reap(p, limit), "schedules": self.due_schedules(p)}
        p.ticker_until = p.now + limits.TICKER_MS
        dues = [*p.timers.values(), *p.reap.values()]
        dues += [max(at, p.grace + 1) if p.grace >= p.now else at for at in p.leases.values()]
        dues += [s.at for s in p.schedules.values() if s.at is not None and s.at > p.now]
        return answer | {"next_due_ms": max(p.now, min([p.ticker_until, *dues]))}

    def _steady(self, p: Partition) -> None:
        """Decision 0003: make up for a clock set back, and let it go slowly."""
        gap = p.hwm - (self.server_ms + p.offset)
        if gap > 1000:
            p.offset, p.offset_at = p.offset + gap, self.server_ms
        elif p.offset > 0:
            passed = self.server_ms - p.offset_at
            if passed >= 10:
                p.offset, p.offset_at = max(0, p.offset - passed // 10), self.server_ms
            elif passed < 0:
                p.offset_at = self.server_ms

    def _run_reap(self, p: Partition, limit: int) -> int:
        done = 0
        for name in self._due(p.reap, p.now, min(limit, limits.TICK_N)):
            if done < limit:
                kind, _, rest = name.partition(":")
                del p.reap[name]
                p.reap_noted.discard(name)
                handler: Callable[[Partition, str, int], int] = getattr(self, f"reap_{kind}")
                done += max(1, handler(p, rest, limit - done))
        return done

    server_ms = 0
    """The server's own time of this call."""

    # ---- clients and workers

    def call_await(self, p: Partition, a: Any) -> Expected:
        states: list[str] = []
        until = p.now + limits.WAITER_MS
        for row in a.items:
            x = self.find(p, row.execution_id)
            states.append(x.state if x else "unknown")
            if x is None or x.terminal:
                continue
            if x.waiter is None or x.waiter[0] == a.client or x.waiter[1] < p.now:
                # Written anew only when half of it is over.
                if not (x.waiter and x.waiter[0] == a.client and x.waiter[1] > p.now + limits.WAITER_MS // 2):
                    x.waiter = (a.client, until)
            else:
                x.waiters[a.client] = until
                self.reap_later(p, f"waiters:{x.uuid}", until + 1000)
        return Say("awaiting", {"states": states})

    def call_announce_tasks(self, p: Partition, a: Any) -> Expected:
        known = [p.records[uuid] for uuid in sorted(p.unknown, key=lambda uuid: (p.unknown[uuid], uuid))]
        known = [x for x in known if f"{x.task}@{x.version}" in a.tasks]
        for x in known:
            x.reason = None
            self.requeue(p, x)
        return Say("announced", {"count": len(known)})

    def call_register_worker(self, p: Partition, a: Any) -> Expected:
        if a.ttl_ms == 0:
            p.workers.pop(a.worker_instance_id, None)
        else:
            p.workers[a.worker_instance_id] = p.now + a.ttl_ms
            p.reap.setdefault("workers:all", p.now + limits.WAITER_MS)
        return Say("registered", {"now_ms": p.now})

    def call_list_workers(self, p: Partition, a: Any) -> Expected:
        alive = [(name, until) for name, until in sorted(p.workers.items()) if until >= p.now][: a.limit]
        return Say("workers", {"items": [{"worker_instance_id": n, "alive_until": until} for n, until in alive]})

    def call_publish_tasks(self, p: Partition, a: Any) -> Expected:
        n = 0
        for row in a.items:
            if row.version >= p.tasks.get(row.task, (0, b""))[0]:
                p.tasks[row.task] = (row.version, row.descriptor)
                n += 1
        return Say("published", {"count": n})

    def call_list_tasks(self, p: Partition, a: Any) -> Expected:
        names = a.names or sorted(p.tasks)
        return Say("tasks", {"items": [(name, *p.tasks[name]) for name in names if name in p.tasks]})

    def call_noop(self, p: Partition, a: Any) -> Expected:
        return Say("ok")

    def call_init_partition(self, p: Partition, a: Any) -> Expected:
        return Say("already_satisfied") if a.counts == self.counts else No("revision_conflict")

    counts = ""

    # ---- reads

    def call_read_header(self, p: Partition, a: Any) -> Expected:
        return Say("header", {"now_ms": p.now, "timers_n": len(p.timers), "reap_n": len(p.reap)})

    def call_read_execution(self, p: Partition, a: Any) -> Expected:
        x = self.find(p, a.execution_id)
        if x is None:
            return No("execution_not_found")
        fields = {"lane_id": x.lane.name, "tags": x.tags, "payload": x.payload, "now_ms": p.now}
        return Say("execution", fields, lambda got: _differs(x, got))

    def call_read_outcomes(self, p: Partition, a: Any) -> Expected:
        items: list[dict[str, Any]] = []
        for row in a.items:
            x = self.find(p, row.execution_id)
            state = x.state if x else "unknown"
            result = (x.result or b"") if x else b""
            attempts = 0 if x is None or x.attempt is None else x.attempt + 1
            items.append({"state": state, "result": result, "attempts": attempts})
        return Say("outcomes", {"items": items})

    def call_list_executions(self, p: Partition, a: Any) -> Expected:
        def wanted(x: Execution) -> bool:
            word = "ready" if x.state in QUEUED else x.state
            tagged = a.tag is None or a.tag in [f"{k}={v}" for k, v in x.tags.items()]
            return tagged and (not a.states or word in a.states) and a.lane_id in (None, x.lane.name)

        ids = {x.id for x in p.records.values() if wanted(x)}

        def right(got: Any) -> str | None:
            page = [item.execution_id for item in got.items]
            whole = a.cursor is None and not got.cursor
            if len(page) != len(set(page)) or not set(page) <= ids or (whole and set(page) != ids):
                return f"a page of {page}, all are {sorted(ids)}"
            return None

        return Say("page", {}, right)

    def call_list_leases(self, p: Partition, a: Any) -> Expected:
        held = [x for x in p.records.values() if x.state == "active" and a.lane_id in (None, x.lane.name)]
        held = sorted((x for x in held if not a.expired_only or x.at <= p.now), key=lambda x: (x.at, x.uuid))
        rows = [{"execution_id": x.id, "lease_id": x.lease_id, "lease_epoch": x.epoch, "attempt_index": x.attempt,
                 "worker_instance_id": x.worker, "lease_expires_at": x.at, "heard": x.heard == x.epoch}
                for x in held[: a.limit]]  # fmt: skip
        return Say("leases", {"items": rows, "now_ms": p.now})

    def call_execution_history(self, p: Partition, a: Any) -> Expected:
        return Say("history")

    def call_read_events(self, p: Partition, a: Any) -> Expected:
        return Say("events", {"now_ms": p.now})


def _differs(x: Execution, got: Any) -> str | None:
    """What a read says of a record against what is known of it."""
    wanted = {"state": x.state, "reason": x.reason, "next": x.next, "task": x.task}
    wanted |= {name: str(value) if value else None for name, value in (
        ("retries", x.retries), ("crashes", x.crashes), ("run", x.run), ("priority", x.priority),
    )}  # fmt: skip
    wrong = {name: got.fields.get(name) for name, value in wanted.items() if got.fields.get(name) != value}
    if (x.result or b"") != got.result:
        wrong["result"] = got.result
    if min(x.closed_n, limits.ATTEMPTS_N) != len(got.attempts):
        wrong["attempts"] = str(len(got.attempts))
    return f"the record says {wrong}, it should be {wanted}" if wrong else None
