"""Resume conditions as the store takes them: waitpoints by number, one list of nodes.

The compiled form is JSON, an array of nodes with parents before children; `lua/shared/condition.lua` says what each
holds and evaluates it as signals arrive. Waitpoints are numbered as the suspension names them, from 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from ffcore import limits
from ffcore.contracts.condition import (
    ByName,
    ByNames,
    Composite,
    CompositeValidationError,
    Count,
    CountKind,
    OperatorOnly,
    ResumeCondition,
    SignalMatcher,
    Single,
    TimeoutOnly,
    check_leaf,
)
from ffcore.contracts.suspension import Fresh, WaitpointBinding

Node = list[Any]


def compile_condition(condition: ResumeCondition, keys: Sequence[str]) -> bytes:
    """The condition for waitpoints with these keys, in their order."""
    numbers = {key: i for i, key in enumerate(keys, 1)}
    if len(numbers) != len(keys):
        raise CompositeValidationError("two waitpoints have the same key", code="invalid_waitpoint_key")
    nodes: list[Node] = []
    _add(nodes, condition, 0, numbers)
    packed = msgspec.json.encode(nodes)
    if len(packed) > limits.CONDITION_BYTES:
        raise CompositeValidationError(f"a condition of {len(packed)} bytes; use {limits.CONDITION_BYTES} at most")
    return packed


def compile_sleep() -> bytes:
    """A condition that time alone decides."""
    return compile_condition(TimeoutOnly(), [])


def keys_of(bindings: Sequence[WaitpointBinding], condition: ResumeCondition) -> list[str]:
    """The keys of a suspension's waitpoints, in order. A pending one's key is known to the store alone: it is the name
    in the condition that no fresh one has ("" where the condition names none), and the store compares the two."""
    named = condition.referenced_waitpoint_keys()
    fresh = {binding.waitpoint_key for binding in bindings if isinstance(binding, Fresh)}
    left = [key for key in named if key not in fresh]
    pending_n = len(bindings) - len(fresh)
    if len(left) > pending_n:
        raise CompositeValidationError(f"the condition names {sorted(left)}, which no waitpoint has")
    rest = iter(left)
    return [b.waitpoint_key if isinstance(b, Fresh) else next(rest, "") for b in bindings]


def _add(nodes: list[Node], condition: ResumeCondition, parent: int, numbers: dict[str, int]) -> None:
    if len(nodes) >= limits.CONDITION_NODES_N:
        raise CompositeValidationError(f"a condition of more than {limits.CONDITION_NODES_N} nodes")
    if not isinstance(condition, Composite | Single | OperatorOnly | TimeoutOnly):
        # The body of a composite reads like a condition, and taken for one it would wait for an operator.
        kind = type(condition).__name__
        remedy = f"wrap it, Composite({kind}(...))" if kind in ("AllOf", "Count") else "use a ResumeCondition"
        raise CompositeValidationError(f"{kind} is no condition: {remedy}")
    if not isinstance(condition, Composite):
        check_leaf(condition)
        match condition:
            case Single():
                number = _number(condition.waitpoint_key, numbers)
                nodes.append(["single", parent, number, _name(condition.matcher)])
            case TimeoutOnly():
                nodes.append(["timeout_only", parent])
            case OperatorOnly():
                nodes.append(["operator_only", parent])
        return
    body = condition.body
    if isinstance(body, Count):
        waitpoints = list(dict.fromkeys(_number(key, numbers) for key in body.waitpoints))
        if body.n > limits.SIGNALS_N:
            raise CompositeValidationError(f"count_n {body.n}: an execution takes {limits.SIGNALS_N} signals")
        if body.count_kind is CountKind.DISTINCT_WAITPOINTS and body.n > len(waitpoints):
            raise CompositeValidationError(
                f"count_exceeds_waitpoint_set: n={body.n} > {len(waitpoints)} different waitpoints"
            )
        name = None if body.matcher is None else _name(body.matcher)
        nodes.append(["count", parent, body.n, body.count_kind.value, name, waitpoints])
        return
    nodes.append(["all_of", parent, len(body.members)])
    me = len(nodes)
    for member in body.members:
        _add(nodes, member, me, numbers)


def _number(key: str, numbers: dict[str, int]) -> int:
    if key not in numbers:
        raise CompositeValidationError(f"the condition names {key!r}, the waitpoints are {sorted(numbers)}")
    return numbers[key]


def _name(matcher: SignalMatcher) -> str | list[str] | None:
    match matcher:
        case ByName(name):
            return name
        case ByNames(names):
            return names
        case _:
            return None
