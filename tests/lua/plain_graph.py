"""A graph and what becomes of it, worked out the plain way: over and over, upstreams before downstreams.

`Executor` is told in which order members were started and ended, and nothing else. It keeps no counters and no
backlog, and looks at every node after every end: what the engine does edge by edge must come to the same.
"""

from __future__ import annotations

import random
from typing import NamedTuple

MEETS = {
    "success_only": frozenset({"completed"}),
    "on_failure": frozenset({"failed", "expired"}),
    "always": frozenset({"completed", "failed", "expired", "cancelled", "skipped"}),
}
"""Which ends of an upstream satisfy an edge of a kind; any other end makes it impossible."""


class Node(NamedTuple):
    number: int
    upstreams: list[tuple[int, str]]
    """Number and kind of edge, in the order of the inputs."""
    policy: str = "all_of"
    k: int = 0
    cancel_remaining: bool = False
    fate: str = "completed"
    """How it ends if it runs."""
    delay_ms: int = 0

    @property
    def need(self) -> int:
        return len(self.upstreams) if self.policy == "all_of" else self.k


def drawn(rng: random.Random, n: int, *, cancel_remaining: bool) -> list[Node]:
    """A random graph, sorted: upstreams have lower numbers."""
    nodes: list[Node] = []
    reach = rng.choice([4, 12, n])
    for number in range(1, n + 1):
        known = list(range(max(1, number - reach), number))
        ups = sorted(rng.sample(known, min(len(known), rng.choice([0, 1, 1, 2, 2, 3, 5]))))
        rng.shuffle(ups)
        kinds = [rng.choice(["success_only"] * 6 + ["always"] * 2 + ["on_failure"]) for _ in ups]
        policy = rng.choice(["all_of", "all_of", "any_of", "quorum"]) if ups else "all_of"
        nodes.append(Node(
            number, list(zip(ups, kinds, strict=True)), policy,
            {"all_of": 0, "any_of": 1}.get(policy) if policy != "quorum" else rng.randrange(1, len(ups) + 1),  # type: ignore[arg-type]
            cancel_remaining and policy != "all_of" and rng.random() < 0.8,
            rng.choice(["completed"] * 7 + ["failed", "failed", "expired", "cancelled"]),
            rng.choice([0, 0, 0, 0, 0, 200]),
        ))  # fmt: skip
    return nodes


