"""What calls about a whole flow must answer: create, grow, cancel, tag, look; spawn children and wait for them; and
when a flow that has ended is forgotten with its members."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from ffcore import limits
from tests.simulation.between import Rules
from tests.simulation.flows import WORDS, Edge, Flow
from tests.simulation.model import Expected, No, Say, policy_of
from tests.simulation.records import Execution, Lane, Partition
from tests.simulation.rules_graph import uuid_of
from tests.simulation.rules_steps import entry_text

PAGE_N = 200
HOUR_MS = 3_600_000


class MemberRules(Rules):
    # ---- create and grow

    def new_flow(self, p: Partition, id: str, state: str) -> Flow:
        f = p.flows[uuid_of(id)] = Flow(uuid_of(id), p.now)
        f.state = state
        self.note(p, f"f {f.uuid} created")
        return f

    def join(self, p: Partition, f: Flow, x: Execution) -> None:
        f.members.append(x)
        x.flow, x.node = f, len(f.members)
        self.mutated(p, f)
        f.lane = f.lane or x.lane
        self.touched[x.id] = x

    def call_create_flow(self, p: Partition, a: Any) -> Expected:
        f, uuid = p.flows.get(uuid_of(a.flow_id)), uuid_of(a.flow_id)
        if f is not None and f.state == "purging":
            return No("purging")
        tomb = p.tombs.get(uuid[-3:], {}).get(uuid)
        if f is not None or (tomb is not None and tomb[0] >= p.now):
            return Say("already_satisfied")
        f = self.new_flow(p, a.flow_id, "live")
        f.kind, f.namespace = a.flow_kind, a.namespace
        self.reap_later(p, f"flow:{f.uuid}", p.now + limits.RETENTION_AGE_MS)
        return Say("created")

    def call_add_execution_to_flow(self, p: Partition, a: Any) -> Expected:
        f, x = p.flows.get(uuid_of(a.flow_id)), self.find(p, a.execution_id)
        if f is None:
            return No("flow_not_found")
        if x is not None and x.flow is f:
            return Say("already_member", {"node_count": len(f.members)})
        if refusal := self.closed(f):
            return No(refusal)
        if f.state == "staging":
            return No("flow_not_found")
        if x is None:
            return No("execution_not_found")
        if x.flow is not None:
            return No("execution_already_in_flow")
        self._add(p, f, x)
        f.bytes += len(x.payload)
        if x.terminal:
            self.look(p, f)
        return Say("added", {"new_node_count": len(f.members)})

    def _add(self, p: Partition, f: Flow, x: Execution) -> None:
        self.join(p, f, x)
        f.revision += 1
        if x.terminal:
            self.mind(x, x.state)

    # ---- cancel and tag

    def call_cancel_flow(self, p: Partition, a: Any) -> Expected:
        f = p.flows.get(uuid_of(a.flow_id))
        if f is None:
            return No("flow_not_found")
        ids = [x.id for x in f.members[f.gone :]]
        if f.policy is not None or f.state in ("ended", "purging"):
            stored = {"stored_cancellation_policy": f.policy, "stored_cancel_reason": f.reason or None}
            return Say("already_terminal", stored | {"member_execution_ids": ids})
        if f.state == "staging":
            self.timer(p, "staging", f.uuid, None)
            self.reap_later(p, f"flow:{f.uuid}", p.now)
            self.remove_flow(p, f)
            return Say("cancelled", {"member_execution_ids": [], "member_count": 0})
        f.policy, f.cancelled_at, f.reason = a.cancellation_policy, p.now, a.reason
        f.revision += 1
        self.note(p, f"f {f.uuid} cancelled")
        p.settling.append(("flow", f, ""))
        if f.policy == "flow_only":
            self.reap_later(p, f"flow:{f.uuid}", p.now + limits.RETENTION_MIN_AGE_MS)
        self.mutated(p, f)
        told = {"cancellation_policy": f.policy, "member_execution_ids": ids, "member_count": len(ids)}
        return Say("cancelled", told)

    def call_set_flow_tags(self, p: Partition, a: Any) -> Expected:
        f = p.flows.get(uuid_of(a.flow_id))
        if f is None:
            return No("flow_not_found")
        f.tags = {name: text for name, text in {**f.tags, **a.tags}.items() if text}
        self.mutated(p, f)
        return Say("ok", {"count": len(f.tags)})

    # ---- look

    def _info(self, f: Flow) -> dict[str, Any]:
        return {
            "flow_kind": f.kind, "namespace": f.namespace, "name": f.name, "state": f.state,
            "public_flow_state": f.public, "graph_revision": f.revision, "node_count": len(f.members),
            "edge_count": f.edges_n, "created_at": f.created_at, "last_mutation_at": f.mutated_at,
            "ended_at": f.ended_at, "cancelled_at": f.cancelled_at, "cancel_reason": f.reason or None,
            "cancellation_policy": f.policy, "resolving": 0, "payload_bytes": f.bytes, "tags": f.tags,
            "counts": {WORDS[letter]: n for letter, n in f.counts().items()},
        }  # fmt: skip

    def call_read_flow(self, p: Partition, a: Any) -> Expected:
        f = p.flows.get(uuid_of(a.flow_id))
        return No("flow_not_found") if f is None else Say("flow", self._info(f))

    def call_await_flow(self, p: Partition, a: Any) -> Expected:
        f = p.flows.get(uuid_of(a.flow_id))
        if f is None:
            return No("flow_not_found")
        until = p.now + limits.WAITER_MS
        if f.state in ("live", "staging"):
            if f.waiter is None or f.waiter[0] == a.client or f.waiter[1] < p.now:
                if not (f.waiter and f.waiter[0] == a.client and f.waiter[1] > p.now + limits.WAITER_MS // 2):
                    f.waiter = (a.client, until)
            else:
                f.waiters[a.client] = until
                self.reap_later(p, f"waiters:{f.uuid}", until + 1000)
        return Say("flow", self._info(f))

    def call_read_members(self, p: Partition, a: Any) -> Expected:
        f = p.flows.get(uuid_of(a.flow_id))
        if f is None:
            return No("flow_not_found")
        rows = [
            {"number": x.node, "execution_id": x.id, "task": x.task, "lane_id": x.lane.name, "state": x.state,
             "reason": x.reason or "", "next": x.next, "started": bool(x.lease_id), "label": x.label}
            for x in f.members[f.gone :] if x.node > a.after
        ]  # fmt: skip
        more = rows[a.limit - 1]["number"] if len(rows) > a.limit else 0
        return Say("members", {"members": rows[: a.limit], "next": more})

    def call_list_flows(self, p: Partition, a: Any) -> Expected:
        words = ("open", "running", "blocked") if a.status == "active" else (a.status,)
        wanted = [f for _, f in sorted(p.flows.items()) if a.status is None or f.public in words]
        rows = [{"flow_id": f"{p.key}:{f.uuid}", "public_flow_state": f.public, "node_count": len(f.members),
                 "name": f.name} for f in wanted]  # fmt: skip
        return Say("flows_page", {"flows": rows[: a.limit]})

    # ---- children

    def call_spawn(self, p: Partition, a: Any) -> Expected:
        x = self.find(p, a.execution_id)
        refusal = self.check(p, x, a.fence)
        if refusal:
            return No(refusal)
        assert x is not None
        old = x.d.entries.get(a.step)
        if old is not None and old.final:
            self._renew_by(p, x, a.lease_ttl_ms)
            told = {"entry": entry_text(old), "lease_expires_at": x.at, "cancel_until": x.cancel_until or 0}
            return Say("replayed", told)
        f, y = p.flows.get(uuid_of(a.flow_id)), self.find(p, a.child_id)
        refusal = self._may_spawn(p, x, y, f, a)
        if refusal is None and self.journal_has_no_room(p, x, a.step, "spawn", a.step_name, a.child_id.encode()):
            refusal = "journal_full"
        if refusal is None and y is None and self.is_closed(p, a.lane_id):
            refusal = "lane_closed"
        if refusal is None and self.cancelled_instead(p, x, "spawn"):
            refusal = "terminal"
        if refusal:
            return No(refusal)
        created = y is None
        lane = self.lane(p, a.lane_id) if created else None
        if f is None:
            f = self.new_flow(p, a.flow_id, "live")
            f.namespace = a.namespace
        if x.flow is None:
            self._add(p, f, x)
        if y is None:
            assert lane is not None
            y = self._child(p, f, a)
        if y.uuid not in x.edges.incoming:
            self._child_edge(p, f, x, y, a.abandon)
        self.put_entry(p, x, a.step, "spawn", a.step_name, "ok", a.child_id.encode(), a.task_version)
        self._renew_by(p, x, a.lease_ttl_ms)
        return Say("spawned", {"child_id": a.child_id, "created": created, "lease_expires_at": x.at})

    def _may_spawn(self, p: Partition, x: Execution, y: Execution | None, f: Flow | None, a: Any) -> str | None:
        if x.flow is not None and x.flow is not f:
            return "execution_already_in_flow"
        if f is not None and (self.closed(f) or f.state != "live"):
            return "flow_already_terminal"
        if y is None:
            uuid = uuid_of(a.child_id)
            tomb = p.tombs.get(uuid[-3:], {}).get(uuid)
            return "idempotency_conflict" if tomb is not None and tomb[0] >= p.now else None
        if y.digest != a.digest:
            return "idempotency_conflict"
        if y.flow is None or y.flow is not f:
            return "execution_already_in_flow" if y.flow is not None else "idempotency_conflict"
        row = x.edges.incoming.get(y.uuid)
        if (row is not None and row.kind != "c") or x.uuid in y.edges.incoming:
            return "idempotency_conflict"
        depends = y.edges.grouped or any(edge.kind != "c" for edge in y.edges.incoming.values())
        if row is None and not y.terminal and depends and self._leads(p, x, y):
            return "idempotency_conflict"
        return None

    def _child(self, p: Partition, f: Flow, a: Any) -> Execution:
        made: list[Execution] = []

        def member(y: Execution) -> None:
            self.join(p, f, y)
            y.label = a.label or ""
            made.append(y)

        given = SimpleNamespace(
            lane_id=a.lane_id, execution_kind=a.execution_kind, priority=a.priority, version=a.version,
            namespace=a.namespace, execution_deadline_at=a.execution_deadline_at, delay_until=a.delay_until,
        )  # fmt: skip
        row = SimpleNamespace(
            execution_id=a.child_id, digest=a.digest, fairness_key=a.fairness_key, admission=a.admission
        )
        self.create_member(p, given, row, a.input_payload, policy_of(a.policy), None, member, False)
        f.bytes += len(a.input_payload)
        return made[0]

    def _child_edge(self, p: Partition, f: Flow, x: Execution, y: Execution, abandoned: bool) -> None:
        edge = Edge(y.uuid, x.uuid, "c", len(x.edges.children()) + 1, "u", "")
        edge.abandoned = abandoned
        x.edges.incoming[y.uuid] = edge
        y.edges.outgoing.append(x.uuid)
        f.edges_n += 1
        f.revision += 1
        self.mutated(p, f)
        self.touched |= {x.id: x, y.id: y}
        if y.terminal:
            self.resolve_edge(p, x, edge, y.state)
            y.unhandled = None

    def _renew_by(self, p: Partition, x: Execution, ttl: int) -> None:
        self.heard(x)
        until = p.now + (x.policy.lease_ms or ttl) if ttl else x.at
        if x.attempt_deadline is not None:
            until = min(until, x.attempt_deadline)
        if until > x.at:
            x.at = p.leases[x.uuid] = until
            self.soon(p, until)

    def call_move_to_waiting_children(self, p: Partition, a: Any) -> Expected:
        x = self.find(p, a.execution_id)
        refusal = self.resolve(p, x, a, "children")
        if refusal == "replay":
            assert x is not None
            return Say("moved", {"public_state": x.state if x.terminal else "waiting_children"})
        if refusal:
            return No(refusal)
        assert x is not None
        children = {edge.up: edge for edge in x.edges.children()}
        named = [uuid_of(child.execution_id) for child in a.children]
        if not set(named) <= set(children):
            return No("invalid_dependency")
        wanted = [edge for up, edge in children.items() if not named or up in named]
        left = sum(edge.state == "u" for edge in wanted)
        if a.need:
            left = max(0, min(a.need - (len(wanted) - left), left))
        if left == 0:
            if a.fence is not None:
                self.heard(x)
            return Say("already_satisfied")
        for edge in children.values():
            edge.awaited = bool(named) and edge.state == "u" and edge in wanted
        holder = "" if a.fence is not None else x.worker
        if not self.cancelled_instead(p, x, "children"):
            x.edges.awaits = str(left) if named else "*"
            x.reason, x.next, x.ended_by, x.unseen = "waiting_for_children", "resumed", "children", 0
            x.left_ms, x.attempt_deadline = self.left(p, x), None
            self.move(p, x, "blocked")
        self.tell(p, holder, f"revoked {x.id}")
        return Say("moved", {"public_state": x.state if x.terminal else "waiting_children"})

    # ---- retention

    def remove_flow(self, p: Partition, f: Flow, limit: int = PAGE_N) -> int:
        """Remove some members of a flow, in their order, and with the last of them the flow. Answers how many."""
        if f.state != "purging":
            f.state = "purging"
            self.mutated(p, f)
        page = f.members[f.gone : f.gone + limit]
        f.gone += len(page)
        for x in page:
            if x.terminal:
                self.forget(p, x, buried=f.ended_at is not None)
                self.touched.pop(x.id, None)
                p.removed.append(x)
            else:
                self._drop(p, x)
        if len(page) == limit and f.gone < len(f.members):
            self.reap_later(p, f"flow:{f.uuid}", p.now)
            return len(page)
        if f.ended_at is not None:
            self.bury(p, f.uuid, f.digest, f.ended_at + limits.DEDUP_WINDOW_MS)
        self.tell_waiters(p, f, "cancelled")
        del p.flows[f.uuid]
        p.changed.pop(f.uuid, None)
        self.note(p, f"f {f.uuid} purged")
        return len(page) + 1

    def _drop(self, p: Partition, x: Execution) -> None:
        """A member of a graph that was never published."""
        if x.deadline_at is not None:
            self.timer(p, "deadline", x, None)
        self.tell_waiters(p, x, "cancelled")
        self.note(p, f"{x.uuid} {x.state} cancelled")
        self.touched.pop(x.id, None)
        del p.records[x.uuid]

    def _flow_due(self, f: Flow) -> int | None:
        age = f.lane.retention[0] if f.lane is not None else limits.RETENTION_AGE_MS
        if age == 0:
            return None
        ended_at = f.ended_at or 0
        since = f.cancelled_at if f.policy == "flow_only" and f.cancelled_at is not None else ended_at
        return max(ended_at + limits.RETENTION_MIN_AGE_MS, since + age)

    def reap_flow(self, p: Partition, uuid: str, limit: int) -> int:
        f = p.flows.get(uuid)
        if f is None or f.state == "staging" or (f.state == "live" and f.members and f.policy != "flow_only"):
            return 1
        if f.state == "live" and not f.members:
            due = f.created_at + limits.RETENTION_AGE_MS
            if due > p.now:
                self.reap_later(p, f"flow:{uuid}", due)
                return 1
        elif f.state != "purging":
            at = self._flow_due(f)
            if at is None or at > p.now:
                self.reap_later(p, f"flow:{uuid}", min(at or p.now + HOUR_MS, p.now + HOUR_MS))
                return 1
            if f.alive or f.state == "live":
                for x in list(f.members):
                    if not x.terminal and (f.state == "ended" or not x.has_begun):
                        self.request_cancel(p, x, "flow_cascade")
                self.reap_later(p, f"flow:{uuid}", p.now + limits.RETENTION_MIN_AGE_MS)
                return len(f.members)
        if f.state != "purging":
            self.reap_later(p, f"flow:{uuid}", p.now)
        return self.remove_flow(p, f, min(limit, PAGE_N))

    def flow_may_go(self, p: Partition, f: Flow) -> bool:
        assert f.ended_at is not None
        return not f.alive and f.ended_at <= p.now - limits.RETENTION_MIN_AGE_MS

    def oldest(self, p: Partition, lane: Lane) -> list[Execution]:
        """What has ended in a lane, without the members of flows that it has passed over."""
        ended = [x for x in (*p.records.values(), *p.removed) if x.lane is lane and x.terminal]
        ended = [x for x in ended if (x.at, x.uuid) > lane.passed.get(x.state, (-1, ""))]
        return sorted(ended, key=lambda x: (x.at, x.uuid))
