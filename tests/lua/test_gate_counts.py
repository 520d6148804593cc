"""How many signals a gate keeps is counted beside them; a wait that ends may let go of some while another comes."""

from __future__ import annotations

import ffcore.contracts as c
from ffcore.ids import uuid_of
from tests.lua.engine import P0, Engine
from tests.lua.waits import gate, send, single, suspending


async def test_a_gate_that_stays_open_counts_what_it_keeps(engine: Engine) -> None:
    """The signal that ended the wait stays, since nothing uses it up; what the wait has let go of is not counted on."""
    job = await engine.running()
    at = await gate(engine, job)
    call = suspending(
        job, single("a", "ok"), pending={"a": at}, consume_matched_signals=False, close_waitpoint_on_resume=False
    )  # fmt: skip
    assert isinstance(await engine.call(call), c.WireSuspended)
    assert await send(engine, job.execution_id, at, "no") == "signal_ignored_matcher_failed"
    assert await send(engine, job.execution_id, at, "ok") == "resume_condition_satisfied"
    kept = await engine.command("HGET", f"ff:{P0}:m:{uuid_of(job.execution_id)}", f"c{at}")
    assert kept.split()[1] == b"1"
