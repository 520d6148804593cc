"""ff_continue_as, ff_pin_version, and what a replay keeps: where a run begins, and with which code."""

from __future__ import annotations

from typing import Any, Literal

import pytest

import ffcore.contracts as c
from ffcore import limits
from ffcore.policy import FixedBackoff
from ffcore.steps import StepFailure, entries_of
from tests.lua import invariants
from tests.lua.engine import (
    P0,
    START_MS,
    TTL,
    Engine,
    cancel,
    completion,
    missing,
    progress,
    renewal,
    retries,
    revoke,
    timeouts,
    unclaim,
    wire,
)  # fmt: skip
from tests.lua.test_journal import journal_key, journal_of, lost, step
from tests.lua.test_waiter import waiting


def continuing(job: c.ClaimedJob, payload: bytes = b"again", **options: Any) -> c.ContinueAsArgs:
    return c.ContinueAsArgs(execution_id=job.execution_id, fence=wire(job), payload=payload, **options)


def pinning(job: c.ClaimedJob, version: int) -> c.PinVersionArgs:
    return c.PinVersionArgs(execution_id=job.execution_id, fence=wire(job), version=version)


def replay(id: Any, mode: Literal["resume", "fresh"] = "resume") -> c.ReplayExecutionArgs:
    return c.ReplayExecutionArgs(execution_id=id, mode=mode)


async def version_of(engine: Engine, id: Any) -> str:
    return (await engine.read(id)).fields.get("version", "1")


# ---- ContinueAs --------------------------------------------------------------------------------------


async def test_a_new_run_begins_with_its_payload_and_nothing_recorded(engine: Engine) -> None:
    job = await engine.running(tags={"a.b": "c"}, version=2, payload_encoding="cbor")
    await engine.call(step(job, version=2))
    await engine.call(progress(job, progress_pct=40, progress_message="half"))
    done = await engine.call(continuing(job, b"next", payload_encoding="json"))
    assert done == c.Continued(job.execution_id, 1, "ready", False)
    assert await engine.command("EXISTS", journal_key(job.execution_id)) == 0
    (again,) = await engine.claim()
    assert (again.execution_id, again.payload, again.payload_encoding) == (job.execution_id, b"next", "json")
    assert (again.run, again.attempt_index, again.attempt_type) == (1, 1, "initial")
    assert again.tags == ["a.b", "c"]
    assert again.journal == c.JournalHead("1 2", 0, True, [])
    x = await engine.read(job.execution_id, "attempts")
    assert "progress" not in x.fields and "progress" not in x.texts
    assert [row.split()[0] + " " + " ".join(row.split()[-2:]) for row in x.attempts] == ["0 ended_success continued"]
    await engine.call(step(again, version=2))
    assert [e.seq for e in await journal_of(engine, job.execution_id)] == [1]
    page = await engine.call(c.ReadJournalArgs(execution_id=job.execution_id))
    assert page.began == "1 2"
    await engine.complete(again)


async def test_a_payload_without_an_encoding_has_none(engine: Engine) -> None:
    job = await engine.running(payload_encoding="cbor")
    await engine.call(continuing(job))
    assert (await engine.claim())[0].payload_encoding == ""


async def test_counters_start_anew_and_the_deadline_is_as_long_as_it_was(engine: Engine) -> None:
    policy = retries(1, backoff=FixedBackoff(delay_ms=0)) | timeouts(execution_deadline_ms=100_000)
    job = await engine.running(policy=policy)
    await engine.fail(job)
    (job,) = await engine.claim()
    await engine.call(step(job))
    job = await lost(engine)
    assert (job.retries, job.crashes) == (1, 1)
    await engine.call(continuing(job))
    (job,) = await engine.claim()
    assert (job.retries, job.crashes, job.deadline_at) == (0, 0, engine.now + 100_000)
    assert isinstance(await engine.fail(job), c.RetryScheduled), "the run has its retries for itself"
    await engine.pass_time(100_000)
    assert await engine.state(job.execution_id) == "expired"


async def test_the_attempts_timeout_is_the_next_attempts_own(engine: Engine) -> None:
    job = await engine.running(policy=timeouts(attempt_timeout_ms=10_000))
    await engine.advance(9_000)
    await engine.call(continuing(job))
    assert (await engine.claim())[0].attempt_deadline_at == engine.now + 10_000


