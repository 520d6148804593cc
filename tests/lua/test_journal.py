"""ff_record_step, ff_read_journal, and what a claim tells of recorded steps: a step is recorded once and answered ever
after, by whichever attempt asks."""

from __future__ import annotations

import random
from typing import Any

import pytest

import ffcore.contracts as c
from ffcore import limits
from ffcore.ids import TimestampMs
from ffcore.policy import FixedBackoff
from ffcore.steps import JournalEntry, StepFailure, digest_of, entries_of, pack_error, step_key
from tests.lua import invariants
from tests.lua.engine import (
    P0,
    START_MS,
    TTL,
    Engine,
    cancel,
    delay,
    missing,
    renewal,
    retries,
    revoke,
    timeouts,
    unclaim,
    wire,
)  # fmt: skip


def key(name: str = "charge", *args: Any, n: int = 0) -> str:
    return step_key(name, digest_of(args, {}), n)


def step(job: c.ClaimedJob, name: str = "charge", *args: Any, n: int = 0, **options: Any) -> c.RecordStepArgs:
    given: dict[str, Any] = {"name": name, "value": b'"done"'} | options
    return c.RecordStepArgs(execution_id=job.execution_id, fence=wire(job), step=key(name, *args, n=n), **given)


async def journal_of(engine: Engine, id: Any, **options: Any) -> list[JournalEntry]:
    page = await engine.call(c.ReadJournalArgs(execution_id=id, **options))
    return entries_of(page.entries, options.get("from_seq", 1))


def journal_key(id: Any) -> str:
    return f"ff:{P0}:j:{id.rpartition(':')[2]}"


async def lost(engine: Engine) -> c.ClaimedJob:
    """The lease of the running job runs out, and another worker takes over."""
    await engine.pass_time(TTL + 1)
    (job,) = await engine.claim()
    return job


# ---- what nobody asked for ---------------------------------------------------------------------------


def unclaimed(job: c.ClaimedJob, count: int = 2, names: str = "step 'a', step 'b'") -> c.NoteUnclaimedArgs:
    return c.NoteUnclaimedArgs(execution_id=job.execution_id, fence=wire(job), count=count, names=names)


async def reasons(engine: Engine, id: Any) -> list[str]:
    history = await engine.call(c.ExecutionHistoryArgs(execution_id=id))
    return [" ".join(entry.text.split(" ")[1:3] + entry.text.split(" ")[7:]) for entry in history.entries]


async def test_steps_nobody_asked_for_are_told_by_the_feed(engine: Engine) -> None:
    job = await engine.running()
    assert await engine.call(unclaimed(job)) == c.UnclaimedNoted()
    assert (await reasons(engine, job.execution_id))[-1] == "active active steps_unclaimed 2 step 'a', step 'b'"
    await engine.call(unclaimed(job, 10_000, "é" * 150))
    assert (await reasons(engine, job.execution_id))[-1] == "active active steps_unclaimed 10000 " + "é" * 100
    assert (await engine.read(job.execution_id)).fields["heard"] == str(job.lease_epoch)


@pytest.mark.parametrize(("count", "names"), [(0, "a"), (limits.STEPS_N + 1, "a"), (1, ""), (1, "a\nb")])
async def test_only_sense_is_told_of_them(engine: Engine, count: int, names: str) -> None:
    job = await engine.running()
    detail = "names" if count == 1 else "count"
    assert await engine.refused("invalid_input", unclaimed(job), count=count, names=names) == detail


async def test_only_who_holds_the_lease_tells_of_them(engine: Engine) -> None:
    job = await engine.running()
    await engine.refused("execution_not_found", unclaimed(job), execution_id=missing())
    await engine.refused("stale_lease", unclaimed(job), fence="a 1 a")
    await engine.advance(TTL)
    await engine.refused("lease_expired", unclaimed(job))
    await engine.at(START_MS + 1)
    await engine.call(revoke(job.execution_id))
    await engine.refused("lease_revoked", unclaimed(job))
    (job,) = await engine.claim()
    await engine.complete(job)
    await engine.refused("terminal", unclaimed(job))


# ---- recording ---------------------------------------------------------------------------------------


