"""Members of flows and children are admitted like everybody else; what is owed when they never start."""

from __future__ import annotations

import pytest

import ffcore.contracts as c
from tests.lua.engine import P0, Engine, cancel, unclaim
from tests.lua.graphs import chunk, chunks, row, spawning
from tests.lua.test_admission_queues import OTHER, PAYING, PAYS, Q0, UNIQUE, owed, refusal, refuse, uuid


async def test_nodes_of_a_graph_wait_in_the_queues_of_their_sets(engine: Engine) -> None:
    flow, first, second = engine.new_id(), engine.new_id(), engine.new_id()
    rows = [row(first, admission=PAYS), row(second, "1s", admission=f"{PAYS}\nu {UNIQUE} queued")]
    await engine.call(chunk(flow, rows))
    assert (await engine.read(first)).fields["adm"] == PAYING
    (job,) = await engine.claim(limit=5)
    assert (job.execution_id, job.admission) == (first, PAYS)
    await engine.complete(job)
    await owed(engine)
    (job,) = await engine.claim(limit=5)
    assert job.admission == f"{PAYS}\nu {UNIQUE} queued"
    assert await owed(engine) == [(Q0, "free", f"{uuid(UNIQUE)} {second}")]


@pytest.mark.parametrize("text", ["", "b x hold -", f"u {UNIQUE} never"])
async def test_a_graph_with_lines_that_cannot_be_read_is_refused_whole(engine: Engine, text: str) -> None:
    rows = [row(engine.new_id()), row(engine.new_id(), "1s", admission=text)]
    assert (await engine.refused("invalid_input", chunk(engine.new_id(), rows))).startswith("node 2: admission")
    assert await engine.claim(limit=5) == []


async def test_a_child_is_admitted_by_its_own_lines(engine: Engine) -> None:
    parent, flow, child = await engine.running(), engine.new_id(), engine.new_id()
    await engine.call(spawning(parent, child, flow, admission=PAYS))
    (job,) = await engine.claim(limit=5)
    assert (job.execution_id, job.admission) == (child, PAYS)
    await engine.refused("invalid_input", spawning(parent, engine.new_id(), flow, n=2, admission="x"))


async def test_what_a_graph_that_was_never_published_held_is_free(engine: Engine) -> None:
    flow, id = engine.new_id(), engine.new_id()
    first, _ = chunks(flow, [row(id, admission=f"u {UNIQUE} active\n{PAYS}"), row(engine.new_id())], 1)
    await engine.call(first)
    await engine.call(c.AbortFlowArgs(flow_id=flow, digest=first.digest))
    await engine.tick()
    assert await owed(engine) == [(Q0, "free", f"{uuid(UNIQUE)} {id}")]


async def test_a_member_of_a_halted_set_is_cancelled_like_any_other(engine: Engine) -> None:
    job = await engine.running(admission=PAYS)
    await refuse(engine, refusal(job))
    await engine.call(cancel(job.execution_id))
    assert await engine.command("HGET", f"ff:{P0}", "m1") == b"0"


async def test_what_compensates_is_asked_for_nothing(engine: Engine) -> None:
    """A refusal must not keep what has been done from being undone."""
    job = await engine.running(admission=PAYS)
    await engine.command("HSET", f"ff:{P0}:x:{uuid(job.execution_id)}", "sg", "1", "x", "1")
    await engine.call(cancel(job.execution_id, source=c.CancelSource.OPERATOR_OVERRIDE))
    (again,) = await engine.claim()
    assert (again.attempt_type, again.admission) == ("compensation", None)
    settled = [body for _, kind, body in await owed(engine) if kind == "settle"]
    assert len(settled) == 1 and str(job.lease_epoch) in settled[0]
    await engine.complete(again)


async def test_a_hand_back_waits_in_its_own_queue_again(engine: Engine) -> None:
    job = await engine.running(admission=PAYS)
    await engine.call(unclaim(job))
    (again,) = await engine.claim()
    assert (again.execution_id, again.admission, again.attempt_type) == (job.execution_id, PAYS, "resumed")


async def test_pages_of_ready_jobs_come_to_every_queue(engine: Engine) -> None:
    held = await engine.running(admission=PAYS)
    await refuse(engine, refusal(held))
    texts = (PAYS, f"{PAYS}\nb {OTHER} hold -", None)
    ids = {held.execution_id} | {await engine.submit(admission=text) for text in texts}
    found: list[str] = []
    cursor: str | None = None
    while True:
        page = await engine.call(c.ListExecutionsArgs(partition=P0, states=["ready"], cursor=cursor, limit=1))
        found += [entry.execution_id for entry in page.items]
        cursor = page.cursor or None
        if not cursor:
            break
    assert sorted(found) == sorted(ids)
    stats = await engine.call(c.LaneStatsArgs(partition=P0, lane_id="mail"))
    assert (stats.counts["ready"], stats.held) == (4, 2)
