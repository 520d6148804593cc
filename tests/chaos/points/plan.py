"""The points at which a worker dies, and which job meets which.

Nobody lists the points: jobs that nobody kills pass them all, and a run kills at each that they passed. What they must
have passed at least is listed here, so that a handler that has lost its way is not taken for a thorough run.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

import msgspec

LANE: Final = "points"
SHAKY: Final = "shaky"
"""The step that fails first: the attempt behind it is a leg of its own."""
LEGS: Final = ("first", "retry", "joined", "signalled", "slept", "second")
"""From one claim to the next, where nobody dies: up to the step that fails, up to the end of its children, up to the
wait, up to the sleep, up to ContinueAs, and the run after that."""
CHILDREN: Final = {"a": 3, "b": 4}
"""What it spawns: `a` under a key, `b` without; b ends after a. What each adds to the number of its job."""
BODIES: Final = {
    0: ("reserve", "charge", "refuse", SHAKY, "count", "left", "right", "tell"),
    1: ("reserve", "last"),
}
"""The steps of each run that have a function of the handler's own."""
ONCE: Final = "charge"
"""The one that is begun at most once."""
SLEEP_S: Final = 6.0
"""Long enough to suspend."""
WAIT: Final = "count(2,answer,distinct=sources)"


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """The payload of a job."""

    n: int
    run: int = 0
    die: list[str] = []
    """Points at which whoever runs it dies, each once."""
    kept: Kept | None = None
    child: str = ""
    """One of CHILDREN: it is the payload of that, and the rest is its parent's."""
    parent: str = ""
    """The execution that spawned it."""


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """What the first run hands to the second."""

    charged: str
    refused: str
    shaky: int
    count: int
    parts: list[int]
    children: list[int]
    """What they returned."""
    signals: list[tuple[str, int, str]]
    """Key, value and source, in the order the handler got them."""


class Receipt(msgspec.Struct, frozen=True, kw_only=True):
    """The result."""

    n: int
    kept: Kept | None
    last: int


def receipt(n: int, charged: str) -> Receipt:
    """What a job must come to, however often its workers died."""
    kept = Kept(
        charged=charged, refused="out of stock", shaky=n + 1, count=2 * n, parts=[n, -n],
        children=[n + more for more in CHILDREN.values()],
        signals=[("a", 10 * n, "web:a"), ("b", 10 * n + 1, "web:b")],
    )  # fmt: skip
    return Receipt(n=n, kept=kept, last=n + 2)


class Size(msgspec.Struct, frozen=True, kw_only=True):
    """How large a run is."""

    per_point: int = 1
    """Kills at each point."""
    seed: int = 1
    share: float = 1.0
    """Of the points: less for a run that is to be short."""
    workers: int = 4
    concurrency: int = 2
    lease_s: float = 1.5
    partitions: int = 4
    references: int = 2
    """Jobs that nobody kills."""
    rounds: int = 5
    """A job that a neighbour's death has brought off its way passes other points: what was not met is tried again."""
    mutant: str = ""
    patience_s: float = 60.0
    """Without a job ending, after which the run gives up."""

    @property
    def deadline_s(self) -> float:
        return 240.0 + 60.0 * self.per_point


# ---- the points ----------------------------------------------------------------------------------------


def must_pass() -> Iterator[str]:
    """Points without which a run shows nothing of what it is for."""
    for leg in LEGS:
        yield f"{leg}/claimed"
        yield f"{leg}/place:start"
    for run, steps in BODIES.items():
        for step in steps:
            early = "first" if step in ("reserve", ONCE, "refuse") else "joined" if step == "tell" else "retry"
            leg = "second" if run else early
            yield from (f"{leg}/body:{step}/begin", f"{leg}/body:{step}/end")
            yield from _call(leg, f"record:{step}:{'fatal' if step == 'refuse' else 'ok'}")
    yield from _call("first", f"record:{ONCE}:intent")
    yield from _call("first", f"record:{SHAKY}:error")
    yield from _call("first", "fail")
    yield from _call("first", "frame:reserve")
    yield from _call("retry", "children")
    for child in CHILDREN:
        yield from _call("retry", f"spawn:{child}")
        yield f"child:{child}/claimed"
        yield from (f"child:{child}/body:leaf/{place}" for place in ("begin", "end"))
        yield from _call(f"child:{child}", "complete")
    yield from _call("joined", "gate:answer")
    yield from _call("joined", f"wait:{WAIT}")
    yield from _call("signalled", "record:sleep:ok")
    yield from _call("signalled", "wait:sleep")
    yield from _call("slept", "continue")
    yield from _call("second", "complete")
    yield from (f"slept/place:{place}" for place in PLACES[1:])


PLACES: Final = (
    "start", "reserve-charge", "charge-refuse", "refuse-shaky", "shaky-nap", "nap-count", "count-parts", "parts-emit",
    "emit-spawn", "spawn-spawn", "spawn-join", "join-gate", "gate-tell", "tell-wait", "wait-sleep", "sleep-continue",
)  # fmt: skip
"""Between each pair of steps; a handler that replays passes them again."""


def _call(leg: str, event: str) -> Iterator[str]:
    yield f"{leg}/{event}/before"
    yield f"{leg}/{event}/after"


def chosen(points: Iterable[str], size: Size) -> list[str]:
    """The points at which a run kills: all of them, unless it is to be short."""
    every = sorted(points)
    if size.share >= 1.0:
        return every
    return sorted(random.Random(size.seed).sample(every, max(1, round(len(every) * size.share))))


def orders(wanted: Mapping[str, int], size: Size, first: int) -> list[Order]:
    """A job for each kill, numbered from there on, shuffled. From the second kill at a point on, whoever takes over
    dies as well, anywhere."""
    rng = random.Random(f"{size.seed} {first}")
    anywhere = sorted(wanted)
    deaths = [
        [point] + ([rng.choice(anywhere)] if time else []) for point in anywhere for time in range(wanted[point])
    ]  # fmt: skip
    rng.shuffle(deaths)
    return [Order(n=n, die=list(dict.fromkeys(die))) for n, die in enumerate(deaths, first)]
