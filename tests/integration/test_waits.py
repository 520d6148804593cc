"""Waits that end without an answer: time, on a virtual clock; operators; workers that die at any call."""

from __future__ import annotations

import asyncio
import secrets
from typing import Any

import msgspec
import pytest

import ffsdk as ff
from ffsdk.testing import Engine
from tests.integration.worker_app import working


@pytest.fixture(autouse=True)
def ring(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the worker signs tokens with."""
    monkeypatch.delenv("FF_SECRET_FILE", raising=False)
    monkeypatch.delenv("FF_SECRETS", raising=False)
    monkeypatch.setenv("FF_SECRET", f"k1:{secrets.token_hex(32)}")


# ---- time, on a virtual clock ----------------------------------------------------------------------------


def waiting(on_timeout: Any) -> tuple[ff.App, ff.Task[int, str], list[str]]:
    """A job that waits an hour, and what it hears."""
    app, tokens = ff.App(), list[str]()

    @app.task
    async def hour(_: int, ctx: ff.Context) -> str:
        gate = await ctx.gate("manager", str)
        tokens.append(gate.token)
        try:
            return f"heard {await gate.wait(timeout=3600, on_timeout=on_timeout)}"
        except ff.GateTimeout as late:
            return f"nothing after {late.waited:g}"

    return app, hour, tokens


async def test_what_happens_when_nobody_answers_is_for_the_handler_to_say() -> None:
    ends = {}
    for on_timeout in ("fail", "cancel", "expire", "resume", "escalate"):
        app, hour, tokens = waiting(on_timeout)
        async with Engine(app, auto=False) as eng:
            job = await eng.client.submit(hour, 0)
            await eng.advance(minutes=59)
            assert (await job.status()).state == "suspended"
            await eng.advance(minutes=2)
            status, told = await job.status(), await job.explain()
            if on_timeout == "escalate":
                assert (status.state, told.reasons[0].code) == ("suspended", "waiting_for_operator")
                await eng.advance(minutes=60)
            outcome = await eng.run_until(job)
            ends[on_timeout] = type(outcome).__name__, getattr(outcome, "value", getattr(outcome, "category", None))
            with pytest.raises(ff.WrongState) as closed:
                await eng.client.signal(tokens[0], "late")
            assert closed.value.code == "waitpoint_closed"
    assert ends == {
        "fail": ("Failed", "suspension_timeout"), "cancel": ("Cancelled", None), "expire": ("Expired", None),
        "resume": ("Completed", "nothing after 3600"), "escalate": ("Failed", "suspension_timeout"),
    }  # fmt: skip


async def test_an_operator_lets_an_escalated_wait_go_on_with_nothing() -> None:
    app, hour, _ = waiting("escalate")
    async with Engine(app, auto=False) as eng:
        job = await eng.client.submit(hour, 0)
        await eng.advance(minutes=61)
        assert await job.resume(delay=60) == "delayed"
        await eng.advance(minutes=2)
        assert await job.result() == "heard None"


async def test_a_reminder_leaves_the_gate_open_for_the_first_token() -> None:
    """Who answers the first mail after the reminder has gone out must not be told that the gate is closed."""
    app, tokens, reminders = ff.App(), list[str](), list[int]()

    @app.task
    async def remind(_: int, ctx: ff.Context) -> str:
        gate = await ctx.gate("manager", str)
        tokens.append(gate.token)
        for day in range(7):
            try:
                return f"{await gate.wait(timeout=86_400, on_timeout='resume')} on day {day}"
            except ff.GateTimeout:
                await ctx.step("remind", reminders.append, day)
        return "nobody"

    async with Engine(app, auto=False) as eng:
        job = await eng.client.submit(remind, 0)
        await eng.advance(days=2, hours=1)
        assert (await eng.client.signal(tokens[0], "yes", key="k")).effect == "resume_condition_satisfied"
        assert await eng.run_until(job) == ff.Completed("yes on day 2")
    assert reminders == [0, 1]


async def test_too_few_signals_are_told_with_the_timeout() -> None:
    app, tokens = ff.App(), list[str]()

    @app.task
    async def both(_: int, ctx: ff.Context) -> list[Any]:
        a, b = await ctx.gate("a"), await ctx.gate("b")
        tokens[:] = [a.token, b.token]
        try:
            return [s.value for s in await ctx.wait(a, b, timeout=60, on_timeout="resume")]
        except ff.GateTimeout as late:
            return ["late", *(s.value for s in late.signals)]

    async with Engine(app, auto=False) as eng:
        job = await eng.client.submit(both, 0)
        await eng.advance(seconds=1)
        await eng.client.signal(tokens[1], "b was here")
        await eng.advance(minutes=2)
        assert await job.result() == ["late", "b was here"]


async def test_a_job_that_nobody_answered_in_time_waits_again_at_the_same_gate_when_it_is_replayed() -> None:
    """Resumed it is the same run, so the token that was sent is still the one; fresh it is another run."""
    app, hour, tokens = waiting("fail")
    async with Engine(app, auto=False) as eng:
        job = await eng.client.submit(hour, 0)
        await eng.advance(hours=2)
        assert (await job.status()).state == "failed"
        await job.replay("resume")
        await eng.advance(seconds=1)
        assert (await job.status()).state == "suspended" and tokens[0] == tokens[-1]
        await job.cancel()
        await job.replay("fresh")
        await eng.advance(seconds=1)
        assert tokens[0] != tokens[-1] and await job.steps() != []
        with pytest.raises(ff.InvalidToken):
            await eng.client.signal(tokens[0], "old")
        await eng.client.signal(tokens[-1], "new")
        assert await eng.run_until(job) == ff.Completed("heard new")


# ---- pause and resume ------------------------------------------------------------------------------------


async def test_a_paused_job_runs_when_it_is_resumed_and_not_before() -> None:
    app, ran = ff.App(), list[int]()

    @app.task
    async def work(n: int) -> int:
        ran.append(n)
        return n

    async with Engine(app, auto=False) as eng:
        job = await eng.client.submit(work, 1, delay=60)
        assert [await job.pause("audit"), await job.pause("again")] == ["paused", "already_paused"]
        status, told = await job.status(), await job.explain()
        assert (status.blocking_reason, status.blocking_detail) == ("paused_by_operator", "audit")
        assert told.reasons[0] == ff.Reason(code="paused_by_operator", detail="audit")
        await eng.advance(hours=1)
        assert ran == []
        assert await job.resume() == "waiting"
        assert await eng.run_until(job) == ff.Completed(1)
        with pytest.raises(ff.Rejected) as ended:
            await job.pause()
        assert ended.value.code == "terminal"
        with pytest.raises(ff.Rejected):
            await job.resume()


async def test_a_running_job_is_paused_where_it_gives_up_its_lease(app: ff.App, lane: str) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    @app.task(lane=lane, retry=ff.Retry(max_attempts=2, backoff=0.001, jitter=False))
    async def shaky(_: int, ctx: ff.Context) -> int:
        begun.set()
        await go_on.wait()
        if ctx.attempt == 0:
            raise ValueError("once")
        return ctx.attempt

    async with app.client() as client, working(app):
        job = await client.submit(shaky, 0)
        await begun.wait()
        assert await job.pause("look at it") == "pause_pending"
        assert [r.code for r in (await job.explain()).reasons] == ["running", "pause_pending"]
        go_on.set()
        loop = asyncio.get_running_loop()
        give_up = loop.time() + 10
        while (await job.status()).blocking_reason != "paused_by_operator":
            assert loop.time() < give_up
            await asyncio.sleep(0.005)
        await job.resume()
        assert await job.result(timeout=10) == 1


async def test_a_sleeping_job_says_until_when() -> None:
    app = ff.App()

    @app.task
    async def nap(_: int, ctx: ff.Context) -> str:
        await ctx.sleep(3600)
        return "rested"

    async with Engine(app, auto=False) as eng:
        job = await eng.client.submit(nap, 0)
        await eng.advance(seconds=1)
        [reason] = (await job.explain()).reasons
        assert reason.code == "sleeping" and reason.until is not None
        assert 3500 < (reason.until - eng.now).total_seconds() <= 3600
        await eng.advance(hours=2)
        assert await job.result() == "rested"


# ---- crashes ---------------------------------------------------------------------------------------------


async def test_a_worker_may_die_at_every_call_of_an_approval() -> None:
    """The token that left the house stays the one, the person is asked once or, after a crash while asking, again with
    the same token; the answer is heard once."""
    app, mail = ff.App(), list[str]()

    async def send(token: str) -> None:
        mail.append(token)

    @app.task(lease=1)
    async def place(_: int, ctx: ff.Context) -> list[str]:
        gate = await ctx.gate("manager", msgspec.Raw)
        await ctx.step("ask", send, gate.token)
        first = await gate.wait(timeout=3600)
        done = await ctx.gate("done", str)
        await ctx.step("tell", send, done.token)
        [second] = await ctx.wait(done, timeout=3600)
        return [bytes(first).decode(), second.value]

    async def approval(eng: Engine) -> None:
        mail.clear()
        job = await eng.client.submit(place, 0)
        answered = set[str]()
        while (await job.status()).state not in ("completed", "failed"):
            for token in set(mail) - answered:
                answered.add(token)
                await eng.client.signal(token, f"answer {len(answered)}", key=token[-20:])
            await asyncio.sleep(0.2)
        assert await job.result() == ['"answer 1"', "answer 2"]
        assert len(set(mail)) == 2, "two gates, two tokens, whatever happened"

    report = await Engine(app).crash_everywhere(approval)
    assert len(report.points) >= 12
