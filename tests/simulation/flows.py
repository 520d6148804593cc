"""What the model keeps of a flow: its members, their edges and groups.

Nothing is counted: how many members are in which state, how many edges are satisfied, what is not resolved yet is
looked up each time, from the members and edges themselves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.simulation.records import Execution, Lane

MEETS = {
    "s": frozenset({"completed"}), "f": frozenset({"failed", "expired"}),
    "a": frozenset({"completed", "failed", "expired", "cancelled", "skipped"}),
    "c": frozenset({"completed", "failed", "expired", "cancelled", "skipped"}),
}  # fmt: skip
"""Which ends of an upstream satisfy an edge, by the letter of its kind."""
LETTERS = {"success_only": "s", "always": "a", "on_failure": "f", "child": "c"}
KINDS = {letter: kind for kind, letter in LETTERS.items()}
GROUPS = {
    "ready": "q", "granted": "q", "reclaimable": "q", "revoked": "q", "delayed": "d", "blocked": "b", "active": "a",
    "suspended": "s", "completed": "C", "failed": "F", "cancelled": "X", "expired": "E", "skipped": "S",
}  # fmt: skip
"""Under which letter a flow counts its members of a state."""
WORDS = {"q": "ready", "d": "delayed", "b": "blocked", "a": "active", "s": "suspended", "C": "completed",
         "F": "failed", "X": "cancelled", "E": "expired", "S": "skipped"}  # fmt: skip


class Edge:
    """From `up` to `down`, both uuids. `state`: g staged, u unresolved, S satisfied, s so but late, I impossible."""

    __slots__ = ("abandoned", "awaited", "down", "end", "id", "kind", "order", "ref", "revision", "state", "up")

    def __init__(self, up: str, down: str, kind: str, order: int, state: str, id: str, revision: int = 0) -> None:
        self.up, self.down, self.kind, self.order, self.state = up, down, kind, order, state
        self.id, self.revision = id, revision
        self.ref: str | None = None
        self.end = ""
        """How its upstream had ended when it was resolved."""
        self.awaited = self.abandoned = False


class Edges:
    """What an execution depends on, who depends on it, and what it waits for itself."""

    __slots__ = ("awaits", "cancel", "decided", "grouped", "incoming", "k", "missed", "outgoing", "policy")

    def __init__(self) -> None:
        self.incoming: dict[str, Edge] = {}
        """By upstream, in the order of the inputs."""
        self.outgoing: list[str] = []
        self.policy, self.k, self.cancel = "A", 0, "-"
        self.decided = ""
        """satisfied or impossible; for good, until a replay."""
        self.missed = True
        """Whether anybody minds that it is impossible: not where the execution had ended before."""
        self.grouped = False
        """A policy was set, or an edge applied."""
        self.awaits: str | None = None
        """While it waits for children: ``*`` for all, or how many of the named ones are still to end."""

    def applied(self) -> list[Edge]:
        return [edge for edge in self.incoming.values() if edge.kind != "c" and edge.state != "g"]

    def children(self) -> list[Edge]:
        return [edge for edge in self.incoming.values() if edge.kind == "c"]

    @property
    def blames(self) -> str:
        """What a group that tolerates some misses makes of its flow, where it has met too many: f, c or nothing."""
        if self.policy == "A" or self.decided != "impossible" or not self.missed:
            return ""
        ends = {edge.end for edge in self.applied()}
        return "f" if ends & {"failed", "expired"} else "c" if "cancelled" in ends else ""

    def judge(self) -> str:
        """How the group stands: satisfied, impossible, or empty while neither is sure."""
        edges = self.applied()
        ok = sum(edge.state in "Ss" for edge in edges)
        left = sum(edge.state == "u" for edge in edges)
        if left == len(edges):
            return ""  # others may yet be applied
        need = len(edges) if self.policy == "A" else self.k
        if ok >= need:
            return "satisfied"
        # Without a miss, others may yet be applied.
        return "impossible" if ok + left < min(need, len(edges)) else ""


class Flow:
    def __init__(self, uuid: str, now: int) -> None:
        self.uuid, self.created_at, self.mutated_at = uuid, now, now
        self.kind = self.name = ""
        self.namespace = "default"
        self.state = "live"
        """staging, live, ended or purging."""
        self.members: list[Execution] = []
        """In the order of their numbers."""
        self.gone = 0
        """So many of them are removed already."""
        self.revision = self.edges_n = self.bytes = 0
        self.digest = b""
        self.chunk = 0
        self.look = False
        """It may have ended by this call."""
        self.outcome = ""
        self.ended_at: int | None = None
        self.policy: str | None = None
        """Of the cancel, once it was cancelled."""
        self.reason = ""
        self.cancelled_at: int | None = None
        self.tags: dict[str, str] = {}
        self.waiter: tuple[str, int] | None = None
        self.waiters: dict[str, int] = {}
        self.lane: Lane | None = None
        """Of its first member."""

    def counts(self) -> dict[str, int]:
        out: dict[str, int] = {}
        for x in self.members:
            out[GROUPS[x.state]] = out.get(GROUPS[x.state], 0) + 1
        return out

    @property
    def alive(self) -> bool:
        return any(not x.terminal for x in self.members)

    def verdict(self) -> str:
        """How it ended, if it has."""
        if self.policy is not None:
            return "cancelled"
        minded = {x.unhandled for x in self.members} | {x.edges.blames for x in self.members}
        return "failed" if "f" in minded else "cancelled" if "c" in minded else "completed"

    @property
    def public(self) -> str:
        if self.policy is not None:
            return "cancelled"
        if self.outcome:
            return self.outcome
        if self.state == "staging" or not any(x.lease_id or x.terminal for x in self.members):
            return "open"
        counts = self.counts()
        return "running" if any(counts.get(letter) for letter in "qad") or not self.alive else "blocked"
