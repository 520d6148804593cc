"""What must be true of the flows at the end: each held against a plain executor, which says from how its members ended
what each of them could do at all, and what the whole came to.

The rule: where chance decides (who wins a race, what a cancel still met) it says what may be, and order comes from the
store's feed: nobody began before what it depends on had ended, and nobody who was not needed any more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from ffcore.contracts.flow import FlowInfo
from ffcore.contracts.reads import ExecutionOutcome
from ffcore.flows import member_id
from ffcore.ids import FlowId
from ffsdk.waiters import TERMINAL
from tests.chaos import tasks
from tests.chaos.feed import Feed, Move
from tests.chaos.graphs import Graph, Node, name_of
from tests.chaos.ledger import Evidence

GOOD: Final = {
    "success": frozenset({"completed"}), "always": TERMINAL, "failure": frozenset({"failed", "expired"}),
}  # fmt: skip
BAD: Final = ("failed", "expired")
Fault = tuple[str, str, str]
"""Sort, what, and the execution it is about."""


class Member(NamedTuple):
    """A member of a flow, or a child of one, as the store has it at the end."""

    id: str
    node: Node | None
    """None: a child."""
    state: str
    result: bytes
    moves: Sequence[Move]

    @property
    def began(self) -> int:
        """Its first claim's place in the feed; 0: there was none."""
        return next((move.place for move in self.moves if move.now == "active"), 0)

    @property
    def over(self) -> int:
        return next((move.place for move in self.moves if move.now in TERMINAL), 0)

    @property
    def epoch(self) -> int:
        return next((move.epoch for move in self.moves if move.now in TERMINAL), 0)


