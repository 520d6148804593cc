"""Gates: a handler opens them, others answer; a real worker and a second client on a real server."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

import ffsdk as ff
from ffsdk.testing import Engine
from tests.integration.proxy import until
from tests.integration.worker_app import ONCE, working

Tokens = asyncio.Queue[str]


@pytest.fixture(autouse=True)
def ring(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the worker signs tokens with."""
    monkeypatch.delenv("FF_SECRET_FILE", raising=False)
    monkeypatch.delenv("FF_SECRETS", raising=False)
    monkeypatch.setenv("FF_SECRET", f"k1:{secrets.token_hex(32)}")


class Verdict(ff.Payload):
    approved: bool
    by: str = ""


async def comes_to(job: ff.Job[Any], state: str, within: float = 10.0) -> ff.JobStatus:
    """Wait until a job is in a state."""
    loop = asyncio.get_running_loop()
    give_up = loop.time() + within
    while (status := await job.status()).state != state:
        assert loop.time() < give_up, f"{job} is {status.state}, not {state}"
        await asyncio.sleep(0.005)
    return status


# ---- a person answers ------------------------------------------------------------------------------------


async def test_a_second_client_answers_while_the_only_slot_works_for_others(app: ff.App, lane: str) -> None:
    mail, runs = Tokens(), list[str]()

    async def send_mail(token: str) -> None:
        mail.put_nowait(token)

    @app.task(lane=lane)
    async def place(order: int, ctx: ff.Context) -> str:
        gate = await ctx.gate("manager", Verdict)
        runs.append(gate.token)
        assert (gate.name, gate.execution_id) == ("manager", ctx.execution_id)
        await ctx.step("ask", send_mail, gate.token)
        verdict = await gate.wait(timeout=600)
        return f"{order}: {verdict.approved} {verdict.by}"

    @app.task(lane=lane)
    async def other(n: int) -> int:
        return n

    async with app.client() as client, working(app, concurrency=1), ff.connect(app.url) as second:
        job = await client.submit(place, 81)
        token = await mail.get()
        status = await comes_to(job, "suspended")
        assert await (await client.submit(other, 7)).result(timeout=10) == 7, "waiting holds no slot"
        [open_] = status.waitpoints
        assert (open_.gate, open_.state, open_.expires_at, status.lease) == ("manager", "active", None, None)
        told = await job.explain()
        assert not told.runnable and told.recovery == "resume_from_evidence_boundary"
        assert (told.reasons[0].code, told.reasons[0].detail) == ("waiting_for_signal", "gates: manager")
        assert told.reasons[0].until is not None
        answer = await second.signal(token, Verdict(True, "dana"), name="approved", key="click-1", source="web:dana")
        assert answer.effect == "resume_condition_satisfied" and not answer.duplicate
        assert await job.result(timeout=10) == "81: True dana"
        assert runs == [token, token], "the run that went on found the same gate"
        assert mail.empty(), "and asked nobody again"
        steps = [(step.kind, step.name, step.status, step.attempt) for step in await job.steps()]
        assert steps == [("gate", "manager", "ok", 0), ("step", "ask", "ok", 0), ("wait", "manager", "ok", 0)]
        assert (await job.status()).waitpoints == [] and (await job.status()).attempts == 1


async def test_an_answer_that_comes_before_anybody_waits_is_not_lost(app: ff.App, lane: str) -> None:
    """The gate is open before its token leaves the house; then the handler does not even give up its slot."""

    @app.task(lane=lane)
    async def eager(_: int, ctx: ff.Context) -> list[Any]:
        gate = await ctx.gate("callback", dict[str, int])

        async def call_at_once() -> str:
            async with ff.connect(app.url) as provider:
                return (await provider.signal(gate.token, {"n": 1}, source="provider")).effect

        effect = await ctx.step("begin", call_at_once)
        return [effect, await gate.wait(timeout=60), ctx.attempt]

    async with app.client() as client, working(app):
        job = await client.submit(eager, 0)
        assert await job.result(timeout=10) == ["appended_to_waitpoint", {"n": 1}, 0]
        async with asyncio.timeout(10):
            events = [e async for e in _until_completed(client, job)]
    assert "suspended" not in events


async def _until_completed(client: ff.Client, job: ff.Job[Any]) -> Any:
    async for event in client.subscribe("lease", after="-"):
        if event.execution_id == job.id:
            yield event.to_state
            if event.to_state == "completed":
                return


