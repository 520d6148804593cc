"""Waiting in tests: open a waitpoint, wait on some, send a signal by an operator's hand, look at what is kept."""

from __future__ import annotations

import itertools
import uuid
from random import Random
from typing import Any

import ffcore.contracts as c
from ffcore.conditions import compile_condition
from ffcore.contracts.signal import DeliverSignalWireArgs
from ffcore.contracts.waitpoint import CreatePendingWaitpointWireArgs, WaitpointOpened
from ffcore.errors import Rejected
from tests.lua.engine import Engine, fence

_serial = itertools.count(1)


def serial_uuid() -> Any:
    """In order of creation, so that a failing test says the same each time."""
    return str(uuid.UUID(int=next(_serial)))


def single(key: str, name: str | None = None) -> c.Single:
    return c.Single(key, c.ByName(name) if name else c.Wildcard())


async def gate(engine: Engine, job: c.ClaimedJob, key: str = "a", **options: Any) -> Any:
    """A pending waitpoint of a running execution that only an operator can signal; answers its id."""
    opened = await engine.call(CreatePendingWaitpointWireArgs(
        execution_id=job.execution_id, fence=fence(job), waitpoint_id=serial_uuid(), waitpoint_key=key, **options,
    ))  # fmt: skip
    assert isinstance(opened, WaitpointOpened)
    return opened.waitpoint_id


async def gates(engine: Engine, job: c.ClaimedJob, *keys: str) -> dict[str, Any]:
    return {key: await gate(engine, job, key) for key in keys}


def waiting(
    job: c.ClaimedJob, condition: c.ResumeCondition | None = None, waitpoints: dict[str, Any] | None = None,
    **options: Any,
) -> c.WaitArgs:  # fmt: skip
    """`ff_wait`: what a handler waits with. No condition: a sleep."""
    named = waitpoints or {}
    given: dict[str, Any] = {
        "suspension_id": serial_uuid(), "step": "ab.01.0", "step_name": "wait",
        "condition": compile_condition(condition or c.TimeoutOnly(), list(named)),
        "waitpoints": [c.WaitedWaitpoint(id) for id in named.values()],
        "fence": fence(job),
    } | options  # fmt: skip
    return c.WaitArgs(execution_id=job.execution_id, **given)


def suspending(
    job: c.ClaimedJob | Any, condition: c.ResumeCondition, fresh: dict[str, Any] | None = None,
    pending: dict[str, Any] | None = None, **options: Any,
) -> c.SuspendWireArgs:  # fmt: skip
    """`ff_suspend`: with waitpoints it opens itself, and pending ones."""
    fresh, pending = fresh or {}, pending or {}
    rows = [c.SuspendWaitpoint(id, key, fresh=False) for key, id in pending.items()]
    rows += [c.SuspendWaitpoint(id, key) for key, id in fresh.items()]
    given: dict[str, Any] = {
        "suspension_id": serial_uuid(), "condition": compile_condition(condition, [*pending, *fresh]),
        "reason_code": "waiting_for_signal", "waitpoints": rows, "fence": fence(job),
    } | options  # fmt: skip
    return c.SuspendWireArgs(execution_id=job.execution_id, **given)


def signal(id: Any, waitpoint_id: Any, name: str = "ok", **options: Any) -> DeliverSignalWireArgs:
    given: dict[str, Any] = {
        "signal_id": serial_uuid(), "signal_name": name, "signal_category": "user", "source_type": "test",
        "source_identity": "dana", "token_digest": "", "operator": True,
    } | options  # fmt: skip
    return DeliverSignalWireArgs(execution_id=id, waitpoint_id=waitpoint_id, **given)


async def send(engine: Engine, id: Any, waitpoint_id: Any, name: str = "ok", **options: Any) -> str:
    """Deliver a signal; answers its effect."""
    accepted = await engine.call(signal(id, waitpoint_id, name, **options))
    assert isinstance(accepted, c.Accepted), accepted
    return accepted.effect