class Flow:
    """One flow, and what is wrong with it."""

    def __init__(
        self, graph: Graph, flow_id: str, info: FlowInfo | None, stored: Mapping[str, ExecutionOutcome], feed: Feed,
        evidence: Evidence,
    ) -> None:  # fmt: skip
        self.graph, self.id, self.info, self._feed, self._evidence = graph, flow_id, info, feed, evidence
        self.members = [self._member(node.n, node, stored) for node in graph.nodes]
        self.children = {n: self._member(n, None, stored) for node in graph.nodes for n in node.numbers}
        self.downs: list[list[int]] = [[] for _ in graph.nodes]
        for place, node in enumerate(graph.nodes):
            for up in node.after:
                self.downs[up].append(place)
        self.policy = info.cancellation_policy if info is not None else None
        turns = feed.flows.get(flow_id, ())
        self.halted = next((turn.place for turn in turns if turn.now == "cancelled" and turn.why != "ended"), 0)

    def _member(self, n: int, node: Node | None, stored: Mapping[str, ExecutionOutcome]) -> Member:
        execution_id = member_id(FlowId(self.id), name_of(n))
        one = stored.get(execution_id)
        moves = self._feed.moves.get(execution_id, [])
        return Member(execution_id, node, one.state if one else "unknown", one.result or b"" if one else b"", moves)

    # ---- the plain executor

    def good(self, place: int) -> list[int]:
        """Upstreams of a member that ended as it wants, in the order in which they ended."""
        node = self.graph.nodes[place]
        found = [up for up in node.after if self.members[up].state in GOOD[node.on]]
        return sorted(found, key=lambda up: self.members[up].over)

    def needs(self, place: int) -> int:
        node = self.graph.nodes[place]
        return node.need or len(node.after)

    def may_run(self, place: int) -> bool:
        """Whether its upstreams allow it, now that they have ended."""
        return len(self.good(place)) >= self.needs(place)

    def allowed_from(self, place: int) -> int:
        """The place in the feed where they did."""
        needs = self.needs(place)
        return self.members[self.good(place)[needs - 1]].over if needs else 0

    def not_needed(self, place: int) -> bool:
        """Whether it may have been cancelled because enough others had succeeded: a join had enough, or was not needed
        itself. Nobody whom it alone kept from running may have been waiting for it."""
        downs = self.downs[place]
        nodes, members = self.graph.nodes, self.members
        spared = any(
            (nodes[d].cancels and self.may_run(d)) or (members[d].state == "cancelled" and self.not_needed(d))
            for d in downs
        )
        waited = any(
            members[d].state == "skipped" and len(self.good(d)) + 1 >= self.needs(d) and nodes[d].on != "failure"
            for d in downs
        )
        return spared and not waited

    def outcome(self) -> str:
        """What the whole comes to."""
        if self.policy:
            return "cancelled"
        nodes, cancels = self.graph.nodes, 0
        for place, member in enumerate(self.members):
            if member.state in BAD and not any(nodes[d].need or nodes[d].on == "failure" for d in self.downs[place]):
                return "failed"
            # A join that had ended before, because nobody needed it, is not missed.
            if nodes[place].need and member.state == "skipped":
                ends = [self.members[up].state for up in nodes[place].after]
                if any(end in BAD for end in ends):
                    return "failed"
                cancels += "cancelled" in ends
        return "cancelled" if cancels else "completed"

    # ---- what is wrong

    def wrong(self) -> Iterator[Fault]:
        info, graph = self.info, self.graph
        if info is None or info.state != "ended":
            yield "lost", f"flow {graph.n} ({graph.shape}) is {info.state if info else 'unknown'} at the end", ""
            return
        if info.public_flow_state != (right := self.outcome()):
            yield "flow", f"flow {graph.n} ({graph.shape}) is {info.public_flow_state}, should be {right}", ""
        asked = self._evidence.halts.get(graph.n)
        if self.policy not in (None, graph.cancel) or (self.policy and asked is None):
            yield "flow", f"flow {graph.n} was cancelled by {self.policy}, asked was {graph.cancel or 'nothing'}", ""
        if asked in ("cancelled", "scheduled") and not self.policy:
            yield "flow", f"flow {graph.n} was not cancelled, and its cancel was answered {asked}", ""
        there = [member for member in [*self.members, *self.children.values()] if member.moves]
        counts = Counter(member.state for member in there)
        if info.node_count != len(there) or {word: n for word, n in info.counts.items() if n} != counts:
            yield "flow", f"flow {graph.n} counts {info.counts} of {info.node_count}, there are {dict(counts)}", ""
        turns = [(turn.now, turn.why == "ended") for turn in self._feed.flows.get(self.id, ())]
        if [now for now, _ in turns].count("created") != 1 or sum(ended for _, ended in turns) != 1:
            yield "flow", f"flow {graph.n} was created and ended: {turns}", ""
        for place, member in enumerate(self.members):
            for sort, text in self._of_member(place, member):
                yield sort, f"{self._called(place)}: {text}", member.id
        for place, node in enumerate(graph.nodes):
            for n, task in zip(node.numbers, node.children, strict=True):
                for sort, text in self._of_child(self.members[place], node, n, task):
                    yield sort, f"child {n} ({task}) of {self._called(place)}: {text}", self.children[n].id

    def _called(self, place: int) -> str:
        node = self.graph.nodes[place]
        return f"flow {self.graph.n} ({self.graph.shape}), job {node.n} ({node.task})"

    def _of_member(self, place: int, member: Member) -> Iterator[tuple[str, str]]:
        node, state = self.graph.nodes[place], member.state
        if state not in TERMINAL:
            yield "lost", f"it is {state} at the end"
            return
        allowed, began = self.may_run(place), member.began
        if state == "skipped" and (allowed or began):
            yield "order", "it was skipped, and its upstreams " + ("allow it" if allowed else "do not matter: it ran")
        if began and not (allowed and self.allowed_from(place) < began):
            yield "order", f"it began at {began}, and its upstreams ended {self._ends(node.after)}"
        if began and self.halted and began > self.halted:
            yield "order", f"it began at {began}, and its flow was cancelled at {self.halted}"
        for d in self.downs[place]:
            only = self.downs[place] == [d] and self.graph.nodes[d].cancels and self.may_run(d)
            if only and began > self.allowed_from(d):
                yield "order", f"it began at {began}, and was not needed since {self.allowed_from(d)}"
        yield from self._end(node, state, place)
        yield from _once(member, self._evidence)
        if began:
            yield from self._clocks(place, member)
        if state == "completed":
            yield from self._result(place, member)
        if node.task == "merge":
            for (execution_id, epoch), raw in self._evidence.inputs.items():
                if execution_id == member.id and not self._fits(place, msgspec.json.decode(raw)):
                    yield "input", f"under epoch {epoch} it got {raw.decode():.200}, its upstreams have " + ", ".join(
                        f"{self.members[up].state} {self.members[up].result.decode():.60}" for up in node.after
                    )

    def _ends(self, places: Iterable[int]) -> str:
        return ", ".join(f"{self.members[up].state} at {self.members[up].over}" for up in places)

    def _end(self, node: Node, state: str, place: int) -> Iterator[tuple[str, str]]:
        """Whether it could end so at all."""
        match state:
            case "completed" if node.task != "refused":
                pass
            case "failed" if node.task == "refused" or (node.task == "parent" and self.policy):
                pass  # a parent whose flow was cancelled may not spawn any more
            case "expired" if node.deadline_s:
                pass
            case "cancelled" if self.not_needed(place):
                pass
            case "cancelled" if self.policy == "cancel_pending" and 0 < self.members[place].began < self.halted:
                yield "outcome", "it was cancelled, and had begun before the rest of its flow was"
            case "cancelled" if self.policy:
                pass
            case "skipped":
                pass
            case _:
                yield "outcome", f"it ended as {state}"

    def _clocks(self, place: int, member: Member) -> Iterator[tuple[str, str]]:
        """By the handlers' own files: none of it began before those had ended that let it."""
        runs = [run.begin_ms for run in self._evidence.runs.values() if run.execution_id == member.id]
        for up in self.good(place)[: self.needs(place)] if runs else ():
            run = self._evidence.runs.get((self.members[up].id, self.members[up].epoch))
            if self.members[up].state == "completed" and run is not None and run.end_ms > min(runs):
                yield "order", f"its handler began at {min(runs)}, that of job {run.n} ended at {run.end_ms}"

    def _result(self, place: int, member: Member) -> Iterator[tuple[str, str]]:
        node, epoch = self.graph.nodes[place], member.epoch
        run = self._evidence.runs.get((member.id, epoch))
        if run is None or (not run.end_ms and (member.id, epoch) not in self._evidence.late):
            yield "result", f"no handler came to its end under epoch {epoch}"
        result = msgspec.json.decode(member.result) if member.result else None
        if node.task == "merge":
            right: Any = tasks.merged_of(self._evidence.inputs.get((member.id, epoch), b""), epoch)
        elif node.task == "parent":
            right = [*tasks.result_of(node.n, epoch), self._family(node, result)]
        else:
            right = tasks.result_of(node.n, epoch)
        if result != right:
            yield "result", f"{result} is not {right}, of epoch {epoch}"

    def _family(self, node: Node, result: Any) -> list[Any]:
        """What its children came to. Who took the first to end may not know of the others."""
        every = [_value(self.children[n]) for n in node.numbers]
        told = _list(_list(result)[-1]) if _list(result) else []
        if node.first and len(told) == len(every) and any(one is not None for one in told):
            return [one if mine is not None else None for one, mine in zip(every, told, strict=True)]
        return every

    def _fits(self, place: int, given: Any) -> bool:
        """Whether inputs are what the upstreams returned."""
        node = self.graph.nodes[place]
        values = [_value(self.members[up], None) for up in node.after]
        if not node.need:
            return bool(given == (values[0] if len(values) == 1 else values))
        done = [value for value, up in zip(values, node.after, strict=True) if self.members[up].state == "completed"]
        if not isinstance(given, list):
            return False
        taken, left = _list(given), iter(done)
        if len(taken) > node.need or (node.on == "success" and len(taken) < node.need):
            return False
        return all(one in left for one in taken)

    def _of_child(self, parent: Member, node: Node, n: int, task: str) -> Iterator[tuple[str, str]]:
        child = self.children[n]
        if not child.moves:
            if parent.state == "completed":
                yield "lost", "its parent completed, and it never was"
            return
        if (made := sum(move.was == "-" for move in child.moves)) != 1:
            yield "duplicated", f"it was spawned {made} times"
        if not parent.began or child.moves[0].place < parent.began:
            yield "order", f"it was spawned at {child.moves[0].place}, its parent began at {parent.began}"
        match child.state:
            case "completed" if task != "refused":
                run = self._evidence.runs.get((child.id, child.epoch))
                right = msgspec.json.encode(tasks.result_of(n, child.epoch))
                if child.result != right or run is None:
                    yield "result", f"{child.result!r} is not {right!r}, of epoch {child.epoch}"
            case "failed" if task == "refused":
                pass
            case "cancelled" if self.policy or parent.state == "cancelled":
                pass
            case _:
                yield "outcome", f"it ended as {child.state}"
        if parent.state == "completed" and not node.first and child.over > parent.over:
            yield "order", f"it ended at {child.over}, and its parent, which waited for it, at {parent.over}"
        yield from _once(child, self._evidence)


