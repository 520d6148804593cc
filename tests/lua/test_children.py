"""ff_move_to_waiting_children: a parent gives its lease up until enough of its children have ended."""

from __future__ import annotations

from typing import Any

import pytest

import ffcore.contracts as c
from ffcore import limits
from tests.lua import invariants
from tests.lua.engine import OPERATOR, START_MS, TTL, Engine, cancel, missing, retries, revoke, timeouts
from tests.lua.graphs import chunk, graph, incoming, info, row, spawning, states, uuid, waiting

WAITS = ("blocked", "waiting_for_children")


async def family(engine: Engine, n: int, **options: Any) -> tuple[c.ClaimedJob, list[Any]]:
    """A running parent and n children, the oldest first."""
    job = await engine.running(**options)
    flow, children = engine.new_id(), [engine.new_id() for _ in range(n)]
    for at, child in enumerate(children, 1):
        await engine.call(spawning(job, child, flow, n=at))
    return job, children


async def standing(engine: Engine, id: Any) -> tuple[str, str | None]:
    fields = (await engine.read(id)).fields
    return fields["state"], fields.get("reason")


async def end(engine: Engine, n: int = 1, *, badly: bool = False) -> list[Any]:
    """Claim and end the next n; answers who they were."""
    jobs = await engine.claim(limit=n)
    for job in jobs:
        await (engine.fail(job) if badly else engine.complete(job))
    return [job.execution_id for job in jobs]


async def moved(engine: Engine, args: c.MoveToWaitingChildrenArgs) -> str:
    answer = await engine.call(args)
    return answer.public_state if isinstance(answer, c.Moved) else "already_satisfied"


# ---- for all of them ---------------------------------------------------------------------------------


@pytest.mark.parametrize("badly", [False, True])
async def test_the_last_child_to_end_puts_its_parent_back_whatever_the_end(engine: Engine, badly: bool) -> None:
    job, children = await family(engine, 3)
    assert await moved(engine, waiting(job)) == "waiting_children"
    assert await standing(engine, job.execution_id) == WAITS
    for child in children:
        assert await standing(engine, job.execution_id) == WAITS
        assert await end(engine, badly=badly) == [child]
    assert await standing(engine, job.execution_id) == ("ready", None)
    (again,) = await engine.claim(limit=9)
    assert (again.attempt_type, again.attempt_index) == ("resumed", 0)
    assert await moved(engine, waiting(again)) == "already_satisfied"
    await engine.complete(again)


async def test_a_child_that_is_cancelled_or_expires_has_ended(engine: Engine) -> None:
    job, (one, two) = await family(engine, 2)
    await engine.call(waiting(job, one, two))
    await engine.call(cancel(one))
    await engine.call(c.ExpireExecutionArgs(execution_id=two, expire_reason="too late"))
    assert await standing(engine, job.execution_id) == ("ready", None)


async def test_children_that_come_from_the_graph_are_waited_for_too(engine: Engine) -> None:
    flow, (root, node) = await graph(engine, "", "")
    job, other = await engine.claim(limit=2)
    assert job.execution_id == root
    await engine.call(spawning(job, node, flow))
    await engine.call(waiting(job, node))
    await engine.complete(other)
    assert await engine.state(root) == "ready"


async def test_with_children_that_have_all_ended_the_lease_goes_on(engine: Engine) -> None:
    job, children = await family(engine, 2)
    await end(engine, 2)
    for args in (waiting(job), waiting(job, *children), waiting(job, children[0], need=1)):
        assert await moved(engine, args) == "already_satisfied"
    x = await engine.read(job.execution_id)
    assert (x.fields["state"], x.fields["heard"]) == ("active", str(job.lease_epoch))
    await engine.complete(job)


async def test_without_children_there_is_nothing_to_wait_for(engine: Engine) -> None:
    assert await moved(engine, waiting(await engine.running())) == "already_satisfied"
    _, _ = await graph(engine, "")
    (member,) = await engine.claim()
    assert await moved(engine, waiting(member)) == "already_satisfied"


# ---- for some of them --------------------------------------------------------------------------------


async def test_only_those_that_are_named_are_waited_for(engine: Engine) -> None:
    job, children = await family(engine, 3)
    await engine.call(waiting(job, children[2]))
    assert await end(engine, 2) == children[:2]
    assert await standing(engine, job.execution_id) == WAITS
    await end(engine)
    assert await engine.state(job.execution_id) == "ready"