async def suspended(engine: Engine, condition: c.ResumeCondition | None = None, *keys: str, **options: Any) -> Any:
    """A new execution that waits; answers its job and its waitpoints by key."""
    job = await engine.running()
    opened = await gates(engine, job, *keys)
    answer = await engine.call(waiting(job, condition, opened, **options))
    assert isinstance(answer, c.WaitSuspended), answer
    return job, opened


async def resumed(engine: Engine, id: Any) -> c.ClaimedJob:
    """Claim an execution that goes on, in its old attempt."""
    (job,) = await engine.claim()
    assert job.execution_id == id and job.attempt_type == "resumed"
    return job


async def observed(engine: Engine, id: Any, **options: Any) -> c.ObservedSignals:
    return await engine.call(c.ObserveSignalsArgs(execution_id=id, **options))


def resume(id: Any, delay_ms: int = 0, **options: Any) -> c.ResumeExecutionArgs:
    given: dict[str, Any] = {"trigger_type": "operator"} | options
    return c.ResumeExecutionArgs(execution_id=id, resume_delay_ms=delay_ms, **given)


def expire(id: Any) -> c.ExpireSuspensionArgs:
    return c.ExpireSuspensionArgs(execution_id=id)


# ---- any of them, in any order -----------------------------------------------------------------------

PLACES: list[Any] = [f"00000000-0000-4000-8000-00000000000{n}" for n in range(2)]
SHAPES: list[c.ResumeCondition] = [
    single("a"), single("a", "ok"), c.OperatorOnly(), c.all_of_waitpoints(["a", "b"]),
    c.Composite(c.count(2, c.CountKind.DISTINCT_SIGNALS, None, ["a", "b"])),
    c.Composite(c.all_of([single("b"), c.OperatorOnly()])),
]  # fmt: skip


def any_call_of_a_waiting_one(rng: Random, id: Any) -> list[Any]:
    """What others do to an execution that may wait."""
    place = rng.choice(PLACES)
    return [
        signal(id, place, rng.choice(["ok", "no"]), signal_id=f"s{rng.randrange(99)}"), signal(id, place),
        signal(id, place, idempotency_key="k"), resume(id, rng.choice([0, 700])), expire(id),
        c.PauseExecutionArgs(execution_id=id, reason=""), c.ObserveSignalsArgs(execution_id=id),
    ]  # fmt: skip


def any_wait(rng: Random, job: c.ClaimedJob) -> list[Any]:
    """What its holder does to wait."""
    shape, two = rng.choice(SHAPES), rng.sample(PLACES, 2)
    named = dict(zip("ab", two, strict=True))
    policy: dict[str, Any] = {
        "consume_matched_signals": rng.random() < 0.5, "close_waitpoint_on_resume": rng.random() < 0.5,
        "retain_signal_buffer_until_closed": rng.random() < 0.5, "resume_delay_ms": rng.choice([None, 300]),
    }  # fmt: skip
    more: dict[str, Any] = {
        "timeout_behavior": rng.choice(list(c.TimeoutBehavior)), "suspension_id": f"n{rng.randrange(9)}",
    }  # fmt: skip
    wait = waiting(job, shape, named, step=f"ab.0{rng.randrange(9)}.0", timeout_ms=rng.choice([None, 900]),
                   close_waitpoints=rng.random() < 0.5, **more)  # fmt: skip
    fresh = suspending(job, shape, named, **policy, **more)
    pending = suspending(job, shape, None, named, idempotency_key=rng.choice([None, "k"]), **policy, **more)
    opening = [
        CreatePendingWaitpointWireArgs(execution_id=job.execution_id, fence=fence(job), waitpoint_id=place,
                                       waitpoint_key=key, expires_in_ms=rng.choice([None, 800]))
        for key, place in named.items()
    ]  # fmt: skip
    return [wait, wait, fresh, pending, waiting(job, timeout_ms=500, step=f"ab.0{rng.randrange(9)}.0"), *opening]


async def letting_go(engine: Engine, id: Any) -> None:
    """Take a pause back and end a wait."""
    for _ in range(4):
        try:
            await engine.call(resume(id, trigger_type="auto_resume"))
        except Rejected:
            return