async def test_who_waits_goes_on_waiting(engine: Engine) -> None:
    job = await engine.running()
    ear = await engine.listen(f"ff:{P0}:c:x")
    await engine.call(waiting([job.execution_id], "x"))
    await engine.call(continuing(job))
    assert await ear.heard() == []
    (job,) = await engine.claim()
    await engine.complete(job)
    assert [channel for channel, _ in await ear.heard()] == ["x"]


async def test_continuing_again_under_the_same_lease_answers_the_same(engine: Engine) -> None:
    job = await engine.running()
    await engine.call(continuing(job))
    assert await engine.call(continuing(job, b"other")) == c.Continued(job.execution_id, 1, "ready", True)
    header = await engine.call(c.ReadHeaderArgs(partition=P0))
    assert header.fields["replays"] == "1"
    (again,) = await engine.claim()
    assert again.payload == b"again"
    await engine.refused("stale_lease", continuing(job))
    await engine.refused("stale_lease", completion(job))


async def test_a_requested_cancel_wins(engine: Engine) -> None:
    job = await engine.running()
    await engine.call(cancel(job.execution_id))
    for replayed in (False, True):
        assert await engine.call(continuing(job)) == c.Continued(job.execution_id, 0, "cancelled", replayed)


async def test_a_new_run_takes_its_place_at_the_end_of_the_line(engine: Engine) -> None:
    job = await engine.running()
    other = await engine.submit()
    await engine.call(continuing(job))
    assert [j.execution_id for j in await engine.claim(2)] == [other, job.execution_id]


async def test_a_hundred_runs_leave_what_one_leaves(engine: Engine) -> None:
    job = await engine.running()
    sizes: set[int] = set()
    for n in range(1, 101):
        await engine.call(step(job))
        await engine.call(continuing(job))
        (job,) = await engine.claim()
        assert (job.run, job.attempt_index) == (n, n)
        sizes.add(len((await invariants.read_store(engine.command)).values))
    assert len(sizes) == 1, "no key is left behind by a run"


async def test_what_a_new_run_cannot_begin_with_is_refused_and_nothing_is_written(engine: Engine) -> None:
    job = await engine.running()
    before = await invariants.read_store(engine.command)
    await engine.refused("execution_not_found", continuing(job), execution_id=missing())
    await engine.refused("stale_lease", continuing(job), fence="a 1 a")
    await engine.refused("payload_too_large", continuing(job), payload=b"x" * (limits.PAYLOAD_BYTES + 1))
    await engine.refused("invalid_input", continuing(job), payload_encoding="two words")
    assert await invariants.read_store(engine.command) == before
    await engine.advance(TTL)
    await engine.refused("lease_expired", continuing(job))
    await engine.at(START_MS + 1)
    await engine.call(revoke(job.execution_id))
    await engine.refused("lease_revoked", continuing(job))
    (job,) = await engine.claim()
    await engine.complete(job)
    assert await engine.refused("terminal", continuing(job)) == "completed"


# ---- versions ----------------------------------------------------------------------------------------


async def test_the_first_attempt_may_be_of_another_version_and_settles_it(engine: Engine) -> None:
    job = await engine.running(version=1, policy=retries(1))
    for _ in range(2):
        assert await engine.call(pinning(job, 4)) == c.VersionPinned(4)
    assert await version_of(engine, job.execution_id) == "4"
    await engine.fail(job)
    (job,) = await engine.claim()
    assert (job.version, job.attempt_index) == (4, 1)
    assert await engine.refused("version_pinned", pinning(job, 5)) == "4"
    assert await engine.call(pinning(job, 4)) == c.VersionPinned(4)


async def test_a_version_can_be_pinned_back_to_the_first(engine: Engine) -> None:
    job = await engine.running(version=4)
    assert await engine.call(pinning(job, 1)) == c.VersionPinned(1)
    assert await version_of(engine, job.execution_id) == "1"


async def test_who_has_recorded_a_step_is_pinned_in_the_first_attempt_too(engine: Engine) -> None:
    job = await engine.running()
    await engine.call(step(job))
    assert await engine.refused("version_pinned", pinning(job, 2)) == "1"


async def test_a_resumed_first_attempt_is_pinned(engine: Engine) -> None:
    job = await engine.running()
    await engine.call(unclaim(job))
    (job,) = await engine.claim()
    assert (job.attempt_index, job.attempt_type) == (0, "resumed")
    assert await engine.refused("version_pinned", pinning(job, 2)) == "1"


