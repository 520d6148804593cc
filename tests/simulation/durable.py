"""What the model keeps of a durable execution: its journal, what it waits for, where signals arrive, what it streams.

Plain lists and dicts, and conditions judged from nothing but the full list of signals: the engine counts node by
node as signals come, and must come to the same.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

FINAL = frozenset({"ok", "fatal"})


class Entry:
    """A recorded step. `epoch` is the lease it was recorded under."""

    __slots__ = ("at", "attempt", "epoch", "key", "kind", "name", "seq", "status", "value")

    def __init__(
        self, seq: int, key: str, kind: str, name: str, status: str, at: int, attempt: int, value: bytes, epoch: int
    ) -> None:  # fmt: skip
        self.seq, self.key, self.kind, self.name = seq, key, kind, name
        self.status, self.at, self.attempt, self.value, self.epoch = status, at, attempt, value, epoch

    @property
    def final(self) -> bool:
        return self.status in FINAL


class Signal(NamedTuple):
    """As it was accepted, the `seq`-th of its execution."""

    seq: int
    waitpoint_id: str
    id: str
    name: str
    category: str
    source_type: str
    source_identity: str
    correlation_id: str
    accepted_at: int
    key: str
    encoding: str
    payload: bytes

    @property
    def texts(self) -> tuple[Any, ...]:
        """As whoever it resumes is told of it."""
        return tuple(self)[1:]


class Waitpoint:
    __slots__ = ("activated_at", "created_at", "digest", "expires_at", "id", "index", "key", "kid", "reason", "state")

    def __init__(
        self, id: str, key: str, kid: str | None, digest: str | None, created_at: int, expires_at: int | None
    ) -> None:  # fmt: skip
        self.id, self.key, self.kid, self.digest = id, key, kid, digest
        self.created_at, self.expires_at = created_at, expires_at
        self.activated_at: int | None = None
        self.index: int | None = None
        """Its number in the condition that waits there."""
        self.state = "pending"
        self.reason = ""


class Suspension:
    """What it waits for, or waited for last."""

    def __init__(self, id: str, nodes: Nodes, waitpoints: list[str], fence: str) -> None:
        self.id, self.nodes, self.waitpoints, self.fence = id, nodes, waitpoints, fence
        self.outcome = "suspended"
        self.step: str | None = None
        self.step_name, self.version = "", 1
        self.behavior, self.span_ms, self.reason_code = "fail", 0, ""
        self.consume, self.retain, self.close, self.delay_ms = True, False, True, 0
        self.counted: list[Signal] = []
        """What has brought the condition forward, in order of arrival."""
        self.approved = False
        self.why = ""
        """signal, operator, timeout or ended, once it is over."""
        self.over_at = 0


class Frame(NamedTuple):
    attempt: int
    type: str
    mode: str
    payload: bytes
    correlation_id: str
    epoch: int
    """Of the lease it was emitted under."""


class Durable:
    """All of it for one execution; emptied when a run ends and goes on as a new one."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}
        self.began: tuple[int, int] | None = None
        """The run and the task version that wrote the journal's first entry."""
        self.bytes = 0
        self.waitpoints: dict[str, Waitpoint] = {}
        self.next_expiry: int | None = None
        """When a pending waitpoint is looked at next."""
        self.kept: list[Signal] = []
        """Signals that no suspension has used up and whose waitpoint was open when they came, oldest first."""
        self.dedup: dict[tuple[str, str], tuple[int, str, str]] = {}
        """(waitpoint, key) -> until, signal id, effect"""
        self.signals_n = 0
        self.suspension: Suspension | None = None
        self.answers: dict[str, tuple[str, str, list[str], str]] = {}
        """Idempotency key of a suspension -> outcome, suspension id, waitpoints, fence."""
        self.frames: list[Frame] = []
        self.ids: list[str | None] = []
        """Of the frames, as far as they are known."""
        self.op: tuple[int, int, str] = (0, 0, "-")
        """Epoch, last operation of that lease, id of its frame."""
        self.summary: tuple[int, bytes, int] | None = None
        """Version, document, epoch of the lease that wrote it."""

    def by_seq(self) -> list[Entry]:
        return sorted(self.entries.values(), key=lambda entry: entry.seq)

    def open_waitpoints(self) -> list[Waitpoint]:
        return [waitpoint for waitpoint in self.waitpoints.values() if waitpoint.state != "closed"]


# ---- conditions, naively ---------------------------------------------------------------------------------


