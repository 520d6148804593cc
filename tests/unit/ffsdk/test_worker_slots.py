"""The fold of claims and completions against a backend that answers when the test says so."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import pytest

from ffcore import limits
from ffcore.args import Args
from ffcore.backend import StoreConfig
from ffcore.contracts.batch import (
    BellPassed,
    ClaimBatchArgs,
    ClaimedBatch,
    ClaimedJob,
    CompletedMany,
    CompleteManyArgs,
    ItemDone,
    PassBellArgs,
)
from ffcore.errors import EngineBug, Unavailable
from ffcore.ids import AttemptId, AttemptIndex, ExecutionId, LeaseEpoch, LeaseId, PartitionKey, TimestampMs
from ffsdk import slots as module
from ffsdk.held import Held
from ffsdk.slots import Part, Slots

NOW = TimestampMs(1_000)


def job(partition: int, n: int) -> ClaimedJob:
    return ClaimedJob(
        execution_id=ExecutionId(f"{{fp:{partition}}}:{n}"),
        lease_id=LeaseId(f"w.c.1.{n}"),
        lease_epoch=LeaseEpoch(7),
        attempt_id=AttemptId(f"a{n}"),
        attempt_index=AttemptIndex(0),
        attempt_type="initial",
        lease_expires_at=TimestampMs(31_000),
        task="t",
        version=1,
        payload=b"{}",
        payload_encoding="",
        policy=b"",
        lane_id="default",
        namespace="default",
        priority=0,
        created_at=NOW,
        deadline_at=0,
        attempt_deadline_at=0,
        retries=0,
        crashes=0,
        run=0,
        cancel_requested=False,
        flow="-",
        tags=[],
    )


def claimed(*jobs: ClaimedJob, parked: bool = False, revision: int = 0) -> ClaimedBatch:
    return ClaimedBatch(NOW, list(jobs), False, revision, parked)


class Store:
    """Keeps every call until `answer`."""

    url, grouped = "fake://", True

    def __init__(self, partitions: int) -> None:
        self.config = StoreConfig(fp=partitions)
        self.open: list[tuple[Args[Any], asyncio.Future[Any]]] = []
        self.calls: list[Args[Any]] = []

    def call(self, args: Args[Any]) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.open.append((args, future))
        self.calls.append(args)
        return future

    async def take(self, kind: type[Any]) -> tuple[Any, asyncio.Future[Any]]:
        """The next open call of a kind."""
        for _ in range(20):
            for at, (args, future) in enumerate(self.open):
                if isinstance(args, kind):
                    del self.open[at]
                    return args, future
            await asyncio.sleep(0)
        raise AssertionError(f"no {kind.__name__} is under way: {self.open}")


class Bench:
    """Slots of a worker whose handlers are the test."""

    def __init__(self, partitions: int = 2, room: int = 4) -> None:
        self.store, self.room, self.jobs = Store(partitions), room, list[Held]()
        self.settled: list[tuple[str, str]] = []
        self.revised: list[list[str]] = []
        self.broken: list[BaseException] = []
        self.slots = Slots(
            self.store,  # type: ignore[arg-type]
            instance="w",
            worker_id="worker",
            lanes=["default"],
            lease_ms=30_000,
            clock=time.monotonic,
            capacity=lambda: self.room,
            load=lambda: len(self.jobs),
            arrived=self._arrived,
            settled=lambda held, code: self.settled.append((held.job.execution_id, code)),
            revised=lambda parts: self.revised.append([part.key for part in parts]),
            broken=self.broken.append,
        )

    def _arrived(
        self, jobs: Sequence[ClaimedJob], part_of: Callable[[ClaimedJob], Part], sent: float, now_ms: int
    ) -> None:
        self.jobs += [Held(one, part_of(one), sent + 30, sent + 10, 0.0) for one in jobs]

    def finish(self, n: int = 1) -> list[Held]:
        done, self.jobs = self.jobs[:n], self.jobs[n:]
        for held in done:
            self.slots.complete(held, b"1")
        return done

    async def start(self, *jobs: ClaimedJob) -> None:
        """A first claim that brings these and parks nothing."""
        self.slots.wake()
        _, answer = await self.store.take(ClaimBatchArgs)
        answer.set_result(claimed(*jobs))
        await asyncio.sleep(0)
        await asyncio.sleep(0)


def done(n: int, then: ClaimedBatch) -> CompletedMany:
    return CompletedMany([ItemDone("completed", "completed")] * n, then)


@pytest.fixture
async def bench() -> Any:
    bench = Bench()
    yield bench
    await bench.slots.close()


async def test_the_first_claim_asks_every_partition_and_parks(bench: Bench) -> None:
    bench.slots.wake()
    args, _ = await bench.store.take(ClaimBatchArgs)
    assert (args.partitions, args.limit, args.park, args.claim_id) == (["{fp:0}", "{fp:1}"], 2, "w", "w.c.1")


async def test_completions_of_one_turn_leave_in_one_call_that_claims_as_much_as_fits(bench: Bench) -> None:
    bench.room = 2
    await bench.start(job(0, 1), job(0, 2))
    bench.finish(2)
    args, _ = await bench.store.take(CompleteManyArgs)
    assert [item.execution_id for item in args.items] == ["{fp:0}:1", "{fp:0}:2"]
    assert args.items[0].fence == "w.c.1.1 7 a1"
    assert (args.limit, args.claim_id) == (1, "w.p0.1")


async def test_what_completes_during_a_call_waits_for_the_next_one(bench: Bench) -> None:
    bench.room = 3
    await bench.start(job(0, 1), job(0, 2), job(0, 3))
    bench.finish(1)
    _, first = await bench.store.take(CompleteManyArgs)
    bench.finish(2)
    for _ in range(5):
        await asyncio.sleep(0)
    assert sum(isinstance(call, CompleteManyArgs) for call in bench.store.calls) == 1
    first.set_result(done(1, claimed()))
    args, _ = await bench.store.take(CompleteManyArgs)
    assert len(args.items) == 2
    assert args.claim_id == "w.p0.2"
    assert bench.settled == [("{fp:0}:1", "")]


async def test_a_lost_reply_is_asked_for_again_with_the_same_claim_and_items(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RETRY_S", 0)
    await bench.start(job(0, 1))
    bench.finish()
    first, lost = await bench.store.take(CompleteManyArgs)
    lost.set_exception(Unavailable("gone", may_have_applied=True))
    again, _ = await bench.store.take(CompleteManyArgs)
    assert again is first


async def test_a_refused_completion_is_told_and_disturbs_no_other(bench: Bench) -> None:
    await bench.start(job(0, 1), job(0, 2))
    bench.finish(2)
    _, answer = await bench.store.take(CompleteManyArgs)
    items = [ItemDone("error", "stale_lease"), ItemDone("replayed", "completed")]
    answer.set_result(CompletedMany(items, claimed()))
    for _ in range(3):
        await asyncio.sleep(0)
    assert bench.settled == [("{fp:0}:1", "stale_lease"), ("{fp:0}:2", "")]


async def test_a_parked_worker_asks_nothing_until_a_bell_and_then_only_that_partition(bench: Bench) -> None:
    bench.slots.wake()
    _, answer = await bench.store.take(ClaimBatchArgs)
    answer.set_result(claimed(parked=True))
    for _ in range(5):
        await asyncio.sleep(0)
    assert not bench.store.open
    bench.slots.rung(PartitionKey("{fp:1}"))
    args, _ = await bench.store.take(ClaimBatchArgs)
    assert args.partitions == ["{fp:1}"]


@pytest.mark.parametrize(("flow", "limit"), [("-", 0), ("00000000-0000-7000-8000-000000000000", 2)])
async def test_the_end_of_a_flows_job_asks_for_what_may_start_with_it(bench: Bench, flow: str, limit: int) -> None:
    """Also where nothing was left a moment ago: its downstreams come with the answer, not after a bell."""
    await bench.start(msgspec.structs.replace(job(0, 1), flow=flow))
    _, answer = await bench.store.take(ClaimBatchArgs)
    answer.set_result(claimed(parked=True))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    bench.finish()
    args, _ = await bench.store.take(CompleteManyArgs)
    assert args.limit == limit


async def test_a_bell_during_a_claim_whose_answer_says_parked_is_not_lost(bench: Bench) -> None:
    """Bells and answers come on two connections, in any order."""
    bench.slots.wake()
    _, answer = await bench.store.take(ClaimBatchArgs)
    bench.slots.rung(PartitionKey("{fp:0}"))
    answer.set_result(claimed(parked=True))
    args, _ = await bench.store.take(ClaimBatchArgs)
    assert args.partitions == ["{fp:0}"]


async def test_a_bell_without_room_is_passed_on_and_kept_for_later(bench: Bench) -> None:
    bench.room = 1
    await bench.start(job(0, 1))
    bench.slots.rung(PartitionKey("{fp:1}"))
    args, answer = await bench.store.take(PassBellArgs)
    assert (args.partition, args.lanes) == ("{fp:1}", ["default"])
    answer.set_result(BellPassed())
    assert bench.slots.parts[1].parked_until == 0.0


async def test_a_partition_not_asked_for_long_is_asked_although_another_is_full(bench: Bench) -> None:
    bench.room = 1
    await bench.start(job(0, 1))
    for n in range(2, 100):
        bench.finish()
        args, answer = await bench.store.take(CompleteManyArgs)
        if args.limit == 0:
            claim, _ = await bench.store.take(ClaimBatchArgs)
            assert claim.partitions[0] == "{fp:1}"
            answer.set_result(done(1, claimed()))
            return
        answer.set_result(done(1, claimed(job(0, n))))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    raise AssertionError("the other partition was never asked")


async def test_a_call_carries_no_more_rows_and_bytes_than_the_store_takes() -> None:
    bench = Bench(partitions=1, room=limits.ROWS_N + 50)
    await bench.start(*(job(0, n) for n in range(limits.ROWS_N + 50)))
    bench.finish(limits.ROWS_N + 50)
    args, answer = await bench.store.take(CompleteManyArgs)
    assert len(args.items) == limits.ROWS_N
    bench.room = 0
    answer.set_result(done(limits.ROWS_N, claimed()))
    args, answer = await bench.store.take(CompleteManyArgs)
    assert len(args.items) == 50
    bench.jobs = [Held(job(0, n), bench.slots.parts[0], 0.0, 0.0, 0.0) for n in range(6)]
    for held in bench.jobs:
        bench.slots.complete(held, b"x" * (limits.RESULT_BYTES // 2))
    answer.set_result(done(50, claimed()))
    args, _ = await bench.store.take(CompleteManyArgs)
    assert len(args.items) == 2
    await bench.slots.close()


async def test_a_newer_table_of_capability_sets_is_told_once(bench: Bench) -> None:
    bench.slots.wake()
    for _ in range(2):
        _, answer = await bench.store.take(ClaimBatchArgs)
        answer.set_result(claimed(parked=True, revision=3))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        bench.slots.ask_everywhere()
    assert bench.revised == [["{fp:0}", "{fp:1}"]]


async def test_what_repeating_does_not_mend_is_told(bench: Bench) -> None:
    bench.slots.wake()
    _, answer = await bench.store.take(ClaimBatchArgs)
    answer.set_exception(EngineBug("drift"))
    for _ in range(3):
        await asyncio.sleep(0)
    assert [type(error) for error in bench.broken] == [EngineBug]


async def test_a_stopped_worker_claims_nothing_more_but_reports_what_it_has(bench: Bench) -> None:
    bench.room = 1
    await bench.start(job(0, 1))
    bench.slots.claiming = False
    bench.finish()
    args, answer = await bench.store.take(CompleteManyArgs)
    assert (args.limit, args.park) == (0, None)
    answer.set_result(done(1, claimed()))
    await bench.slots.settle()
    assert not [call for call, _ in bench.store.open if isinstance(call, CompleteManyArgs)]


# ---- a cluster: one partition per call


async def test_where_calls_name_one_partition_each_is_claimed_from_by_itself() -> None:
    """A partition whose node does not answer keeps what was asked for, and holds up no other."""
    bench = Bench(partitions=3, room=6)
    bench.store.grouped = False  # type: ignore[misc]
    bench.slots.wake()
    claims = [await bench.store.take(ClaimBatchArgs) for _ in range(3)]
    assert [(args.partitions, args.limit, args.claim_id) for args, _ in claims] == [
        (["{fp:0}"], 2, "w.c0.1"), (["{fp:1}"], 2, "w.c1.2"), (["{fp:2}"], 2, "w.c2.3"),
    ]  # fmt: skip
    claims[1][1].set_result(claimed(parked=True))
    claims[2][1].set_result(claimed(job(2, 1)))
    args, again = await bench.store.take(ClaimBatchArgs)
    assert (args.partitions, args.claim_id) == (["{fp:2}"], "w.c2.4"), "what is parked or under way is left alone"
    bench.finish()
    again.set_result(claimed(parked=True))
    args, _ = await bench.store.take(CompleteManyArgs)
    assert (args.partition, len(args.items)) == ("{fp:2}", 1)
    assert not bench.store.open, "what has not been answered is not asked for again"
    await bench.slots.close()
