"""Faults of admission that were found in use, each as the store sees it."""

from __future__ import annotations

import ffcore.contracts as c
from ffcore.admission import QuotaLine, pack
from ffcore.ids import TimestampMs
from tests.lua.engine import P0, Engine, wire
from tests.lua.quotas import admit, made, read
from tests.lua.test_quota_crashes import carry


async def test_a_start_that_its_own_budget_ended_is_a_start(engine: Engine) -> None:
    """Refused before it started, a job's place in the window is free again; given back by its handler it is used up."""
    quota = await made(engine, rate=(2, 60), most=2)
    for ran, starts_n in ((False, 0), (True, 1)):
        await engine.submit(admission=pack([QuotaLine(quota, "hold", None)]))
        (job,) = await engine.claim()
        assert (await admit(engine, quota, job.execution_id, job.lease_epoch)).state == "admitted"
        row = c.Refusal(
            execution_id=job.execution_id, fence=wire(job), resource=quota, kind="q", gen=1,
            until_ms=TimestampMs(engine.now + 1), detail="", halt=False, ran=ran,
        )  # fmt: skip
        await engine.call(c.RefuseManyArgs(partition=P0, items=[row]))
        await carry(engine)
        status = await read(engine, quota)
        assert (status.active, status.in_window) == (0, starts_n)
        (again,) = await engine.claim()
        await engine.complete(again)
