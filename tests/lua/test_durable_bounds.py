"""Bounds of waits and frames to the byte, and what an end leaves behind."""

from __future__ import annotations

import json

import pytest

import ffcore.contracts as c
from ffcore import limits
from tests.lua.engine import P0, Engine, cancel, delay, force
from tests.lua.test_stream import frame, many, new
from tests.lua.test_suspension import BOTH
from tests.lua.waits import gates, resume, send, single, suspended, suspending, waiting


async def counted(engine: Engine, job: c.ClaimedJob) -> list[bytes]:
    """Fields of the suspension's hash that hold signals it has counted."""
    _, _, uuid = job.execution_id.partition("}:")
    return [f for f in await engine.command("HKEYS", f"ff:{P0}:s:{uuid}") if f[:1] == b"m"]


@pytest.mark.parametrize("end", ["resume", "cancel"])
async def test_what_a_wait_had_counted_is_kept_once(engine: Engine, end: str) -> None:
    job, at = await suspended(engine, BOTH, "a", "b")
    await send(engine, job.execution_id, at["a"])
    assert len(await counted(engine, job)) == 2
    await engine.call(resume(job.execution_id) if end == "resume" else cancel(job.execution_id))
    assert await counted(engine, job) == []


async def test_a_matcher_may_list_one_name(engine: Engine) -> None:
    job = await engine.running()
    at = await gates(engine, job, "a")
    args = waiting(job, single("a"), at)
    assert isinstance(await engine.call(force(args, condition=json.dumps([["single", 0, 1, ["ok"]]]).encode())),
                      c.WaitSuspended)
    assert await send(engine, job.execution_id, at["a"], "ok") == "resume_condition_satisfied"


async def test_the_longest_delays_and_notes_are_taken(engine: Engine) -> None:
    job = await engine.running()
    at = await gates(engine, job, "a")
    await engine.call(frame(job, metadata_json="x" * limits.REASON_BYTES))
    await engine.call(suspending(job, single("a"), pending=at, resume_delay_ms=limits.SPAN_MAX_MS))
    assert await engine.state(job.execution_id) == "suspended"


async def test_frames_sent_again_count_as_replays(engine: Engine) -> None:
    job = await engine.running()
    await engine.call(many(new(job, 1)))
    before = (await engine.call(c.ReadHeaderArgs(partition=P0))).fields.get("replays", "0")
    await engine.call(many(new(job, 1)))
    after = (await engine.call(c.ReadHeaderArgs(partition=P0))).fields["replays"]
    assert int(after) == int(before) + 1


async def test_an_earlier_report_sent_again_is_told_of_the_end(engine: Engine) -> None:
    job = await engine.running()
    later = delay(job, engine.now + 60_000)
    await engine.call(later)
    await engine.call(c.ExpireExecutionArgs(execution_id=job.execution_id, expire_reason="late"))
    assert await engine.refused("terminal", later) == "expired"
