"""Joins: how many of several it takes. Over nodes of a flow they say when a task starts; over gates, or over children,
what a handler waits for.

    flow.add(answer, after=ff.any_of(fast, cheap, good))                       # the first to succeed; the others end
    flow.add(merge, after=ff.quorum(2, votes, on_satisfied="let_run"))          # two of them; the others go on
    await ctx.wait(ff.all_of(legal, ff.any_of(ann, bob)), timeout=3600)         # gates, in a handler
    await ctx.wait(ff.any_of(left, right))                                      # children, in a handler

Members are given one by one or as one list. Joins of nodes or children do not nest: put a task between.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, overload

from ffcore import checks
from ffcore.errors import InvalidArgument
from ffsdk import conditions
from ffsdk.job import Job
from ffsdk.node import Node

if TYPE_CHECKING:
    from ffsdk import sync
    from ffsdk.children import Child, Children
    from ffsdk.conditions import AllOf, Condition, Count, Distinct
    from ffsdk.gates import Gate

    AnyNode = Node[Any] | sync.Node[Any]
    AnyChild = Child[Any] | sync.Job[Any]

OnSatisfied = Literal["cancel_remaining", "let_run"]
"""What becomes of the others once there are enough: those that nobody else needs are cancelled, or all go on."""
ON_SATISFIED: Final = ("cancel_remaining", "let_run")


class Join:
    """Some of a flow's nodes, and how many of them it takes.

    word           all_of, any_of or quorum
    nodes          in the order in which their results arrive
    k              how many it takes
    on_satisfied   what becomes of the others then; of no meaning where it takes all
    """

    __slots__ = ("k", "nodes", "on_satisfied", "word")

    def __init__(
        self, word: Literal["all_of", "any_of", "quorum"], nodes: Sequence[Node[Any]], k: int,
        on_satisfied: OnSatisfied = "cancel_remaining",
    ) -> None:  # fmt: skip
        if on_satisfied not in ON_SATISFIED:
            raise InvalidArgument(f"on_satisfied is {checks.shown(on_satisfied)}: use {' or '.join(ON_SATISFIED)}")
        checks.whole(k, "k", 1, checks.U32_MAX)
        if k > len(nodes):
            raise InvalidArgument(f"{word}({k}) of {len(nodes)} nodes cannot come true: it takes {k} at most of them")
        self.word, self.nodes, self.k, self.on_satisfied = word, tuple(nodes), k, on_satisfied

    def __repr__(self) -> str:
        k = f"{self.k}, " if self.word == "quorum" else ""
        return f"{self.word}({k}{', '.join(map(repr, self.nodes))})"


# ---- what users call -------------------------------------------------------------------------------------


@overload
def all_of(*nodes: AnyNode | Iterable[AnyNode]) -> Join: ...  # type: ignore[overload-overlap]
@overload
def all_of(*children: AnyChild | Iterable[AnyChild]) -> Children: ...
@overload
def all_of(*conditions: Condition | Iterable[Condition]) -> AllOf: ...


def all_of(*members: Any) -> Join | Children | AllOf:
    """All of these: nodes, children, or gates and conditions. Of nodes, a list of them means the same."""
    found = _spread(members, "all_of")
    return _over_jobs("all_of", found, None, "cancel_remaining") or conditions.all_of(found)


@overload
def any_of(*nodes: AnyNode | Iterable[AnyNode], on_satisfied: OnSatisfied = ...) -> Join: ...  # type: ignore[overload-overlap]
@overload
def any_of(*children: AnyChild | Iterable[AnyChild]) -> Children: ...
@overload
def any_of(*gates: Gate[Any] | Iterable[Gate[Any]]) -> Count: ...


def any_of(*members: Any, on_satisfied: OnSatisfied | None = None) -> Join | Children | Count:
    """Any one of these nodes or children, or a signal to any one of these gates.

    on_satisfied   of nodes, once one has succeeded: "cancel_remaining" cancels those that nobody else needs (the
                   default), "let_run" lets them end
    """
    found = _spread(members, "any_of")
    return _over_jobs("any_of", found, 1, on_satisfied) or conditions.any_of(found)


@overload
def quorum(n: int, *nodes: AnyNode | Iterable[AnyNode], on_satisfied: OnSatisfied = ...) -> Join: ...  # type: ignore[overload-overlap]
@overload
def quorum(n: int, *children: AnyChild | Iterable[AnyChild]) -> Children: ...
@overload
def quorum(n: int, *gates: Gate[Any] | Iterable[Gate[Any]]) -> Count: ...


def quorum(n: int, *members: Any, on_satisfied: OnSatisfied | None = None) -> Join | Children | Count:
    """`n` of these nodes or children, or signals to `n` different ones of these gates; on_satisfied as in `any_of`."""
    if not isinstance(n, int):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidArgument(f"k is {checks.shown(n, 60)}: the number comes first, as in ff.quorum(2, a, b, c)")
    found = _spread(members, "quorum")
    return _over_jobs("quorum", found, n, on_satisfied) or conditions.quorum(n, found)


@overload
def count(n: int, *nodes: AnyNode | Iterable[AnyNode]) -> Join: ...  # type: ignore[overload-overlap]
@overload
def count(n: int, *children: AnyChild | Iterable[AnyChild]) -> Children: ...
@overload
def count(
    n: int, *gates: Gate[Any] | Iterable[Gate[Any]], distinct: Distinct = ..., name: str | None = ...
) -> Count: ...


def count(n: int, *members: Any, distinct: Distinct = "waitpoints", name: str | None = None) -> Join | Children | Count:
    """At least `n` signals to any of these gates, given as arguments or as one list.

    distinct   what makes two of them two: "waitpoints" (one per gate), "signals" (each counts), "sources" (one per
               sender, as `client.signal(source=)` named it)
    name       only signals of this name count; without it, what the gates themselves accept

    Of nodes it is `quorum(n, ..., on_satisfied="let_run")`, of children `quorum(n, ...)`.
    """
    found = _spread(members, "count")
    jobs = _over_jobs("quorum", found, n, "let_run" if isinstance(bare(found[0]), Node) else None)
    if jobs is None:
        return conditions.count(n, found, distinct=distinct, name=name)
    if name is not None or distinct != "waitpoints":
        raise InvalidArgument("distinct= and name= say which signals count, and jobs get none: leave them out")
    return jobs


# ---- helpers ---------------------------------------------------------------------------------------------


def _spread(given: Sequence[Any], what: str) -> list[Any]:
    """The members, given one by one or as one list."""
    members: list[Any] = [*given]
    if len(members) == 1 and not isinstance(members[0], str) and hasattr(members[0], "__iter__"):
        members = list(in_order(members[0]))
    if not members:
        said = "of nothing never waits: name" if what == "all_of" else "needs"
        raise InvalidArgument(f"{what}() {said} gates, nodes of a flow, or children")
    return members


def in_order(members: Iterable[Any]) -> Iterable[Any]:
    """The same; InvalidArgument for a set of nodes, which would come in another order in every process."""
    if isinstance(members, set | frozenset) and any(isinstance(bare(member), Node) for member in members):
        raise InvalidArgument("nodes in a set have no order, and inputs arrive in one: use a list")
    return members


def bare(member: Any) -> Any:
    """The node or child itself, of its blocking twin."""
    return getattr(member, "async_", member)


def _over_jobs(
    word: Literal["all_of", "any_of", "quorum"], given: Sequence[Any], k: int | None, on_satisfied: OnSatisfied | None
) -> Join | Children | None:
    """A join of nodes or of children; None: these are gates, or nothing known."""
    members = [bare(member) for member in given]
    if any(isinstance(member, Node) for member in members):
        for member in members:
            if not isinstance(member, Node):
                raise InvalidArgument(
                    f"{word}() over nodes and {checks.shown(member, 60)}: nodes of one flow go together, and a join of "
                    "nodes does not nest: put a task between"
                )
        return Join(word, members, len(members) if k is None else k, on_satisfied or "cancel_remaining")
    if any(isinstance(member, Join) for member in members):
        raise InvalidArgument(f"{word}() over a join of nodes: add a task after that, and use its node here")
    if on_satisfied is not None and k is not None:
        raise InvalidArgument("on_satisfied= says what becomes of a flow's nodes: leave it out")
    if not any(isinstance(member, Job) for member in members):
        return None
    from ffsdk.children import join

    children = join(word, members, k)
    if children is None:
        raise InvalidArgument(
            f"{word}() over {checks.shown(members[0], 60)}: use nodes of a flow, children of this handler, or gates"
        )
    return children
