"""ff_resume_execution: an operator's word in what an execution waits for."""

from __future__ import annotations

import ffcore.contracts as c
from ffcore.states import PublicState
from tests.lua.engine import Engine, missing
from tests.lua.test_suspension import BOTH, holder, waited
from tests.lua.waits import resume, resumed, send, single, suspended


async def test_an_operator_meets_what_waits_for_one(engine: Engine) -> None:
    both = c.Composite(c.all_of([single("a"), c.OperatorOnly()]))
    job, at = await suspended(engine, both, "a")
    for _ in range(2):  # a second word does not speak for the gate
        word = resume(job.execution_id, trigger_type="operator")
        assert await engine.call(word) == c.Resumed(PublicState.SUSPENDED)
    assert await send(engine, job.execution_id, at["a"]) == "resume_condition_satisfied"
    assert (await waited(engine, job.execution_id)).why == "signal"
    await resumed(engine, job.execution_id)
    job, at = await suspended(engine, both, "a")
    await send(engine, job.execution_id, at["a"], "kept")
    assert await engine.call(resume(job.execution_id, 1_000)) == c.Resumed(PublicState.DELAYED)
    ended = await waited(engine, job.execution_id)
    assert (ended.why, [s.name for s in ended.signals]) == ("operator", ["kept"])


async def test_a_wait_for_an_operator_and_a_gate_can_be_forced(engine: Engine) -> None:
    both = c.Composite(c.all_of([single("a"), c.OperatorOnly()]))
    for trigger in ("signal", "auto_resume"):
        job, _ = await suspended(engine, both, "a")
        assert await engine.call(resume(job.execution_id, trigger_type=trigger)) == c.Resumed(PublicState.WAITING)
        assert (await waited(engine, job.execution_id)).why == "operator"
        await resumed(engine, job.execution_id)


async def test_an_operator_ends_a_wait_that_is_for_nobody(engine: Engine) -> None:
    job, at = await suspended(engine, BOTH, "a", "b")
    await send(engine, job.execution_id, at["b"], "half")
    assert await engine.call(resume(job.execution_id)) == c.Resumed(PublicState.WAITING)
    ended = await waited(engine, job.execution_id)
    assert (ended.why, [s.name for s in ended.signals]) == ("operator", ["half"])
    await resumed(engine, job.execution_id)


async def test_resume_refuses_what_does_not_wait(engine: Engine) -> None:
    await engine.refused("execution_not_found", resume(missing()))
    job = await holder(engine)
    assert await engine.refused("execution_not_suspended", resume(job.execution_id)) == "active"
    await engine.refused("invalid_input", resume(job.execution_id), trigger_type="mood")
    await engine.refused("invalid_input", resume(job.execution_id), resume_delay_ms=-1)
    await engine.complete(job)
    await engine.refused("terminal", resume(job.execution_id))
