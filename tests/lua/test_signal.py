"""ff_deliver_signal and ff_buffer_signal_for_pending_waitpoint: one path, whoever waits or does not wait yet."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import ffcore.contracts as c
from ffcore import ids, limits, tokens
from ffcore.conditions import compile_condition
from ffcore.errors import InvalidToken, StoreFull
from tests.lua.conftest import servers_that_can
from tests.lua.engine import P0, Engine, fence, missing
from tests.lua.test_waitpoint import close, on_wire, opening
from tests.lua.waits import serial_uuid, single

Send = Callable[..., Any]


def delivering(job: Any, waitpoint: Any, **options: Any) -> c.DeliverSignalArgs:
    given: dict[str, Any] = {
        "signal_id": serial_uuid(), "signal_name": "ok", "signal_category": "external", "source_type": "web",
        "source_identity": "dana", "payload": b"\x00\xff", "target_scope": "waitpoint",
        "waitpoint_token": waitpoint.waitpoint_token, "waitpoint_id": waitpoint.waitpoint_id,
        "execution_id": job.execution_id,
    } | options  # fmt: skip
    return c.DeliverSignalArgs(**given)


def buffering(job: Any, waitpoint: Any, **options: Any) -> c.BufferSignalArgs:
    given: dict[str, Any] = {
        "signal_id": serial_uuid(), "signal_name": "ok", "signal_category": "external", "source_type": "web",
        "source_identity": "dana", "target_scope": "waitpoint", "waitpoint_token": waitpoint.waitpoint_token,
        "waitpoint_id": waitpoint.waitpoint_id, "execution_id": job.execution_id,
    } | options  # fmt: skip
    return c.BufferSignalArgs(**given)


@pytest.fixture(params=[delivering, buffering], ids=["deliver", "buffer"])
def send(request: pytest.FixtureRequest) -> Send:
    return request.param


WIRES = [c.DeliverSignalWireArgs, c.BufferSignalWireArgs]


def wire(kind: Any, id: Any, waitpoint_id: Any, **options: Any) -> Any:
    """As the store takes it, by an operator."""
    given: dict[str, Any] = {
        "signal_id": serial_uuid(), "signal_name": "ok", "signal_category": "external", "source_type": "desk",
        "source_identity": "olga", "token_digest": "", "operator": True,
    } | options  # fmt: skip
    return kind(execution_id=id, waitpoint_id=waitpoint_id, **given)


async def opened(engine: Engine, **options: Any) -> tuple[c.ClaimedJob, c.WaitpointCreated]:
    job = await engine.running(**options)
    return job, await engine.call(opening(job))


async def suspended(engine: Engine, name: str | None = None, **options: Any) -> tuple[c.ClaimedJob, Any]:
    """A job that waits at one fresh waitpoint; answers it and the waitpoint."""
    job = await engine.running()
    answer = await engine.call(c.SuspendArgs(
        suspension_id=serial_uuid(), waitpoints=[c.Fresh(serial_uuid(), "a")], resume_condition=single("a", name),
        at=job.execution_id, fence=fence(job), reason_code=c.SuspensionReasonCode.WAITING_FOR_SIGNAL, **options,
    ))  # fmt: skip
    assert isinstance(answer, c.Suspended)
    return job, answer.details


async def kept(engine: Engine, id: Any) -> dict[str, str]:
    flat = await engine.command("HGETALL", f"ff:{{fp:0}}:m:{id[7:]}")
    pairs = list(flat.items()) if isinstance(flat, dict) else list(zip(flat[::2], flat[1::2], strict=True))
    return {field.decode(): value.decode(errors="replace") for field, value in pairs}


# ---- what becomes of it ------------------------------------------------------------------------------


async def test_a_signal_that_is_waited_for_resumes_in_the_same_call(engine: Engine) -> None:
    job, waitpoint = await suspended(engine)
    call = delivering(job, waitpoint, idempotency_key="click-1")
    assert await engine.call(call) == c.Accepted(call.signal_id, "resume_condition_satisfied")
    (again,) = await engine.claim()
    assert (again.execution_id, again.attempt_index, again.attempt_type) == (job.execution_id, 0, "resumed")
    found = await engine.call(c.ObserveSignalsArgs(execution_id=job.execution_id))
    (signal,) = found.signals
    assert signal.resume_signal == c.ResumeSignal(
        signal_id=call.signal_id, signal_name="ok", signal_category="external", source_type="web",
        source_identity="dana", correlation_id="", accepted_at=engine.now, payload=b"\x00\xff",
    )  # fmt: skip
    assert {field[0] for field in await kept(engine, job.execution_id)} == {"n", "k"}, "its work is done"


async def test_an_early_signal_counts_later(engine: Engine, send: Send) -> None:
    job, waitpoint = await opened(engine)
    call = send(job, waitpoint)
    answer = await engine.call(call)
    assert answer in (c.Accepted(call.signal_id, "appended_to_waitpoint"), c.Buffered(call.signal_id))
    answer = await engine.call(c.SuspendArgs(
        suspension_id=serial_uuid(), waitpoints=[c.UsePending(waitpoint.waitpoint_id)],
        resume_condition=single("approval"), at=job.execution_id, fence=fence(job),
        reason_code=c.SuspensionReasonCode.WAITING_FOR_SIGNAL,
    ))  # fmt: skip
    assert isinstance(answer, c.SuspensionAlreadySatisfied)
    assert answer.details.waitpoint_token == waitpoint.waitpoint_token, "made again by the kid it was opened with"
    assert "s1" not in await kept(engine, job.execution_id)


async def test_what_brings_nothing_forward_is_kept_and_says_so(engine: Engine, send: Send) -> None:
    job, waitpoint = await suspended(engine, "approved")
    answer = await engine.call(send(job, waitpoint, signal_name="comment"))
    assert isinstance(answer, c.Buffered) or answer.effect == "signal_ignored_matcher_failed"
    assert await engine.state(job.execution_id) == "suspended" and "s1" in await kept(engine, job.execution_id)
    assert isinstance(await engine.call(send(job, waitpoint, signal_name="approved")), c.Accepted | c.Buffered)
    assert await engine.state(job.execution_id) == "ready"
    left = await kept(engine, job.execution_id)
    assert [field for field in left if field[0] in "sc"] == [], "its waitpoint is closed, and what it kept is gone"


async def test_kept_signals_are_replayed_in_order_of_arrival_over_all_waitpoints(engine: Engine) -> None:
    job = await engine.running()
    one, two = await engine.call(opening(job, "a")), await engine.call(opening(job, "b"))
    sent = []
    for waitpoint in (two, one, two, one):
        call = delivering(job, waitpoint)
        sent.append(call.signal_id)
        await engine.call(call)
    condition = c.Composite(c.count(3, c.CountKind.DISTINCT_SIGNALS, c.Wildcard(), ["a", "b"]))
    await engine.call(c.WaitArgs(
        execution_id=job.execution_id, fence=fence(job), suspension_id=serial_uuid(), step="ab.01.0", step_name="w",
        condition=compile_condition(condition, ["a", "b"]), close_waitpoints=False,
        waitpoints=[c.WaitedWaitpoint(one.waitpoint_id), c.WaitedWaitpoint(two.waitpoint_id)],
    ))  # fmt: skip
    page = await engine.call(c.ReadJournalArgs(execution_id=job.execution_id))
    value = page.entries[0].partition(b" 1:w")[2]
    assert [signal.signal_id for signal in c.parse_wait(value).signals] == sent[:3]
    assert [field for field in await kept(engine, job.execution_id) if field[0] == "s"] == ["s4"]


# ---- once --------------------------------------------------------------------------------------------


async def test_a_signal_sent_again_is_answered_the_same_for_ever_after(engine: Engine, send: Send) -> None:
    """Before the resume, after it, after the end: a web hook that is repeated must not hear of an error."""
    job, waitpoint = await suspended(engine)
    call = send(job, waitpoint, idempotency_key="click-1")
    await engine.call(call)
    answers = [await engine.call(send(job, waitpoint, idempotency_key="click-1"))]
    (again,) = await engine.claim()
    answers.append(await engine.call(send(job, waitpoint, idempotency_key="click-1")))
    await engine.complete(again)
    answers.append(await engine.call(send(job, waitpoint, idempotency_key="click-1")))
    assert answers == [c.SignalDuplicate(call.signal_id, "resume_condition_satisfied")] * 3
    assert await engine.refused("waitpoint_closed", send(job, waitpoint, idempotency_key="click-2")) == "resumed"


async def test_a_key_is_one_waitpoints_and_is_remembered_so_long(engine: Engine) -> None:
    job = await engine.running()
    one, two = await engine.call(opening(job, "a")), await engine.call(opening(job, "b", expires_in_ms=10**9))
    for waitpoint in (one, two):
        call = delivering(job, waitpoint, idempotency_key="x", dedup_ttl_ms=500)
        assert isinstance(await engine.call(call), c.Accepted)
    await engine.advance(499)
    assert isinstance(await engine.call(delivering(job, two, idempotency_key="x")), c.SignalDuplicate)
    await engine.advance(1)
    assert isinstance(await engine.call(delivering(job, two, idempotency_key="x")), c.Accepted)
    await engine.advance(limits.SIGNAL_DEDUP_MS - 1)
    assert isinstance(await engine.call(delivering(job, two, idempotency_key="x")), c.SignalDuplicate)


async def test_without_a_key_each_signal_is_one(engine: Engine) -> None:
    job, waitpoint = await opened(engine)
    for _ in range(2):
        assert isinstance(await engine.call(delivering(job, waitpoint)), c.Accepted)
    call = delivering(job, waitpoint)
    assert isinstance(await engine.call(call), c.Accepted)
    assert await engine.call(call) == c.SignalDuplicate(call.signal_id, "appended_to_waitpoint"), "a lost reply"
    assert (await kept(engine, job.execution_id))["n"].startswith("3 3 ")


# ---- bounds ------------------------------------------------------------------------------------------


async def test_an_execution_takes_so_many_signals(engine: Engine, send: Send) -> None:
    job, waitpoint = await opened(engine, policy={"max_signals_per_execution": 2})
    first = send(job, waitpoint, idempotency_key="a")
    await engine.call(first)
    await engine.call(send(job, waitpoint))
    assert await engine.refused("signal_limit_exceeded", send(job, waitpoint)) == "2 signals"
    assert isinstance(await engine.call(send(job, waitpoint, idempotency_key="a")), c.SignalDuplicate), "that was taken"


async def test_a_call_may_only_lower_that(engine: Engine) -> None:
    job, waitpoint = await opened(engine, policy={"max_signals_per_execution": 1})
    await engine.refused("signal_limit_exceeded", delivering(job, waitpoint, max_signals_per_execution=0))
    await engine.call(delivering(job, waitpoint, max_signals_per_execution=9))
    await engine.refused("signal_limit_exceeded", delivering(job, waitpoint, max_signals_per_execution=9))


async def test_what_is_kept_has_a_bound_in_bytes(engine: Engine) -> None:
    job, waitpoint = await opened(engine)
    key = f"ff:{{fp:0}}:m:{job.execution_id[7:]}"
    await engine.call(delivering(job, waitpoint))
    tally = await engine.command("HGET", key, "n")
    await engine.command("HSET", key, "n", f"1 1 {limits.SIGNALS_BYTES}")
    said = await engine.refused("signal_limit_exceeded", delivering(job, waitpoint))
    assert said == f"{limits.SIGNALS_BYTES} bytes are kept"
    await engine.command("HSET", key, "n", tally)


@pytest.mark.parametrize("kind", WIRES)
async def test_bad_input_is_refused_by_name(engine: Engine, kind: Any) -> None:
    job, waitpoint = await opened(engine)
    call = wire(kind, job.execution_id, waitpoint.waitpoint_id)
    for field, value in {
        "signal_id": "a b", "signal_name": "", "signal_category": "x" * 129, "source_type": "\n",
        "source_identity": "x" * 513, "payload_encoding": "", "correlation_id": "\x7f", "idempotency_key": "",
        "dedup_ttl_ms": -1, "max_signals_per_execution": -1,
    }.items():  # fmt: skip
        assert await engine.refused("invalid_input", call, **{field: value}) == field
    await engine.refused("payload_too_large", call, payload=b"x" * (limits.SIGNAL_BYTES + 1))
    await engine.call(wire(kind, job.execution_id, waitpoint.waitpoint_id, payload=b"x" * limits.SIGNAL_BYTES))


@pytest.mark.parametrize("server", servers_that_can("oom"), indirect=True)
async def test_a_full_store_takes_no_signal_and_lets_a_holder_work(engine: Engine) -> None:
    job, waitpoint = await opened(engine)
    call = delivering(job, waitpoint)
    await engine.command("CONFIG", "SET", "maxmemory", "1")
    try:
        with pytest.raises(StoreFull):
            await engine.call(call)
        other = await engine.call(on_wire(job))
        await engine.call(close(job, other.waitpoint_id))
    finally:
        await engine.command("CONFIG", "SET", "maxmemory", "0")
    assert isinstance(await engine.call(call), c.Accepted)


# ---- tokens ------------------------------------------------------------------------------------------


async def test_every_wrong_token_is_refused_alike(engine: Engine, send: Send) -> None:
    job, waitpoint = await opened(engine)
    other_job, other = await opened(engine)
    bare = await engine.call(on_wire(job))
    call, refusals = send(job, waitpoint), list[tuple[str, str]]()
    token = call.waitpoint_token
    for changed in (
        {"waitpoint_token": "x"}, {"waitpoint_token": token[:-1]}, {"waitpoint_token": f"k2{token[2:]}"},
        {"waitpoint_token": token.upper()}, {"waitpoint_token": other.waitpoint_token},
        {"waitpoint_id": other.waitpoint_id}, {"waitpoint_id": serial_uuid()}, {"waitpoint_id": "m"},
        {"waitpoint_id": bare.waitpoint_id},
        {"waitpoint_id": other.waitpoint_id, "waitpoint_token": other.waitpoint_token},
        {"waitpoint_token": tokens.digest(token)},
    ):  # fmt: skip
        with pytest.raises(InvalidToken) as caught:
            await engine.call(call, **changed)
        refusals.append((caught.value.code, str(caught.value)))
    assert len(set(refusals)) == 1 and refusals[0][0] == "invalid_token", set(refusals)
    await engine.refused("missing_token", call, waitpoint_token="")
    for gone in (missing(), f"{{fp:7}}:{job.execution_id[7:]}"):
        await engine.refused("invalid_token", call, execution_id=gone)
    assert isinstance(await engine.call(call), c.Accepted | c.Buffered)
    assert isinstance(await engine.call(send(other_job, other)), c.Accepted | c.Buffered)


async def test_a_token_opens_nothing_when_its_kid_is_over(engine: Engine) -> None:
    job, waitpoint = await opened(engine)
    await engine.call(c.RotateWaitpointHmacSecretArgs(new_kid="k2", new_secret_hex="22" * 32, grace_ms=1_000, at=P0))
    assert isinstance(await engine.call(delivering(job, waitpoint)), c.Accepted)
    await engine.advance(1_000)
    await engine.refused("invalid_token", delivering(job, waitpoint))
    assert isinstance(await engine.call(delivering(job, waitpoint, operator=True)), c.Accepted)


async def test_the_feed_says_why_once_in_a_while(engine: Engine) -> None:
    """For who looks after it, not for who guesses; and a thousand guesses push nothing else out of it."""
    job, waitpoint = await opened(engine)
    for _ in range(5):
        await engine.refused("invalid_token", delivering(job, waitpoint, waitpoint_token="k1:guess"))
    await engine.advance(limits.BAD_TOKENS_MS)
    await engine.refused("invalid_token", delivering(job, waitpoint, waitpoint_id=serial_uuid()))
    await engine.advance(limits.BAD_TOKENS_MS)
    await engine.refused("invalid_token", delivering(job, waitpoint, execution_id=missing(), waitpoint_id="x y"))
    history = await engine.call(c.ExecutionHistoryArgs(execution_id=job.execution_id))
    assert str(history).count("token_refused other_token") == str(history).count("token_refused no_waitpoint") == 1
    feed = await engine.call(c.ReadEventsArgs(partition=P0))
    assert "token_refused no_execution - 7" in str(feed)


# ---- operators ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", WIRES)
async def test_an_operator_needs_no_token_and_is_seen(engine: Engine, kind: Any) -> None:
    job, waitpoint = await opened(engine)
    bare = await engine.call(on_wire(job))
    for one in (waitpoint, bare):
        answer = await engine.call(wire(kind, job.execution_id, one.waitpoint_id))
        assert isinstance(answer, c.Accepted | c.Buffered)
    history = str(await engine.call(c.ExecutionHistoryArgs(execution_id=job.execution_id)))
    for one in (waitpoint, bare):
        assert f"signal_by_operator {one.waitpoint_id} olga" in history
        assert f"signal ok appended_to_waitpoint {one.waitpoint_id}" in history
    await engine.refused("execution_not_found", wire(kind, missing(), waitpoint.waitpoint_id))
    await engine.refused("waitpoint_not_found", wire(kind, job.execution_id, ids.uuid7()))
    await engine.call(close(job, bare.waitpoint_id))
    await engine.refused("waitpoint_closed", wire(kind, job.execution_id, bare.waitpoint_id))


async def test_a_sender_cannot_make_itself_an_operator(engine: Engine) -> None:
    """What a sender writes as its source proves nothing."""
    job = await engine.running()
    answer = await engine.call(c.SuspendArgs(
        suspension_id=serial_uuid(), waitpoints=[c.Fresh(serial_uuid(), "a")], resume_condition=c.OperatorOnly(),
        at=job.execution_id, fence=fence(job), reason_code=c.SuspensionReasonCode.WAITING_FOR_OPERATOR_REVIEW,
    ))  # fmt: skip
    sent = await engine.call(delivering(job, answer.details, source_type="operator", source_identity="root"))
    assert sent.effect == "signal_ignored_not_in_condition" and await engine.state(job.execution_id) == "suspended"