async def test_so_many_of_the_named_ones_are_enough(engine: Engine) -> None:
    job, children = await family(engine, 4)
    await end(engine)
    await engine.call(waiting(job, *children, need=3))
    assert (await incoming(engine, job.execution_id))["w"].split()[0] == "2"
    await end(engine)
    assert await standing(engine, job.execution_id) == WAITS
    await end(engine)
    assert await engine.state(job.execution_id) == "ready"
    assert await engine.state(children[3]) == "ready", "nobody minds the last one"


async def test_marks_of_an_earlier_wait_say_nothing_of_the_next(engine: Engine) -> None:
    job, children = await family(engine, 4)
    await engine.call(waiting(job, children[0], children[1], need=1))
    await end(engine)
    claimed = {one.execution_id: one for one in await engine.claim(limit=9)}
    again = claimed.pop(job.execution_id)
    await engine.call(waiting(again, children[2], children[3]))
    await engine.complete(claimed[children[1]])
    assert await standing(engine, job.execution_id) == WAITS, "awaited the time before"
    await engine.complete(claimed[children[2]])
    assert await standing(engine, job.execution_id) == WAITS
    await engine.complete(claimed[children[3]])
    assert await engine.state(job.execution_id) == "ready"


async def test_a_child_that_comes_later_is_not_waited_for(engine: Engine) -> None:
    """Whoever names none waits for those that have not ended when it asks."""
    job, (one,) = await family(engine, 1)
    await engine.call(waiting(job, one))
    assert await standing(engine, job.execution_id) == WAITS
    await end(engine)
    assert await engine.state(job.execution_id) == "ready"


# ---- the lease ---------------------------------------------------------------------------------------


async def test_the_time_of_the_attempt_stands_still_meanwhile(engine: Engine) -> None:
    job, _ = await family(engine, 1, policy=timeouts(attempt_timeout_ms=10_000))
    await engine.advance(4_000)
    await engine.call(waiting(job))
    assert (await engine.read(job.execution_id)).fields["attempt_left_ms"] == "6000"
    assert f"lease:{uuid(job.execution_id)}" not in await engine.timers()
    await engine.advance(60_000)
    await end(engine)
    (again,) = await engine.claim()
    assert again.attempt_deadline_at == engine.now + 6_000


async def test_a_deadline_ends_it_while_it_waits(engine: Engine) -> None:
    job, _ = await family(engine, 1, execution_deadline_at=START_MS + 5_000)
    await engine.call(waiting(job))
    await engine.advance(5_000)
    await engine.tick()
    assert await engine.state(job.execution_id) == "expired"
    await end(engine)
    assert await engine.state(job.execution_id) == "expired"


async def test_the_same_fence_again_is_told_the_first_outcome(engine: Engine) -> None:
    job, _ = await family(engine, 1)
    for _ in range(2):
        assert await moved(engine, waiting(job)) == "waiting_children"
    await end(engine)
    assert await engine.state(job.execution_id) == "ready"
    assert await moved(engine, waiting(job)) == "waiting_children"
    assert (await engine.call(c.ReadHeaderArgs(partition=job.execution_id[:6]))).fields["replays"] == "2"  # type: ignore[arg-type]
    (again,) = await engine.claim()
    await engine.refused("stale_lease", waiting(job))
    await engine.complete(again)
    await engine.refused("terminal", waiting(again))


async def test_a_cancel_that_was_asked_for_wins(engine: Engine) -> None:
    job, (child,) = await family(engine, 1)
    await engine.call(cancel(job.execution_id))
    assert await moved(engine, waiting(job)) == "cancelled"
    assert await states(engine, [job.execution_id, child]) == ["cancelled", "cancelled"]
    assert await moved(engine, waiting(job)) == "cancelled"


async def test_a_cancel_does_not_end_what_need_not_wait(engine: Engine) -> None:
    job, _ = await family(engine, 1)
    await end(engine)
    await engine.call(cancel(job.execution_id))
    assert await moved(engine, waiting(job)) == "already_satisfied"
    await engine.complete(job)
    assert await engine.state(job.execution_id) == "completed"


async def test_a_cancel_while_it_waits_ends_it_at_once(engine: Engine) -> None:
    job, (child,) = await family(engine, 1)
    await engine.call(waiting(job))
    await engine.call(cancel(job.execution_id))
    assert await states(engine, [job.execution_id, child]) == ["cancelled", "cancelled"]