async def test_a_step_is_recorded_once_and_answered_ever_after(engine: Engine) -> None:
    job = await engine.running()
    assert await engine.call(step(job)) == c.StepRecorded(1, job.lease_expires_at, 0)
    assert await engine.call(step(job, "ship")) == c.StepRecorded(2, job.lease_expires_at, 0)
    await engine.advance(5)
    again = await engine.call(step(job, value=b"other"))
    assert isinstance(again, c.StepReplayed)
    entry = JournalEntry.parse(again.entry, 1)
    assert entry == JournalEntry(1, key(), "step", "ok", START_MS, 0, "charge", b'"done"')
    assert [e.name for e in await journal_of(engine, job.execution_id)] == ["charge", "ship"]


async def test_a_later_attempt_is_answered_what_the_earlier_one_recorded(engine: Engine) -> None:
    job = await engine.running(policy=retries(1))
    await engine.call(step(job))
    await engine.fail(job)
    (job,) = await engine.claim()
    assert job.attempt_index == 1
    again = await engine.call(step(job, value=b"other"))
    assert isinstance(again, c.StepReplayed)
    assert JournalEntry.parse(again.entry).attempt == 0
    await engine.call(step(job, "ship"))
    assert [(e.name, e.attempt) for e in await journal_of(engine, job.execution_id)] == [("charge", 0), ("ship", 1)]


async def test_a_final_failure_is_as_final_as_a_result(engine: Engine) -> None:
    job = await engine.running()
    failure = StepFailure("Fatal", "declined", "card")
    await engine.call(step(job, status="fatal", value=failure.pack()))
    again = await engine.call(step(job))
    assert isinstance(again, c.StepReplayed)
    assert JournalEntry.parse(again.entry).failure == failure


async def test_what_is_unfinished_is_replaced_under_its_number(engine: Engine) -> None:
    job = await engine.running()
    assert isinstance(await engine.call(step(job, "other")), c.StepRecorded)
    tries = [("error", pack_error(1, "busy")), ("error", pack_error(2, "busy")), ("intent", None), ("ok", b"7")]
    for status, value in tries:
        answer = await engine.call(step(job, status=status, value=value))
        assert isinstance(answer, c.StepRecorded) and answer.seq == 2, status
    entry = (await journal_of(engine, job.execution_id))[1]
    assert (entry.seq, entry.status, entry.value) == (2, "ok", b"7")


async def test_who_asks_for_an_intent_again_under_the_same_lease_is_told_yes_and_nobody_else(engine: Engine) -> None:
    """The reply may be lost; a worker that takes over must hear that the step has begun."""
    job = await engine.running()
    for _ in range(2):
        assert isinstance(await engine.call(step(job, status="intent", value=b"ignored")), c.StepRecorded)
    taken = await lost(engine)
    answer = await engine.call(step(taken, status="intent"))
    assert isinstance(answer, c.StepReplayed)
    entry = JournalEntry.parse(answer.entry)
    assert (entry.status, entry.attempt, entry.value) == ("intent", 0, str(job.lease_epoch).encode())
    await engine.call(unclaim(taken))
    (resumed,) = await engine.claim()
    assert resumed.attempt_index == taken.attempt_index
    assert isinstance(await engine.call(step(resumed, status="intent")), c.StepReplayed), "of the same attempt, too"


async def test_an_answer_that_repeats_an_earlier_one_writes(engine: Engine) -> None:
    job = await engine.running()
    await engine.call(step(job))
    await engine.call(step(job))
    header = await engine.call(c.ReadHeaderArgs(partition=P0))
    assert header.fields["replays"] == "1"


@pytest.mark.parametrize("value", [None, b"", bytes(range(256)), b"9:x step ok 1 2 3:"])
async def test_names_and_results_keep_every_byte(engine: Engine, value: bytes | None) -> None:
    job = await engine.running()
    name = "mit 7: äöü 🙂"
    await engine.call(step(job, name, value=value))
    (entry,) = await journal_of(engine, job.execution_id)
    assert (entry.name, entry.value) == (name, value or b"")
    await lost(engine)