class Executor:
    def __init__(self, nodes: list[Node]) -> None:
        self.nodes = {node.number: node for node in nodes}
        self.downs: dict[int, list[Node]] = {number: [] for number in self.nodes}
        for node in nodes:
            for up, _ in node.upstreams:
                self.downs[up].append(node)
        self.state: dict[int, str] = {}
        """How those that have ended did."""
        self.running: set[int] = set()
        self.asked: set[int] = set()
        """Those that ran when nobody needed them any more: they are asked to stop, and may end as they like."""
        self.spared: set[int] = set()
        """Those that were cancelled before they ran, because nobody needed them any more."""
        self.told: set[tuple[int, int]] = set()
        """Upstream and downstream, of the ends that the downstream knows of."""
        self.decided: dict[int, bool] = {node.number: True for node in nodes if not node.upstreams}
        self.inputs: dict[int, list[int | None]] = {}
        """Of each group that was satisfied: the upstreams whose results count."""

    def arrived(self, place: dict[int, int]) -> None:
        """In which order the engine got the members: in that it tells downstreams of an end."""
        for downs in self.downs.values():
            downs.sort(key=lambda node: place[node.number])

    # ---- what happens

    def start(self, number: int) -> None:
        """Nobody may start what still waits, was skipped or cancelled, or has ended."""
        assert self.decided.get(number) is True, f"{number} started before its upstreams let it"
        assert number not in self.state, f"{number} started after it was {self.state[number]}"
        self.running.add(number)

    def end(self, number: int, how: str) -> None:
        """With all that follows from it, in the order in which it comes up."""
        follows: list[tuple[bool, int]] = []
        self._ends(number, how, follows)
        for spare, about in follows:
            if spare:
                self._spare(about, follows)
                continue
            for down in self.downs[about]:
                self.told.add((about, down.number))
                self._judge(down, follows)

    def _ends(self, number: int, how: str, follows: list[tuple[bool, int]]) -> None:
        self.state[number] = how
        self.running.discard(number)
        follows.append((False, number))

    def _judge(self, node: Node, follows: list[tuple[bool, int]]) -> None:
        if node.number in self.decided:
            return
        known = [(up, kind) for up, kind in node.upstreams if (up, node.number) in self.told]
        met = [up for up, kind in known if self.state[up] in MEETS[kind]]
        left = len(node.upstreams) - len(known)
        if len(met) >= node.need:
            self.decided[node.number] = True
            every = [up if self.state[up] == "completed" else None for up, _ in known]
            some = [up for up in met if self.state[up] == "completed"]
            self.inputs[node.number] = every if node.policy == "all_of" else list[int | None](some)
            if node.cancel_remaining and left:
                follows.append((True, node.number))
        elif len(met) + left < node.need:
            self.decided[node.number] = False
            if node.number not in self.state:
                self._ends(node.number, "skipped", follows)

    def _spare(self, number: int, follows: list[tuple[bool, int]]) -> None:
        """What nobody needs any more is cancelled, and then what only that needed."""
        for up, _ in self.nodes[number].upstreams:
            others = [down.number for down in self.downs[up] if down.number != number]
            if up in self.state or any(down not in self.decided and down not in self.state for down in others):
                continue
            if up in self.running:
                self.asked.add(up)
            else:
                self.spared.add(up)
                self._ends(up, "cancelled", follows)
                follows.append((True, up))

    # ---- the end

    def _unneeded(self, number: int) -> bool:
        """Whether it was cancelled because nobody needed it."""
        return number in self.spared or (number in self.asked and self.state[number] == "cancelled")

    def handled(self, number: int) -> bool:
        how = self.state[number]
        if self._unneeded(number):
            return True
        kinds = [kind for node in self.downs[number] for up, kind in node.upstreams if up == number]
        tolerant = any(node.policy != "all_of" for node in self.downs[number])
        return tolerant or (how != "cancelled" and "on_failure" in kinds)

    def outcome(self) -> str:
        """Of the flow: what was not provided for, and what broke a group that provides for some of it."""
        minded = {how for number, how in self.state.items() if not self.handled(number)}
        for number, node in self.nodes.items():
            if node.policy != "all_of" and self.decided.get(number) is False:
                minded |= {self.state[up] for up, _ in node.upstreams if not self._unneeded(up)}
        if minded & {"failed", "expired"}:
            return "failed"
        return "cancelled" if "cancelled" in minded else "completed"


def topological(nodes: list[Node]) -> dict[int, str]:
    """How every member ends where nobody cancels anybody: each after its upstreams, whatever the order was."""
    state: dict[int, str] = {}
    for node in nodes:
        met = sum(state[up] in MEETS[kind] for up, kind in node.upstreams)
        state[node.number] = node.fate if met >= node.need else "skipped"
    return state


def contradictions(nodes: list[Node], state: dict[int, str], ran: set[int], called_off: set[int]) -> list[str]:
    """What cannot be, whatever the order was: who ran had enough, who was skipped could not get it any more, and
    nobody was cancelled before he ran but who was called off, or came before others."""
    wrong: list[str] = []
    downs = {node.number: [down for down in nodes if node.number in dict(down.upstreams)] for node in nodes}
    for node in nodes:
        met = sum(state[up] in MEETS[kind] for up, kind in node.upstreams)
        if node.number in ran and met < node.need:
            wrong.append(f"{node.number} ran with {met} of {node.need}")
        elif state[node.number] == "skipped" and met >= node.need:
            wrong.append(f"{node.number} was skipped with {met} of {node.need}")
        elif state[node.number] == "cancelled" and node.number not in ran | called_off and not downs[node.number]:
            wrong.append(f"{node.number} was cancelled and nothing came after it")
    return wrong
