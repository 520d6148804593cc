"""The flows of a chaos run: what each looks like, drawn from the seed, whichever process submits or judges it.

The rule: a flow takes numbers out of the run's jobs, one for each member and one for each child a member may spawn; so
a run has as much work with flows as without.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

import msgspec

from ffcore import flows, ids
from ffcore.ids import ExecutionId, FlowId

if TYPE_CHECKING:
    from tests.chaos.submitter import Orders

SHARE: Final = 0.08
"""Of the places in the row of jobs, those at which a flow begins: about a third of all jobs are members of one."""
CANCELLED: Final = 0.12
REPEATED: Final = 0.1
AWAITED: Final = 0.3
SHAPES: Final = {"chain": 20, "diamond": 20, "graph": 25, "race": 15, "family": 20}
"""Weights."""
PLAIN: Final = ("work", "steady", "flaky", "refused")
"""Tasks of members that take a payload of their own; the last one always fails."""


class Node(msgspec.Struct, frozen=True, kw_only=True):
    """A member."""

    n: int
    """Its job number; those of its children follow."""
    task: str
    """One of PLAIN; merge, which works on what its upstreams returned; parent, which spawns children."""
    ms: int = 0
    after: tuple[int, ...] = ()
    """Places of its upstreams."""
    on: str = "success"
    need: int = 0
    """So many of its upstreams; 0: all."""
    cancels: bool = False
    """Those that are not needed then are cancelled."""
    delay_s: float = 0.0
    deadline_s: float = 0.0
    """0: none."""
    children: tuple[str, ...] = ()
    """Their tasks."""
    first: bool = False
    """It waits for any one of its children, and not for all."""

    @property
    def numbers(self) -> range:
        """Of its children."""
        return range(self.n + 1, self.n + 1 + len(self.children))


class Graph(msgspec.Struct, frozen=True, kw_only=True):
    """A flow; its key is its first number."""

    n: int
    shape: str
    nodes: tuple[Node, ...]
    repeated: bool = False
    awaited: bool = False
    cancel: str = ""
    """The policy by which it is cancelled half-way; empty: it is not."""

    @property
    def numbers(self) -> range:
        return range(self.n, self.nodes[-1].numbers.stop)

    @property
    def key(self) -> str:
        return f"flow-{self.n}"

    def flow_id(self, partitions: int) -> FlowId:
        return FlowId(ids.keyed_id("flow", "default", self.key, partitions))

    def members(self, partitions: int) -> dict[ExecutionId, int]:
        """Executions it may have, with their numbers: its members, and their children."""
        flow_id = self.flow_id(partitions)
        found = {flows.member_id(flow_id, name_of(node.n)): node.n for node in self.nodes}
        return found | {flows.member_id(flow_id, name_of(n)): n for node in self.nodes for n in node.numbers}


def name_of(n: int) -> str:
    """The key of a member or a child within its flow."""
    return f"job-{n}"


def draw_graph(n: int, orders: Orders) -> Graph | None:
    """The flow that begins at a number; None: there is none."""
    rng = random.Random(f"{orders.seed} flow {n}")
    if rng.random() >= SHARE:
        return None
    shape = rng.choices(tuple(SHAPES), tuple(SHAPES.values()))[0]
    nodes = tuple(_numbered(n, _SHAPED[shape](rng)))
    cancel = rng.choice(("cancel_all", "cancel_pending")) if rng.random() < CANCELLED else ""
    graph = Graph(
        n=n, shape=shape, nodes=nodes, repeated=rng.random() < REPEATED, awaited=rng.random() < AWAITED, cancel=cancel
    )
    numbers = graph.numbers
    # Poisoned jobs keep their places, and no flow reaches beyond the last job.
    if numbers.stop > orders.jobs or any(one % orders.poison_each == 0 for one in numbers):
        return None
    return graph


def graphs(orders: Orders) -> Iterator[int | Graph]:
    """All of a run, in order: numbers of plain jobs, and flows."""
    n = 0
    while n < orders.jobs:
        graph = draw_graph(n, orders)
        yield n if graph is None else graph
        n = n + 1 if graph is None else graph.numbers.stop


# ---- shapes --------------------------------------------------------------------------------------------


def _numbered(n: int, nodes: Iterator[Node]) -> Iterator[Node]:
    for node in nodes:
        yield msgspec.structs.replace(node, n=n)
        n += 1 + len(node.children)


def _plain(rng: random.Random, after: tuple[int, ...] = (), on: str = "success", longest: int = 600) -> Node:
    task = rng.choices(PLAIN, (60, 20, 12, 8))[0]
    return Node(
        n=0, task=task, ms=int(rng.triangular(10, longest, 60)), after=after, on=on,
        delay_s=rng.uniform(0.05, 1.0) if rng.random() < 0.06 else 0.0,
        deadline_s=rng.uniform(0.3, 3.0) if rng.random() < 0.03 else 0.0,
    )  # fmt: skip


def _merge(rng: random.Random, after: tuple[int, ...], on: str = "success") -> Node:
    return Node(n=0, task="merge", ms=int(rng.triangular(5, 200, 20)), after=after, on=on)


def _any(rng: random.Random, after: tuple[int, ...], on: str = "success") -> Node:
    return (_merge if rng.random() < 0.4 else _plain)(rng, after, on)


def _chain(rng: random.Random) -> Iterator[Node]:
    yield _plain(rng)
    for place in range(rng.randint(1, 5)):
        yield _any(rng, (place,), "always" if rng.random() < 0.15 else "success")


def _diamond(rng: random.Random) -> Iterator[Node]:
    yield _plain(rng)
    arms = rng.randint(2, 5)
    for _ in range(arms):
        yield _any(rng, (0,))
    yield _merge(rng, tuple(range(1, arms + 1)), rng.choice(("success", "success", "always")))
    if rng.random() < 0.5:
        yield _plain(rng, (arms + 1,), "failure")


def _graph(rng: random.Random) -> Iterator[Node]:
    yield _plain(rng)
    for place in range(1, rng.randint(4, 9)):
        after = tuple(sorted(rng.sample(range(place), min(place, rng.choice((0, 1, 1, 2, 2, 3))))))
        on = rng.choice(("success", "success", "success", "always", "failure"))
        if not after:
            yield _plain(rng)
        elif len(after) > 1 and rng.random() < 0.3:
            yield _joined(rng, after, on)
        else:
            yield _any(rng, after, on)


def _race(rng: random.Random) -> Iterator[Node]:
    runners = rng.randint(2, 5)
    # Some have something to do before: what only a loser needs is not needed either.
    before = rng.random() < 0.4
    for _ in range(runners if before else 0):
        yield _plain(rng, longest=1500)
    for place in range(runners):
        yield _plain(rng, (place,) if before else (), longest=2000)
    yield _joined(rng, tuple(range(runners if before else 0, 2 * runners if before else runners)), "success")
    if rng.random() < 0.4:
        yield _plain(rng, (2 * runners if before else runners,), "always")


def _joined(rng: random.Random, after: tuple[int, ...], on: str) -> Node:
    return msgspec.structs.replace(
        _merge(rng, after, on), need=rng.randint(1, min(2, len(after))), cancels=rng.random() < 0.7
    )


def _family(rng: random.Random) -> Iterator[Node]:
    at = 0
    if rng.random() < 0.6:
        yield _plain(rng)
        at = 1
    children = tuple(rng.choices(PLAIN, (50, 25, 15, 10), k=rng.randint(1, 4)))
    after = (0,) if at else ()
    yield Node(
        n=0, task="parent", ms=int(rng.triangular(20, 800, 100)), after=after, on="always", children=children,
        first=len(children) > 1 and rng.random() < 0.3,
    )  # fmt: skip
    yield _merge(rng, (at,))


_SHAPED = {"chain": _chain, "diamond": _diamond, "graph": _graph, "race": _race, "family": _family}
