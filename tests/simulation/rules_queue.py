"""What submitting and claiming must answer: create, claim in batches, claim by grant, reclaim, pass a bell on.

A claim over several partitions tries them in the order given; within one the order is priority band, turn, id. An
answer is predicted job by job: nothing about it is left to the engine.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ffcore import limits
from ffcore.policy import ExecutionPolicy
from tests.simulation.between import Rules
from tests.simulation.model import Expected, No, Say, digest_of, policy_of
from tests.simulation.records import QUEUED, Execution, Lane, Partition


class QueueRules(Rules):
    # ---- create

    def _existing(self, p: Partition, id: str, digest: bytes) -> tuple[str, str] | None:
        """Whether an id is taken, by a record or by the tombstone of one."""
        uuid = id[id.index("}") + 2 :]
        x = p.records.get(uuid)
        if x is not None:
            return ("duplicate", x.state) if x.digest == digest else ("idempotency_conflict", "")
        tomb = p.tombs.get(uuid[-3:], {}).get(uuid)
        if tomb is not None and tomb[0] >= p.now:
            return ("duplicate", "purged") if tomb[1] == digest else ("idempotency_conflict", "")
        return None

    def create_member(
        self, p: Partition, a: Any, row: Any, payload: bytes, policy: ExecutionPolicy, tags: Any,
        member: Callable[[Execution], None] | None = None, blocked: bool = False,
    ) -> str:  # fmt: skip
        """A new execution; `member` makes it one of a flow, where it may have to wait for others first."""
        lane = self.lane(p, a.lane_id)
        x = Execution(row.execution_id, lane, a.execution_kind, p.now)
        routing = policy.routing_requirements
        tokens = ",".join(sorted(routing.required_capabilities)) if routing else ""
        if tokens:
            x.cap = digest_of(tokens)
            self._know_set(p, lane, x.cap, tokens)
        x.priority = a.priority or policy.priority
        x.policy, x.payload, x.digest = policy, payload, row.digest
        x.tags = dict(tags) if isinstance(tags, dict) else unpacked(tags)
        x.version, x.namespace = a.version, a.namespace
        self.admit(x, row.admission)
        x.fair = digest_of(row.fairness_key) if row.fairness_key is not None else None
        span = policy.timeout_policy.execution_deadline_ms if policy.timeout_policy else None
        x.deadline_at = a.execution_deadline_at
        if x.deadline_at is None and span is not None:
            x.deadline_at = p.now + span
        if x.deadline_at is not None:
            x.deadline_ms = span or max(1, x.deadline_at - p.now)
            self.timer(p, "deadline", x, x.deadline_at)
        due = a.delay_until if a.delay_until is not None else policy.delay_until
        if member is not None:
            member(x)
        if blocked:
            x.reason, x.due = "waiting_for_children", due if due is not None and due > p.now else None
            self.create(p, x, "blocked")
            return "blocked"
        if due is not None and due > p.now:
            x.at, x.reason = due, "waiting_for_delay"
            self.create(p, x, "delayed")
            return "delayed"
        x.turn = self.take_turn(p, x)
        self.create(p, x, "ready")
        return "waiting"

    def _know_set(self, p: Partition, lane: Lane, digest: str, tokens: str) -> None:
        if digest not in lane.caps:
            lane.caps[digest] = tokens
            lane.revision = max(lane.revision + 1, p.now)
            self.ring(p, lane, "-", limits.HEADS_N)

    def is_closed(self, p: Partition, lane_id: str) -> bool:
        lane = p.lanes.get(lane_id)
        return lane is not None and lane.state in ("draining", "disabled")

    def call_create_execution(self, p: Partition, a: Any) -> Expected:
        known = self._existing(p, a.execution_id, a.digest)
        if known:
            return Say("duplicate", {"execution_id": a.execution_id}) if known[0] == "duplicate" else No(known[0])
        if self.is_closed(p, a.lane_id):
            return No("lane_closed")
        policy = policy_of(a.policy)
        public = self.create_member(p, a, a, a.input_payload, policy, a.tags)
        return Say("created", {"execution_id": a.execution_id, "public_state": public})

    def call_create_many(self, p: Partition, a: Any) -> Expected:
        items: list[tuple[str, str]] = []
        closed, policy = self.is_closed(p, a.lane_id), policy_of(a.policy)
        for row in a.items:
            known = self._existing(p, row.execution_id, row.digest)
            if known:
                items.append(known if known[0] == "duplicate" else ("error", known[0]))
            elif closed:
                items.append(("error", "lane_closed"))
            else:
                items.append(("created", self.create_member(p, a, row, row.payload, policy, row.tags)))
        return Say("created_many", {"items": items})

    # ---- claim a batch

    def held_by(self, p: Partition, x: Execution) -> bool:
        return f"task:{x.task}" in p.holds or any(f"tag:{k}={v}" in p.holds for k, v in x.tags.items())

    def turned_away(self, p: Partition, x: Execution) -> bool:
        """Why a popped job does not start: past its deadline, or held."""
        if x.deadline_at is not None and x.deadline_at <= p.now:
            self.finish(p, x, "expired")
            return True
        if self.flow_stops(p, x):
            return True
        if p.holds and self.held_by(p, x):
            x.reason = "paused_by_operator"
            self.move(p, x, "blocked")
            p.held[x.uuid] = 0
            return True
        return False

    def claim_batch(self, ps: list[Partition], a: Any, unpark: bool) -> dict[str, Any]:
        """The fields of ClaimedBatch."""
        slot, _, serial = a.claim_id.rpartition(".")
        n, revision, again = int(serial), 0, False
        jobs: list[dict[str, Any]] = []
        asked_again = False
        for p in ps if a.limit > 0 else []:
            kept = p.claims.get(slot)
            if kept and kept[0] == n:
                asked_again = True
                held = [p.records.get(uuid) for uuid, epoch in kept[2]]
                jobs += [
                    self._job(p, x)
                    for x, (_, epoch) in zip(held, kept[2], strict=True)
                    if x and x.state == "active" and x.epoch == epoch
                ]
        if not asked_again:
            for p in ps:
                want = a.limit - len(jobs)
                if want > 0:
                    if p.ticker_until <= p.now:
                        self.run_due(p, limits.CLAIM_TICK_N)
                        self.settle(p)
                        self.flush(p)
                    more, seen = self._lease(p, a, want, jobs, n, slot)
                    again, revision = again or more, max(revision, seen)
        parked = a.park is not None and a.limit > 0 and not jobs and not again
        if parked or (unpark and a.park is not None and jobs):
            for p in ps:
                self._park(p, a, parked)
        return {"now_ms": ps[0].now, "jobs": jobs, "again": again, "sets_revision": revision, "parked": parked}

    def _lease(
        self, p: Partition, a: Any, want: int, jobs: list[dict[str, Any]], n: int, slot: str
    ) -> tuple[bool, int]:  # fmt: skip
        again, skips, revision = False, 0, 0
        taken: list[tuple[str, int]] = []
        # Lanes and sets take turns from claim to claim; only within a queue is there an order.
        first = n % len(a.lanes)
        for name in a.lanes[first:] + a.lanes[:first]:
            lane = p.lanes.get(name)
            room = 0 if lane is None else self.lane_room(p, lane, want)
            if room <= 0 or lane is None or not lane.starts:
                continue
            sets = self.served(lane, a.capability_sets)
            shift = n % len(sets) if sets else 0
            popped = self.popped(p, lane, [*sets[shift:], *sets[:shift]], room)
            asked = room
            for x in popped:
                if skips >= limits.HOLD_SKIPS_N:
                    again = True
                elif self.turned_away(p, x):
                    skips += 1
                    if x.adm is not None:
                        self.give_back(p, x.adm)
                else:
                    if p.bells.get((lane.no, x.cap)):
                        p.bells[lane.no, x.cap] -= 1  # made claimable and claimed by one call
                    self.begin(p, x, f"{a.claim_id}.{len(jobs)}", a.lease_ttl_ms, a.worker_instance_id)
                    self.takes_place(p, x)
                    jobs.append(self._job(p, x))
                    taken.append((x.uuid, x.epoch))
                    want -= 1
            if skips > 0 and len(popped) == asked and want > 0:
                again = True
            revision = max(revision, lane.revision)
        if taken:
            if slot not in p.claims:
                p.reap[f"claim:{slot}"] = p.now + 2 * a.lease_ttl_ms
                p.reap_noted.add(f"claim:{slot}")
            p.claims[slot] = (n, p.now, taken)
        return again, revision

    def _job(self, p: Partition, x: Execution) -> dict[str, Any]:
        return {
            "execution_id": x.id, "lease_id": x.lease_id, "lease_epoch": x.epoch, "attempt_id": x.attempt_id,
            "attempt_index": x.attempt, "attempt_type": x.next, "lease_expires_at": x.at, "task": x.task,
            "lane_id": x.lane.name, "priority": x.priority, "created_at": x.created_at, "version": x.version,
            "namespace": x.namespace, "deadline_at": x.deadline_at or 0,
            "attempt_deadline_at": x.attempt_deadline or 0, "retries": x.retries, "crashes": x.crashes, "run": x.run,
            "cancel_requested": x.cancel_until is not None, "payload": x.payload,
            "tags": [text for pair in sorted(x.tags.items()) for text in pair], "journal": self.head(x),
            "flow": x.flow.uuid if x.flow is not None else "-", "inputs": self.inputs_of(p, x),
            "admission": self.asked(x),
        }  # fmt: skip

    def _park(self, p: Partition, a: Any, on: bool) -> None:
        for name in a.lanes:
            lane = self.lane(p, name) if on else p.lanes.get(name)
            if lane is None:
                continue
            known = self.served(lane, a.capability_sets)
            for cap in dict.fromkeys(["-", *a.capability_sets[: limits.HEADS_N], *known]):
                parked = p.park.setdefault((lane.no, cap), {})
                if on:
                    for late in [name for name, until in parked.items() if until < p.now]:
                        del parked[late]
                    parked[a.park] = p.now + limits.PARK_MS + 1000
                else:
                    parked.pop(a.park, None)

    def claims(self, ps: list[Partition], a: Any) -> Expected:
        return Say("claimed", self.claim_batch(ps, a, True))

    def call_complete_many(self, p: Partition, a: Any) -> Expected:
        items = [self.complete_item(p, row) for row in a.items]
        if p.settling:
            self.settle(p)
            self.flush(p)
        return Say("completed_many", {"items": items, "claimed": self.claim_batch([p], a, False)})

    def call_pass_bell(self, p: Partition, a: Any) -> Expected:
        for name in a.lanes:
            lane = p.lanes.get(name)
            if lane and lane.starts:
                for cap in ["-", *self.served(lane, a.capability_sets)]:
                    if self.any_ready(p, lane, cap):
                        self.ring(p, lane, cap)
        return Say("passed")

    def call_scan_eligible(self, p: Partition, a: Any) -> Expected:
        lane = p.lanes.get(a.lane_id)
        some = [x for x in lane.ready.values() if not self.is_shut(p, x)] if lane else []
        ready = sorted(some, key=lambda x: x.place)
        return Say("eligible", {"execution_ids": [x.id for x in ready[: a.limit]]})

    # ---- grants

    def _stopped(self, p: Partition, x: Execution) -> bool:
        """Holds and the lane's state hold for schedulers too."""
        return not x.lane.starts or (bool(p.holds) and self.held_by(p, x))

    @staticmethod
    def _lacks(x: Execution, has: frozenset[str]) -> bool:
        routing = x.policy.routing_requirements
        return routing is not None and not routing.required_capabilities <= has

    def _reserve(self, p: Partition, x: Execution, a: Any) -> None:
        x.grant, x.at = a.worker_id, p.now + a.grant_ttl_ms
        self.move(p, x, "granted")

    def call_issue_claim_grant(self, p: Partition, a: Any) -> Expected:
        x = self.find(p, a.execution_id)
        if x is None:
            return No("execution_not_found")
        if x.state == "granted":
            same = x.grant == a.worker_id
            return Say("granted", {"execution_id": x.id}) if same else No("grant_already_exists")
        if x.state not in QUEUED or self._stopped(p, x):
            return No("execution_not_eligible")
        if self._lacks(x, a.worker_capabilities):
            return No("capability_mismatch")
        if self.flow_stops(p, x):
            return No("execution_not_eligible")
        self._reserve(p, x, a)
        return Say("granted", {"execution_id": x.id})

    def call_claim_for_worker(self, p: Partition, a: Any) -> Expected:
        self.run_due(p, limits.CLAIM_TICK_N)
        self.settle(p)
        self.flush(p)
        lane = p.lanes.get(a.lane_id)
        if lane is None or not lane.starts:
            return Say("no_work")
        sets = sorted(cap for cap, text in lane.caps.items() if set(text.split(",")) <= a.worker_capabilities)
        shift = p.now % len(sets) if sets else 0
        for _ in range(limits.HOLD_SKIPS_N + 1):
            popped = self.popped(p, lane, [*sets[shift:], *sets[:shift]], 1)
            if not popped:
                return Say("no_work")
            x = popped[0]
            if not self.turned_away(p, x):
                self._reserve(p, x, a)
                return Say("granted", {"grant.execution_id": x.id, "grant.expires_at_ms": x.at})
        return Say("no_work")

    def due_grant(self, p: Partition, uuid: str) -> None:
        x = p.records.get(uuid)
        if x and x.state == "granted":
            if x.at > p.now:
                self.timer(p, "grant", x, x.at)
            else:
                x.grant = None
                self.requeue(p, x)

    def _take(self, p: Partition, a: Any, resumed: bool, index: int) -> tuple[Execution, None] | tuple[None, str]:
        """Take the lease that a grant promised."""
        x = self.find(p, a.execution_id)
        if x is None:
            return None, "execution_not_found"
        if x.terminal:
            return None, "terminal"
        if x.state == "active":
            return (x, None) if x.lease_id == a.lease_id else (None, "lease_conflict")
        if x.state != "granted":
            return None, "invalid_claim_grant" if x.state in QUEUED else "execution_not_leaseable"
        if resumed != (x.next == "resumed"):
            return None, "not_a_resumed_execution" if resumed else "use_claim_resumed_execution"
        if x.grant != a.worker_id:
            return None, "invalid_claim_grant"
        if x.at <= p.now:
            return None, "claim_grant_expired"
        if self.flow_stops(p, x):
            return None, "execution_not_leaseable"
        if resumed:
            if (x.attempt or 0) != index:
                return None, "execution_not_eligible_for_attempt"
            if a.remaining_attempt_timeout_ms is not None:
                x.left_ms = a.remaining_attempt_timeout_ms or None
            self.begin(p, x, a.lease_id, a.lease_ttl_ms, a.worker_instance_id)
            return x, None
        if index != (0 if x.attempt is None else x.attempt + 1):
            return None, "execution_not_eligible_for_attempt"
        deadline = getattr(a, "execution_deadline_at", None)
        if deadline is not None and x.deadline_at is None:
            x.deadline_at, x.deadline_ms = deadline, max(1, deadline - p.now)
            self.timer(p, "deadline", x, deadline)
        timeout = getattr(a, "attempt_timeout_ms", None)
        self.begin(p, x, a.lease_id, a.lease_ttl_ms, a.worker_instance_id, a.attempt_id, timeout)
        return x, None

    def call_claim_execution(self, p: Partition, a: Any) -> Expected:
        return self._claimed(*self._take(p, a, False, a.expected_attempt_index))

    def call_claim_resumed_execution(self, p: Partition, a: Any) -> Expected:
        return self._claimed(*self._take(p, a, True, a.current_attempt_index))

    @staticmethod
    def _claimed(x: Execution | None, refusal: str | None) -> Expected:
        """What is told of a job taken under a grant."""
        if x is None:
            return No(refusal or "")
        return Say("claimed", {
            "execution.execution_id": x.id, "execution.lease_id": x.lease_id, "execution.lease_epoch": x.epoch,
            "execution.attempt_index": x.attempt, "execution.attempt_id": x.attempt_id,
            "execution.lease_expires_at": x.at,
        })  # fmt: skip

    # ---- reclaim

    @staticmethod
    def _reclaimable(x: Execution) -> bool:
        return x.state in ("reclaimable", "revoked") or (x.state == "granted" and x.next == "reclaim")

    def call_issue_reclaim_grant(self, p: Partition, a: Any) -> Expected:
        x = self.find(p, a.execution_id)
        if x is None:
            return No("execution_not_found")
        if x.state == "failed" and x.crashes > self.reclaims_allowed(x):
            return Say("reclaim_cap_exceeded", {"execution_id": x.id, "reclaim_count": x.crashes})
        if not self._reclaimable(x):
            return Say("not_reclaimable", {"execution_id": x.id, "detail": x.state})
        if x.state == "granted":
            if x.grant != a.worker_id:
                return No("grant_already_exists")
        elif self._stopped(p, x):
            return Say("not_reclaimable", {"execution_id": x.id})
        elif self._lacks(x, a.worker_capabilities):
            return No("capability_mismatch")
        elif self.flow_stops(p, x):
            return Say("not_reclaimable", {"execution_id": x.id})
        else:
            self._reserve(p, x, a)
        return Say("granted", {"grant.execution_id": x.id, "grant.expires_at_ms": x.at, "grant.lane_id": x.lane.name})

    def call_reclaim_execution(self, p: Partition, a: Any) -> Expected:
        x = self.find(p, a.execution_id)
        if x is None:
            return No("execution_not_found")
        if not (x.state == "active" and x.lease_id == a.lease_id):
            if not self._reclaimable(x):
                return Say("not_reclaimable", {"execution_id": x.id, "detail": x.state})
            if x.state != "granted":
                return Say("grant_not_found", {"execution_id": x.id})
            lower = a.max_reclaim_count
            if lower is not None and x.grant == a.worker_id and x.crashes > lower:
                self.finish(p, x, "failed")
                return Say("reclaim_cap_exceeded", {"execution_id": x.id, "reclaim_count": x.crashes})
            if self.flow_stops(p, x):
                return Say("not_reclaimable", {"execution_id": x.id})
        taken, refusal = self._take(p, a, False, a.current_attempt_index + 1)
        if taken is None:
            return No(refusal or "")
        return Say("claimed", {"handle.kind": "reclaimed"})


def unpacked(packed: bytes | None) -> dict[str, str]:
    """Flat, length-prefixed pairs as a dict."""
    flat: list[str] = []
    rest = packed or b""
    while rest:
        n, _, rest = rest.partition(b":")
        flat.append(rest[: int(n)].decode())
        rest = rest[int(n) :]
    return dict(zip(flat[::2], flat[1::2], strict=True))
