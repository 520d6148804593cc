"""What a submit of a whole graph must answer, and what spreads through a flow: cancels, and what a replay reopens."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from ffcore import limits
from tests.simulation.between import Rules
from tests.simulation.flows import Edge, Flow
from tests.simulation.model import Expected, No, Say, policy_of
from tests.simulation.records import QUEUED, Execution, Partition


def uuid_of(id: str) -> str:
    return id[id.index("}") + 2 :]


class GraphRules(Rules):
    # ---- submit

    def _submitted(self, p: Partition, a: Any, f: Flow | None) -> Expected | None:
        """What is answered without looking at the nodes."""
        if f is None:
            tomb = p.tombs.get(uuid_of(a.flow_id)[-3:], {}).get(uuid_of(a.flow_id))
            if tomb is not None and tomb[0] >= p.now:
                return Say("duplicate") if tomb[1] == a.digest else No("idempotency_conflict")
            return No("stale_graph_revision") if a.chunk > 1 else None
        if f.state == "purging":
            return No("purging")
        if f.digest != a.digest:
            return No("idempotency_conflict")
        if f.state != "staging":
            return Say("duplicate", {"public_flow_state": f.public})
        if a.chunk < f.chunk:
            return Say("staged", {"next_chunk": f.chunk})
        return No("stale_graph_revision") if a.chunk > f.chunk else None

    def call_submit_flow(self, p: Partition, a: Any) -> Expected:
        f = p.flows.get(uuid_of(a.flow_id))
        known = self._submitted(p, a, f)
        if known is not None:
            return known
        if any(self.is_closed(p, plan.lane_id) for plan in a.plans):
            return No("lane_closed")
        first = len(f.members) + 1 if f else 1
        edges = [[(int(word[:-1]), word[-1]) for word in row.edges.split(",") if word] for row in a.nodes]
        if any(up >= first + i for i, ups in enumerate(edges) for up, _ in ups):
            return No("invalid_dependency")
        if any(uuid_of(row.execution_id) in p.records for row in a.nodes):
            return No("idempotency_conflict")
        nodes_n, edges_n = first - 1 + len(a.nodes), (f.edges_n if f else 0) + sum(map(len, edges))
        over = nodes_n > a.node_total or edges_n > a.edge_total
        if over or (a.last and (nodes_n < a.node_total or edges_n < a.edge_total)):
            return No("invalid_input")
        plans = [(plan, self.lane(p, plan.lane_id)) for plan in a.plans]
        live = a.last and f is None
        if f is None:
            f = self.new_flow(p, a.flow_id, "live" if live else "staging")
            f.kind, f.namespace, f.name, f.digest, f.tags = a.flow_kind, a.namespace, a.name, a.digest, dict(a.tags)
        for row, ups in zip(a.nodes, edges, strict=True):
            self._node(p, a, f, row, ups, plans[row.plan - 1][0], live)
        f.revision += 1
        self.mutated(p, f)
        self._tell_ended(p, f, first)
        if not a.last:
            f.chunk = a.chunk + 1
            self.timer(p, "staging", f.uuid, p.now + limits.STAGING_MS)
            return Say("staged", {"next_chunk": f.chunk})
        if not live:
            self._publish(p, f)
        public = f.public
        if public == "blocked" and p.settling:
            public = "running"  # who was skipped by being published has not told the others yet
        return Say("submitted", {"public_flow_state": public, "node_count": len(f.members)})

    def _node(self, p: Partition, a: Any, f: Flow, row: Any, ups: list[tuple[int, str]], plan: Any, live: bool) -> None:
        uuid = uuid_of(row.execution_id)
        mine: list[Edge] = []
        for order, (number, kind) in enumerate(ups, 1):
            up = f.members[number - 1]
            mine.append(Edge(up.uuid, uuid, kind, order, "u", ""))
            up.edges.outgoing.append(uuid)
            self.touched[up.id] = up
        given = SimpleNamespace(
            lane_id=plan.lane_id, execution_kind=plan.execution_kind, priority=plan.priority, version=plan.version,
            namespace=a.namespace, execution_deadline_at=plan.execution_deadline_at, delay_until=plan.delay_until,
        )  # fmt: skip

        def member(x: Execution) -> None:
            self.join(p, f, x)
            x.edges.incoming = {edge.up: edge for edge in mine}
            x.edges.policy, x.edges.k, x.edges.cancel = group_of(row.group)
            x.edges.grouped, x.label = bool(ups), row.label or ""
            if row.payload is None:
                x.inputs = "1" if len(ups) == 1 else "*"

        self.create_member(p, given, row, row.payload or b"", policy_of(plan.policy.encode() if plan.policy else None),
                           row.tags, member, not live or bool(ups))  # fmt: skip
        f.edges_n += len(ups)
        f.bytes += len(row.payload or b"")

    def _tell_ended(self, p: Partition, f: Flow, first: int) -> None:
        """Members of an earlier chunk may have ended meanwhile."""
        for down in f.members[first - 1 :]:
            for edge in list(down.edges.incoming.values()):
                up = p.records[edge.up]
                if up.node < first and up.terminal:
                    self.resolve_edge(p, down, edge, up.state)
                    if self.provides(down, edge, up.state):
                        up.unhandled = None

    def _publish(self, p: Partition, f: Flow) -> None:
        self.timer(p, "staging", f.uuid, None)
        f.state = "live"
        self.look(p, f)
        for x in list(f.members):
            if not x.edges.incoming:
                x.edges.decided = "satisfied"
            if x.state == "blocked" and x.edges.decided and x.edges.awaits is None:
                self.act(p, x)

    def call_abort_flow(self, p: Partition, a: Any) -> Expected:
        f = p.flows.get(uuid_of(a.flow_id))
        if f is None or f.state != "staging" or f.digest != a.digest:
            return Say("not_staging")
        self.timer(p, "staging", f.uuid, None)
        f.state = "purging"
        self.mutated(p, f)
        self.reap_later(p, f"flow:{f.uuid}", p.now)
        return Say("aborted")

    # ---- cancels

    def _settle_siblings(self, p: Partition, x: Execution, _: str) -> None:
        """Upstreams that a satisfied group does not need any more."""
        for edge in list(x.edges.applied()):
            up = p.records[edge.up]
            if edge.state != "u" or up.terminal or self._is_needed(p, up, x):
                continue
            self.request_cancel(p, up, "not_needed")
            if up.terminal and up.edges.incoming:
                p.settling.append(("siblings", up, ""))

    @staticmethod
    def _is_needed(p: Partition, up: Execution, but: Execution) -> bool:
        for uuid in up.edges.outgoing:
            down = p.records[uuid]
            edge = down.edges.incoming[up.uuid]
            if down is but:
                continue
            if edge.state == "g":
                return True
            if edge.state == "u" and not down.terminal and (edge.kind == "c" or not down.edges.decided):
                return True
        return False

    def _settle_children(self, p: Partition, x: Execution, _: str) -> None:
        for edge in x.edges.children():
            child = p.records[edge.up]
            if edge.state == "u" and not edge.abandoned and not child.terminal:
                self.request_cancel(p, child, "parent_cancelled")

    def _settle_flow(self, p: Partition, f: Flow, _: str) -> None:
        self.look(p, f)
        for member in list(f.members):
            pending = f.policy == "cancel_pending" and not member.has_begun
            if not member.terminal and (f.policy == "cancel_all" or pending):
                self.request_cancel(p, member, "flow_cascade")

    # ---- replays

    def _settle_reopen(self, p: Partition, x: Execution, was: str) -> None:
        for uuid in x.edges.outgoing:
            self._reopen_edge(p, p.records[uuid], x)

    def _reopen_edge(self, p: Partition, down: Execution, up: Execution) -> None:
        """Unresolved again, where its downstream has not gone on with what it had."""
        edge, e = down.edges.incoming[up.uuid], down.edges
        if edge.state in "gu":
            return
        self.touched[down.id] = down
        if edge.kind == "c":
            edge.state, edge.end = "u", ""
            if e.awaits not in (None, "*") and edge.awaited:
                e.awaits = str(int(e.awaits or "0") + 1)
            return
        open_again = down.state in (*QUEUED, "delayed", "granted", "blocked", "skipped")
        if e.awaits is not None or (down.lease_id and not open_again):
            return
        # What never began has used nothing, however it has ended.
        edge.state, edge.end = "u", ""
        e.decided, e.missed = e.judge(), e.missed or e.decided != "impossible" or e.judge() != "impossible"
        if e.decided or not open_again:
            return
        if down.state == "skipped":
            self.unend(p, down)
            down.reason = "waiting_for_children"
            self.move(p, down, "blocked")
            if down.edges.outgoing:
                p.settling.append(("reopen", down, "skipped"))
        elif (down.state, down.reason) != ("blocked", "waiting_for_children"):
            self.hold(p, down)


def group_of(text: str) -> tuple[str, int, str]:
    """``A``, ``O c``, ``Q 2 l`` as policy, how many, what becomes of the others."""
    word, _, rest = text.partition(" ")
    if word == "A":
        return "A", 0, "-"
    if word == "O":
        return "O", 1, rest
    k, _, rest = rest.partition(" ")
    return "Q", int(k), rest
