"""What goes wrong around durable calls, and must not make them answer otherwise in the next run, or hang the worker."""

from __future__ import annotations

import asyncio
import functools
import gc
import weakref
from typing import Any

import pytest

import ffsdk as ff
from ffsdk import steps
from ffsdk.testing import Engine
from tests.integration.desk import Desk, journal_of, outcome_of, task_of


@pytest.fixture
def desk() -> Desk:
    return Desk()


async def test_a_step_that_its_handler_gave_up_on_stands_in_the_journal_too(desk: Desk) -> None:
    """Without that, the run after it asks for what nobody recorded, beside what somebody did: a conflict of nothing."""

    async def slow(what: str) -> str:
        await asyncio.sleep(60)
        return what

    async def work(_: Any, ctx: ff.Context) -> str:
        try:
            async with asyncio.timeout(1):
                found = await ctx.step("ask", slow, "first")
        except TimeoutError:
            found = await ctx.step("ask", desk.do, "second")
        await ctx.sleep(60)
        return found

    assert await outcome_of(work) == ff.Completed(value="second done")
    assert desk.ran == {"second": 1}


async def test_the_siblings_of_a_failed_step_stand_in_the_journal_too(desk: Desk) -> None:
    async def slow(what: str) -> str:
        await asyncio.sleep(60)
        return what

    app = ff.App()

    async def work(_: Any, ctx: ff.Context) -> str:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(ctx.step("page", slow, "a"))
                group.create_task(ctx.step("other", desk.fail, "no"))
        except* ff.Fatal:
            pass
        await ctx.step("page", desk.do, "b")
        await ctx.sleep(60)
        return "done"

    task = task_of(app, work)
    async with Engine(app) as eng:
        job = await eng.client.submit(task)
        assert await job.outcome(timeout=3600) == ff.Completed(value="done")
        found = {(entry.name, entry.status) for entry in await journal_of(eng, job)}
    assert ("page", "error") in found


async def test_a_result_that_does_not_encode_counts_as_a_failed_try(desk: Desk) -> None:
    async def odd(what: str) -> object:
        desk.ran[what] += 1
        return object()

    async def work(_: Any, ctx: ff.Context) -> str:
        try:
            await ctx.step("page", odd, "a")
        except ff.InvalidArgument:
            pass
        found = await ctx.step("page", desk.do, "b")
        await ctx.sleep(60)
        return found

    assert await outcome_of(work) == ff.Completed(value="b done")


async def test_a_wait_answered_after_its_handler_has_returned_leaks_no_slot() -> None:
    """The store suspends the job while the handler returns: its slot is given back once, not twice."""
    app = ff.App()
    left: list[Any] = []

    async def work(_: Any, ctx: ff.Context) -> str:
        gate = await ctx.gate("g")
        durable, answered = ctx.durable, ctx.durable.call

        async def late(args: Any) -> Any:
            answer = await answered(args)
            await asyncio.sleep(1)
            return answer

        durable.call = late  # type: ignore[method-assign]
        left.append(asyncio.ensure_future(gate.wait()))
        await asyncio.sleep(0.5)
        return "early"

    task = task_of(app, work)
    async with Engine(app, lanes=["nothing"]) as eng:
        worker = eng.worker()
        jobs = [await eng.client.submit(task) for _ in range(3)]
        await eng.advance(seconds=5)
        runners = worker._runners  # pyright: ignore[reportPrivateUsage]
        assert (runners.running_n, runners._unwinding_n) == (0, 0)  # pyright: ignore[reportPrivateUsage]
        ends = await asyncio.gather(*left, return_exceptions=True)
        assert [type(end) for end in ends] == [ff.Suspended] * 3
        assert [(await job.status()).state for job in jobs] == ["suspended"] * 3


async def test_a_wait_that_is_cancelled_while_it_is_sent_still_suspends(desk: Desk) -> None:
    """The store has suspended the job, so nothing of this run may begin any more, whatever its handler has caught."""
    app = ff.App()

    async def work(_: Any, ctx: ff.Context) -> str:
        gate = await ctx.gate("g")
        durable, answered = ctx.durable, ctx.durable.call

        async def late(args: Any) -> Any:
            answer = await answered(args)
            await asyncio.sleep(2)
            return answer

        durable.call = late  # type: ignore[method-assign]
        try:
            async with asyncio.timeout(1):
                found = await gate.wait(60, "resume")
        except TimeoutError:
            found = await ctx.step("after", desk.do, "impatient")
        except ff.GateTimeout:
            found = "nobody came"
        return found

    task = task_of(app, work)
    async with Engine(app) as eng:
        assert await (await eng.client.submit(task)).result(timeout=3600) == "nobody came"
    assert not desk.ran