async def test_a_claim_that_did_not_start_pins_nothing(engine: Engine) -> None:
    job = await engine.running()
    await engine.call(unclaim(job, "refused"))
    (job,) = await engine.claim()
    assert await engine.call(pinning(job, 2)) == c.VersionPinned(2)


async def test_a_worker_that_dies_before_it_is_heard_pins_nothing(engine: Engine) -> None:
    """Between its claim and its pin: in a rolling deploy nobody may be left who has the version it is of."""
    await engine.running()
    for attempt in (1, 2):
        job = await lost(engine)
        assert (job.attempt_index, job.attempt_type) == (attempt, "reclaim")
        assert job.journal == c.JournalHead("0 1", 0, True, [])
    assert await engine.call(pinning(job, 2)) == c.VersionPinned(2)
    job = await lost(engine)
    assert (job.version, job.journal) == (2, None)
    assert await engine.refused("version_pinned", pinning(job, 3)) == "2"


@pytest.mark.parametrize("what", ["heard", "handed back", "retried", "recorded"])
async def test_a_lost_attempt_that_was_begun_stays_pinned(engine: Engine, what: str) -> None:
    job = await engine.running(policy=retries(1))
    match what:
        case "heard":
            await engine.call(renewal(job))
        case "recorded":
            await engine.call(step(job))
        case "handed back":
            await engine.call(unclaim(job))
            await engine.claim()
        case _:
            await engine.fail(job)
            await engine.claim()
    job = await lost(engine)
    assert await engine.refused("version_pinned", pinning(job, 2)) == "1"


async def test_a_new_run_may_be_begun_by_any_version(engine: Engine) -> None:
    job = await engine.running(version=2)
    await engine.call(step(job, version=2))
    await engine.call(continuing(job))
    (job,) = await engine.claim()
    assert job.journal is not None and job.journal.unpinned
    assert await engine.call(pinning(job, 3)) == c.VersionPinned(3)
    await engine.call(step(job, version=3))
    job = await lost(engine)
    assert (job.version, job.journal and (job.journal.began, job.journal.unpinned)) == (3, ("1 3", False))
    assert await engine.refused("version_pinned", pinning(job, 2)) == "3"


async def test_the_first_step_of_a_new_run_settles_its_version(engine: Engine) -> None:
    job = await engine.running(version=2)
    await engine.call(continuing(job))
    (job,) = await engine.claim()
    await engine.call(step(job, version=2))
    assert await engine.refused("version_pinned", pinning(job, 3)) == "2"


@pytest.mark.parametrize("version", [0, limits.VERSION_MAX + 1])
async def test_a_version_out_of_bounds_is_refused(engine: Engine, version: int) -> None:
    job = await engine.running()
    assert await engine.refused("invalid_input", pinning(job, 1), version=version) == "version"
    assert await engine.call(pinning(job, limits.VERSION_MAX)) == c.VersionPinned(limits.VERSION_MAX)


async def test_only_who_holds_the_lease_pins(engine: Engine) -> None:
    job = await engine.running()
    await engine.refused("execution_not_found", pinning(job, 2), execution_id=missing())
    await engine.refused("stale_lease", pinning(job, 2), fence="a 1 a")
    await engine.advance(TTL)
    await engine.refused("lease_expired", pinning(job, 2))
    await engine.at(START_MS + 1)
    await engine.call(revoke(job.execution_id))
    await engine.refused("lease_revoked", pinning(job, 2))
    (job,) = await engine.claim()
    await engine.complete(job)
    await engine.refused("terminal", pinning(job, 2))


# ---- replays -----------------------------------------------------------------------------------------


async def ended(engine: Engine, category: str = "error", **options: Any) -> c.ClaimedJob:
    """A job that has recorded two steps and failed."""
    job = await engine.running(version=2, **options)
    await engine.call(step(job, "one", version=2))
    await engine.call(step(job, "two", version=2))
    await engine.fail(job, category)
    return job


async def test_a_replay_that_resumes_keeps_the_finished_steps(engine: Engine) -> None:
    job = await ended(engine)
    await engine.call(replay(job.execution_id))
    (again,) = await engine.claim()
    assert again.journal is not None
    assert (again.run, again.journal.began, again.journal.unpinned) == (1, "0 2", False)
    assert [e.name for e in entries_of(again.journal.entries)] == ["one", "two"]
    assert await engine.refused("version_pinned", pinning(again, 3)) == "2"


