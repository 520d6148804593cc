"""Joins of children, and what a handler sends to wait for them. No store: what it answers is scripted."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Generator
from typing import Any, cast

import pytest

import ffsdk as ff
from ffcore import limits
from ffcore.args import Args
from ffcore.contracts.execution import ChildrenDone, MoveToWaitingChildrenArgs
from ffcore.contracts.reads import ExecutionOutcome, Outcomes, ReadOutcomesArgs
from ffcore.errors import NotFound, Suspended
from ffcore.ids import ExecutionId
from ffsdk import children
from ffsdk.awaited import Awaited
from ffsdk.children import Child, Children
from ffsdk.events import without_flow


def uuid(n: int) -> ExecutionId:
    return ExecutionId(f"{{fp:0}}:00000000-0000-5000-8000-{n:012x}")


def child(n: int, name: str = "count") -> Child[Any]:
    return Child(cast("Any", None), cast("Any", None), name, uuid(n), None, created=True)


A, B, C = child(1, "a"), child(2, "b"), child(3, "c")


# ---- joins -----------------------------------------------------------------------------------------------


def test_joins_take_children_one_by_one_or_as_one_list() -> None:
    for made in (ff.any_of(A, B), ff.any_of([A, B])):
        assert isinstance(made, Children) and (str(made), made.k) == ("any_of(a, b)", 1)
    assert str(ff.quorum(2, A, B, C)) == "quorum(2, a, b, c)"
    whole = ff.all_of([A, B, A])
    assert isinstance(whole, Children) and whole.k == 2, "a child named twice ends once"


def test_a_join_that_cannot_come_true_or_mixes_is_refused_before_anything_waits() -> None:
    with pytest.raises(ff.InvalidArgument, match=r"quorum\(3\) of 2 children cannot come true"):
        ff.quorum(3, A, B, A)
    with pytest.raises(ff.InvalidArgument, match="any_of\\(\\) over children and"):
        ff.any_of(cast("Any", [A, "b"]))
    with pytest.raises(ff.InvalidArgument, match="one join of children"):
        children.joined([ff.any_of(A, B), C])
    with pytest.raises(ff.InvalidArgument, match="it takes 200 at most"):
        ff.any_of([child(n) for n in range(limits.ROWS_N + 1)])


def test_what_wait_is_given_may_be_children_themselves() -> None:
    for given in ((A, B), ([A, B],)):
        made = children.joined(given)
        assert made is not None and (made.word, made.k, made.children) == ("all_of", 2, (A, B))
    assert children.joined([ff.operator()]) is None


async def test_waiting_has_no_timeout_of_its_own() -> None:
    """The child has a deadline; a timeout that a handler counts would begin anew in each run."""
    with pytest.raises(ff.InvalidArgument, match="spawn it with deadline="):
        await A.outcome(timeout=3)
    with pytest.raises(ff.InvalidArgument, match="spawn them with deadline="):
        await children.wait(cast("Any", None), Children("any_of", [A], 1), 3)


# ---- waiting ---------------------------------------------------------------------------------------------


class Scripted:
    """As much of a durable handler, its worker and its job as waiting looks at. `moves` says what becomes of each call
    that gives the job up: None, it is given up; or the numbers of the children that have ended when it comes."""

    execution_id, attempt_index, run, fence, flow_id = uuid(0), 0, 0, None, None

    def __init__(self, *moves: set[int] | None, ended: set[int] = frozenset()) -> None:  # type: ignore[assignment]
        self.backend = self.host = self.held = self.job = self
        self.alarms: list[int] = []
        self.given_up = False
        self.moves, self.ended_there = list(moves), {uuid(n) for n in ended}
        self.sent: list[MoveToWaitingChildrenArgs] = []
        self.reads: list[int] = []
        self.gone: set[ExecutionId] = set()
        self.awaited = Awaited(cast("Any", self))

    @contextlib.contextmanager
    def in_flight(self, name: str) -> Generator[None]:
        yield

    async def ready(self) -> None:
        pass

    async def suspend(self, args: Callable[[], MoveToWaitingChildrenArgs]) -> ChildrenDone:
        for _ in range(5):
            await asyncio.sleep(0)
        if self.given_up:
            raise Suspended("the job is suspended; the handler runs again when it goes on")
        call = args()
        self.sent.append(call)
        ended = self.moves.pop(0)
        if ended is None:
            self.given_up = True
            raise Suspended("the job is suspended; the handler runs again when it goes on")
        self.ended_there |= {uuid(n) for n in ended}
        return ChildrenDone()

    async def call(self, args: Args[Any]) -> Any:
        assert isinstance(args, ReadOutcomesArgs)
        self.reads.append(len(args.items))
        await asyncio.sleep(0)
        return Outcomes([self.outcome(one.execution_id) for one in args.items])

    def outcome(self, one: ExecutionId) -> ExecutionOutcome:
        state = "unknown" if one in self.gone else "completed" if one in self.ended_there else "ready"
        return ExecutionOutcome(one, state, b"", "", "", "", "", 1, False)

    def named(self, at: int = -1) -> tuple[list[int], int]:
        """Children and need of a call."""
        call = self.sent[at]
        return [int(one.execution_id[-12:], 16) for one in call.children], call.need


async def test_results_awaited_at_a_time_are_read_and_waited_for_together() -> None:
    """One more run of the handler, not one for each child; one read, not one for each."""
    job = Scripted(None, ended={2})
    waits = [asyncio.ensure_future(job.awaited.until([uuid(n)], 1)) for n in (1, 2, 3)]
    found = await asyncio.gather(*waits, return_exceptions=True)
    assert [type(one) for one in found][1] is type(None), "one has ended: whoever awaits it goes on"
    assert job.reads == [3]
    assert job.named(0) == ([1, 3], 0)


async def test_who_is_told_that_enough_have_ended_looks_again() -> None:
    """They ended between the look and the call. The other waits look as well, and send nothing before they have."""
    job = Scripted({1, 2})
    await asyncio.gather(job.awaited.until([uuid(1)], 1), job.awaited.until([uuid(2)], 1))
    assert len(job.sent) == 1 and sorted(job.awaited.ended) == [uuid(1), uuid(2)]


async def test_a_wait_for_some_names_all_of_them_and_says_how_many_are_missing() -> None:
    job = Scripted(None, ended={4})
    with pytest.raises(Suspended):
        await job.awaited.until([uuid(n) for n in (3, 4, 5, 6)], 3)
    assert job.named() == ([3, 5, 6], 2)


async def test_beside_a_wait_for_some_the_handler_goes_on_as_soon_as_any_wait_could_be_over() -> None:
    job = Scripted(None)
    waits = [job.awaited.until([uuid(1)], 1), job.awaited.until([uuid(n) for n in (2, 3, 4)], 2)]
    with contextlib.suppress(Suspended):
        await asyncio.gather(*waits)
    assert (sorted(job.named()[0]), job.named()[1]) == ([1, 2, 3, 4], 1)


async def test_a_sleep_beside_it_is_slept_first() -> None:
    """It ends by itself, whatever the child does: the way to bound a wait."""
    job = Scripted(None)
    job.alarms.append(1)
    waiting = asyncio.ensure_future(job.awaited.until([uuid(1)], 1))
    for _ in range(50):
        await asyncio.sleep(0)
    assert not job.sent and not waiting.done()
    job.alarms.clear()
    with pytest.raises(Suspended):
        await waiting
    assert len(job.sent) == 1


async def test_more_than_one_call_names_are_waited_for_as_all_there_are() -> None:
    n = limits.ROWS_N + 50
    job = Scripted(None, None)
    job.awaited.spawned |= {uuid(i) for i in range(1, n)}
    with pytest.raises(Suspended):
        await job.awaited.until([uuid(i) for i in range(1, n)], n - 1)
    assert job.named() == ([], 0) and sorted(job.reads) == [49, limits.ROWS_N]
    job.given_up = False
    job.awaited.spawned.add(uuid(n))  # one that nobody awaits: it may go on for ever
    with pytest.raises(Suspended):
        await job.awaited.until([uuid(i) for i in range(1, n)], n - 1)
    assert len(job.named()[0]) == limits.ROWS_N


async def test_a_child_that_was_purged_is_not_found_and_disturbs_no_other_wait() -> None:
    job = Scripted(ended={2})
    job.gone.add(uuid(1))
    gone, well = await asyncio.gather(
        job.awaited.until([uuid(1)], 1), job.awaited.until([uuid(2)], 1), return_exceptions=True
    )
    assert isinstance(gone, NotFound) and "it was purged" in str(gone) and well is None


async def test_a_wait_that_its_handler_gives_up_is_not_waited_for() -> None:
    job = Scripted(None)
    given_up = asyncio.ensure_future(job.awaited.until([uuid(1)], 1))
    other = asyncio.ensure_future(job.awaited.until([uuid(2)], 1))
    await asyncio.sleep(0)
    given_up.cancel()
    with pytest.raises(Suspended):
        await other
    assert job.named() == ([2], 0)


# ---- the feed --------------------------------------------------------------------------------------------


def test_the_flow_of_a_member_is_told_apart_from_the_reason_of_its_end() -> None:
    flow = uuid(7).partition(":")[2].partition(":")[2]
    assert without_flow(f"out of money flow={flow}") == ("out of money", flow)
    assert without_flow(f"- flow={flow}") == ("-", flow)
    assert without_flow("flow=none of it") == ("flow=none of it", None)