async def test_a_step_left_behind_does_not_go_on_beside_the_next_attempt(desk: Desk) -> None:
    """A gather that fails leaves the others running; the next attempt begins them again."""
    at_once = {"now": 0, "most": 0}

    async def slow() -> str:
        at_once["now"] += 1
        at_once["most"] = max(at_once.values())
        try:
            await asyncio.sleep(60)
        finally:
            at_once["now"] -= 1
        return "done"

    async def breaks(attempt: int) -> None:
        if attempt == 0:
            raise ConnectionError

    async def work(_: Any, ctx: ff.Context) -> str:
        found, _ = await asyncio.gather(ctx.step("slow", slow), ctx.step("breaks", breaks, ctx.attempt))
        return found

    assert await outcome_of(work) == ff.Completed(value="done")
    assert at_once == {"now": 0, "most": 1}


@pytest.mark.parametrize("pause", [0.0, 0.1, 1.0])
async def test_steps_that_come_one_after_the_other_are_no_conflict(desk: Desk, pause: float) -> None:
    """The first was not recorded when the worker died, the second was; and the second asks a while after the first."""

    async def page(number: int) -> int:
        desk.ran[str(number)] += 1
        await asyncio.sleep(0 if number else 30)
        return number

    async def work(_: Any, ctx: ff.Context) -> list[int]:
        async def one(number: int) -> int:
            await asyncio.sleep(number * pause)
            return await ctx.step("page", page, number)

        return await asyncio.gather(*(one(number) for number in range(3)))

    app = ff.App()
    task = task_of(app, work)
    async with Engine(app) as eng:
        eng.crash_after(2, function="ff_record_step")
        assert await (await eng.client.submit(task)).result(timeout=3600) == [0, 1, 2]
        assert eng.crashed is not None
    assert desk.ran == {"0": 2, "1": 1, "2": 1}