def _list(value: Any) -> list[Any]:
    """As a list; what is none is an empty one."""
    found: list[Any] = value if isinstance(value, list) else []
    return found


def _value(member: Member, other: Any = ...) -> Any:
    """What it returned; of one that did not complete, `other`, or else the word for its end."""
    if member.state == "completed":
        return msgspec.json.decode(member.result)
    return member.state if other is ... else other


def _once(member: Member, evidence: Evidence) -> Iterator[tuple[str, str]]:
    """It ended once, and at most one lease was told that it brought that about."""
    ends = [move for move in member.moves if move.now in TERMINAL]
    if len(ends) != 1:
        yield "duplicated", f"ended {len(ends)} times: {[str(move) for move in ends]}"
    told = evidence.by_state.get(member.id, set())
    if len(told) > 1 or (told and ends and (ends[0].now != "completed" or told != {ends[0].epoch})):
        yield "duplicated", f"{sorted(told)} were told completed; the feed says {[str(move) for move in ends]}"


# ---- what the run met ----------------------------------------------------------------------------------


def coverage(flows: Iterable[Flow], evidence: Evidence, outages: Sequence[tuple[int, int]]) -> dict[str, int]:
    """How often flows met what this run is there to do to them."""
    met = Counter[str]()
    for flow in flows:
        of_members = [move for member in flow.members for move in member.moves]
        of_children = [move for child in flow.children.values() for move in child.moves]
        lost = sum((move.was, move.now) == ("active", "reclaimable") for move in [*of_members, *of_children])
        parents = [member for member in flow.members if member.node is not None and member.node.children]
        spawned = [(parent, [c.moves[0].place for n in parent.node.numbers if (c := flow.children[n]).moves])
                   for parent in parents if parent.node is not None]  # fmt: skip
        at = [move.at_ms for move in of_members]
        met["flow_lost"] += lost
        met["flow_outage"] += any(at and min(at) <= since <= max(at) for since, _ in outages)
        met["flow_cancelled"] += bool(flow.policy)
        met["unneeded"] += sum(member.state == "cancelled" for member in flow.members) if not flow.policy else 0
        met["skipped"] += sum(member.state == "skipped" for member in flow.members)
        met["waited"] += sum(
            (move.was, move.now) == ("active", "blocked") for parent in parents for move in parent.moves
        )
        met["parent_lost"] += sum(
            bool(places) and move.now == "reclaimable" and move.place > places[0]
            for parent, places in spawned for move in parent.moves
        )  # fmt: skip
    ids = {member.id for flow in flows for member in flow.members}
    met["flow_replay"] = sum(report.state == "replayed" and report.execution_id in ids for report in evidence.reports)
    met["flow_known"] = evidence.counts["flow:known"]
    return dict(met)
