"""Resume conditions evaluated the simple way: everything anew, from all that has arrived. What the store does
incrementally must come to the same."""

from __future__ import annotations

from typing import NamedTuple

import ffcore.contracts as c


class Arrived(NamedTuple):
    """A signal at a waitpoint's key; key None: an operator's word."""

    key: str | None
    name: str = ""
    id: str = ""
    source_type: str = ""
    source_identity: str = ""


def accepts(matcher: c.SignalMatcher | None, name: str) -> bool:
    match matcher:
        case c.ByName(wanted):
            return name == wanted
        case c.ByNames(wanted):
            return name in wanted
        case _:
            return True


def token(kind: c.CountKind, signal: Arrived) -> object:
    match kind:
        case c.CountKind.DISTINCT_WAITPOINTS:
            return signal.key
        case c.CountKind.DISTINCT_SIGNALS:
            return signal.id
        case c.CountKind.DISTINCT_SOURCES:
            return signal.source_type, signal.source_identity


def seen(count: c.Count, arrived: list[Arrived]) -> int:
    """Distinct signals of a count, as far as they matter."""
    tokens = {
        token(count.count_kind, s) for s in arrived
        if s.key is not None and s.key in count.waitpoints and accepts(count.matcher, s.name)
    }  # fmt: skip
    return min(len(tokens), count.n)


def met(condition: c.ResumeCondition, arrived: list[Arrived]) -> bool:
    match condition:
        case c.Single(key, matcher):
            return any(s.key == key and accepts(matcher, s.name) for s in arrived)
        case c.OperatorOnly():
            return any(s.key is None for s in arrived)
        case c.TimeoutOnly():
            return False
        case c.Composite(c.AllOf(members)):
            return all(met(member, arrived) for member in members)
        case c.Composite(c.Count() as count):
            return seen(count, arrived) >= count.n
        case _:
            raise AssertionError(condition)


def leaves(condition: c.ResumeCondition) -> list[c.ResumeCondition]:
    if isinstance(condition, c.Composite) and isinstance(condition.body, c.AllOf):
        return [leaf for member in condition.body.members for leaf in leaves(member)]
    return [condition]


def _progress(condition: c.ResumeCondition, arrived: list[Arrived]) -> list[int]:
    return [
        seen(leaf.body, arrived)
        if isinstance(leaf, c.Composite) and isinstance(leaf.body, c.Count) else int(met(leaf, arrived))
        for leaf in leaves(condition)
    ]  # fmt: skip


def effect(condition: c.ResumeCondition, before: list[Arrived], signal: Arrived) -> str:
    """What a signal does that arrives after others: elsewhere, unmatched, duplicate or counted."""
    there = False
    matches = False
    matcher: c.SignalMatcher | None
    for leaf in leaves(condition):
        if isinstance(leaf, c.Single):
            here, matcher = leaf.waitpoint_key == signal.key, leaf.matcher
        elif isinstance(leaf, c.Composite) and isinstance(leaf.body, c.Count):
            here, matcher = signal.key in leaf.body.waitpoints, leaf.body.matcher
        else:
            continue
        there = there or here
        matches = matches or (here and accepts(matcher, signal.name))
    if not there:
        return "elsewhere"
    if not matches:
        return "unmatched"
    moved = _progress(condition, [*before, signal]) != _progress(condition, before)
    return "counted" if moved else "duplicate"
