"""What an end of a member leads to: edges resolved, groups decided, members promoted, skipped, cancelled, flows ended.

Everything takes effect when the call closes, in the order in which it came up. How a flow stands is counted from its
members each time; how a group stands, from its edges.
"""

from __future__ import annotations

from ffcore import limits
from tests.simulation.between import Rules
from tests.simulation.flows import GROUPS, MEETS, Edge, Flow
from tests.simulation.records import Execution, Partition

UNPUBLISHED = ("staging", "purging")
UNMINDED = ("not_needed", "parent_cancelled")
"""Why a member was cancelled, where nobody minds."""
DELAYED_FOR = {"retry": "waiting_for_retry_backoff", "resumed": "waiting_for_resume_delay"}


class FlowRules(Rules):
    @staticmethod
    def mutated(p: Partition, f: Flow) -> None:
        """It has changed by this call."""
        f.mutated_at = p.now
        p.changed.setdefault(f.uuid, f)

    def look(self, p: Partition, f: Flow) -> None:
        """Whether it has ended is seen when the call closes."""
        f.look = True
        self.mutated(p, f)

    # ---- ends

    def member_moved(self, p: Partition, x: Execution, was: str, to: str) -> None:
        f = x.flow
        assert f is not None
        if x.terminal:
            f.look = f.look or was != "-"
            if x.edges.outgoing:
                p.settling.append(("edges", x, to))
            else:
                self.mind(x, to)
            if to == "cancelled" and x.edges.children():
                p.settling.append(("children", x, ""))
        elif was in ENDED:
            x.unhandled = None
            if f.state == "ended":
                f.state, f.outcome, f.ended_at = "live", "", None
                self.note(p, f"f {f.uuid} reopened")
        if GROUPS.get(was) != GROUPS[to]:
            f.look = f.look or (to == "blocked" and f.policy is not None)
            self.mutated(p, f)

    @staticmethod
    def mind(x: Execution, outcome: str) -> None:
        """An end that nothing in the flow provides for makes the flow's."""
        if outcome in ("failed", "expired"):
            x.unhandled = "f"
        elif outcome == "cancelled" and x.cancelled_by not in UNMINDED:
            x.unhandled = "c"

    def settle(self, p: Partition) -> None:
        while p.settling:
            what, x, outcome = p.settling.pop(0)
            getattr(self, f"_settle_{what}")(p, x, outcome)

    def _settle_edges(self, p: Partition, x: Execution, outcome: str) -> None:
        handled = False
        for uuid in x.edges.outgoing:
            down = p.records[uuid]
            edge = down.edges.incoming[x.uuid]
            if edge.state == "g":
                continue
            handled = handled or self.provides(down, edge, outcome)
            if edge.state == "u":
                self.resolve_edge(p, down, edge, outcome)
        if not handled:
            self.mind(x, outcome)
        assert x.flow is not None
        self.look(p, x.flow)

    def resolve_edge(self, p: Partition, down: Execution, edge: Edge, outcome: str) -> None:
        e = down.edges
        edge.end = outcome
        self.touched[down.id] = down
        if edge.kind == "c":
            edge.state = "S"
            self._child_ended(p, down, edge)
            return
        edge.state = ("s" if e.decided == "satisfied" else "S") if outcome in MEETS[edge.kind] else "I"
        if not e.decided and (verdict := e.judge()):
            self.decide(p, down, verdict)

    def decide(self, p: Partition, down: Execution, verdict: str) -> None:
        e = down.edges
        e.decided, e.missed = verdict, not down.terminal
        if verdict == "satisfied" and e.cancel == "c" and any(edge.state == "u" for edge in e.applied()):
            p.settling.append(("siblings", down, ""))
        if e.awaits is None:
            self.act(p, down)

    def act(self, p: Partition, x: Execution) -> None:
        """What a decided group does: only to what is blocked for that alone."""
        f = x.flow
        assert f is not None
        if (x.state, x.reason) != ("blocked", "waiting_for_children") or f.state in UNPUBLISHED:
            return
        if f.policy not in (None, "flow_only") and not x.has_begun:
            self.request_cancel(p, x, "flow_cascade")
        elif x.edges.decided == "satisfied":
            self.promote(p, x)
        else:
            self.finish(p, x, "skipped")

    def promote(self, p: Partition, x: Execution) -> None:
        due, x.due = x.due, None
        if due is not None and due > p.now:
            x.reason, x.at = DELAYED_FOR.get(x.next, "waiting_for_delay"), due
            self.move(p, x, "delayed")
            return
        x.reason = None
        if x.lease_id:
            self.requeue(p, x)
            return
        x.eligible_at = p.now
        x.turn = self.take_turn(p, x)
        self.move(p, x, "ready")

    def hold(self, p: Partition, x: Execution) -> None:
        """It waits for its upstreams, whatever it waited for before."""
        due = x.at if x.state == "delayed" else None
        if x.paused is not None:
            since, _, rest = x.paused.partition(" ")
            if due is None and rest:
                due = int(rest.rpartition(" ")[2])
            x.paused = since
        x.due = due or x.due
        x.reason, x.grant = "waiting_for_children", None
        self.move(p, x, "blocked")

    def _child_ended(self, p: Partition, parent: Execution, edge: Edge) -> None:
        e = parent.edges
        met = False
        if e.awaits == "*":
            met = all(edge.state != "u" for edge in e.children())
        elif e.awaits is not None and edge.awaited:
            e.awaits = str(int(e.awaits) - 1)
            met = int(e.awaits) <= 0
        if met:
            e.awaits = None
            if (parent.state, parent.reason) == ("blocked", "waiting_for_children"):
                parent.reason = None
                self.requeue(p, parent)

    def flow_stops(self, p: Partition, x: Execution) -> bool:
        """Whether a member may not start, because its flow was cancelled; it has been taken care of."""
        policy = x.flow.policy if x.flow is not None else None
        if policy == "cancel_all" or (policy == "cancel_pending" and not x.has_begun):
            self.request_cancel(p, x, "flow_cascade")
            return True
        if policy == "flow_only" and not x.has_begun:
            x.reason, x.grant = "paused_by_flow_cancel", None
            self.move(p, x, "blocked")
            return True
        return False

    # ---- a flow ends

    def look_at_flows(self, p: Partition) -> None:
        for f in p.changed.values():
            look, f.look = f.look, False
            alive = [x for x in f.members if not x.terminal]
            if f.policy == "flow_only":
                alive = [x for x in alive if x.state != "blocked"]
            if not look or f.state != "live" or alive or not (f.members or f.policy):
                continue
            f.outcome = f.verdict()
            f.state, f.ended_at = "ended", p.now
            self.note(p, f"f {f.uuid} {f.outcome}")
            self.tell_waiters(p, f, f.outcome)
            f.waiter = None
            self.reap_later(p, f"flow:{f.uuid}", p.now + limits.RETENTION_MIN_AGE_MS)
        p.changed = {}


ENDED = ("completed", "failed", "cancelled", "expired", "skipped")
