"""How long it took until what a killed worker held was claimed again, from the store's own account."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

import msgspec

from tests.chaos.feed import Feed
from tests.chaos.fleet import Death

RECONNECT_MS: Final = 1_500
"""After an outage clients come back within about a second, at random."""


class Tenure(NamedTuple):
    """One lease: from its claim to the move that ended it, and the next claim of the same execution."""

    execution_id: str
    instance: str
    since_ms: int
    until_ms: int
    became: str
    again_ms: int
    """0: never claimed again."""


class Recovery(msgspec.Struct, kw_only=True):
    """Milliseconds from the kill."""

    requeued: list[float]
    claimed: list[float]
    apart: list[float]
    """Until claimed, of those whose recovery met an outage of the server or its grace."""
    kills_with_leases: int
    pauses_with_losses: int
    """Stopped workers that lost at least one lease."""


def tenures(feed: Feed) -> list[Tenure]:
    found: list[Tenure] = []
    for execution_id, moves in feed.moves.items():
        for at, move in enumerate(moves):
            if move.now != "active" or move.lease_id == "-":
                continue
            end = next((m for m in moves[at + 1 :] if m.was == "active"), None)
            again = next((m for m in moves[at + 1 :] if m.now == "active" and m.lease_id != "-"), None)
            if end is not None:
                holder = move.lease_id.partition(".")[0].rpartition("-")[0] + "-"
                found.append(
                    Tenure(execution_id, holder, move.at_ms, end.at_ms, end.now, again.at_ms if again else 0)
                )
    return found


def measure(
    feed: Feed, deaths: Sequence[Death], pauses: Sequence[Death], away: Sequence[tuple[int, int]]
) -> Recovery:
    """away: when the server did not serve or had given a grace, in ms."""
    by_holder: dict[str, list[Tenure]] = defaultdict(list)
    for tenure in tenures(feed):
        by_holder[tenure.instance].append(tenure)
    out = Recovery(requeued=[], claimed=[], apart=[], kills_with_leases=0, pauses_with_losses=0)
    for death in deaths:
        held = _lost(by_holder[death.instance], death.at_ms)
        out.kills_with_leases += bool(held)
        for tenure in held:
            if not tenure.again_ms:
                continue  # cancelled or poisoned meanwhile
            took = float(tenure.again_ms - death.at_ms)
            if any(since <= tenure.again_ms and death.at_ms <= until for since, until in away):
                out.apart.append(took)
            else:
                out.claimed.append(took)
                out.requeued.append(float(tenure.until_ms - death.at_ms))
    for pause in pauses:
        out.pauses_with_losses += bool(_lost(by_holder[pause.instance], pause.at_ms))
    return out


def _lost(held: Iterable[Tenure], at_ms: int) -> list[Tenure]:
    """Leases that were held at that instant and ran out."""
    return [t for t in held if t.since_ms <= at_ms <= t.until_ms and t.became == "reclaimable"]


def quantile(values: Sequence[float], q: float) -> float:
    """The value below which a share q lies; 0 for none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))] if ordered else 0.0