async def test_names_that_do_not_count_are_ignored_and_said_to_be(app: ff.App, lane: str) -> None:
    mail = Tokens()

    @app.task(lane=lane)
    async def choose(_: int, ctx: ff.Context) -> list[str]:
        gate = await ctx.gate("editor", str, names=["approved", "rejected"])
        mail.put_nowait(gate.token)
        [signal] = await ctx.wait(gate)
        return [signal.name, signal.value, signal.source, f"{signal.gate}"]

    async with app.client() as client, working(app):
        job = await client.submit(choose, 0)
        token = await mail.get()
        assert (await comes_to(job, "suspended")).waitpoints[0].names == ["approved", "rejected"]
        assert (await job.explain()).reasons[0].detail == "gates: editor (approved or rejected)"
        ignored = await client.signal(token, "?", name="seen", key="1")
        assert ignored.effect == "signal_ignored_matcher_failed" and ignored.ignored
        assert (await client.signal(token, "no", name="rejected", source="dana")).effect == "resume_condition_satisfied"
        assert await job.result(timeout=10) == ["rejected", "no", "dana", "editor"]


async def test_a_value_of_another_type_fails_the_job_and_no_retry_reads_it_again(app: ff.App, lane: str) -> None:
    mail = Tokens()

    @app.task(lane=lane)
    async def typed(_: int, ctx: ff.Context) -> bool:
        gate = await ctx.gate("manager", Verdict)
        mail.put_nowait(gate.token)
        return bool((await gate.wait()).approved)

    async with app.client() as client, working(app):
        job = await client.submit(typed, 0)
        await client.signal(await mail.get(), {"approved": "perhaps"}, source="web:dana")
        with pytest.raises(ff.JobFailed, match="gate manager: the signal 'signal' from web:dana") as failed:
            await job.result(timeout=10)
        assert (failed.value.category, failed.value.attempts) == ("invalid_signal", 1)


async def test_waiting_works_without_the_secret_that_made_the_token(app: ff.App, lane: str) -> None:
    """A rotation may have taken it out of the ring; who has the token still gets in while its grace lasts."""
    mail, said = Tokens(), list[str]()

    @app.task(lane=lane)
    async def patient(_: int, ctx: ff.Context) -> str:
        gate = await ctx.gate("door", str)
        try:
            mail.put_nowait(gate.token)
        except ff.InvalidToken as lost:
            said.append(str(lost))
        return str(await gate.wait())

    async with app.client() as client:
        async with working(app):
            job = await client.submit(patient, 0)
            token = await mail.get()
            await comes_to(job, "suspended")
        # Another process, with another ring.
        from ffbackend_valkey.secrets import GivenSecrets

        backend: Any = client.backend
        backend.use_secrets(GivenSecrets(f"k9:{secrets.token_hex(32)}"))
        async with working(app):
            await client.signal(token, "knock")
            assert await job.result(timeout=10) == "knock"
    assert len(said) == 1 and "kid k1" in said[0]


# ---- several gates ---------------------------------------------------------------------------------------


async def test_two_different_people_of_three_decide_in_the_order_they_came(app: ff.App, lane: str) -> None:
    mail = asyncio.Queue[list[str]]()

    @app.task(lane=lane)
    async def board(_: int, ctx: ff.Context) -> list[list[Any]]:
        gates = [await ctx.gate(name, str) for name in ("ann", "bob", "cy")]
        mail.put_nowait([gate.token for gate in gates])
        votes = await ctx.wait(ff.count(2, gates, distinct="sources", name="ok"), timeout=60)
        return [[vote.gate, vote.value, vote.source, vote.key] for vote in votes]

    async with app.client() as client, working(app):
        job = await client.submit(board, 0)
        ann, bob, cy = await mail.get()
        await comes_to(job, "suspended")
        effects = [
            (await client.signal(cy, "first", name="ok", key="1", source="web:cy")).effect,
            (await client.signal(cy, "first", name="ok", key="1", source="web:cy")).effect,
            (await client.signal(ann, "the same person", name="ok", source="web:cy")).effect,
            (await client.signal(ann, "no", name="no", source="web:ann")).effect,
            (await client.signal(bob, "second", name="ok", source="web:bob")).effect,
        ]
        kept, dup, other = "appended_to_waitpoint", "appended_to_waitpoint_duplicate", "signal_ignored_matcher_failed"
        assert effects == [kept, kept, dup, other, "resume_condition_satisfied"]
        assert await job.result(timeout=10) == [["cy", "first", "web:cy", "1"], ["bob", "second", "web:bob", None]]


async def test_conditions_nest_and_an_operator_may_be_one_of_them(app: ff.App, lane: str) -> None:
    mail = asyncio.Queue[list[str]]()

    @app.task(lane=lane)
    async def release(_: int, ctx: ff.Context) -> list[str]:
        legal, one, two = [await ctx.gate(name) for name in ("legal", "one", "two")]
        mail.put_nowait([legal.token, two.token])
        return [f"{s.gate}" for s in await ctx.wait(ff.all_of(legal, ff.all_of(ff.count(1, one, two), ff.operator())))]

    async with app.client() as client, working(app):
        job = await client.submit(release, 0)
        legal, two = await mail.get()
        await comes_to(job, "suspended")
        assert await job.resume() == "suspended", "the operator's part is met, the others are not"
        assert (await client.signal(two)).effect == "appended_to_waitpoint"
        assert (await client.signal(legal)).effect == "resume_condition_satisfied"
        assert await job.result(timeout=10) == ["two", "legal"]