@pytest.mark.parametrize("kind", ["step", "sleep", "gate", "wait", "spawn"])
async def test_every_kind_of_entry_is_kept(engine: Engine, kind: str) -> None:
    job = await engine.running()
    await engine.call(step(job, kind=kind))
    assert [e.kind for e in await journal_of(engine, job.execution_id)] == [kind]


# ---- refusals ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "detail", "given"),
    [
        ("invalid_input", "step", {"step": ""}), ("invalid_input", "step", {"step": "no hex"}),
        ("invalid_input", "step", {"step": "a" * 65}), ("invalid_input", "kind", {"kind": "saga"}),
        ("invalid_input", "status", {"status": "done"}), ("invalid_input", "name", {"name": ""}),
        ("invalid_input", "name", {"name": "x" * 129}), ("invalid_input", "name", {"name": "a\nb"}),
        ("invalid_input", "version", {"version": 0}), ("invalid_input", "version", {"version": 1_000_000_001}),
        ("invalid_input", "lease_ttl_ms", {"lease_ttl_ms": 99}),
        ("invalid_input", "lease_ttl_ms", {"lease_ttl_ms": -1}),
        ("invalid_input", "lease_ttl_ms", {"lease_ttl_ms": limits.LEASE_TTL_MAX_MS + 1}),
        ("invalid_input", "progress_pct", {"progress_pct": 101}),
        ("invalid_input", "progress_pct", {"progress_pct": -1}),
        ("payload_too_large", str(limits.RESULT_BYTES + 1), {"value": b"x" * (limits.RESULT_BYTES + 1)}),
        ("invalid_frame_type", "a\nb", {"frames": [c.StepFrame("a\nb", "append", b"1")]}),
        ("invalid_input", "mode: append or best_effort", {"frames": [c.StepFrame("token", "summary", b"1")]}),
    ],
)  # fmt: skip
async def test_what_cannot_be_recorded_is_refused_by_name_and_nothing_is_written(
    engine: Engine, code: str, detail: str, given: dict[str, Any]
) -> None:
    job = await engine.running()
    before = await invariants.read_store(engine.command)
    assert await engine.refused(code, step(job, lease_ttl_ms=2 * TTL), **given) == detail
    assert await invariants.read_store(engine.command) == before


async def test_a_step_at_every_bound_is_recorded(engine: Engine) -> None:
    job = await engine.running()
    args = step(
        job, "x" * 128, value=b"x" * limits.RESULT_BYTES, version=1_000_000_000, lease_ttl_ms=limits.LEASE_TTL_MAX_MS,
        progress_pct=100,
    )  # fmt: skip
    assert isinstance(await engine.call(args, step="a" * 64), c.StepRecorded)
    assert isinstance(await engine.call(step(job, lease_ttl_ms=limits.LEASE_TTL_MIN_MS)), c.StepRecorded)


async def test_only_who_holds_the_lease_records(engine: Engine) -> None:
    job = await engine.running()
    await engine.refused("execution_not_found", step(job), execution_id=missing())
    await engine.refused("stale_lease", step(job), fence="w1.s0.0.0 1 w1.s0.0.0")
    await engine.advance(TTL)
    assert await engine.refused("lease_expired", step(job)) == str(START_MS + TTL)
    await engine.at(START_MS + 1)
    await engine.call(revoke(job.execution_id))
    await engine.refused("lease_revoked", step(job))
    (job,) = await engine.claim()
    await engine.call(step(job))
    await engine.complete(job)
    assert await engine.refused("terminal", step(job)) == "completed"
    assert len(await journal_of(engine, job.execution_id)) == 1


# ---- bounds ------------------------------------------------------------------------------------------