async def test_a_blocking_call_that_is_refused_leaves_nothing_under_way(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    async def work(_: Any, ctx: ff.Context) -> str:
        with pytest.raises(ff.InvalidArgument):
            ctx.sync.step("a", desk.in_thread, "x")
        await ctx.sleep(60)
        return "slept"

    assert await outcome_of(work) == ff.Completed(value="slept")
    assert not [record for record in caplog.records if record.name == "asyncio"]


async def test_a_blocking_step_takes_all_that_an_awaited_one_takes(desk: Desk) -> None:
    app = ff.App()

    @app.task(name="part")
    async def part(what: str) -> str:
        return await desk.do(what)

    class Calls:
        async def __call__(self, what: str) -> str:
            return await desk.do(what)

    def work(_: Any, ctx: ff.Context) -> list[str]:
        found = [
            ctx.sync.step("task", part, "task"),
            ctx.sync.step("object", Calls(), "object"),
            ctx.sync.step("lambda", lambda what: desk.do(what), "lambda"),
            ctx.sync.step("partial", functools.partial(desk.do, "partial")),
        ]
        if ctx.attempt == 0:
            raise ConnectionError
        return found

    task: Any = task_of(app, work)  # type: ignore[arg-type]
    async with Engine(app) as eng:
        assert await (await eng.client.submit(task)).result(timeout=60) == [
            "task done", "object done", "lambda done", "partial done",
        ]  # fmt: skip
    assert set(desk.ran.values()) == {1}


async def test_functions_made_by_each_run_are_not_kept() -> None:
    made: list[weakref.ref[Any]] = []

    async def work(_: Any, ctx: ff.Context) -> None:
        async def local() -> int:
            return 1

        made.append(weakref.ref(local))
        await ctx.step("a", local)
        await ctx.step("b", lambda: 2)

    before = len(steps._shapes)  # pyright: ignore[reportPrivateUsage]
    await outcome_of(work)
    del work
    gc.collect()
    assert made[0]() is None and len(steps._shapes) <= before  # pyright: ignore[reportPrivateUsage]


async def test_callables_that_are_equal_are_each_called() -> None:
    class Same:
        def __init__(self, value: int) -> None:
            self.value = value

        def __eq__(self, other: object) -> bool:
            return isinstance(other, Same)

        def __hash__(self) -> int:
            return 1

        async def __call__(self) -> int:
            return self.value

    async def work(_: Any, ctx: ff.Context) -> list[int]:
        return [await ctx.step("a", one, digest=str(one.value)) for one in (Same(1), Same(2))]

    assert await outcome_of(work) == ff.Completed(value=[1, 2])


@pytest.mark.parametrize("name", [["x"], {"x": 1}, None, 3, "", "a\nb", "x" * 129])
async def test_a_name_that_is_none_is_refused(name: Any, desk: Desk) -> None:
    async def work(_: Any, ctx: ff.Context) -> str:
        calls: list[Any] = [
            lambda: ctx.step(name, desk.do, "x"), lambda: ctx.gate(name), lambda: ctx.emit(1, type=name),
        ]  # fmt: skip
        for call in calls:
            with pytest.raises(ff.InvalidArgument):
                await call()
        with pytest.raises(ff.InvalidArgument):
            await asyncio.to_thread(ctx.sync.step, name, desk.in_thread, "x")
        await ctx.sleep(60)
        return "fine"

    assert await outcome_of(work) == ff.Completed(value="fine")


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("nothing to say")


@pytest.mark.parametrize("in_step", [False, True])
@pytest.mark.parametrize("error", [ff.Failure(ValueError("odd")), ff.Fatal(None), Mute()])  # type: ignore[arg-type]
async def test_whatever_a_handler_raises_is_reported(error: Exception, in_step: bool) -> None:
    async def raises() -> None:
        raise error

    async def work(_: Any, ctx: ff.Context) -> None:
        if in_step:
            await ctx.step("a", raises)
        await raises()

    assert isinstance(await outcome_of(work), ff.Failed)


async def test_arguments_may_have_keys_of_any_kind_that_json_takes(desk: Desk) -> None:
    async def count(what: dict[int, str]) -> int:
        desk.ran["count"] += 1
        return len(what)

    async def work(_: Any, ctx: ff.Context) -> int:
        found = await ctx.step("a", count, {2: "b", 1: "a"} if ctx.attempt else {1: "a", 2: "b"})
        if not ctx.attempt:
            raise ConnectionError
        return found

    assert await outcome_of(work) == ff.Completed(value=2)
    assert desk.ran == {"count": 1}


@pytest.mark.parametrize("message", [5, "\ud800", "x" * 70_000])
@pytest.mark.parametrize("in_step", [False, True])
async def test_a_progress_message_that_is_none_harms_no_step(message: Any, in_step: bool) -> None:
    async def work(_: Any, ctx: ff.Context) -> str:
        async def part() -> str:
            with pytest.raises(ff.InvalidArgument):
                await ctx.progress(50, message)
            return "fine"

        return await ctx.step("part", part) if in_step else await part()

    assert await outcome_of(work) == ff.Completed(value="fine")


async def test_a_full_journal_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[int] = []

    async def big(number: int) -> str:
        ran.append(number)
        return "x" * 1_000_000

    async def work(_: Any, ctx: ff.Context) -> None:
        for number in range(20):
            await ctx.step("big", big, number)

    outcome = await outcome_of(work)
    assert isinstance(outcome, ff.Failed) and (outcome.category, outcome.attempts) == ("journal_full", 1)
    assert ran == list(range(17)), "the effect of the one that did not fit is not repeated"


@pytest.mark.parametrize("bad", [{"digest": object()}, {"digest": {1: object()}}, {"digest": b"\xff"}])
async def test_a_digest_is_anything_that_encodes(bad: dict[str, Any], desk: Desk) -> None:
    async def work(_: Any, ctx: ff.Context) -> str:
        try:
            return await ctx.step("a", desk.do, "x", **bad)
        except ff.InvalidArgument:
            return await ctx.step("a", desk.do, "x", digest="\ud800")

    assert await outcome_of(work) == ff.Completed(value="x done")


async def test_what_cannot_be_meant_at_a_gate_is_refused_before_it_is_opened() -> None:
    app = ff.App()
    seen: list[int] = []

    async def work(_: Any, ctx: ff.Context) -> None:
        for bad in (5, [None], [5], [""]):
            with pytest.raises(ff.InvalidArgument):
                await ctx.gate("g", int, names=bad)
        gate = await ctx.gate("h", int)
        for bad in ([], {}, None, "Fail"):
            with pytest.raises(ff.InvalidArgument):
                await gate.wait(1, on_timeout=bad)
        seen.append(1)

    task = task_of(app, work)
    async with Engine(app) as eng:
        job = await eng.client.submit(task)
        assert await job.outcome(timeout=60) == ff.Completed(value=None) and seen
        assert [entry.name for entry in await journal_of(eng, job)] == ["h"]