async def test_one_that_was_paused_waits_and_stays_paused_afterwards(engine: Engine) -> None:
    job, _ = await family(engine, 1)
    await engine.call(c.PauseExecutionArgs(execution_id=job.execution_id, reason="look at it first"))
    await engine.call(waiting(job))
    assert await standing(engine, job.execution_id) == WAITS
    await end(engine)
    assert await standing(engine, job.execution_id) == ("blocked", "paused_by_operator")
    await engine.call(c.ResumeExecutionArgs(execution_id=job.execution_id, trigger_type="operator", resume_delay_ms=0))
    assert await engine.state(job.execution_id) == "ready"


async def test_a_pause_that_is_taken_back_while_it_waits_lets_it_wait(engine: Engine) -> None:
    job, _ = await family(engine, 1)
    await engine.call(waiting(job))
    await engine.call(c.PauseExecutionArgs(execution_id=job.execution_id, reason="look at it first"))
    await engine.call(c.ResumeExecutionArgs(execution_id=job.execution_id, trigger_type="operator", resume_delay_ms=0))
    assert await standing(engine, job.execution_id) == WAITS
    await end(engine)
    assert await engine.state(job.execution_id) == "ready"


async def test_an_operator_makes_it_wait_without_a_fence_and_its_worker_is_told(engine: Engine) -> None:
    job, _ = await family(engine, 1)
    ear = await engine.listen(engine.backend.worker_channel(job.execution_id[:6], "w1"))  # type: ignore[arg-type]
    await engine.refused("fence_required", waiting(job, fence=None))
    assert await moved(engine, waiting(job, fence=None, source=OPERATOR)) == "waiting_children"
    assert ("w1", f"revoked {job.execution_id}") in await ear.heard()
    assert await engine.refused("no_active_lease", waiting(job, fence=None, source=OPERATOR)) == "blocked"
    await engine.refused("execution_not_found", waiting(job, fence=None, source=OPERATOR), execution_id=missing())


async def test_only_who_holds_the_lease_waits(engine: Engine) -> None:
    job, _ = await family(engine, 1, policy=retries(1))
    await engine.refused("execution_not_found", waiting(job), execution_id=missing())
    wrong = c.LeaseFence(job.lease_id, job.lease_epoch + 1, job.attempt_id)  # type: ignore[arg-type]
    await engine.refused("stale_lease", waiting(job, fence=wrong))
    await engine.advance(TTL)
    await engine.refused("lease_expired", waiting(job))
    await engine.at(START_MS + 1)
    await engine.call(revoke(job.execution_id))
    await engine.refused("lease_revoked", waiting(job))


# ---- refusals ----------------------------------------------------------------------------------------


async def test_what_is_no_child_of_it_is_refused_and_the_lease_kept(engine: Engine) -> None:
    flow, up, down = engine.new_id(), engine.new_id(), engine.new_id()
    await engine.call(chunk(flow, [row(up), row(down, "1s")]))
    await end(engine)
    (job,) = await engine.claim()
    child = engine.new_id()
    await engine.call(spawning(job, child, flow))
    before = await invariants.read_store(engine.command)
    for stranger in (up, missing(), job.execution_id):
        said = f"{stranger} is no child of it"
        assert await engine.refused("invalid_dependency", waiting(job, child, stranger)) == said
    assert await engine.refused("invalid_input", waiting(job, child, child)) == "child 2 is named twice"
    assert await engine.refused("invalid_input", waiting(job, "{fp:0}:x")) == "execution_id of child 1"
    for need in (-1, 2):
        said = "need is 0 to the number of children named"
        assert await engine.refused("invalid_input", waiting(job, child), need=need) == said
    assert await invariants.read_store(engine.command) == before
    await engine.complete(job)


async def test_as_many_children_as_one_call_names(engine: Engine) -> None:
    job, children = await family(engine, limits.ROWS_N)
    await engine.call(waiting(job, *children))
    told = await info(engine, f"{{fp:0}}:{(await engine.read(job.execution_id)).fields['flow']}")
    assert (told.node_count, told.counts) == (limits.ROWS_N + 1, {"ready": limits.ROWS_N, "blocked": 1})
    await end(engine, limits.ROWS_N)
    assert await engine.state(job.execution_id) == "ready"
