"""Members of a flow on their way: claim them by name, end them in any way, look at all of them."""

from __future__ import annotations

from typing import Any

import ffcore.contracts as c
from ffcore import ids as ffids
from tests.lua.engine import Engine, cancel, failure

ENDS = {"c": "completed", "f": "failed", "x": "cancelled", "e": "expired"}


async def claimed(engine: Engine, *ids: Any) -> list[c.ClaimedJob]:
    """These and no others are ready, and are taken."""
    jobs = {job.execution_id: job for job in await engine.claim(100)}
    assert set(jobs) == set(ids)
    return [jobs[id] for id in ids]


async def end(engine: Engine, job: c.ClaimedJob, how: str, result: bytes = b"done") -> None:
    if how == "c":
        await engine.complete(job, result)
    elif how == "f":
        await engine.call(failure(job, failure_category="fatal"))
    elif how == "x":
        await engine.call(cancel(job.execution_id, "operator_override"))
    else:
        await engine.call(c.ExpireExecutionArgs(execution_id=job.execution_id, expire_reason="late"))


async def settle(engine: Engine) -> int:
    """Tick until nothing is due any more; how often."""
    for n in range(1, 200):
        if (await engine.tick()).next_due_ms > engine.now:
            return n
    raise AssertionError("there is always more to do")


async def told(engine: Engine, flow: Any) -> list[str]:
    """What the feed says of a flow: from, to and why, in order."""
    entries = await engine.command("XRANGE", f"ff:{ffids.partition_of(flow)}:ev", "-", "+")
    fields = [(entry[1][i], entry[1][i + 1].decode()) for entry in entries for i in range(0, len(entry[1]), 2)]
    uuid = flow.rpartition(":")[2]
    return [text[len(uuid) + 1 :] for kind, text in fields if kind == b"f" and text.startswith(uuid)]


async def replay(engine: Engine, id: Any, mode: Any = "resume") -> Any:
    return await engine.call(c.ReplayExecutionArgs(execution_id=id, mode=mode))
