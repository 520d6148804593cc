"""What spreads through a flow: a cancel of all of it, of upstreams nobody needs any more, of children; in pieces."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

import ffcore.contracts as c
from ffcore import limits
from ffcore.policy import ExecutionPolicy
from tests.lua.edges import staging
from tests.lua.engine import P0, Engine, cancel, delay, failure, retries, revoke, unclaim
from tests.lua.graphs import chunk, chunks, graph, incoming, info, row, spawning, states, waiting
from tests.lua.members import claimed, end, replay, settle, told
from tests.lua.test_grant import claim, for_worker, issue, reclaim, reissue, resume

ALL, PENDING, ALONE = "cancel_all", "cancel_pending", "flow_only"


async def cancel_flow(engine: Engine, flow: Any, policy: Any) -> Any:
    return await engine.call(c.CancelFlowArgs(flow_id=flow, reason="enough", cancellation_policy=policy))


# ---- a whole flow --------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", [ALL, PENDING, ALONE])
async def test_a_cancel_does_what_its_policy_says(engine: Engine, policy: str) -> None:
    # running; waits for it; ready and begun; delayed after an attempt; suspended is like it
    flow, ids = await graph(engine, "", "1s", "", "")
    jobs = {job.execution_id: job for job in await engine.claim(100)}
    await engine.call(unclaim(jobs[ids[2]]))
    await engine.call(delay(jobs[ids[3]], engine.now + 1_000))
    fresh = engine.new_id()
    await engine.call(spawning(jobs[ids[0]], fresh, flow))
    await cancel_flow(engine, flow, policy)
    found = await states(engine, [*ids, fresh])
    assert (
        found
        == {
            ALL: ["active", "cancelled", "cancelled", "cancelled", "cancelled"],
            PENDING: ["active", "cancelled", "ready", "delayed", "cancelled"],
            ALONE: ["active", "blocked", "ready", "delayed", "ready"],
        }[policy]
    )
    assert (await engine.read(ids[0])).fields.get("cancel_until", "") == (
        str(engine.now + limits.CANCEL_GRACE_MS) if policy == ALL else ""
    )
    assert (await info(engine, flow)).public_flow_state == "cancelled"
    assert await told(engine, flow) == ["- created -", f"running cancelled {policy}"]
    await engine.complete(jobs[ids[0]])
    await engine.pass_time(1_000)
    for _ in range(3):
        for job in await engine.claim(100):
            assert job.execution_id in ids[2:] and policy != ALL
            await engine.complete(job)
    assert (
        await states(engine, [*ids, fresh])
        == {
            ALL: ["completed", "cancelled", "cancelled", "cancelled", "cancelled"],
            PENDING: ["completed", "cancelled", "completed", "completed", "cancelled"],
            ALONE: ["completed", "blocked", "completed", "completed", "blocked"],
        }[policy]
    )
    if policy == ALONE:
        assert {(await engine.read(id)).fields["reason"] for id in (ids[1], fresh)} == {"paused_by_flow_cancel"}
    assert (await told(engine, flow))[-1] == "cancelled cancelled ended"
    assert (await info(engine, flow)).state == "ended"


async def test_what_has_begun_and_is_pending_goes_on(engine: Engine) -> None:
    """A retry after the cancel is part of what had begun; under cancel_all nothing is."""
    for policy in (PENDING, ALL):
        plan = c.FlowPlan(
            execution_kind="send", lane_id="mail", policy=msgspec.json.encode(ExecutionPolicy(**retries(1))).decode()
        )
        flow, id = engine.new_id(), engine.new_id()
        await engine.call(chunk(flow, [row(id)], plans=[plan]))
        (job,) = await claimed(engine, id)
        await cancel_flow(engine, flow, policy)
        await engine.call(failure(job))
        await settle(engine)
        if policy == ALL:
            assert await engine.state(id) == "cancelled"
            continue
        (job,) = await claimed(engine, id)
        await engine.complete(job)
        assert await engine.state(id) == "completed"


async def test_a_final_failure_of_what_was_asked_to_stop_counts_as_what_it_is(engine: Engine) -> None:
    flow, ids = await graph(engine, "", "1f")
    (job,) = await claimed(engine, ids[0])
    await cancel_flow(engine, flow, ALL)
    await end(engine, job, "f")
    assert await states(engine, ids) == ["failed", "cancelled"]
    assert (await info(engine, flow)).public_flow_state == "cancelled"


async def test_what_upstreams_let_go_of_a_cancelled_flow_does_not_begin(engine: Engine) -> None:
    flow, ids = await graph(engine, "", "1s", "1f", "1a")
    (job,) = await claimed(engine, ids[0])
    await cancel_flow(engine, flow, ALONE)
    await engine.complete(job)
    assert await states(engine, ids) == ["completed", "ready", "skipped", "ready"]
    assert await engine.claim(10) == []
    assert await states(engine, ids) == ["completed", "blocked", "skipped", "blocked"]
    await engine.call(cancel(ids[1]))
    assert await states(engine, ids) == ["completed", "cancelled", "skipped", "blocked"]
    assert (await info(engine, flow)).state == "ended"


async def test_members_of_a_large_flow_are_cancelled_a_piece_at_a_time(engine: Engine) -> None:
    n = 600
    flow, ids = engine.new_id(), [engine.new_id() for _ in range(n)]
    for part in chunks(flow, [row(id) if k < 400 else row(id, f"{k - 300}s") for k, id in enumerate(ids)], 200):
        await engine.call(part)
    await settle(engine)
    (running, *_) = await engine.claim(1)
    await cancel_flow(engine, flow, ALL)
    now = await info(engine, flow)
    assert 200 < now.counts["cancelled"] < n - 100 and now.state == "live"
    assert await engine.violations() == []
    # A member the cancel has not come to yet is not claimed any more.
    assert await engine.claim(3) == []
    assert (await info(engine, flow)).counts["cancelled"] > now.counts["cancelled"]
    await settle(engine)
    now = await info(engine, flow)
    assert (now.counts["cancelled"], now.counts["active"]) == (n - 1, 1)
    await engine.complete(running)
    assert (await info(engine, flow)).state == "ended"


# ---- claims of members of a cancelled flow -------------------------------------------------------------


async def hidden(engine: Engine, flow: Any, policy: str) -> None:
    """The flow is cancelled, and its members have not been told yet."""
    await engine.command("HSET", f"ff:{P0}:flow:{flow.rpartition(':')[2]}", "x", policy, "xa", engine.now)


@pytest.mark.parametrize(("policy", "word"), [(ALL, "cancelled"), (PENDING, "cancelled"), (ALONE, "blocked")])
@pytest.mark.parametrize("how", ["batch", "grant", "worker", "granted"])
async def test_no_claim_starts_what_has_not_begun(engine: Engine, how: str, policy: str, word: str) -> None:
    flow, ids = await graph(engine, "")
    if how == "granted":
        await engine.call(issue(ids[0]))
    await hidden(engine, flow, policy)
    if how == "batch":
        assert await engine.claim() == []
    elif how == "grant":
        await engine.refused("execution_not_eligible", issue(ids[0]))
    elif how == "granted":
        await engine.refused("execution_not_leaseable", claim(ids[0]))
    else:
        answer = await engine.call(for_worker())
        assert isinstance(answer, c.NoWork)
    assert await engine.state(ids[0]) == word
    assert (await info(engine, flow)).state == "ended"


@pytest.mark.parametrize("policy", [ALL, PENDING, ALONE])
async def test_what_was_lost_by_its_worker_is_taken_over_unless_all_is_cancelled(engine: Engine, policy: str) -> None:
    flow, ids = await graph(engine, "", "")
    for job in await engine.claim(2):
        await engine.call(revoke(job.execution_id))
    granted = await engine.call(reissue(ids[1]))
    assert isinstance(granted, c.ReclaimGranted), granted
    await hidden(engine, flow, policy)
    first, second = await engine.call(reissue(ids[0])), await engine.call(reclaim(ids[1]))
    if policy == ALL:
        assert isinstance(first, c.NotReclaimable) and isinstance(second, c.NotReclaimable)
        assert await states(engine, ids) == ["cancelled", "cancelled"]
    else:
        assert await states(engine, ids) == ["granted", "active"]


async def test_an_attempt_that_goes_on_is_not_claimed_when_all_is_cancelled(engine: Engine) -> None:
    flow, ids = await graph(engine, "")
    (job,) = await claimed(engine, ids[0])
    await engine.call(unclaim(job))
    await engine.call(issue(ids[0]))
    await hidden(engine, flow, ALL)
    await engine.refused("execution_not_leaseable", resume(ids[0]))
    assert await engine.state(ids[0]) == "cancelled"


async def test_what_owes_compensations_is_claimed_whatever_became_of_its_flow(engine: Engine) -> None:
    flow, ids = await graph(engine, "")
    (job,) = await claimed(engine, ids[0])
    await engine.command("HSET", f"ff:{P0}:x:{ids[0].rpartition(':')[2]}", "sg", "1", "x", "1")
    await end(engine, job, "f")
    await cancel_flow(engine, flow, ALL)
    (job,) = await claimed(engine, ids[0])
    assert job.attempt_type == "compensation"
    await engine.complete(job)
    assert await engine.state(ids[0]) == "failed"


# ---- upstreams nobody needs any more -------------------------------------------------------------------


async def test_who_is_not_needed_any_more_is_cancelled(engine: Engine) -> None:
    """Ready, running, delayed, and what only they wait for."""
    flow, ids = engine.new_id(), [engine.new_id() for _ in range(6)]
    rows = [
        row(ids[0]),
        row(ids[1]),
        row(ids[2]),
        row(ids[3]),
        row(ids[4], "4s"),
        row(ids[5], "1s,2s,3s,5s", group="O c"),
    ]
    await engine.call(chunk(flow, rows))
    jobs = {job.execution_id: job for job in await engine.claim(3)}
    await engine.call(delay(jobs[ids[2]], engine.now + 50_000))
    ear = await engine.listen(f"ff:{P0}:w:w1")
    await engine.complete(jobs[ids[0]])
    assert await states(engine, ids) == ["completed", "active", "cancelled", "cancelled", "cancelled", "ready"]
    assert ("w1", f"cancel {ids[1]}") in await ear.heard()
    detail = (await engine.read(ids[2])).texts
    assert detail["cancelled_by"] == "not_needed" and "succeeded" in detail["cancel_reason"]
    await engine.call(unclaim(jobs[ids[1]]))
    assert await engine.state(ids[1]) == "cancelled"
    (job,) = await claimed(engine, ids[5])
    await engine.complete(job)
    assert (await info(engine, flow)).public_flow_state == "completed"  # nobody minds these


async def test_who_somebody_else_needs_runs_on(engine: Engine) -> None:
    flow, ids = engine.new_id(), [engine.new_id() for _ in range(6)]
    rows = [
        *[row(id) for id in ids[:3]],
        row(ids[3], "1s,2s,3s", group="O c"),
        row(ids[4], "2s"),
        row(ids[5], "3s,1s", group="O l"),
    ]
    await engine.call(chunk(flow, rows))
    jobs = await claimed(engine, *ids[:3])
    await engine.complete(jobs[0])
    # The second is needed by the fifth; the third is needed by one that is decided.
    assert "cancel_until" not in (await engine.read(ids[1])).fields
    assert "cancel_until" in (await engine.read(ids[2])).fields


async def test_who_an_edge_in_the_making_needs_runs_on(engine: Engine) -> None:
    flow, ids = engine.new_id(), [engine.new_id() for _ in range(4)]
    await engine.call(chunk(flow, [row(ids[0]), row(ids[1]), row(ids[2], "1s,2s", group="O c"), row(ids[3])]))
    await engine.call(await staging(engine, flow, ids[1], ids[3]))
    jobs = {job.execution_id: job for job in await engine.claim(10)}
    await engine.complete(jobs[ids[0]])
    assert "cancel_until" not in (await engine.read(ids[1])).fields


async def test_who_too_many_others_might_need_runs_on(engine: Engine) -> None:
    flow, ids = engine.new_id(), [engine.new_id() for _ in range(70)]
    await engine.call(
        chunk(flow, [row(ids[0]), row(ids[1]), row(ids[2], "1s,2s", group="O c"), *[row(id, "2s") for id in ids[3:]]])
    )
    jobs = await claimed(engine, *ids[:2])
    await engine.complete(jobs[0])
    assert "cancel_until" not in (await engine.read(ids[1])).fields


async def test_many_that_are_not_needed_are_told_a_piece_at_a_time(engine: Engine) -> None:
    n = 600
    flow, ids = engine.new_id(), [engine.new_id() for _ in range(n + 1)]
    for part in chunks(
        flow, [*[row(id) for id in ids[:n]], row(ids[n], ",".join(f"{k + 1}s" for k in range(n)), group="O c")], 200
    ):
        await engine.call(part)
    await settle(engine)
    jobs = await engine.claim(100)
    await engine.complete(jobs[0])
    now = await info(engine, flow)
    assert 0 < now.counts["cancelled"] < n - 100
    assert (await incoming(engine, ids[n]))["k"]
    assert await engine.violations() == []
    await settle(engine)
    now = await info(engine, flow)
    assert (now.counts["cancelled"], now.counts["active"], now.counts["ready"]) == (n - 100, 99, 1)
    assert "k" not in await incoming(engine, ids[n])
    asked = [(await engine.read(job.execution_id)).fields.get("cancel_until") for job in jobs[1:]]
    assert all(asked)


# ---- children ------------------------------------------------------------------------------------------


async def family(engine: Engine, n: int, **options: Any) -> tuple[Any, c.ClaimedJob, list[Any]]:
    """A running parent that has spawned some."""
    flow, (parent,) = await graph(engine, "")
    (job,) = await claimed(engine, parent)
    children = [engine.new_id() for _ in range(n)]
    for k, child in enumerate(children):
        await engine.call(spawning(job, child, flow, n=k, **options))
    return flow, job, children


async def test_a_cancelled_parent_takes_its_children_along(engine: Engine) -> None:
    flow, job, children = await family(engine, 2)
    other = engine.new_id()
    await engine.call(spawning(job, other, flow, n=9, abandon=True))
    await engine.call(cancel(job.execution_id, "operator_override"))
    assert await states(engine, [*children, other]) == ["cancelled", "cancelled", "ready"]
    assert (await engine.read(children[0])).texts["cancelled_by"] == "parent_cancelled"
    (last,) = await claimed(engine, other)
    await engine.complete(last)
    assert (await info(engine, flow)).public_flow_state == "cancelled"


@pytest.mark.parametrize("how", ["c", "f", "e"])
async def test_a_parent_that_ends_otherwise_leaves_its_children_alone(engine: Engine, how: str) -> None:
    _flow, job, children = await family(engine, 1)
    await end(engine, job, how)
    assert await states(engine, children) == ["ready"]


async def test_a_child_that_fails_is_its_parents_to_mind(engine: Engine) -> None:
    flow, job, children = await family(engine, 1)
    (child,) = await claimed(engine, *children)
    await end(engine, child, "f")
    await engine.complete(job)
    assert (await info(engine, flow)).public_flow_state == "completed"


async def test_many_children_are_cancelled_a_piece_at_a_time(engine: Engine) -> None:
    n = limits.EDGES_INLINE_N + 40
    flow, job, children = await family(engine, n)
    await engine.call(cancel(job.execution_id, "operator_override"))
    now = await info(engine, flow)
    assert now.counts["cancelled"] < n
    assert (await incoming(engine, job.execution_id))["h"]
    assert await engine.violations() == []
    await settle(engine)
    assert (await info(engine, flow)).counts["cancelled"] == n + 1
    assert "h" not in await incoming(engine, job.execution_id)
    assert await engine.state(children[-1]) == "cancelled"


@pytest.mark.parametrize(("need", "named", "rounds"), [(0, 0, 3), (0, 2, 2), (1, 3, 1), (2, 3, 2)])
async def test_a_parent_goes_on_when_those_it_waits_for_have_ended(
    engine: Engine, need: int, named: int, rounds: int
) -> None:
    flow, job, children = await family(engine, 3)
    moved = await engine.call(waiting(job, *children[:named], need=need))
    assert isinstance(moved, c.Moved)
    assert await engine.violations() == []
    jobs = await claimed(engine, *children)
    for n, child in enumerate(jobs, 1):
        assert await engine.state(job.execution_id) == "blocked"
        await end(engine, child, "cfx"[n - 1])
        if n == rounds:
            break
    (again,) = await claimed(engine, job.execution_id)
    assert (again.attempt_type, again.attempt_index) == ("resumed", 0)
    assert "w" not in await incoming(engine, job.execution_id)
    for child in jobs[rounds:]:
        await engine.complete(child)
    await engine.complete(again)
    assert (await info(engine, flow)).state == "ended"


async def test_a_waiting_parent_is_let_go_by_its_children_alone(engine: Engine) -> None:
    flow, job, children = await family(engine, 1)
    await engine.call(waiting(job))
    await engine.refused("deps_not_satisfied", c.PromoteBlockedToEligibleArgs(execution_id=job.execution_id))
    await engine.refused("deps_not_satisfied", c.UnblockExecutionArgs(execution_id=job.execution_id))
    await engine.call(c.PauseExecutionArgs(execution_id=job.execution_id, reason="wait"))
    (child,) = await claimed(engine, *children)
    await engine.complete(child)
    kept = (await engine.read(job.execution_id)).fields
    assert (kept["state"], kept["reason"]) == ("blocked", "paused_by_operator")
    await engine.call(c.ResumeExecutionArgs(execution_id=job.execution_id, trigger_type="operator"))
    (job,) = await claimed(engine, job.execution_id)
    await engine.complete(job)
    assert (await info(engine, flow)).public_flow_state == "completed"


async def test_a_waiting_parent_that_is_cancelled_takes_its_children_along(engine: Engine) -> None:
    flow, job, children = await family(engine, 2)
    await engine.call(waiting(job))
    await engine.call(cancel(job.execution_id))
    assert await states(engine, [job.execution_id, *children]) == ["cancelled"] * 3
    assert (await info(engine, flow)).public_flow_state == "cancelled"


async def test_a_replay_from_the_start_drops_its_children_and_one_that_resumes_keeps_them(engine: Engine) -> None:
    for mode, word in (("resume", "ready"), ("fresh", "cancelled")):
        _flow, job, children = await family(engine, 1)
        await end(engine, job, "f")
        await replay(engine, job.execution_id, mode)
        assert await states(engine, children) == [word]
        for one in await engine.claim(10):
            await engine.complete(one)
