"""Submits that leave together: one call for many, and for each the answer it would have got alone."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

from ffcore import ids, limits
from ffcore.contracts.batch import CreatedMany, CreateManyArgs, ItemCreated
from ffcore.errors import EngineBug, EngineError, IdempotencyConflict, StoreFull, Unavailable
from ffcore.ids import ExecutionId, PartitionKey
from ffsdk.fold import FLYING, Fold, New, Shared

PARTITIONS = [PartitionKey(f"{{fp:{n}}}") for n in range(4)]
MAIL = Shared("send", 1, "mail", 0, b"{}", None, None)


class Store:
    """Takes create calls, and answers each when it is told to."""

    def __init__(self) -> None:
        self.calls: list[CreateManyArgs] = []
        self.answers: list[asyncio.Future[Any]] = []

    async def call(self, args: CreateManyArgs) -> CreatedMany:
        self.calls.append(args)
        self.answers.append(asyncio.get_running_loop().create_future())
        return await self.answers[-1]

    def answer(self, at: int, *, refuse: str = "", code: str = "lane_closed") -> None:
        """Create everything of a call, but for the jobs whose payload is `refuse`."""
        said = [("error", code) if row.payload == refuse.encode() else ("created", "ready")
                for row in self.calls[at].items]  # fmt: skip
        self.answers[at].set_result(CreatedMany([ItemCreated(state, detail) for state, detail in said]))  # type: ignore[arg-type]

    def payloads(self, at: int) -> list[str]:
        return [row.payload.decode() for row in self.calls[at].items]


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
async def fold(store: Store) -> Fold:
    return Fold(store.call, "default", PARTITIONS)


def job(payload: str, keyed_id: str | None = None) -> New:
    return New(None if keyed_id is None else ExecutionId(keyed_id), b"d" * 16, payload.encode(), None, None)


def submits(fold: Fold, *payloads: str, shared: Shared = MAIL) -> list[asyncio.Task[tuple[ExecutionId, bool]]]:
    return [asyncio.create_task(fold.submit(shared, job(payload))) for payload in payloads]


async def turns(n: int = 4) -> None:
    for _ in range(n):
        await asyncio.sleep(0)


async def test_the_first_one_leaves_before_its_caller_has_waited(store: Store, fold: Fold) -> None:
    """A lone submit must not pay for the crowd that might have come."""
    lone = fold.submit(MAIL, job("a"))
    lone.send(None)  # type: ignore[attr-defined]  # as far as its first wait, without a turn of the loop
    assert store.payloads(0) == ["a"]
    lone.close()


async def test_sixteen_at_once_take_a_few_calls_of_one_partition_each(store: Store, fold: Fold) -> None:
    tasks = submits(fold, *"abcdefghijklmnop")
    await turns()
    assert [len(call.items) for call in store.calls] == [1, 8], "two of about the same size; the rest waits"
    store.answer(0)
    await turns()
    assert [len(call.items) for call in store.calls] == [1, 8, 7]
    store.answer(1)
    store.answer(2)
    found = [await task for task in tasks]
    assert len({execution_id for execution_id, _ in found}) == 16 and all(created for _, created in found)
    for call in store.calls:
        assert {ids.partition_of(row.execution_id) for row in call.items} == {call.partition}


async def test_calls_take_turns_over_the_partitions(store: Store, fold: Fold) -> None:
    for n in range(8):
        [task] = submits(fold, "x")
        await turns()
        store.answer(n)
        await task
    assert Counter(call.partition for call in store.calls) == dict.fromkeys(PARTITIONS, 2)


async def test_what_is_submitted_on_an_answer_leaves_with_what_waited_for_it(store: Store, fold: Fold) -> None:
    """Else a client whose tasks submit one after another would send one call for each of them."""

    async def two(first: str, second: str) -> None:
        await fold.submit(MAIL, job(first))
        await fold.submit(MAIL, job(second))

    tasks = [asyncio.create_task(two(a, b)) for a, b in ("af", "bg", "ch", "di", "ej")]
    await turns()
    assert [store.payloads(n) for n in range(2)] == [["a"], ["b", "c", "d"]]
    store.answer(0)
    await turns()
    assert store.payloads(2) == ["e", "f"]
    store.answer(1)
    await turns()
    assert store.payloads(3) == ["g", "h", "i"]
    for n in (2, 3, 4):
        store.answer(n)
        await turns()
    await asyncio.gather(*tasks)


async def test_a_refused_job_costs_its_neighbours_nothing(store: Store, fold: Fold) -> None:
    first, *tasks = submits(fold, "a", "bad", "c", "d")
    await turns()
    store.answer(0)
    await turns()
    for n in range(1, len(store.calls)):
        store.answer(n, refuse="bad", code="idempotency_conflict")
    results = await asyncio.gather(first, *tasks, return_exceptions=True)
    assert [isinstance(result, IdempotencyConflict) for result in results] == [False, True, False, False]


@pytest.mark.parametrize(
    "failure",
    [StoreFull("full", code="store_full", detail="1000"), Unavailable("cut", may_have_applied=True), EngineBug("no")],
)
async def test_a_call_that_fails_gives_everybody_an_error_of_his_own(
    store: Store, fold: Fold, failure: EngineError
) -> None:
    first, *tasks = submits(fold, "a", "b", "c", "d", "e")
    await turns()
    store.answers[1].set_exception(failure)
    store.answer(0)
    await turns()
    for n in range(2, len(store.calls)):
        store.answer(n)
    await first
    results = await asyncio.gather(*tasks, return_exceptions=True)
    errors = [result for result in results if isinstance(result, BaseException)]
    assert len(errors) == len(store.calls[1].items) > 1 and len(set(map(id, errors))) == len(errors)
    for error in errors:
        assert type(error) is type(failure) and str(error) == str(failure)
        assert vars(error) == vars(failure), "code, detail and may_have_applied belong to it"


async def test_a_bug_on_the_way_ends_the_submit_and_not_in_silence(store: Store, fold: Fold) -> None:
    first, second, third = submits(fold, "a", "b", "c")
    await turns()
    store.answers[1].set_exception(ValueError("broken"))
    store.answer(0)
    for task in (second, third):
        with pytest.raises(EngineBug, match="ValueError: broken"):
            await task
    await first


async def test_an_answer_that_is_too_short_ends_every_submit_of_its_call(store: Store, fold: Fold) -> None:
    first, *tasks = submits(fold, "a", "b", "c", "d", "e")
    await turns()
    store.answers[1].set_result(CreatedMany([ItemCreated("created", "ready")]))
    store.answer(0)
    await turns()
    for n in range(2, len(store.calls)):
        store.answer(n)
    await first
    async with asyncio.timeout(5):
        results = await asyncio.gather(*tasks, return_exceptions=True)
    broken = [result for result in results if isinstance(result, BaseException)]
    assert len(broken) == len(store.calls[1].items) > 1 and {type(error) for error in broken} == {EngineBug}


async def test_tags_count_among_the_bytes_of_a_call(store: Store, fold: Fold) -> None:
    tagged = New(None, b"d" * 16, b"x", None, b"t" * (limits.BATCH_BYTES // 3))
    tasks = [asyncio.create_task(fold.submit(MAIL, tagged)) for _ in range(9)]
    await turns()
    for n in range(9):
        if n < len(store.calls):
            assert sum(len(row.payload) + len(row.tags or b"") for row in store.calls[n].items) <= limits.BATCH_BYTES
            store.answer(n)
            await turns()
    await asyncio.gather(*tasks)


async def test_who_is_cancelled_before_it_left_never_leaves(store: Store, fold: Fold) -> None:
    first, *tasks = submits(fold, *"abcdefgh")
    await turns()
    sent = {payload for n in range(len(store.calls)) for payload in store.payloads(n)}
    waiting = [task for task, payload in zip(tasks, "bcdefgh", strict=True) if payload not in sent]
    waiting[0].cancel()
    store.answer(0)
    await turns()
    for n in range(1, len(store.calls)):
        store.answer(n)
    results = await asyncio.gather(first, *tasks, return_exceptions=True)
    assert sum(isinstance(result, asyncio.CancelledError) for result in results) == 1
    assert sum(len(call.items) for call in store.calls) == 7


async def test_who_is_cancelled_under_way_takes_nobody_along(store: Store, fold: Fold) -> None:
    first, *tasks = submits(fold, "a", "b", "c", "d")
    await turns()
    first.cancel()
    tasks[0].cancel()
    await turns()
    for n in range(1, len(store.calls)):
        store.answer(n)
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [isinstance(result, asyncio.CancelledError) for result in results] == [True, False, False]
    assert sum(len(call.items) for call in store.calls) == 4, "the call was not sent again"
    assert not fold._groups, "nothing is left behind"


async def test_options_that_differ_do_not_share_a_call(store: Store, fold: Fold) -> None:
    tasks = submits(fold, "a", "b") + submits(fold, "c", "d", shared=MAIL._replace(priority=9))
    await turns()
    assert {(call.priority, *store.payloads(n)) for n, call in enumerate(store.calls)} == {
        (0, "a"), (0, "b"), (9, "c"), (9, "d"),
    }  # fmt: skip
    for n in range(4):
        store.answer(n)
    await asyncio.gather(*tasks)
    assert not fold._groups, "a kind is forgotten with its last call: each deadline is another"


async def test_keyed_jobs_go_where_their_key_says(store: Store, fold: Fold) -> None:
    keyed = [ids.keyed_id("execution", "default", f"k{n}", 4) for n in range(12)]
    tasks = [asyncio.create_task(fold.submit(MAIL, job("x", one))) for one in keyed]
    found: list[ExecutionId] = []
    answered = 0
    while len(found) < 12:
        await turns()
        for n in range(answered, len(store.calls)):
            assert {ids.partition_of(row.execution_id) for row in store.calls[n].items} == {store.calls[n].partition}
            store.answer(n)
            found += [row.execution_id for row in store.calls[n].items]
        answered = len(store.calls)
    assert sorted(found) == sorted(keyed)
    assert [execution_id for execution_id, _ in await asyncio.gather(*tasks)] == keyed


async def test_a_call_stays_within_its_rows_and_bytes(store: Store, fold: Fold) -> None:
    """Full calls leave at once, however many are under way: waiting would only cost throughput."""
    tasks = submits(fold, *["x"] * (limits.BULK_N * 5))
    await turns()
    assert max(len(call.items) for call in store.calls) == limits.BULK_N and len(store.calls) > FLYING
    tasks += submits(fold, *["y" * 400_000] * 9, shared=MAIL._replace(lane="large"))
    done = 0
    while done < len(tasks):
        await turns()
        for n, answer in enumerate(store.answers):
            if not answer.done():
                store.answer(n)
                done += len(store.calls[n].items)
                assert sum(len(row.payload) for row in store.calls[n].items) <= limits.BATCH_BYTES
    await asyncio.gather(*tasks)
