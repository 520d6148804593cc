"""What a handler can wait for: gates, and conditions made of them. Pure: nothing here asks the store.

    await ctx.wait(ff.all_of(legal, ff.count(2, [ann, bob, cy], distinct="sources", name="ok")))

A condition is a tree of depth 4 at most, with 256 gates in it; every gate belongs to the handler that opened it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from ffcore import checks, limits
from ffcore.errors import InvalidArgument

if TYPE_CHECKING:
    from ffcore.contracts.condition import ResumeCondition, SignalMatcher
    from ffsdk.gates import Gate

NAMES_N = 16
"""Names one gate accepts; more than that is data, and belongs into the signal's value."""
Distinct = Literal["waitpoints", "signals", "sources"]
"""What makes two signals two: another gate, another signal, another sender."""


class Condition:
    """Something to wait for."""

    __slots__ = ()

    def gates(self) -> list[Gate[Any]]:
        """Every gate in it, once, in the order they are named."""
        raise NotImplementedError

    def contract(self) -> ResumeCondition:
        """The same as the store takes it. Raises InvalidArgument for a tree that is too deep or too large."""
        raise NotImplementedError


class AllOf(Condition):
    """Every member, in any order."""

    __slots__ = ("members",)

    def __init__(self, members: Sequence[Condition]) -> None:
        if not members:
            raise InvalidArgument("all_of() of nothing never waits: name a gate at least")
        self.members = tuple(members)

    def gates(self) -> list[Gate[Any]]:
        return list(dict.fromkeys(gate for member in self.members for gate in member.gates()))

    def contract(self) -> ResumeCondition:
        from ffcore.contracts import condition

        return condition.Composite(condition.all_of(member.contract() for member in self.members))

    def __str__(self) -> str:
        return f"all_of({', '.join(map(str, self.members))})"


class Count(Condition):
    """At least `n` signals to any of some gates."""

    __slots__ = ("_gates", "distinct", "n", "name")

    def __init__(self, n: int, gates: Sequence[Gate[Any]], distinct: Distinct, name: str | None) -> None:
        checks.whole(n, "n", 1, limits.SIGNALS_N)
        if not gates:
            raise InvalidArgument("count() needs gates: count(2, [a, b, c])")
        if distinct not in ("waitpoints", "signals", "sources"):
            raise InvalidArgument(f"distinct is {checks.shown(distinct)}: use waitpoints, signals or sources")
        if distinct == "waitpoints" and n > len(set(gates)):
            raise InvalidArgument(f"count({n}) of {len(set(gates))} gates cannot come true: distinct= another way?")
        self.n, self._gates, self.distinct, self.name = n, tuple(gates), distinct, name
        self._accepted()

    def gates(self) -> list[Gate[Any]]:
        return list(dict.fromkeys(self._gates))

    def contract(self) -> ResumeCondition:
        from ffcore.contracts import condition

        kind = condition.CountKind(f"distinct_{self.distinct}")
        matcher = matcher_of(self._accepted())
        keys = [gate.waitpoint_key for gate in self.gates()]
        return condition.Composite(condition.count(self.n, kind, matcher, keys))

    def _accepted(self) -> tuple[str, ...] | None:
        """The names that count: its own, else those its gates agree on."""
        if self.name is not None:
            return check_names([self.name])
        wanted = {gate.names for gate in self._gates}
        if len(wanted) > 1:
            raise InvalidArgument("the gates of one count() accept different names: say name=, or open them alike")
        return next(iter(wanted))

    def __str__(self) -> str:
        name = f", name={self.name}" if self.name is not None else ""
        return f"count({self.n}, {', '.join(map(str, self._gates))}, distinct={self.distinct}{name})"


class Operator(Condition):
    """An operator's word: `job.resume()` or `ff job resume`."""

    __slots__ = ()

    def gates(self) -> list[Gate[Any]]:
        return []

    def contract(self) -> ResumeCondition:
        from ffcore.contracts.condition import OperatorOnly

        return OperatorOnly()

    def __str__(self) -> str:
        return "operator()"


# ---- what users call -------------------------------------------------------------------------------------


def all_of(*conditions: Condition | Iterable[Condition]) -> AllOf:
    """All of these, in any order: gates and conditions, as arguments or as one list."""
    return AllOf(spread(conditions, Condition, "all_of"))


def count(
    n: int, *gates: Gate[Any] | Iterable[Gate[Any]], distinct: Distinct = "waitpoints", name: str | None = None
) -> Count:
    """At least `n` signals to any of these gates, given as arguments or as one list.

    distinct   what makes two of them two: "waitpoints" (one per gate), "signals" (each counts), "sources" (one per
               sender, as `client.signal(source=)` named it)
    name       only signals of this name count; without it, what the gates themselves accept
    """
    from ffsdk.gates import Gate

    return Count(n, spread(gates, Gate, "count"), distinct, name)


def any_of(*gates: Gate[Any] | Iterable[Gate[Any]]) -> Count:
    """A signal to any one of these gates, given as arguments or as one list."""
    from ffsdk.gates import Gate

    return Count(1, spread(gates, Gate, "any_of"), "waitpoints", None)


def quorum(n: int, *gates: Gate[Any] | Iterable[Gate[Any]]) -> Count:
    """Signals to `n` different ones of these gates, given as arguments or as one list."""
    from ffsdk.gates import Gate

    return Count(n, spread(gates, Gate, "quorum"), "waitpoints", None)


def operator() -> Operator:
    """An operator must agree: `job.resume()` or `ff job resume` meets this part of a condition, and what else is in it
    is still waited for, however often the job is resumed. No signal meets it, also not one of `ff signal approve`."""
    return Operator()


# ---- helpers ---------------------------------------------------------------------------------------------


def spread(given: Sequence[Any], kind: type[Any], what: str) -> list[Any]:
    """The members, given one by one or as one list."""
    members: list[Any] = [*given]
    if len(members) == 1 and not isinstance(members[0], kind | str) and hasattr(members[0], "__iter__"):
        members = list(members[0])
    for member in members:
        if not isinstance(member, kind):
            raise InvalidArgument(f"{what}({checks.shown(member, 60)}): use gates, as `await ctx.gate(...)` gives them")
    return members


def together(conditions: Sequence[Any]) -> Condition:
    """What `ctx.wait` was given, as one condition."""
    members: list[Condition] = spread(conditions, Condition, "wait")
    if not members:
        raise InvalidArgument("wait() needs something to wait for; to let time pass, use ctx.sleep")
    return members[0] if len(members) == 1 else AllOf(members)


def matcher_of(names: tuple[str, ...] | None) -> SignalMatcher:
    """Which signals count, as the store takes it."""
    from ffcore.contracts.condition import ByName, ByNames, Wildcard

    if names is None:
        return Wildcard()
    return ByName(names[0]) if len(names) == 1 else ByNames(list(names))


def check_names(names: str | Iterable[str] | None) -> tuple[str, ...] | None:
    """The names a gate accepts, sorted; None: any."""
    if names is None:
        return None
    try:
        given = [names] if isinstance(names, str) else [*names]
    except TypeError:
        raise InvalidArgument(f"names is {checks.shown(names)}: use a name, or a list of them") from None
    for name in given:
        checks.text("" if name is None else name, "signal name", limits.NAME_BYTES)  # pyright: ignore[reportUnnecessaryComparison]
    found = sorted(set(given))
    if not 1 <= len(found) <= NAMES_N:
        raise InvalidArgument(f"{len(found)} names: use 1 to {NAMES_N}, or None for any")
    return tuple(found)
