"""Resume conditions: what must arrive before a suspended execution goes on.

A condition is a tree of depth `MAX_COMPOSITE_DEPTH` at most; the store evaluates it as signals arrive.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import StrEnum
from typing import Final

import msgspec

from ffcore import checks, limits
from ffcore.errors import InvalidArgument

MAX_COMPOSITE_DEPTH: Final = 4
MAX_COMPOSITE_LEAVES: Final = 256
MATCHER_NAMES_N: Final = 16
"""Names of one matcher; more than that is data, and belongs into the signal's payload."""


class CompositeValidationError(InvalidArgument):
    """A condition that cannot be meant; `detail` names the rule and the place in the tree."""


class ByName(msgspec.Struct, frozen=True, tag_field="type", tag="by_name"):
    name: str


class Wildcard(msgspec.Struct, frozen=True, tag_field="type", tag="wildcard"):
    pass


class ByNames(msgspec.Struct, frozen=True, tag_field="type", tag="by_names"):
    """Any of several names; this engine's own."""

    names: list[str]


SignalMatcher = ByName | Wildcard | ByNames


class CountKind(StrEnum):
    """What makes two signals two."""

    DISTINCT_WAITPOINTS = "distinct_waitpoints"
    DISTINCT_SIGNALS = "distinct_signals"
    DISTINCT_SOURCES = "distinct_sources"


class _Condition(msgspec.Struct, frozen=True, tag_field="type"):
    def validate_composite(self) -> None:
        """Raise CompositeValidationError if a composite breaks a rule; the other kinds have none."""
        if isinstance(self, Composite):
            _validate(self.body, 1, "")
            leaves = sum(1 for _ in _leaf_keys(self))
            if leaves > MAX_COMPOSITE_LEAVES:
                raise CompositeValidationError(f"{leaves} waitpoints in one condition; use {MAX_COMPOSITE_LEAVES}")

    def referenced_waitpoint_keys(self) -> list[str]:
        """Every waitpoint key the condition names, once, in the order of the tree."""
        return list(dict.fromkeys(_leaf_keys(self)))


class Single(_Condition, frozen=True, tag="single"):
    waitpoint_key: str
    matcher: SignalMatcher


class OperatorOnly(_Condition, frozen=True, tag="operator_only"):
    """No signal counts; an operator resumes it."""


class TimeoutOnly(_Condition, frozen=True, tag="timeout_only"):
    """No signal counts; the timeout decides."""


class Composite(_Condition, frozen=True, tag="composite"):
    body: CompositeBody

    def __post_init__(self) -> None:
        # Checked where it is built, so that no invalid tree reaches a call. Every composite inside was built
        # first and measured from itself; the outermost one sees the whole depth.
        self.validate_composite()


ResumeCondition = Single | OperatorOnly | TimeoutOnly | Composite


class AllOf(msgspec.Struct, frozen=True, tag_field="kind", tag="all_of"):
    """Every member must be satisfied, in any order."""

    members: list[ResumeCondition]


class Count(msgspec.Struct, frozen=True, tag_field="kind", tag="count"):
    """At least `n` signals to any of the waitpoints, distinct by `count_kind`; None matches any signal."""

    n: int
    count_kind: CountKind
    matcher: SignalMatcher | None = None
    waitpoints: list[str] = []


CompositeBody = AllOf | Count


def all_of(members: Iterable[ResumeCondition]) -> AllOf:
    return AllOf(list(members))


def count(n: int, count_kind: CountKind, matcher: SignalMatcher | None, waitpoints: Iterable[str]) -> Count:
    return Count(n, count_kind, matcher, list(waitpoints))


def all_of_waitpoints(waitpoint_keys: Iterable[str]) -> Composite:
    """Any signal on every one of the waitpoints."""
    return Composite(AllOf([Single(key, Wildcard()) for key in waitpoint_keys]))


def _leaf_keys(condition: _Condition) -> Iterator[str]:
    if isinstance(condition, Single):
        yield condition.waitpoint_key
    elif isinstance(condition, Composite):
        if isinstance(condition.body, Count):
            yield from condition.body.waitpoints
        else:
            for member in condition.body.members:
                yield from _leaf_keys(member)


def _validate(body: CompositeBody, depth: int, path: str) -> None:
    at = f"at path {path or '<root>'}"
    if depth > MAX_COMPOSITE_DEPTH:
        raise CompositeValidationError(f"depth {depth} exceeds cap {MAX_COMPOSITE_DEPTH} {at}")
    if isinstance(body, AllOf):
        if not body.members:
            raise CompositeValidationError(f"allof_empty_members {at}")
        for i, member in enumerate(body.members):
            if isinstance(member, Composite):
                _validate(member.body, depth + 1, f"{path}.members[{i}]" if path else f"members[{i}]")
            else:
                check_leaf(member)
        return
    if body.n <= 0:
        raise CompositeValidationError(f"count_n_zero {at}")
    if not body.waitpoints:
        raise CompositeValidationError(f"count_waitpoints_empty {at}")
    if body.count_kind is CountKind.DISTINCT_WAITPOINTS and body.n > len(body.waitpoints):
        raise CompositeValidationError(
            f"count_exceeds_waitpoint_set: n={body.n} > {len(body.waitpoints)} waitpoints {at}"
        )
    if body.matcher is not None:
        check_matcher(body.matcher)
    if not all(body.waitpoints):
        raise CompositeValidationError(f"waitpoint_key_empty {at}")


def check_matcher(matcher: SignalMatcher) -> None:
    if isinstance(matcher, ByName) and not 0 < checks.utf8_n(matcher.name, "signal name") <= limits.NAME_BYTES:
        raise InvalidArgument(f"signal_name_empty: name a signal with 1 to {limits.NAME_BYTES} bytes, or use Wildcard")
    if isinstance(matcher, ByNames):
        if not 1 <= len(matcher.names) <= MATCHER_NAMES_N:
            raise InvalidArgument(f"signal_name_empty: a matcher has 1 to {MATCHER_NAMES_N} names")
        for name in matcher.names:
            check_matcher(ByName(name))


def check_leaf(condition: ResumeCondition) -> None:
    """The rules of a condition that is not composite."""
    if isinstance(condition, Single):
        check_matcher(condition.matcher)
        if not condition.waitpoint_key:
            raise InvalidArgument("waitpoint_key_empty: a single condition names its waitpoint",
                                  code="invalid_waitpoint_key")
