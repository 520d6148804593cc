"""Joins over nodes, gates and children: one name each, told apart by what they are given."""

from __future__ import annotations

from typing import Any, cast

import pytest

import ffsdk as ff
from ffcore.ids import ExecutionId
from ffsdk import conditions
from ffsdk.node import Node, Unsent


def node(place: int) -> Node[Any]:
    execution_id = ExecutionId(f"{{fp:0}}:00000000-0000-5000-8000-{place:012}")
    return Node(Unsent("f"), execution_id, None, flow_id="f", key=None, place=place, task_name="t")


A, B, C = (node(n) for n in range(3))


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (ff.all_of(A, B), ("all_of", 2, "cancel_remaining")),
        (ff.any_of([A, B]), ("any_of", 1, "cancel_remaining")),
        (ff.any_of(iter((A, B)), on_satisfied="let_run"), ("any_of", 1, "let_run")),
        (ff.quorum(2, A, B, C), ("quorum", 2, "cancel_remaining")),
        (ff.quorum(2, (A, B, C), on_satisfied="let_run"), ("quorum", 2, "let_run")),
        (ff.count(2, A, B), ("quorum", 2, "let_run")),
    ],
    ids=str,
)
def test_nodes_are_given_one_by_one_or_as_one_list(made: ff.Join, expected: tuple[str, int, str]) -> None:
    assert (made.word, made.k, made.on_satisfied) == expected
    assert made.nodes[:2] == (A, B)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: ff.any_of(), "needs gates, nodes"),
        (lambda: ff.all_of([]), "of nothing"),
        (lambda: ff.quorum(3, A, B), "cannot come true"),
        (lambda: ff.quorum(0, A, B), "k is 0"),
        (lambda: ff.quorum(cast("Any", "2"), A, B), "k is '2'"),
        (lambda: ff.any_of(A, B, on_satisfied=cast("Any", "stop")), "cancel_remaining or let_run"),
        (lambda: ff.any_of(cast("Any", [A, 7])), "put a task between"),
        (lambda: ff.all_of(cast("Any", [ff.any_of(A, B), C])), "put a task between"),
        (lambda: ff.all_of(cast("Any", ff.any_of(A, B))), "use its node here"),
        (lambda: ff.count(1, A, distinct=cast("Any", "sources")), "leave them out"),
        (lambda: ff.any_of(cast("Any", "gate")), "use gates"),
        (lambda: ff.any_of(cast("Any", 7), on_satisfied="let_run"), "leave it out"),
    ],
)
def test_what_cannot_be_joined_is_refused(make: Any, said: str) -> None:
    with pytest.raises(ff.InvalidArgument, match=said):
        make()


def test_a_job_that_is_neither_node_nor_child_is_refused() -> None:
    job: Any = ff.Job(cast("Any", None), A.id)
    with pytest.raises(ff.InvalidArgument, match="children of this handler"):
        ff.any_of(job, job)


def test_gates_are_joined_as_before() -> None:
    class Gate(conditions.Condition):
        def gates(self) -> list[Any]:
            return []

    assert isinstance(ff.all_of(Gate(), ff.operator()), conditions.AllOf)