async def test_a_journal_is_full_after_so_many_steps_and_what_it_has_may_still_be_replaced(engine: Engine) -> None:
    job = await engine.running()
    await engine.call(step(job, status="error", value=b"1 busy"))
    kept = await engine.command("HGET", journal_key(job.execution_id), "n")
    size = kept.split()[1].decode()
    await engine.command("HSET", journal_key(job.execution_id), "n", f"{limits.STEPS_N} {size}")
    assert await engine.refused("journal_full", step(job, "ship")) == f"{limits.STEPS_N} steps"
    assert isinstance(await engine.call(step(job, status="error", value=b"2 busy")), c.StepRecorded)
    await engine.command("HSET", journal_key(job.execution_id), "n", f"{limits.STEPS_N - 1} {size}")
    answer = await engine.call(step(job, "ship"))
    assert answer == c.StepRecorded(limits.STEPS_N, job.lease_expires_at, 0)
    await engine.command("HDEL", journal_key(job.execution_id), str(limits.STEPS_N), "k" + key("ship"))
    await engine.command("HSET", journal_key(job.execution_id), "n", kept)


async def test_a_journal_is_full_at_so_many_bytes(engine: Engine) -> None:
    job = await engine.running()
    large, n = b"x" * limits.RESULT_BYTES, 0
    while n < 15:
        n += 1
        await engine.call(step(job, n=n, value=large))
    assert await engine.refused("journal_full", step(job, n=16, value=large)) == f"{limits.STEPS_BYTES} bytes"
    _, size = (await engine.command("HGET", journal_key(job.execution_id), "n")).split()
    spare = limits.STEPS_BYTES - int(size) - len(f"{key(n=16)} step ok {engine.now} 0 6:charge")
    await engine.refused("journal_full", step(job, n=16, value=b"x" * (spare + 1)))
    await engine.call(step(job, n=16, status="error", value=b"x" * (spare - 3)))  # as much: the word is longer
    await engine.refused("journal_full", step(job, n=16, value=b"x" * (spare + 1)))
    await engine.call(step(job, n=16, value=b"x" * spare))
    assert (await engine.command("HGET", journal_key(job.execution_id), "n")).split()[1] == b"%d" % limits.STEPS_BYTES
    page = await engine.call(c.ReadJournalArgs(execution_id=job.execution_id))
    assert (page.total, len(page.entries)) == (16, 1), "one page holds an entry of any size, and no other beside it"
    assert [e.seq for e in await journal_of(engine, job.execution_id, from_seq=16)] == [16]
    again = await lost(engine)
    assert again.journal == c.JournalHead("0 1", 16, False, [])


# ---- what else the call does -------------------------------------------------------------------------