async def test_a_fresh_replay_forgets_steps_and_version(engine: Engine) -> None:
    job = await ended(engine)
    await engine.call(replay(job.execution_id, "fresh"))
    assert await engine.command("EXISTS", journal_key(job.execution_id)) == 0
    (again,) = await engine.claim()
    assert again.journal == c.JournalHead("1 2", 0, True, [])
    assert await engine.call(pinning(again, 3)) == c.VersionPinned(3)
    await engine.call(step(again, version=3))
    page = await engine.call(c.ReadJournalArgs(execution_id=job.execution_id))
    assert (page.began, page.total) == ("1 3", 1)


async def test_a_replay_that_resumes_stays_in_the_run_its_effects_are_known_by(engine: Engine) -> None:
    """Also where nothing could be recorded: the effect of an interrupted step carries the key of that run."""
    job = await engine.running()
    await engine.fail(job)
    for run in (1, 2):
        await engine.call(replay(job.execution_id))
        (job,) = await engine.claim()
        assert (job.run, job.journal and job.journal.began) == (run, "0 1")
        if run == 1:
            await engine.fail(job)
    await engine.call(step(job))
    assert (await engine.call(c.ReadJournalArgs(execution_id=job.execution_id))).began == "0 1"
    await engine.fail(job)
    await engine.call(replay(job.execution_id, "fresh"))
    (job,) = await engine.claim()
    assert job.journal == c.JournalHead("3 1", 0, True, [])
    await engine.fail(job)
    await engine.call(replay(job.execution_id))
    (job,) = await engine.claim()
    assert job.journal == c.JournalHead("3 1", 0, True, []), "nothing has begun it yet"
    await engine.call(pinning(job, 5))
    await engine.call(step(job, version=5))
    assert (await engine.call(c.ReadJournalArgs(execution_id=job.execution_id))).began == "3 5"


async def test_the_failure_that_ended_the_last_run_is_tried_again(engine: Engine) -> None:
    """As a final entry it would end every replay at the same place. A failure the handler went on from is kept."""
    job = await engine.running()
    failure = StepFailure("Fatal", "declined", "card").pack()
    await engine.call(step(job, "caught", status="fatal", value=failure))
    await engine.call(step(job, "mit 3: ö", status="fatal", value=failure))
    other = StepFailure("Fatal", "3:card", "stock").pack()
    await engine.call(step(job, "beside it", status="fatal", value=other))
    await engine.call(step(job, "packed by another hand", status="fatal", value=b"x"))
    await engine.fail(job, "card")
    await engine.call(replay(job.execution_id))
    got = await journal_of(engine, job.execution_id)
    assert [(e.name, e.status, e.tries) for e in got] == [
        ("caught", "fatal", 0), ("mit 3: ö", "error", 1), ("beside it", "fatal", 0),
        ("packed by another hand", "fatal", 0),
    ]  # fmt: skip
    (job,) = await engine.claim()
    answer = await engine.call(step(job, "mit 3: ö"))
    assert answer == c.StepRecorded(2, job.lease_expires_at, 0)


async def test_a_failure_that_did_not_end_the_run_stays(engine: Engine) -> None:
    job = await engine.running()
    await engine.call(step(job, status="fatal", value=StepFailure("Fatal", "no", "fatal").pack()))
    await engine.fail(job, "error")
    await engine.call(replay(job.execution_id))
    assert [e.status for e in await journal_of(engine, job.execution_id)] == ["fatal"]


async def test_an_interrupted_step_stays_interrupted_over_a_replay(engine: Engine) -> None:
    """At most once is a promise of the run, not of the attempt; only a fresh replay lets it run again."""
    job = await engine.running()
    await engine.call(step(job, status="intent"))
    await engine.fail(job)
    await engine.call(replay(job.execution_id))
    (job,) = await engine.claim()
    assert isinstance(await engine.call(step(job, status="intent")), c.StepReplayed)
    await engine.fail(job)
    await engine.call(replay(job.execution_id, "fresh"))
    (job,) = await engine.claim()
    assert isinstance(await engine.call(step(job, status="intent")), c.StepRecorded)


async def test_a_job_that_never_ran_has_no_journal_after_a_replay(engine: Engine) -> None:
    id = await engine.submit()
    await engine.call(cancel(id))
    await engine.call(replay(id))
    (job,) = await engine.claim()
    assert job.journal is None