async def test_gates_of_one_name_are_different_gates(app: ff.App, lane: str) -> None:
    mail = Tokens()

    @app.task(lane=lane)
    async def rounds(n: int, ctx: ff.Context) -> list[Any]:
        answers: list[Any] = []
        for _ in range(n):
            gate = await ctx.gate("round", int)
            if len(answers) == mail_n[0]:
                mail.put_nowait(gate.token)
                mail_n[0] += 1
            answers.append(await gate.wait())
        return answers

    mail_n = [0]
    async with app.client() as client, working(app):
        job = await client.submit(rounds, 3)
        tokens = list[str]()
        for n in range(3):
            tokens.append(await mail.get())
            [gate] = (await comes_to(job, "suspended")).waitpoints
            assert gate.gate == ("round" if n == 0 else f"round#{n + 1}")
            await client.signal(tokens[-1], n)
        assert await job.result(timeout=10) == [0, 1, 2] and len(set(tokens)) == 3


# ---- handlers in threads ---------------------------------------------------------------------------------


async def test_a_plain_function_waits_at_a_gate_too(app: ff.App, lane: str) -> None:
    mail = list[str]()

    @app.task(lane=lane)
    def blocking(_: int, ctx: ff.Context) -> list[Any]:
        gate = ctx.sync.gate("manager", Verdict)
        mail.append(gate.token)
        [signal] = ctx.sync.wait(gate, timeout=60)
        return [signal.value.approved, signal.source]

    async with app.client() as client, working(app):
        job = await client.submit(blocking, 0)
        await until(lambda: bool(mail))
        await client.signal(mail[0], Verdict(True), source="web:dana")
        assert await job.result(timeout=10) == [True, "web:dana"]


def test_the_blocking_client_signals_pauses_and_resumes(url: str) -> None:
    """Against a worker in the same process: the store is in memory."""
    app = ff.App("memory://blocking-gates")
    tokens = list[str]()

    @app.task
    async def place(_: int, ctx: ff.Context) -> bool:
        gate = await ctx.gate("manager", Verdict)
        tokens.append(gate.token)
        return bool((await gate.wait()).approved)

    with ff.sync.Client(app=app) as client:
        worker = client._loop.run(_started(app))  # pyright: ignore[reportPrivateUsage]
        job = client.submit(place, 0)
        while job.status().state != "suspended":
            pass
        assert job.pause("lunch") == "paused" and job.pause() == "already_paused"
        answer = client.signal(tokens[0], Verdict(True), key="k")
        assert answer.effect == "resume_condition_satisfied"
        assert job.explain().reasons[0].code == "paused_by_operator"
        assert job.resume() == "waiting"
        assert job.result(timeout=10) is True
        assert [step.kind for step in job.steps()] == ["gate", "wait"]
        client._loop.run(worker())  # pyright: ignore[reportPrivateUsage]


async def _started(app: ff.App) -> Callable[[], Any]:
    """A worker in this loop; answers what stops it."""
    worker = app.worker()
    running = asyncio.create_task(worker.run())
    await worker.started.wait()

    async def stop() -> None:
        await worker.stop()
        await running

    return stop


# ---- what is refused -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda ctx: ctx.gate(""), "the name of a gate"),
        (lambda ctx: ctx.gate("g", names=[]), "0 names"),
        (lambda ctx: ctx.wait(), "ctx.sleep"),
        (lambda ctx: ctx.wait("g"), "use gates"),
        (lambda ctx: ctx.wait(ff.operator(), timeout=-1), "timeout is -1"),
        (lambda ctx: ctx.wait(ff.operator(), timeout=1, on_timeout="shrug"), "fail, cancel"),
        (lambda ctx: ctx.wait(ff.operator(), on_timeout="resume"), "without timeout="),
    ],
)
async def test_what_cannot_be_meant_is_refused_in_the_handler(
    wrong: Callable[[ff.Context], Awaitable[Any]], said: str
) -> None:
    app = ff.App()

    @app.task(retry=ONCE)
    async def bad(_: int, ctx: ff.Context) -> None:
        await wrong(ctx)

    async with Engine(app) as eng:
        outcome = await eng.run_until(await eng.client.submit(bad, 0))
    assert isinstance(outcome, ff.Failed) and said in outcome.reason


async def test_a_gate_belongs_to_the_job_that_opened_it() -> None:
    app, opened = ff.App(), list[Any]()

    @app.task(retry=ONCE)
    async def opens(_: int, ctx: ff.Context) -> None:
        opened.append(await ctx.gate("mine"))

    @app.task(retry=ONCE)
    async def borrows(_: int, ctx: ff.Context) -> None:
        await ctx.wait(opened[0])

    async with Engine(app) as eng:
        await (await eng.client.submit(opens, 0)).result()
        outcome = await eng.run_until(await eng.client.submit(borrows, 0))
    assert isinstance(outcome, ff.Failed) and "belongs to another job" in outcome.reason
