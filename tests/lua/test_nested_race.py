"""A join that ended before its group was decided fails nobody: its upstreams' ends come too late to be blamed on it."""

from __future__ import annotations

import pytest

from tests.lua.engine import Engine, unclaim
from tests.lua.graphs import chunk, info, row, states
from tests.lua.members import claimed, end


@pytest.mark.parametrize("first", ["cancelled", "failed"])
async def test_a_race_within_a_race_that_nobody_needs_any_more_fails_nobody(engine: Engine, first: str) -> None:
    flow, ids = engine.new_id(), [engine.new_id() for _ in range(5)]
    rows = [row(ids[0]), row(ids[1]), row(ids[2], "1s,2s", group="O c"), row(ids[3]), row(ids[4], "3s,4s", group="O c")]
    await engine.call(chunk(flow, rows))
    jobs = {job.execution_id: job for job in await engine.claim(3)}
    if first == "failed":
        await end(engine, jobs[ids[0]], "f")
    await engine.complete(jobs[ids[3]])  # the outer race is won: the inner join and its runners are not needed
    assert await engine.state(ids[2]) == "cancelled"
    for one in (ids[0], ids[1]):
        if await engine.state(one) == "active":
            await engine.call(unclaim(jobs[one]))
    assert await states(engine, ids) == [first, "cancelled", "cancelled", "completed", "ready"]
    (last,) = await claimed(engine, ids[4])
    await engine.complete(last)
    assert (await info(engine, flow)).public_flow_state == "completed"