async def test_a_step_renews_the_lease_where_that_gains_something(engine: Engine) -> None:
    job = await engine.running()
    await engine.advance(TTL // 16 - 1)
    assert (await engine.call(step(job, n=1, lease_ttl_ms=TTL))).lease_expires_at == job.lease_expires_at
    await engine.advance(1)
    expires = engine.now + TTL
    assert (await engine.call(step(job, n=2, lease_ttl_ms=TTL))).lease_expires_at == expires
    await engine.advance(10_000)
    assert (await engine.call(step(job, n=3))).lease_expires_at == expires, "unless it is told to leave the lease alone"
    assert (await engine.call(step(job, n=3, lease_ttl_ms=TTL))).lease_expires_at == engine.now + TTL, "a repeat, too"
    shorter = await engine.call(step(job, n=4, lease_ttl_ms=1_000))
    assert shorter.lease_expires_at == engine.now + TTL, "it never shortens a lease"
    assert (await engine.timers())[f"lease:{job.execution_id.rpartition(':')[2]}"] == engine.now + TTL


async def test_a_renewal_ends_with_the_attempts_time_and_is_as_long_as_the_policy_says(engine: Engine) -> None:
    job = await engine.running(policy=timeouts(attempt_timeout_ms=50_000) | {"lease_ms": 20_000})
    await engine.advance(10_000)
    assert (await engine.call(step(job, n=1, lease_ttl_ms=TTL))).lease_expires_at == engine.now + 20_000
    await engine.advance(19_000)
    assert (await engine.call(step(job, n=2, lease_ttl_ms=TTL))).lease_expires_at == engine.now + 20_000
    await engine.advance(19_000)
    assert (await engine.call(step(job, n=3, lease_ttl_ms=TTL))).lease_expires_at == START_MS + 50_000
    assert (await engine.call(step(job, n=4, lease_ttl_ms=TTL))).lease_expires_at == START_MS + 50_000


async def test_who_records_a_step_has_been_heard(engine: Engine) -> None:
    """A lease that runs out after it counts as a crash."""
    job = await engine.running()
    await engine.call(step(job))
    assert (await lost(engine)).crashes == 1


async def test_a_requested_cancel_is_told_with_the_answer(engine: Engine) -> None:
    job = await engine.running()
    asked = await engine.call(cancel(job.execution_id, grace_ms=5_000))
    assert isinstance(asked, c.CancelRequested)
    for _ in range(2):
        assert (await engine.call(step(job))).cancel_until == engine.now + 5_000
    assert len(await journal_of(engine, job.execution_id)) == 1, "what has been done is recorded all the same"


async def test_progress_travels_with_a_step(engine: Engine) -> None:
    job = await engine.running()
    await engine.call(step(job, progress_pct=40))
    await engine.call(step(job, "ship", progress_pct=60, progress_message="on its way"))
    await engine.call(step(job, "ship", progress_pct=10, progress_message="a repeat"))
    x = await engine.read(job.execution_id)
    assert (x.fields["progress"], x.texts["progress"]) == ("60", "on its way")


async def test_frames_travel_with_a_step_once(engine: Engine) -> None:
    job = await engine.running()
    frames = [c.StepFrame("token", "append", b"one"), c.StepFrame("token", "append", b"two", None, "corr")]
    for _ in range(2):
        await engine.call(step(job, frames=frames))
    stream = await engine.command("XRANGE", f"ff:{P0}:t:{job.execution_id.rpartition(':')[2]}:0", "-", "+")
    assert [fields[3] for _, fields in stream] == [b"one", b"two"]


# ---- what a claim tells ------------------------------------------------------------------------------


async def test_a_claim_tells_nothing_where_nothing_is_recorded(engine: Engine) -> None:
    job = await engine.running()
    assert job.journal is None
    await engine.call(renewal(job))
    assert (await lost(engine)).journal is None


async def test_a_claim_brings_the_recorded_steps(engine: Engine) -> None:
    job = await engine.running(version=3)
    for n in range(20):
        await engine.call(step(job, n=n, version=3))
    claimed = engine.claiming()
    await engine.pass_time(TTL + 1)
    for _ in range(2):  # a lost reply: the same claim again answers the same
        (again,) = (await engine.call(claimed)).jobs
        assert again.journal is not None
        assert (again.journal.began, again.journal.total, again.journal.unpinned) == ("0 3", 20, False)
        assert [e.seq for e in entries_of(again.journal.entries)] == list(range(1, 21))
        assert entries_of(again.journal.entries) == await journal_of(engine, job.execution_id)


async def test_a_claim_brings_as_many_as_fit_and_pages_bring_the_rest(engine: Engine) -> None:
    job = await engine.running()
    rng = random.Random(3)
    want: list[bytes] = []
    for n in range(60):
        want.append(b"%d" % n + b"x" * rng.choice([10, 3_000, 20_000]))
        await engine.call(step(job, n=n, value=want[-1]))
    again = await lost(engine)
    assert again.journal is not None and again.journal.total == 60
    got = entries_of(again.journal.entries)
    sizes = [len(e) for e in again.journal.entries]
    assert sum(sizes) <= limits.JOURNAL_HEAD_BYTES
    pages = 0
    while len(got) < again.journal.total:
        first = len(got) + 1
        page = await engine.call(c.ReadJournalArgs(execution_id=job.execution_id, from_seq=first))
        assert page.entries and (len(page.entries) == 1 or sum(map(len, page.entries)) <= limits.JOURNAL_HEAD_BYTES)
        got += entries_of(page.entries, first)
        pages += 1
    assert [e.value for e in got] == want
    assert pages > 2
    assert [e.seq for e in await journal_of(engine, job.execution_id, from_seq=5, limit=2)] == [5, 6]
    assert await journal_of(engine, job.execution_id, from_seq=61) == []


async def test_recorded_steps_count_towards_what_one_claim_brings(engine: Engine) -> None:
    """Forty journals of 60 KiB are more than one answer takes."""
    ids = await engine.submit_many(40)
    for job in await engine.claim(40):
        await engine.call(step(job, value=b"x" * 60_000))
    await engine.pass_time(TTL + 1)
    first = await engine.call(engine.claiming(40))
    assert first.again and 30 < len(first.jobs) < 40
    rest = await engine.call(engine.claiming(40))
    assert {j.execution_id for j in first.jobs + rest.jobs} == set(ids)


async def test_steps_survive_whatever_interrupts_an_attempt(engine: Engine) -> None:
    job = await engine.running(policy=retries(3, backoff=FixedBackoff(delay_ms=0)))
    for n, end in enumerate(["fail", "lost", "hand back", "delay", "revoke"]):
        await engine.call(step(job, n=n))
        match end:
            case "fail":
                await engine.fail(job)
            case "lost":
                await engine.pass_time(TTL + 1)
            case "hand back":
                await engine.call(unclaim(job))
            case "delay":
                await engine.call(delay(job, engine.now))
                await engine.tick()
            case _:
                await engine.call(revoke(job.execution_id))
        (job,) = await engine.claim()
        assert job.journal is not None
        assert [e.seq for e in entries_of(job.journal.entries)] == list(range(1, n + 2))


# ---- reading -----------------------------------------------------------------------------------------


async def test_reading_a_journal(engine: Engine) -> None:
    job = await engine.running()
    assert await engine.call(c.ReadJournalArgs(execution_id=job.execution_id)) == c.JournalPage("", 0, [])
    await engine.call(step(job))
    await engine.complete(job)
    page = await engine.call(c.ReadJournalArgs(execution_id=job.execution_id))
    assert (page.began, page.total, len(page.entries)) == ("0 1", 1, 1), "also when it has ended"
    await engine.refused("execution_not_found", c.ReadJournalArgs(execution_id=missing()))
    for field, value in [("from_seq", 0), ("limit", 0), ("limit", 1_001)]:
        args = c.ReadJournalArgs(execution_id=job.execution_id)
        assert await engine.refused("invalid_input", args, **{field: value}) == field


async def test_a_purge_takes_the_journal_along(engine: Engine) -> None:
    job = await engine.running()
    await engine.call(step(job))
    await engine.complete(job)
    await engine.advance(1)
    await engine.call(c.PurgeArgs(partition=P0, lane_id="mail", outcome="completed", before_ms=TimestampMs(engine.now)))
    assert await engine.command("EXISTS", journal_key(job.execution_id)) == 0


# ---- a model -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
async def test_a_journal_is_that_of_a_naive_model(engine: Engine, seed: int) -> None:
    """Random steps under one lease and the next: the first final word on a key stays, everything else is replaced."""
    rng = random.Random(seed)
    job = await engine.running(policy={"max_reclaim_count": 1_000})
    model: dict[str, list[Any]] = {}
    for _ in range(80):
        if rng.random() < 0.08:
            job = await lost(engine)
            assert [e.key for e in entries_of(job.journal.entries if job.journal else [])] == list(model)
        if rng.random() < 0.2:
            await engine.call(renewal(job))
        status, value = rng.choice(["ok", "fatal", "intent", "error"]), rng.randbytes(rng.randrange(30))
        args = step(
            job, rng.choice("abcdef"), n=rng.randrange(2), status=status, value=value, lease_ttl_ms=rng.choice([0, TTL])
        )
        await engine.advance(rng.randrange(500))
        answer = await engine.call(args)
        kept = model.get(args.step)
        value = str(job.lease_epoch).encode() if status == "intent" else value
        stays = kept is not None and (
            kept[1] in ("ok", "fatal") or (kept[1] == status == "intent" and kept[2] != value)
        )
        assert isinstance(answer, c.StepReplayed if stays else c.StepRecorded)
        if isinstance(answer, c.StepReplayed):
            assert kept is not None
            got = JournalEntry.parse(answer.entry, kept[0])
            assert [got.seq, got.status, got.value] == kept
        else:
            model[args.step] = [kept[0] if kept else len(model) + 1, status, value]
            assert answer.seq == model[args.step][0]
    got_all = await journal_of(engine, job.execution_id)
    assert [[e.seq, e.status, e.value] for e in got_all] == list(model.values())
    assert [e.key for e in got_all] == list(model)
