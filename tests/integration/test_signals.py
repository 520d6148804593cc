"""Signals from outside: what a sender is answered, however often and however wrongly it sends."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from typing import Any

import pytest

import ffsdk as ff
from ffcore import limits, tokens
from ffcore.args import Args
from ffcore.contracts.signal import DeliverSignalWireArgs
from ffsdk.client import Client
from tests.integration.worker_app import working

Waiting = tuple[Client, ff.Job[Any], str]


@pytest.fixture(autouse=True)
def ring(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FF_SECRET_FILE", raising=False)
    monkeypatch.delenv("FF_SECRETS", raising=False)
    monkeypatch.setenv("FF_SECRET", f"k1:{secrets.token_hex(32)}")


@pytest.fixture
async def waiting(app: ff.App, lane: str) -> AsyncIterator[Waiting]:
    """A job that waits for two signals at one gate, a client, and the gate's token."""
    mail = asyncio.Queue[str]()

    @app.task(lane=lane)
    async def collect(_: int, ctx: ff.Context) -> list[Any]:
        gate = await ctx.gate("inbox", names=["ok"])
        mail.put_nowait(gate.token)
        return [[s.value, s.key] for s in await ctx.wait(ff.count(2, gate, distinct="signals"))]

    async with app.client() as client, working(app):
        job = await client.submit(collect, 0)
        token = await mail.get()
        while (await job.status()).state != "suspended":
            await asyncio.sleep(0.005)
        yield client, job, token


async def test_a_signal_with_a_key_is_one_however_often_it_is_sent(waiting: Waiting) -> None:
    """Before, when and after the job has gone on, and when it has ended: whoever repeats a request hears the same."""
    client, job, token = waiting
    first = await client.signal(token, 1, name="ok", key="click-1", source="web:dana")
    again = await asyncio.gather(*(client.signal(token, 1, name="ok", key="click-1") for _ in range(5)))
    assert (first.effect, first.duplicate) == ("appended_to_waitpoint", False)
    assert all(answer == first and answer.duplicate for answer in again)
    last = await client.signal(token, 2, name="ok", key="click-2")
    assert last.effect == "resume_condition_satisfied"
    assert await client.signal(token, 2, name="ok", key="click-2") == last
    assert await job.result(timeout=10) == [[1, "click-1"], [2, "click-2"]]
    assert await client.signal(token, 1, name="ok", key="click-1") == first
    assert await client.signal(token, 2, name="ok", key="click-2") == last


async def test_a_new_signal_for_a_closed_gate_is_told_so(waiting: Waiting) -> None:
    client, job, token = waiting
    for n in range(2):
        await client.signal(token, n, name="ok")
    for _ in range(2):
        with pytest.raises(ff.WrongState) as closed:
            await client.signal(token, "late", name="ok", key="new")
        assert isinstance(closed.value, ff.Rejected) and closed.value.code == "waitpoint_closed"
        await job.result(timeout=10)


async def test_without_a_key_each_signal_is_its_own(waiting: Waiting) -> None:
    client, job, token = waiting
    answers = [await client.signal(token, 1, name="ok") for _ in range(2)]
    assert answers[0] != answers[1]
    assert await job.result(timeout=10) == [[1, None], [1, None]]


async def test_a_lost_reply_does_not_make_two_signals_of_one_without_a_key(waiting: Waiting) -> None:
    client, _, token = waiting
    sent = list[Args[Any]]()
    backend: Any = client.backend
    call = backend.call

    async def twice(args: Args[Any]) -> Any:
        first = await call(args)
        if not isinstance(args, DeliverSignalWireArgs):
            return first
        sent.append(args)
        again = await call(args)  # as the backend does when a connection dies under a call that may be repeated
        assert (first.signal_id, first.effect) == (again.existing_signal_id, again.effect)
        return first

    backend.call = twice
    try:
        assert (await client.signal(token, 1, name="ok")).effect == "appended_to_waitpoint"
    finally:
        del backend.call
    assert len(sent) == 1 and sent[0].REPEATABLE


async def test_every_wrong_token_is_refused_alike(waiting: Waiting) -> None:
    client, job, token = waiting
    parts = token.split(".")

    def but(place: int, text: str) -> str:
        return ".".join([*parts[:place], text, *parts[place + 1 :]])

    other = tokens.parse_gate_token(token)
    wrong = [
        "ff1.", "hello", token[:-1], token + "0", token.upper(), f" {token}", token.replace("ff1", "ff2"),
        but(1, "3" if parts[1] != "3" else "2"), but(1, "9999"), but(2, "0" * 8 + parts[2][8:]),
        but(3, "0" * 8 + parts[3][8:]), but(4, "k2"), but(5, secrets.token_hex(32)), but(5, parts[5][::-1]),
    ]  # fmt: skip
    refusals = set[str]()
    for text in wrong:
        with pytest.raises(ff.InvalidToken) as refused:
            await client.signal(text, 1, name="ok")
        refusals.add(str(refused.value).replace(other.execution_id, ""))
        assert refused.value.code == "invalid_token" and token not in str(refused.value)
    with pytest.raises(ff.InvalidToken) as refused:
        await client.signal("", 1)
    assert refused.value.code == "missing_token"
    assert (await job.status()).state == "suspended"


async def test_where_a_signal_is_meant_to_go_must_match_its_token(waiting: Waiting) -> None:
    client, job, token = waiting
    [gate] = (await job.status()).waitpoints
    for wrong in ({"execution_id": job.id[:-1] + "x"}, {"waitpoint_id": job.id}):
        with pytest.raises(ff.InvalidToken):
            await client.signal(token, 1, name="ok", **wrong)
    answer = await client.signal(token, 1, name="ok", execution_id=job.id, waitpoint_id=gate.waitpoint_id)
    assert answer.effect == "appended_to_waitpoint"


async def test_bad_input_is_refused_before_anything_is_sent(waiting: Waiting) -> None:
    client, _, token = waiting
    bad: list[dict[str, Any]] = [
        {"value": "x" * limits.SIGNAL_BYTES}, {"value": object()}, {"name": ""}, {"name": "a\nb"}, {"key": ""},
        {"key": "k" * 600}, {"source": ""}, {"source": "a\nb"},
    ]  # fmt: skip
    for options in bad:
        with pytest.raises(ff.InvalidArgument):
            await client.signal(token, **options)


async def test_no_secret_and_no_token_reach_the_store(waiting: Waiting) -> None:
    """What a slow log or a monitor shows must open nothing by itself."""
    client, _, token = waiting
    seen = list[str]()
    backend: Any = client.backend
    call = backend.call

    async def watched(args: Args[Any]) -> Any:
        seen.append(repr(args))
        return await call(args)

    backend.call = watched
    try:
        await client.signal(token, 1, name="ok", key="k")
    finally:
        del backend.call
    wire = [text for text in seen if DeliverSignalWireArgs.__name__ in text]
    assert len(wire) == 1 and token.rpartition(".")[2] not in wire[0]