Nodes = list[list[Any]]
OPERATOR: Nodes = [["operator_only", 0]]


def parsed(condition: bytes) -> Nodes:
    """The nodes of a compiled condition, parents before children."""
    nodes: Nodes = json.loads(condition)
    return nodes


def children(nodes: Nodes, at: int) -> list[int]:
    return [i for i, node in enumerate(nodes) if i != at and node[1] == at + 1]


def root(nodes: Nodes) -> int:
    return next(i for i, node in enumerate(nodes) if node[1] == 0)


Names = str | list[str] | None


def _fits(names: Names, name: str) -> bool:
    """Whether a matcher (None: any signal) takes a signal of this name."""
    return names is None or name == names or (isinstance(names, list) and name in names)


def _named(names: Names, signals: Iterable[Signal]) -> list[Signal]:
    return [signal for signal in signals if _fits(names, signal.name)]


WHAT: dict[str, Callable[[Signal], Any]] = {
    "distinct_waitpoints": lambda signal: signal.waitpoint_id,
    "distinct_signals": lambda signal: signal.id,
    "distinct_sources": lambda signal: (signal.source_type, signal.source_identity),
}


def holds(
    nodes: Nodes, waitpoints: list[str], signals: list[Signal], approved: bool = False, at: int | None = None
) -> bool:  # fmt: skip
    """Whether a node (None: the root) is satisfied by these signals, and by an operator's word if there was one."""
    at = root(nodes) if at is None else at
    kind = nodes[at][0]
    if kind == "operator_only":
        return approved
    if kind == "single":
        there = [signal for signal in signals if signal.waitpoint_id == waitpoints[nodes[at][2] - 1]]
        return bool(_named(nodes[at][3], there))
    if kind == "count":
        return len(_told_apart(nodes[at], waitpoints, signals)) >= int(nodes[at][2])
    return kind == "all_of" and all(
        holds(nodes, waitpoints, signals, approved, child) for child in children(nodes, at)
    )


def _told_apart(node: list[Any], waitpoints: list[str], signals: list[Signal]) -> set[Any]:
    among = {waitpoints[i - 1] for i in node[5]}
    there = _named(node[4], [signal for signal in signals if signal.waitpoint_id in among])
    return {WHAT[node[3]](signal) for signal in there}


def _progress(nodes: Nodes, waitpoints: list[str], signals: list[Signal]) -> list[Any]:
    """What each leaf has got out of these signals; one that has enough gets no further."""
    out: list[Any] = []
    for at, node in enumerate(nodes):
        if node[0] == "single":
            out.append(holds(nodes, waitpoints, signals, at=at))
        elif node[0] == "count":
            out.append(min(len(_told_apart(node, waitpoints, signals)), node[2]))
    return out


def effect_of(
    nodes: Nodes, waitpoints: list[str], before: list[Signal], signal: Signal, approved: bool = False
) -> str:  # fmt: skip
    """What a signal does that comes after those of `before`."""
    after = [*before, signal]
    leaves = [node for node in nodes if node[0] in ("single", "count")]
    leaves = [node for node in leaves if signal.waitpoint_id in _waits_at(node, waitpoints)]
    if not leaves:
        return "signal_ignored_not_in_condition"
    if not any(_fits(_names(node), signal.name) for node in leaves):
        return "signal_ignored_matcher_failed"
    if _progress(nodes, waitpoints, after) == _progress(nodes, waitpoints, before):
        return "appended_to_waitpoint_duplicate"
    return SATISFIED if holds(nodes, waitpoints, after, approved) else "appended_to_waitpoint"


SATISFIED = "resume_condition_satisfied"
COUNTED = (SATISFIED, "appended_to_waitpoint")


def _waits_at(node: list[Any], waitpoints: list[str]) -> set[str]:
    return {waitpoints[i - 1] for i in ([node[2]] if node[0] == "single" else node[5])}


def _names(node: list[Any]) -> Names:
    names: Names = node[3] if node[0] == "single" else node[4]
    return names


def unpacked(value: bytes) -> list[bytes]:
    out: list[bytes] = []
    while value:
        n, _, value = value.partition(b":")
        out.append(value[: int(n)])
        value = value[int(n) :]
    return out


def packed(*texts: bytes | str | int) -> bytes:
    """Flat texts, each with its length before it."""
    raw = [text if isinstance(text, bytes) else str(text).encode() for text in texts]
    return b"".join(b"%d:%s" % (len(text), text) for text in raw)
