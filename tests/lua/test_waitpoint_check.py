"""What a check says of waitpoints, signals and kids that are not as they should be (I15)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

import ffcore.contracts as c
from ffengine.check import violations
from tests.lua.engine import P0, Engine, open_engine
from tests.lua.invariants import field_names
from tests.lua.test_signal import delivering
from tests.lua.test_waitpoint import on_wire, opening

HEAD = f"ff:{P0}"


@pytest.fixture
async def bare(store_url: str) -> AsyncIterator[Engine]:
    """An engine whose store may be left damaged."""
    engine = await open_engine(store_url)
    yield engine
    await engine.close()


@pytest.fixture
async def job(bare: Engine) -> Any:
    """A running execution with two open waitpoints, one of which keeps a signal."""
    job = await bare.running()
    await bare.call(on_wire(job, waitpoint_key="other"))
    waitpoint = await bare.call(opening(job))
    await bare.call(delivering(job, waitpoint, idempotency_key="k"))
    assert await violations(bare.backend) == []
    return job, waitpoint.waitpoint_id


DAMAGES: dict[str, tuple[list[str], str]] = {
    "a record that does not know of them": (
        ["HDEL", ":x:", field_names()["waitpoints"]], "I15 its record does not know",
    ),
    "a wrong count of open ones": (
        ["HSET", ":g:", "m", "3 1800000060000"], "I15 counts 3 open waitpoints, there are 2",
    ),
    "a row nobody can read": (["HSET", ":g:", "WAITPOINT", "ajar 1 2"], "I15 cannot be read"),
    "an expiry nothing waits for": (["HSET", ":g:", "m", "2 0"], "I15 no timer closes it"),
    "a timer that is gone": (["ZREM", ":timers", "waitpoint:JOB"], "I5 its timer is 0"),
    "a wrong count of signals": (["HSET", ":m:", "n", "1 2 9"], "I15 counts 2 signals of 9 bytes, there are 1"),
    "no count of signals": (["HSET", ":m:", "n", "many"], "I15 signal n cannot be read"),
    "a signal beyond the last": (["HSET", ":m:", "s7", "1:x"], "I15 signal s7 cannot be read"),
    "a signal that is lost": (["HDEL", ":m:", "s1"], "I15 there are 0 of 0, its waitpoints count 1"),
    "a key without its answer": (["HSET", ":m:", "kxy", "soon"], "I15 signal kxy cannot be read"),
    "a waitpoint that keeps nothing": (["HSET", ":m:", "cxy", "1 0"], "I15 signal cxy cannot be read"),
    "a wrong count of a kid": (["HSET", ":kids", "nk1", "7"], "I15 kid k1 counts 7 open waitpoints, there are 1"),
    "a kid below nothing": (["HSET", ":kids", "nk9", "-1"], "I15 kid row nk9 does not fit"),
    "a current kid nobody knows": (["HSET", ":kids", "current", "k9"], "I15 kid row current does not fit"),
    "two kids that sign": (["HSET", ":kids", "kk2", "00 0"], "I15 kid row kk2 does not fit"),
    "waitpoints without an execution": (["RENAME", ":g:", "GHOST"], "I18 left over"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGES)
async def test_what_is_wrong_is_said(bare: Engine, job: Any, name: str) -> None:
    running, waitpoint_id = job
    uuid = running.execution_id[7:]
    (verb, where, *rest), said = DAMAGES[name]
    key = HEAD + where + (uuid if where.endswith(":") else "")
    parts = [text.replace("WAITPOINT", waitpoint_id).replace("JOB", uuid) for text in rest]
    if verb == "RENAME":
        parts = [f"{HEAD}:g:ffffffff-0000-7000-8000-00000000dead"]
    await bare.command(verb, key, *parts)
    found = [f"{v.invariant} {v.detail}" for v in await violations(bare.backend)]
    invariant, words = said.split(" ", 1)
    assert [text for text in found if text.startswith(f"{invariant} ") and words in text], found


async def test_what_has_ended_has_no_open_waitpoint(bare: Engine, job: Any) -> None:
    running, waitpoint_id = job
    key = f"{HEAD}:g:{running.execution_id[7:]}"
    row, meta = await bare.command("HGET", key, waitpoint_id), await bare.command("HGET", key, "m")
    await bare.complete(running)
    assert await violations(bare.backend) == []
    await bare.command("HSET", key, waitpoint_id, row, "m", meta)
    found = [v.detail for v in await violations(bare.backend) if v.invariant == "I15"]
    assert "has ended and waitpoints are open" in found


async def test_a_record_that_forgot_its_waitpoints_is_repaired(bare: Engine, job: Any) -> None:
    running, _ = job
    await bare.command("HDEL", f"{HEAD}:x:{running.execution_id[7:]}", field_names()["waitpoints"])
    await bare.call(c.RepairArgs(partition=P0, object=running.execution_id, invariant="I15"))
    assert await violations(bare.backend) == []
