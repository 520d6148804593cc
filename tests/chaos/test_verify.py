"""The judges of a chaos run, each with a story in which it must object; without a store and without processes."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from ffcore import ids
from ffcore.backend import StoreConfig
from ffcore.contracts.reads import ExecutionOutcome, Outcomes, ReadOutcomesArgs
from ffcore.ids import ExecutionId
from tests.chaos.feed import Feed, Move
from tests.chaos.fleet import Death
from tests.chaos.ledger import Evidence, _take
from tests.chaos.recovery import measure, quantile
from tests.chaos.tasks import result_of
from tests.chaos.verify import verify

CONFIG = StoreConfig(fp=1)
ID = ids.keyed_id("execution", "default", "job-1", 1)


class Told:
    """A store that answers what a story says."""

    config = CONFIG

    def __init__(self, state: str, result: bytes = b"", category: str = "") -> None:
        self._state, self._result, self._category = state, result, category

    async def call(self, args: Any) -> Outcomes:
        assert isinstance(args, ReadOutcomesArgs)
        return Outcomes([
            ExecutionOutcome(
                execution_id=ref.execution_id, state=self._state, result=self._result, result_encoding="", reason="",
                category=self._category, traceback="", attempts=1, has_result=True,
            )
            for ref in args.items
        ])  # fmt: skip


def evidence(*lines: str) -> Evidence:
    found = Evidence()
    for line in ("try 1 work", f"ack 1 {ID} new", *lines):
        _take(found, line.replace("ID", ID).split(" "), "a story")
    return found


def moves(*steps: str) -> list[Move]:
    """Steps like ``10 ready active 10 w-1-a.c.1.0``: instant, from, to, epoch, lease."""
    found = []
    for step in steps:
        at, was, now, epoch, *lease = step.split(" ")
        found.append(Move(int(at), was, now, int(epoch), "0", lease[0] if lease else "-", "-"))
    return found


CLAIMED = ("1 - ready 0", "10 ready active 10 w-1-a.c.1.0")
DONE = (*CLAIMED, "20 active completed 10")
RAN = ("begin 1 ID 10 0 11", "end 1 ID 10 19")
OFF = (*CLAIMED, "20 active cancelled 10")
TWICE = (*DONE, "21 completed ready 10", "22 ready completed 10")
RESULT = msgspec.json.encode(result_of(1, 10))


async def judged(told: Told, found: Evidence, steps: tuple[str, ...], jobs: int = 1) -> set[str]:
    feed = Feed(told)  # type: ignore[arg-type]
    feed.moves[ID] = moves(*steps)
    wrong, _ = await verify(told, found, feed, jobs)  # type: ignore[arg-type]
    return {one.sort for one in wrong}


async def test_a_job_that_went_well_is_not_objected_to() -> None:
    told = Told("completed", RESULT)
    assert await judged(told, evidence(*RAN, "report ID 10 completed completed"), DONE) == set()
    assert await judged(told, evidence(*RAN), DONE) == set(), "whoever reported it may have died before the answer"


@pytest.mark.parametrize(
    ("sort", "told", "lines", "steps"),
    [
        ("lost", Told("active"), RAN, CLAIMED),
        ("lost", Told("unknown"), RAN, CLAIMED),
        ("duplicated", Told("completed", RESULT), RAN, TWICE),
        ("duplicated", Told("completed", RESULT), (*RAN, "report ID 10 completed -", "late ID 7 replayed -"), DONE),
        ("duplicated", Told("completed", RESULT), (*RAN, "report ID 7 completed -"), DONE),
        ("duplicated", Told("cancelled"), ("cancel 1 ID", "report ID 10 completed -"), OFF),
        ("result", Told("completed", b"[1,2,9]"), RAN, DONE),
        ("result", Told("completed", RESULT), ("begin 1 ID 10 0 11",), DONE),
        ("outcome", Told("cancelled"), RAN, OFF),
        ("outcome", Told("failed", category="poisoned"), RAN, (*CLAIMED, "20 active failed 10")),
        ("waiter", Told("completed", RESULT), (*RAN, "got 1 completed [1,2,9]"), DONE),
        ("waiter", Told("completed", RESULT), (*RAN, "got 1 cancelled -"), DONE),
        ("process", Told("completed", RESULT), (*RAN, "fatal EngineBug: no"), DONE),
    ],
)  # fmt: skip
async def test_what_is_wrong_is_objected_to(
    sort: str, told: Told, lines: tuple[str, ...], steps: tuple[str, ...]
) -> None:
    assert sort in await judged(told, evidence(*lines), steps)


async def test_a_job_that_nobody_submitted_and_one_that_never_came_are_objected_to() -> None:
    told = Told("completed", RESULT)
    feed = Feed(told)  # type: ignore[arg-type]
    feed.moves[ID] = moves(*DONE)
    feed.moves[ids.keyed_id("execution", "default", "another", 1)] = moves("5 - ready 0")
    wrong, ended = await verify(told, evidence(*RAN), feed, 2)  # type: ignore[arg-type]
    assert {one.sort for one in wrong} == {"stranger", "lost"} and ended == {"completed": 1}


def test_recovery_counts_what_the_dead_worker_held_and_nothing_else() -> None:
    feed = Feed(Told("active"))  # type: ignore[arg-type]
    lost, again = "110 active reclaimable 10", "150 reclaimable active 150 w-2-b.c.1.0"
    feed.moves["held"] = moves(*CLAIMED, lost, again)
    feed.moves["done"] = moves(*DONE)
    feed.moves["of another"] = moves("10 ready active 10 w-3-c.c.1.0", lost, again)
    feed.moves["lost later"] = moves("60 ready active 60 w-1-a.c.2.0", "110 active reclaimable 60", again)
    death = Death("w-1-", 50)
    found = measure(feed, [death], [], [])
    assert (found.claimed, found.requeued, found.kills_with_leases) == ([100.0], [60.0], 1)
    met_outage = measure(feed, [death], [death], [(140, 145)])
    assert (met_outage.claimed, met_outage.apart, met_outage.pauses_with_losses) == ([], [100.0], 1)


def test_quantiles_are_values_that_occurred() -> None:
    assert quantile(range(1, 101), 0.99) == 100 and quantile([3, 1, 2], 0.5) == 2 and quantile([], 0.5) == 0


def test_half_a_line_is_not_evidence(tmp_path: Any) -> None:
    from tests.chaos.ledger import read

    (tmp_path / "a.1.facts").write_bytes(f"try 1 work\nack 1 {ExecutionId(ID)} new\nack 2 {{fp:0".encode())
    assert read(tmp_path).acked == {ID: 1}
