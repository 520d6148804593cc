"""Jobs between claim and handler, against a store that answers when the test says so: what is asked, what follows."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest

from ffcore import admission as text
from ffcore.args import Args
from ffcore.contracts.admission import AdmitManyArgs, AdmittedMany, ItemAdmitted
from ffcore.contracts.batch import ClaimedJob
from ffcore.contracts.budget import ReservedMany, ReservedRow, ReserveManyArgs
from ffcore.errors import BudgetExceeded, EngineBug, Unavailable
from ffcore.ids import PartitionKey, TimestampMs
from ffsdk import admission as module
from ffsdk.admission import Admission
from ffsdk.asking import Refused, Wanted, admission_set, exceeded, wanted_by
from ffsdk.held import Held
from ffsdk.slots import Part
from tests.integration.proxy import until
from tests.unit.ffsdk.test_worker_slots import job as claimed_job

BUDGET = "{b:0}:00000000-0000-8000-8000-00000000000b"
OTHER = "{b:1}:00000000-0000-8000-8000-00000000000c"
QUOTA = "{q:0}:00000000-0000-8000-8000-00000000000d"
FP = PartitionKey("{fp:0}")

GRANTED = ReservedRow("granted", "", 0, 0, TimestampMs(0), 0)
REFUSED = ReservedRow("refused", "tokens", 100, 5, TimestampMs(0), 7)
NEVER = ReservedRow("never", "tokens", 100, 100, TimestampMs(0), 7)
ADMITTED = ItemAdmitted("admitted", 0, 0)


def budget(on_exceed: str = "hold", id: str = BUDGET, amount: str = "40") -> str:
    return text.BudgetLine(id, on_exceed, {"tokens": amount}).text()


def quota(on_exceed: str = "hold", key: str | None = None) -> str:
    return text.QuotaLine(QUOTA, on_exceed, key).text()


def job(n: int, *lines: str) -> ClaimedJob:
    import msgspec

    return msgspec.structs.replace(claimed_job(0, n), admission="\n".join(lines))


class Store:
    """Keeps every call until `answer`."""

    def __init__(self) -> None:
        self.open: list[tuple[Any, asyncio.Future[Any]]] = []

    async def call(self, args: Args[Any]) -> Any:
        told: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.open.append((args, told))
        return await told

    async def take(self, kind: type[Any]) -> tuple[Any, asyncio.Future[Any]]:
        for _ in range(20):
            for at, (args, _) in enumerate(self.open):
                if isinstance(args, kind):
                    return self.open.pop(at)
            await asyncio.sleep(0)
        raise AssertionError(f"no {kind.__name__} is under way: {self.open}")


class Bench:
    """The admission of a worker all of whose other parts are lists."""

    def __init__(self, room: int = 10) -> None:
        self.store, self.free = Store(), room
        self.started: list[Held] = []
        self.stopped: list[Held] = []
        self.given_back: list[Held] = []
        self.refused: list[tuple[Held, tuple[Any, ...]]] = []
        self.failed: list[tuple[Held, str, str]] = []
        self.cancelled: list[tuple[Held, str]] = []
        self.suspended: list[tuple[Held, str]] = []
        self.raised: list[Held] = []
        self.broken: list[BaseException] = []
        self.slowed, self.keeps, self.ran = 0, False, False
        self.on_ended: Callable[[], None] | None = None
        self.suspend_error: Exception | None = None
        self.suspends, self.part = True, Part(FP)
        self.admission = Admission(
            self.store,  # type: ignore[arg-type]
            runners=self,  # type: ignore[arg-type]
            reports=self,  # type: ignore[arg-type]
            clock=time.monotonic,
            stopped=self.stopped.append,
            give_back=self.given_back.append,
            raised=self._raised,
            suspend=self._suspend,
            broken=self.broken.append,
        )

    # what the runners are asked

    def room(self) -> int:
        return self.free - len(self.started)

    def add(self, jobs: list[Held]) -> None:
        self.started += jobs

    def slow(self) -> None:
        self.slowed += 1

    # what is reported

    def refuse(self, held: Held, *said: Any, ran: bool = False) -> None:
        self.refused.append((held, said))
        self.ran = ran

    def fail(self, held: Held, reason: str, category: str, final: bool = False) -> None:
        assert final
        self.failed.append((held, reason, category))

    def cancel(self, held: Held, reason: str) -> None:
        self.cancelled.append((held, reason))

    async def _raised(self, held: Held) -> bool:
        self.raised.append(held)
        await asyncio.sleep(0)
        return held.why is None

    async def _suspend(self, held: Held, id: str) -> None:
        self.suspended.append((held, id))
        await asyncio.sleep(0)
        if self.suspend_error is not None:
            raise self.suspend_error
        held.suspended = self.suspends

    # what a test does

    def held(self, n: int, *lines: str) -> Held:
        return Held(job(n, *lines), self.part, 0.0, 0.0, 0.0)

    async def asked(self, n: int = 1, *lines: str) -> tuple[list[Held], Any, asyncio.Future[Any]]:
        """Some jobs that ask one budget."""
        jobs = [self.held(at, *(lines or (budget(),))) for at in range(n)]
        self.admission.add(jobs)
        args, told = await self.store.take(ReserveManyArgs)
        return jobs, args, told


async def turns(n: int = 10) -> None:
    for _ in range(n):
        await asyncio.sleep(0)


# ---- what is asked ---------------------------------------------------------------------------------------


async def test_jobs_of_one_turn_ask_each_partition_in_one_call() -> None:
    bench = Bench()
    jobs = [bench.held(n, budget(), budget(id=OTHER), quota(key="t1")) for n in range(3)]
    for held in jobs:
        bench.admission.add([held])
    first, told_first = await bench.store.take(ReserveManyArgs)
    second, told_second = await bench.store.take(ReserveManyArgs)
    third, told_third = await bench.store.take(AdmitManyArgs)
    assert bench.store.open == []
    assert {first.partition, second.partition} == {"{b:0}", "{b:1}"}
    assert [row.key for row in third.items] == ["t1"] * 3
    row = first.items[0]
    assert (row.execution_id, row.epoch, row.amounts, row.partition) == (
        jobs[0].job.execution_id, jobs[0].job.lease_epoch, "tokens=40", "{fp:0}",
    )  # fmt: skip
    told_first.set_result(ReservedMany([GRANTED] * 3))
    told_second.set_result(ReservedMany([GRANTED] * 3))
    await turns()
    assert bench.started == [], "one has not answered"
    told_third.set_result(AdmittedMany([ADMITTED] * 3))
    await turns()
    assert bench.started == jobs
    assert bench.admission.load == 0


async def test_no_more_ask_than_can_start_soon() -> None:
    bench = Bench(room=2)
    jobs, _, told = await bench.asked(5)
    assert len(bench.admission.waiting) == 3
    assert bench.admission.load == 5
    told.set_result(ReservedMany([GRANTED] * 2))
    await turns()
    assert bench.started == jobs[:2]
    assert bench.store.open == []
    bench.started.pop()
    assert bench.on_ended is not None
    bench.on_ended()
    args, told = await bench.store.take(ReserveManyArgs)
    assert len(args.items) == 1
    told.set_result(ReservedMany([REFUSED]))
    args, told = await bench.store.take(ReserveManyArgs)
    assert len(args.items) == 1, "who was refused leaves room for the next"
    told.set_result(ReservedMany([GRANTED]))
    await turns()
    assert len(bench.admission.waiting) == 1


async def test_nobody_is_called_when_a_handler_ends_once_nobody_waits() -> None:
    bench = Bench(room=1)
    _, _, told = await bench.asked(2)
    told.set_result(ReservedMany([GRANTED]))
    await turns()
    bench.started.clear()
    assert bench.on_ended is not None
    bench.on_ended()
    _, told = await bench.store.take(ReserveManyArgs)
    assert bench.on_ended is None
    told.set_result(ReservedMany([GRANTED]))
    await turns()
    assert len(bench.started) == 1


async def test_what_cannot_ask_for_long_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STUCK_S", 0.02)
    bench = Bench(room=0)
    held = bench.held(0, budget())
    bench.admission.add([held])
    await until(lambda: bench.stopped != [])
    assert (bench.stopped, held.why, bench.slowed) == ([held], "stop", 1)
    assert bench.admission.load == 0


async def test_a_key_that_is_held_alone_asks_nobody() -> None:
    bench = Bench()
    held = bench.held(0, text.UniqueLine(QUOTA, "queued").text())
    bench.admission.add([held])
    await turns()
    assert bench.started == [held]


def test_the_queue_of_a_job_is_named_as_the_store_names_it() -> None:
    lines: list[Any] = text.parse("\n".join([quota(key="a b"), budget("fail")]))
    import hashlib

    named = hashlib.sha1(f"b {BUDGET}\nq {QUOTA} a%20b".encode(), usedforsecurity=False).hexdigest()[:12]
    assert admission_set(lines) == named
    assert {wanted.adm for wanted in wanted_by("\n".join([quota(key="a b"), budget("fail")]))} == {named}


def test_a_lanes_own_quota_is_known_by_its_mark() -> None:
    own, lanes = wanted_by(f"{quota()}\nq {QUOTA} hold - lane")
    assert (own.kind, lanes.kind, lanes.adm) == ("q", "l", "lane:00000000-0000-8000-8000-00000000000d")
    assert own.adm == wanted_by(quota())[0].adm
    (alone,) = wanted_by(f"q {QUOTA} hold - lane")
    assert alone.kind == "l"


# ---- what follows from a no ------------------------------------------------------------------------------


async def test_hold_puts_the_job_back_and_says_why() -> None:
    bench = Bench()
    (held,), _, told = await bench.asked()
    held.clock_ms = 1_000_000.0
    told.set_result(ReservedMany([REFUSED]))
    await turns()
    ((refused, (resource, kind, gen, until_ms, detail)),) = bench.refused
    assert (refused, resource, kind, gen) == (held, BUDGET, "b", 7)
    assert "tokens: 40 wanted, 5 of 100 left" in detail
    assert 0 < until_ms - (time.monotonic() * 1000 + 1_000_000) <= 5_000
    assert bench.admission.load == 0


async def test_fail_ends_the_job() -> None:
    bench = Bench()
    (held,), _, told = await bench.asked(1, budget("fail"))
    told.set_result(ReservedMany([REFUSED]))
    await turns()
    assert [(one, what) for one, _, what in bench.failed] == [(held, "budget_exceeded")]


async def test_cancel_cancels_it_and_tells_why() -> None:
    bench = Bench()
    (held,), _, told = await bench.asked(1, budget("cancel"))
    told.set_result(ReservedMany([REFUSED]))
    await turns()
    ((cancelled, reason),) = bench.cancelled
    assert (cancelled, "5 of 100 left" in reason) == (held, True)


async def test_an_estimate_above_the_limit_fails_what_would_wait_for_ever() -> None:
    bench = Bench()
    (held,), _, told = await bench.asked()
    told.set_result(ReservedMany([NEVER]))
    await turns()
    ((failed, reason, category),) = bench.failed
    assert (failed, category) == (held, "budget_exceeded")
    assert "40" in reason
    assert "100" in reason


async def test_suspend_gives_up_the_lease_or_holds_the_job_where_that_cannot_be() -> None:
    bench = Bench()
    (held,), _, told = await bench.asked(1, budget("suspend"))
    told.set_result(ReservedMany([NEVER]))
    await turns()
    assert bench.suspended == [(held, BUDGET)]
    assert (bench.admission.load, bench.failed) == (0, [])
    bench.suspend_error = EngineBug("no secret")
    (held,), _, told = await bench.asked(1, budget("suspend"))
    told.set_result(ReservedMany([REFUSED]))
    await turns()
    assert [(one, "no secret" in detail) for one, (*_, detail) in bench.refused] == [(held, True)]
    assert bench.admission.load == 0


async def test_a_job_that_was_answered_before_it_was_suspended_is_given_back() -> None:
    bench = Bench()
    bench.suspends = False
    (held,), _, told = await bench.asked(1, budget("suspend"))
    told.set_result(ReservedMany([REFUSED]))
    await turns()
    assert bench.given_back == [held]
    assert bench.admission.load == 0


async def test_the_first_of_the_jobs_own_order_decides() -> None:
    bench = Bench()
    held = bench.held(0, quota("fail"), budget("cancel"))
    bench.admission.add([held])
    _, reserve = await bench.store.take(ReserveManyArgs)
    _, admit = await bench.store.take(AdmitManyArgs)
    reserve.set_result(ReservedMany([REFUSED]))
    admit.set_result(AdmittedMany([ItemAdmitted("rate", 250, 3)]))
    await turns()
    assert [(one, category) for one, _, category in bench.failed] == [(held, "quota_exceeded")]
    assert bench.cancelled == []


async def test_a_rate_halts_until_it_has_room_and_places_until_one_is_free() -> None:
    bench = Bench()
    halts = ((ItemAdmitted("rate", 60_000, 3), 59_000, 60_001), (ItemAdmitted("concurrency", 0, 3), 1, 5_001))
    for item, least, most in halts:
        bench.admission.add([bench.held(0, quota())])
        _, told = await bench.store.take(AdmitManyArgs)
        told.set_result(AdmittedMany([item]))
        await turns()
        _, (_, kind, gen, until_ms, _) = bench.refused.pop()
        assert (kind, gen) == ("q", 3)
        assert least <= until_ms - time.monotonic() * 1000 <= most


async def test_what_is_not_there_holds_the_job_and_says_what_is_missing() -> None:
    bench = Bench()
    _, _, told = await bench.asked()
    told.set_result(ReservedMany([ReservedRow("not_found", "", 0, 0, TimestampMs(0), 0)]))
    bench.admission.add([bench.held(1, quota())])
    _, admit = await bench.store.take(AdmitManyArgs)
    admit.set_result(AdmittedMany([ItemAdmitted("not_found", 0, 0)]))
    await turns()
    assert [detail for _, (*_, detail) in bench.refused] == [
        f"there is no budget {BUDGET}: create it, or cancel the job",
        f"there is no quota {QUOTA}: create it, or cancel the job",
    ]


async def test_a_queue_waits_longer_each_time_nothing_was_released(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench()
    now = [1_000.0]
    monkeypatch.setattr(bench.admission, "_clock", lambda: now[0])

    async def asks(gen: int, retry_at_ms: int = 0) -> float:
        _, _, told = await bench.asked()
        row = ReservedRow("refused", "tokens", 100, 5, TimestampMs(retry_at_ms), gen)
        told.set_result(ReservedMany([row]))
        await turns()
        _, (_, _, _, until_ms, _) = bench.refused.pop()
        return until_ms / 1000 - now[0]

    assert await asks(7) == 5
    assert await asks(7) == 5, "another job of the same queue, meanwhile"
    for wait in (10, 20, 40, 60, 60):
        now[0] += 3600
        assert await asks(7) == wait
    assert await asks(7, int(now[0] * 1000) + 30_000) == 30, "a reset is waited for no longer than it is away"
    assert await asks(8) == 5


# ---- meanwhile -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("why", ["lost", "cancel"])
async def test_a_job_that_is_stopped_while_it_asks_never_starts(why: Any) -> None:
    bench = Bench()
    (held,), _, told = await bench.asked()
    held.why = why
    told.set_result(ReservedMany([GRANTED]))
    await turns()
    assert (bench.started, bench.stopped, bench.admission.load) == ([], [held], 0)


async def test_a_job_that_is_stopped_before_it_asks_is_taken_out() -> None:
    bench = Bench(room=0)
    held = bench.held(0, budget())
    bench.admission.add([held])
    assert bench.admission.drop(held)
    assert not bench.admission.drop(held)
    assert bench.admission.load == 0


async def test_a_worker_that_stops_gives_back_what_asks_and_what_waits() -> None:
    bench = Bench(room=1)
    jobs, _, told = await bench.asked(2)
    assert bench.admission.take_back() == jobs[1:]
    told.set_result(ReservedMany([GRANTED]))
    await bench.admission.settle()
    assert (bench.started, bench.given_back) == ([], jobs[:1])
    await bench.admission.close()


async def test_a_store_that_is_away_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRY_S", 0)
    bench = Bench()
    (held,), first, told = await bench.asked()
    told.set_exception(Unavailable("away", may_have_applied=True))
    again, told = await bench.store.take(ReserveManyArgs)
    assert again == first
    told.set_result(ReservedMany([GRANTED]))
    await turns()
    assert bench.started == [held]


async def test_a_partition_that_stays_away_holds_nobody_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "UNREACHED_S", 0.0)
    bench = Bench()
    here, there = bench.held(0, budget()), bench.held(1, budget(), budget(id=OTHER))
    bench.admission.add([here, there])
    for _ in range(2):
        args, told = await bench.store.take(ReserveManyArgs)
        if args.partition == "{b:0}":
            told.set_result(ReservedMany([GRANTED] * 2))
        else:
            told.set_exception(Unavailable("away"))
    await turns()
    assert bench.started == [here]
    ((held, (resource, *_, detail)),) = bench.refused
    assert (held, resource) == (there, OTHER)
    assert "does not answer" in detail


async def test_what_waited_for_a_higher_limit_raises_it_before_it_asks() -> None:
    import msgspec

    from ffcore.contracts.batch import JournalHead

    bench = Bench()
    head = JournalHead("0 1", 1, False, [])
    held = bench.held(0, budget("suspend"))
    held.job = msgspec.structs.replace(held.job, journal=head)
    bench.admission.add([held])
    _, told = await bench.store.take(ReserveManyArgs)
    assert bench.raised == [held]
    told.set_result(ReservedMany([GRANTED]))
    await turns()
    assert bench.started == [held]


async def test_answers_that_do_not_fit_end_the_worker() -> None:
    bench = Bench()
    _, _, told = await bench.asked()
    told.set_result(ReservedMany([]))
    await turns()
    assert isinstance(bench.broken[0], EngineBug)


# ---- what a handler raises -------------------------------------------------------------------------------


def over(budget_id: str) -> BudgetExceeded:
    error = BudgetExceeded("used up", code="budget_exceeded")
    error.budget_id = budget_id
    return error


async def test_an_error_that_one_of_its_own_budgets_is_used_up_is_a_no() -> None:
    bench = Bench()
    held = bench.held(0, quota(), budget("fail"))
    found = exceeded(held, over(BUDGET))
    assert found is not None
    assert (found.wanted.id, found.text) == (BUDGET, "used up")
    assert exceeded(held, over(OTHER)) is None
    assert exceeded(held, ValueError("x")) is None
    assert exceeded(held, ExceptionGroup("g", [over(BUDGET)])) is not None
    assert exceeded(held, ExceptionGroup("g", [over(BUDGET), ValueError("x")])) is None
    bench.admission.again(held, found)
    assert [one for one, *_ in bench.failed] == [held]
    assert bench.admission.load == 0


def test_what_a_refusal_is_called() -> None:
    assert Refused(Wanted("b", BUDGET, "hold", "-", ""), "x").category == "budget_exceeded"
    assert Refused(Wanted("l", QUOTA, "hold", "-", ""), "x").category == "quota_exceeded"
