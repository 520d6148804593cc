"""Steps: what is recorded is not done again, and what is not recorded is."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, NoReturn

import pytest

import ffsdk as ff
from ffcore.steps import JournalEntry
from ffsdk import durable, steps
from ffsdk.testing import Engine
from tests.integration import worker_app
from tests.integration.desk import Desk, Receipt, journal_of, outcome_of, task_of
from tests.integration.worker_app import ONCE


@pytest.fixture
def desk() -> Desk:
    return Desk()


# ---- recorded and replayed -------------------------------------------------------------------------------


async def test_a_retry_goes_on_behind_the_last_recorded_step(desk: Desk) -> None:
    async def work(_: Any, ctx: ff.Context) -> list[str]:
        first = await ctx.step("a", desk.do, "first")
        second = await ctx.step("a", desk.do, "second")
        if ctx.attempt == 0:
            raise ConnectionError("the line went dead")
        return [first, second]

    assert await outcome_of(work) == ff.Completed(value=["first done", "second done"])
    assert desk.ran == {"first": 1, "second": 1}


async def test_loops_and_gathers_find_their_entries_in_any_order(desk: Desk) -> None:
    async def work(_: Any, ctx: ff.Context) -> list[str]:
        names = ["x", "y", "z", "x"]
        if ctx.attempt:
            names = ["z", "x", "x", "y"]
        done = await asyncio.gather(*(ctx.step("page", desk.do, name) for name in names))
        for name in names:
            done.append(await ctx.step("loop", desk.in_thread, name))
        if ctx.attempt < 2:
            raise ConnectionError
        return sorted(done)

    outcome = await outcome_of(work)
    assert isinstance(outcome, ff.Completed)
    assert desk.ran == {"x": 4, "y": 2, "z": 2}, "each of two names, once per equal call"


async def test_the_value_is_the_same_in_the_first_run_and_in_every_later_one(desk: Desk) -> None:
    seen: list[list[Any]] = []

    async def tuples() -> tuple[int, int]:
        return (1, 2)

    async def untyped():  # type: ignore[no-untyped-def]
        return (1, 2), {"k": 1.0}

    async def half() -> float:
        return 1

    async def work(_: Any, ctx: ff.Context) -> None:
        seen.append(
            [
                await ctx.step("receipt", desk.receipt, 7),
                await ctx.step("tuples", tuples),
                await ctx.step("untyped", untyped),
                await ctx.step("half", half),
                await ctx.step("nothing", asyncio.sleep, 0),
            ]
        )
        if ctx.attempt == 0:
            raise ConnectionError

    assert isinstance(await outcome_of(work), ff.Completed)
    first, second = seen
    assert first == second == [Receipt(7, ["tea"]), (1, 2), [[1, 2], {"k": 1.0}], 1.0, None]
    assert [type(one) for one in first] == [type(one) for one in second] == [Receipt, tuple, list, float, type(None)]


async def test_a_step_may_be_a_method_a_lambda_a_partial_or_a_task(desk: Desk) -> None:
    app = ff.App()

    @app.task
    async def double(number: int, ctx: ff.Context) -> int:
        await ctx.progress(10)
        return number * 2

    @app.task(retry=ONCE)
    async def work(number: int, ctx: ff.Context) -> list[Any]:
        return [
            await ctx.step("task", double, number),
            await ctx.step("lambda", lambda: desk.do("later")),
            await ctx.step("thread", desk.in_thread, "work"),
        ]

    @app.task(retry=ONCE)
    async def wrong(number: int, ctx: ff.Context) -> int:
        return await ctx.step("apart", worker_app.count_down, number)

    async with Engine(app) as eng:
        assert await (await eng.client.submit(work, 21)).result() == [42, "later done", "work by ff"]
        refused = await (await eng.client.submit(wrong, 1)).outcome()
    assert isinstance(refused, ff.Failed) and "isolation='process'" in refused.reason


async def test_arguments_that_do_not_encode_need_a_digest(desk: Desk) -> None:
    connection = object()

    async def use(_: object, what: str) -> str:
        return await desk.do(what)

    async def work(digest: str | None, ctx: ff.Context) -> str:
        return await ctx.step("use", use, connection, "db", digest=digest)

    refused = await outcome_of(work, None, retry=ONCE)
    assert isinstance(refused, ff.Failed) and "digest=" in refused.reason
    assert await outcome_of(work, "db") == ff.Completed(value="db done")


async def test_what_does_not_fit_the_annotation_is_found_in_the_first_run() -> None:
    async def wrong() -> Receipt:
        return {"number": "seven"}  # type: ignore[return-value]

    async def work(_: Any, ctx: ff.Context) -> None:
        await ctx.step("wrong", wrong)

    outcome = await outcome_of(work, retry=ONCE)
    assert isinstance(outcome, ff.Failed) and "step 'wrong'" in outcome.reason


# ---- failures --------------------------------------------------------------------------------------------


async def test_a_fatal_step_is_recorded_and_raised_again(desk: Desk) -> None:
    async def work(_: Any, ctx: ff.Context) -> str:
        try:
            await ctx.step("charge", desk.fail, "no money")
        except ff.Fatal as refused:
            if ctx.attempt == 0:
                raise ConnectionError from None
            return f"{refused.reason} {refused.category}"
        return ""

    assert await outcome_of(work) == ff.Completed(value="no money declined")
    assert desk.ran == {"no money": 1}


@pytest.mark.parametrize("category", ["fatal", "declined"])
async def test_a_replay_that_goes_on_tries_the_step_again_that_ended_the_last_run(desk: Desk, category: str) -> None:
    """The card works again: what was done before it stands, and the refusal does not end every replay anew."""

    async def charge() -> str:
        desk.ran["charge"] += 1
        if desk.ran["charge"] == 1:
            raise ff.Fatal("no money", category=category)
        return "paid"

    async def work(_: Any, ctx: ff.Context) -> list[str]:
        return [await ctx.step("book", desk.do, "book"), await ctx.step("charge", charge)]

    app = ff.App()
    task = task_of(app, work)
    async with Engine(app) as eng:
        job = await eng.client.submit(task, None)
        ended = await job.outcome()
        assert isinstance(ended, ff.Failed) and (ended.reason, ended.category) == ("no money", category)
        await job.replay(mode="resume")
        assert await job.result() == ["book done", "paid"]
    assert desk.ran == {"book": 1, "charge": 2}


async def test_a_replay_leaves_a_refusal_that_was_dealt_with(desk: Desk) -> None:
    async def work(_: Any, ctx: ff.Context) -> str:
        try:
            await ctx.step("charge", desk.fail, "no money")
        except ff.Fatal:
            if desk.ran["bank"] == 0:
                desk.ran["bank"] += 1
                raise ff.Fatal("the bank is closed") from None
        return "left open"

    app = ff.App()
    task = task_of(app, work)
    async with Engine(app) as eng:
        job = await eng.client.submit(task, None)
        assert isinstance(await job.outcome(), ff.Failed)
        await job.replay(mode="resume")
        assert await job.result() == "left open"
    assert desk.ran["no money"] == 1


async def test_other_errors_are_counted_and_the_next_attempt_tries_again(desk: Desk) -> None:
    async def sometimes() -> str:
        desk.ran["tries"] += 1
        if desk.ran["tries"] < 3:
            raise TimeoutError("no answer")
        return "at last"

    async def work(_: Any, ctx: ff.Context) -> str:
        return await ctx.step("ask", sometimes)

    app = ff.App()
    async with Engine(app, lanes=["default"]) as eng:
        job = await eng.client.submit(task_of(app, work), None)
        seen: list[JournalEntry] = []
        eng.worker()
        assert await job.result() == "at last"
        seen = await journal_of(eng, job)
    assert [(e.status, e.attempt) for e in seen] == [("ok", 2)]
    assert desk.ran["tries"] == 3


async def test_a_failed_try_says_how_often_and_why() -> None:
    async def never() -> None:
        raise TimeoutError("no answer")

    async def work(_: Any, ctx: ff.Context) -> None:
        await ctx.step("ask", never)

    app = ff.App()
    task = task_of(app, work)
    async with Engine(app) as eng:
        job = await eng.client.submit(task, None)
        assert isinstance(await job.outcome(), ff.Failed)
        (entry,) = await journal_of(eng, job)
    assert (entry.status, entry.tries, entry.reason) == ("error", 3, "TimeoutError: no answer")


async def test_an_interrupted_step_that_must_not_run_twice_is_not_run_twice(desk: Desk) -> None:
    async def work(_: Any, ctx: ff.Context) -> str:
        try:
            return await ctx.step("charge", desk.do, "charge", at_most_once=True)
        except ff.StepInterrupted as unknown:
            return f"ask the bank about {unknown.name}"

    app = ff.App()
    task = task_of(app, work)
    for before, answer, ran in ((True, "ask the bank about charge", 1), (False, "charge done", 1)):
        desk.ran.clear()
        async with Engine(app) as eng:
            job = await eng.client.submit(task, None)
            eng.crash_after(2, before=before, function="ff_record_step")
            assert await job.result() == answer
            assert desk.ran == {"charge": ran}


async def test_a_failure_of_a_step_that_must_not_run_twice_leaves_it_interrupted(desk: Desk) -> None:
    async def unclear() -> None:
        desk.ran["unclear"] += 1
        raise TimeoutError("no answer")

    async def work(_: Any, ctx: ff.Context) -> None:
        await ctx.step("charge", unclear, at_most_once=True)

    outcome = await outcome_of(work)
    assert isinstance(outcome, ff.Failed) and outcome.category == "step_interrupted"
    assert desk.ran == {"unclear": 1}


async def test_an_intent_that_is_sent_twice_still_begins_the_step(desk: Desk) -> None:
    async def work(_: Any, ctx: ff.Context) -> str:
        return await ctx.step("charge", desk.do, "charge", at_most_once=True)

    app = ff.App()
    task = task_of(app, work)
    async with Engine(app) as eng:
        job = await eng.client.submit(task, None)
        eng.crash_after(1, before=True, function="ff_record_step")
        assert await job.result() == "charge done", "the intent never got there, so the step has not begun"


# ---- conflicts -------------------------------------------------------------------------------------------


async def test_other_arguments_than_recorded_are_a_conflict_that_shows_both_sides(desk: Desk) -> None:
    async def work(_: Any, ctx: ff.Context) -> None:
        await ctx.step("charge", desk.do, f"attempt {ctx.attempt}")
        raise ConnectionError

    outcome = await outcome_of(work)
    assert isinstance(outcome, ff.Failed)
    assert outcome.category == "step_conflict" and outcome.attempts == 2, "no retry mends it"
    assert "charge" in outcome.reason and "attempt 0 done" in outcome.reason
    assert desk.ran == {"attempt 0": 1}


async def test_a_new_step_beside_the_recorded_ones_is_no_conflict(desk: Desk) -> None:
    async def work(_: Any, ctx: ff.Context) -> list[str]:
        names = ["x"] if ctx.attempt == 0 else ["new", "x"]
        done = await asyncio.gather(*(ctx.step("page", desk.do, name) for name in names))
        if ctx.attempt == 0:
            raise ConnectionError
        return done

    assert await outcome_of(work) == ff.Completed(value=["new done", "x done"])


async def test_a_name_recorded_as_something_else_is_a_conflict() -> None:
    async def work(_: Any, ctx: ff.Context) -> None:
        if ctx.attempt == 0:
            await ctx.sleep(0)
            raise ConnectionError
        await ctx.step("sleep", asyncio.sleep, 0, digest="")

    outcome = await outcome_of(work)
    assert isinstance(outcome, ff.Failed) and outcome.category == "step_conflict"


async def test_entries_nobody_asked_for_are_told(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    async def work(_: Any, ctx: ff.Context) -> None:
        if ctx.attempt == 0:
            await ctx.step("old", desk.do, "old")
            raise ConnectionError

    app = ff.App()
    task = task_of(app, work)
    with caplog.at_level(logging.WARNING, "flowfabric.worker"):
        async with Engine(app) as eng, eng.client.subscribe("operator") as events:
            job = await eng.client.submit(task, None)
            event = await anext(events)
            assert (event.execution_id, event.to_state) == (job.id, "active")
            assert event.detail == "steps_unclaimed 1 step 'old'"
            assert await job.outcome() == ff.Completed(value=None)
            calls = [name for name in eng.engine_calls if not name.startswith("ff_claim")]
            assert calls[-2:] == ["ff_note_unclaimed", "ff_complete_many"]
    assert "without asking for 1 of its recorded steps: step 'old'" in caplog.text


@pytest.mark.parametrize("before", [True, False])
async def test_a_worker_that_dies_as_it_tells_of_them_loses_nothing(desk: Desk, before: bool) -> None:
    async def work(_: Any, ctx: ff.Context) -> int:
        if ctx.attempt == 0:
            await ctx.step("old", desk.do, "old")
            raise ConnectionError
        return ctx.attempt

    app = ff.App()
    task = task_of(app, work)
    async with Engine(app) as eng:
        job = await eng.client.submit(task, None)
        eng.crash_after(1, before=before, function="ff_note_unclaimed")
        assert await job.result() == 2


async def test_a_cancel_that_comes_as_they_are_told_comes_too_late(desk: Desk) -> None:
    """The handler has ended well: its result wins within the grace."""

    async def work(_: Any, ctx: ff.Context) -> str:
        if ctx.attempt == 0:
            await ctx.step("old", desk.do, "old")
            raise ConnectionError
        assert await ctx.state.cancel() == "requested"
        return "done"

    app = ff.App()

    class State:
        cancel: Any

    @app.lifespan
    async def state() -> Any:
        yield State

    task = task_of(app, work)
    async with Engine(app) as eng:
        job = await eng.client.submit(task, None)
        State.cancel = job.cancel
        assert await job.result() == "done"


# ---- what a step is told ---------------------------------------------------------------------------------


async def test_the_effect_key_is_the_same_in_every_try_and_another_for_every_step(desk: Desk) -> None:
    async def twice(what: str) -> str:
        done = await desk.do(what)
        if desk.ran[what] == 1:
            raise TimeoutError
        return done

    async def work(_: Any, ctx: ff.Context) -> None:
        await ctx.step("a", twice, "one")
        await ctx.step("a", twice, "two")

    assert isinstance(await outcome_of(work, retry=ff.Retry(max_attempts=5, backoff=0.001)), ff.Completed)
    (one, one_again), (two, two_again) = desk.keys["one"], desk.keys["two"]
    assert one == one_again and two == two_again and one != two and len(one) == 32


async def test_a_step_knows_what_it_is() -> None:
    told: list[tuple[str, int, int]] = []

    def note() -> None:
        info = ff.step_info()
        told.append((info.name, info.attempt, info.occurrence))

    async def work(_: Any, ctx: ff.Context) -> None:
        await ctx.step("note", note)
        await ctx.step("note", note)
        with pytest.raises(ff.InvalidArgument):
            ff.step_info()

    assert isinstance(await outcome_of(work), ff.Completed)
    assert told == [("note", 0, 0), ("note", 0, 1)]


async def test_steps_do_not_stand_within_steps(desk: Desk) -> None:
    """The outer one is found recorded next time, and what is in it is not asked for: counting would go wrong."""

    async def work(_: Any, ctx: ff.Context) -> None:
        async def outer() -> str:
            return await ctx.step("inner", desk.do, "x")

        await ctx.step("outer", outer)

    outcome = await outcome_of(work, retry=ONCE)
    assert isinstance(outcome, ff.Failed) and "within the step 'outer'" in outcome.reason


async def test_progress_told_within_a_step_travels_with_its_record() -> None:
    async def tell(ctx: ff.Context) -> None:
        await ctx.progress(40, "half way")
        await ctx.progress(60, "on it")

    async def work(_: Any, ctx: ff.Context) -> None:
        await ctx.step("tell", lambda: tell(ctx))

    app = ff.App()
    task = task_of(app, work)
    async with Engine(app) as eng:
        job = await eng.client.submit(task, None)
        await job.result()
        calls = eng.engine_calls
    assert "ff_update_progress" not in calls and calls.count("ff_record_step") == 1


async def test_progress_of_a_long_step_does_not_wait_for_its_end() -> None:
    seen: list[Any] = []

    async def work(_: Any, ctx: ff.Context) -> None:
        async def tell() -> None:
            await ctx.progress(40, "half way")
            await asyncio.sleep(2)
            seen.append((await (await ctx.state.job).status()).progress)

        await ctx.step("tell", tell)

    app = ff.App()

    class State:
        job: asyncio.Future[Any]

    @app.lifespan
    async def state() -> Any:
        State.job = asyncio.get_running_loop().create_future()
        yield State

    task = task_of(app, work)
    async with Engine(app) as eng:
        job = await eng.client.submit(task, None)
        State.job.set_result(job)
        await job.result()
    assert seen[0] is not None and (seen[0].pct, seen[0].message) == (40, "half way")


async def test_a_step_may_say_that_it_never_returns() -> None:
    def refuse() -> NoReturn:
        raise ff.Fatal("declined")

    async def work(_: Any, ctx: ff.Context) -> None:
        await ctx.step("refuse", refuse)

    ended = await outcome_of(work)
    assert isinstance(ended, ff.Failed) and (ended.reason, ended.category) == ("declined", "fatal")


def test_the_plan_of_a_function_is_made_once() -> None:
    async def fn() -> int:
        return 1

    ctx: Any = None
    assert steps.plan_of(fn, "a", ctx).shape is steps.plan_of(fn, "b", ctx).shape
    assert durable.QUIET_TURNS > 0
