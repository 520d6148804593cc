"""What edges one by one must answer: stage, apply, resolve, promote, policies of groups, and looking at edges."""

from __future__ import annotations

from typing import Any

from tests.simulation.between import Rules
from tests.simulation.flows import KINDS, LETTERS, MEETS, Edge, Flow
from tests.simulation.model import Expected, No, Say
from tests.simulation.records import QUEUED, Execution, Partition
from tests.simulation.rules_flows import UNPUBLISHED
from tests.simulation.rules_graph import uuid_of

OUTCOMES = {"success": "completed", "failed": "failed", "cancelled": "cancelled", "expired": "expired",
            "skipped": "skipped"}  # fmt: skip
STANDS = {"g": "staged", "u": "pending", "S": "satisfied", "s": "satisfied", "I": "impossible"}


class EdgeRules(Rules):
    @staticmethod
    def closed(f: Flow | None) -> str | None:
        """Why a flow takes nothing more."""
        if f is None:
            return "flow_not_found"
        return "flow_already_terminal" if f.policy is not None or f.state in ("ended", "purging") else None

    def _member(self, p: Partition, f: Flow, id: str) -> Execution | None:
        x = self.find(p, id)
        return x if x is not None and x.flow is f else None

    def _edge(self, p: Partition, f: Flow, id: str) -> Edge | None:
        for x in f.members[f.gone :]:
            for edge in x.edges.incoming.values():
                if edge.up in p.records and id == (edge.id or self.edge_id(p, f, edge)):
                    return edge
        return None

    @staticmethod
    def edge_id(p: Partition, f: Flow, edge: Edge) -> str:
        """Of an edge that nobody named: both numbers, and the end of the flow's."""
        down = f"{p.records[edge.down].node:07x}"
        return f"{p.records[edge.up].node:08x}-{down[:4]}-8{down[4:]}-8{f.uuid[20:]}"

    @staticmethod
    def _leads(p: Partition, start: Execution, to: Execution) -> bool:
        seen, ahead = {start.uuid}, [start]
        while ahead:
            for uuid in ahead.pop().edges.outgoing:
                if uuid == to.uuid:
                    return True
                if uuid not in seen:
                    seen.add(uuid)
                    ahead.append(p.records[uuid])
        return False

    # ---- stage and apply

    def call_stage_dependency_edge(self, p: Partition, a: Any) -> Expected:
        if a.dependency_kind == "child":
            return No("invalid_dependency")
        f = p.flows.get(uuid_of(a.flow_id))
        refusal = self.closed(f)
        if f is None or refusal:
            return No(refusal or "")
        kind, there = LETTERS[a.dependency_kind], self._edge(p, f, a.edge_id)
        ends = (uuid_of(a.upstream_execution_id), uuid_of(a.downstream_execution_id))
        if there is not None:
            if ((there.up, there.down), there.kind) == (ends, kind):
                return Say("staged", {"edge_id": a.edge_id, "new_graph_revision": f.revision})
            return No("dependency_already_exists")
        if a.expected_graph_revision != f.revision:
            return No("stale_graph_revision")
        up, down = self._member(p, f, a.upstream_execution_id), self._member(p, f, a.downstream_execution_id)
        if up is None or down is None:
            return No("execution_not_in_flow")
        if up.uuid in down.edges.incoming:
            return No("dependency_already_exists")
        if self._leads(p, down, up):
            return No("cycle_detected")
        f.revision += 1
        f.edges_n += 1
        self.mutated(p, f)
        edge = Edge(up.uuid, down.uuid, kind, len(down.edges.incoming) + 1, "g", a.edge_id, f.revision)
        edge.ref = a.data_passing_ref
        down.edges.incoming[up.uuid] = edge
        up.edges.outgoing.append(down.uuid)
        down.edges.grouped = True
        self.touched |= {up.id: up, down.id: down}
        return Say("staged", {"edge_id": a.edge_id, "new_graph_revision": f.revision})

    def call_apply_dependency_to_child(self, p: Partition, a: Any) -> Expected:
        f = p.flows.get(uuid_of(a.flow_id))
        refusal = self.closed(f)
        if f is None or refusal:
            return No(refusal or "")
        edge = self._edge(p, f, a.edge_id)
        given = (uuid_of(a.upstream_execution_id), uuid_of(a.downstream_execution_id), LETTERS[a.dependency_kind])
        if edge is None or (edge.up, edge.down, edge.kind) != given or a.data_passing_ref != edge.ref:
            return No("invalid_dependency")
        if edge.state != "g":
            return Say("already_applied")
        if not edge.revision <= a.graph_revision <= f.revision:
            return No("stale_graph_revision")
        up, x = p.records[edge.up], p.records[edge.down]
        begun, e = bool(x.lease_id), x.edges
        edge.state, e.grouped = "u", True
        if not begun and e.decided == "satisfied":
            e.decided = e.judge()
        self.mutated(p, f)
        self.touched[x.id] = x
        if up.terminal:
            self.resolve_edge(p, x, edge, up.state)
            if self.provides(x, edge, up.state):
                up.unhandled = None
                self.touched[up.id] = up
        waits = x.state in ("ready", "delayed", "granted") or (x.state, x.reason) == ("blocked", x.reason)
        if e.decided != "satisfied" and not begun and waits and x.reason != "waiting_for_children":
            self.hold(p, x)
            if e.decided:
                self.act(p, x)
        ok = sum(edge.state in "Ss" for edge in e.applied())
        return Say("applied", {"unsatisfied_count": len(e.applied()) - ok})

    def call_set_edge_group_policy(self, p: Partition, a: Any) -> Expected:
        f = p.flows.get(uuid_of(a.flow_id))
        refusal = self.closed(f)
        if f is None or refusal:
            return No(refusal or "")
        x = self._member(p, f, a.downstream_execution_id)
        if x is None:
            return No("execution_not_in_flow")
        rest = {"cancel_remaining": "c", "let_run": "l"}.get(getattr(a.policy, "on_satisfied", ""), "-")
        letter = {"all_of": "A", "any_of": "O", "quorum": "Q"}[a.policy.variant_str()]
        wanted = (letter, {"A": 0, "O": 1}.get(letter, getattr(a.policy, "k", 0)), rest)
        e = x.edges
        if e.grouped and (e.policy, e.k, e.cancel) == wanted:
            return Say("already_set")
        if e.applied():
            return No("invalid_dependency")
        (e.policy, e.k, e.cancel), e.grouped = wanted, True
        f.revision += 1
        self.mutated(p, f)
        self.touched[x.id] = x
        return Say("set")

    # ---- by hand

    def call_resolve_dependency(self, p: Partition, a: Any) -> Expected:
        x = self.find(p, a.at)
        if x is None or x.flow is None:
            return No("execution_not_in_flow")
        edge = self._edge(p, x.flow, a.edge_id)
        if edge is None or edge.down != x.uuid or edge.state == "g":
            return No("invalid_dependency")
        # An end is known to all edges when its call closes, so there is never one to be told of it.
        return Say("already_resolved") if edge.state != "u" else No("deps_not_satisfied")

    def waits(self, x: Execution) -> bool:
        """Whether it waits for others, as far as its flow goes."""
        if x.edges.awaits is not None or (x.flow is not None and x.flow.state in UNPUBLISHED):
            return True
        return bool(x.edges.applied()) and x.edges.decided != "satisfied"

    def call_promote_blocked_to_eligible(self, p: Partition, a: Any) -> Expected:
        x = self.find(p, a.execution_id)
        if x is None:
            return No("execution_not_found")
        if x.terminal:
            return No("terminal")
        if (x.state, x.reason) != ("blocked", "waiting_for_children"):
            return No("not_blocked_by_deps")
        if self.waits(x):
            return No("deps_not_satisfied")
        self.promote(p, x)
        return Say("promoted")

    def call_evaluate_flow_eligibility(self, p: Partition, a: Any) -> Expected:
        return Say("status", {"status": self._eligibility(self.find(p, a.execution_id))})

    def _eligibility(self, x: Execution | None) -> str:
        if x is None:
            return "not_found"
        if x.terminal:
            return "impossible" if x.state == "skipped" and x.edges.decided == "impossible" else "terminal"
        if x.state in ("active", "granted"):
            return "owned"
        policy = x.flow.policy if x.flow is not None else None
        stopped = policy is not None and (policy == "cancel_all" or not x.lease_id)
        if stopped or x.state in ("suspended", "delayed"):
            return "not_runnable"
        if x.state in QUEUED:
            return "eligible"
        if x.reason != "waiting_for_children":
            return "not_runnable"
        return "blocked_by_dependencies" if self.waits(x) else "eligible"

    # ---- reads

    def _shown(self, p: Partition, f: Flow, edge: Edge) -> dict[str, Any]:
        return {
            "edge_id": edge.id or self.edge_id(p, f, edge), "upstream_execution_id": p.records[edge.up].id,
            "downstream_execution_id": p.records[edge.down].id, "dependency_kind": KINDS[edge.kind],
            "data_passing_ref": edge.ref, "edge_state": STANDS[edge.state],
        }  # fmt: skip

    def call_describe_edge(self, p: Partition, a: Any) -> Expected:
        f = p.flows.get(uuid_of(a.flow_id))
        if f is None:
            return No("flow_not_found")
        edge = self._edge(p, f, a.edge_id)
        return Say("no_edge") if edge is None else Say("edge", {"edge": self._shown(p, f, edge)})

    def call_list_edges(self, p: Partition, a: Any) -> Expected:
        f = p.flows.get(uuid_of(a.flow_id))
        if f is None:
            return No("flow_not_found")
        x = self._member(p, f, a.execution_id)
        if x is None:
            return No("execution_not_in_flow")
        kinds = {edge.kind == "c" for edge in x.edges.incoming.values()}
        if f.gone or (a.direction == "incoming" and len(kinds) > 1):
            return Say("edges_page")  # of what is being removed; children and upstreams are numbered apart
        edges = list(x.edges.incoming.values())
        if a.direction == "outgoing":
            edges = [p.records[uuid].edges.incoming[x.uuid] for uuid in x.edges.outgoing]
        return Say("edges_page", {"edges": [self._shown(p, f, edge) for edge in edges][: a.limit]})

    def call_read_upstreams(self, p: Partition, a: Any) -> Expected:
        x = self.find(p, a.execution_id)
        if x is None:
            return No("execution_not_found")
        rows = [
            {"execution_id": up.id, "task": up.task, "label": up.label, "kind": edge.kind, "state": up.state,
             "edge_state": edge.state, "result": up.result or b""}
            for edge in x.edges.incoming.values() if edge.kind != "c" and edge.up in p.records
            for up in [p.records[edge.up]]
        ]  # fmt: skip
        return Say("upstreams", {"upstreams": rows[: a.limit]})

    def inputs_of(self, p: Partition, x: Execution) -> dict[str, Any] | None:
        """What a claim brings of the results of upstreams: of those that count, in their order."""
        if x.inputs is None:
            return None
        items: list[dict[str, Any] | None] = []
        for edge in x.edges.incoming.values():
            if edge.kind == "c" or edge.state != "S":
                continue
            up = p.records[edge.up]
            if up.state == "completed" or (up.replays and up.result is not None):
                items.append({"result": up.result})
            elif x.edges.policy == "A":
                items.append(None)
        return {"shape": x.inputs, "complete": True, "items": items}

    def provides(self, down: Execution, edge: Edge, outcome: str) -> bool:
        """Whether an edge is there for such an end, so that it is no failure of the flow."""
        return edge.kind == "c" or down.edges.policy != "A" or (edge.kind == "f" and outcome in MEETS["f"])
