"""ff_append_frame, ff_append_frames, ff_read_attempt_stream, ff_read_stream."""

from __future__ import annotations

import random
from typing import Any

import pytest

import ffcore.contracts as c
from ffcore import limits
from ffcore.ids import uuid_of
from ffcore.policy import FixedBackoff
from tests.lua import invariants
from tests.lua.engine import P0, START_MS, TTL, Engine, cancel, fence, missing, retries, revoke, unclaim, wire

EXACT = "a stream keeps what it holds in nodes of about a hundred: trimming removes whole ones"


def frame(job: c.ClaimedJob, payload: bytes = b"hello", **options: Any) -> c.AppendFrameArgs:
    given: dict[str, Any] = {"frame_type": "token", "timestamp": START_MS - 7} | options
    return c.AppendFrameArgs(
        execution_id=job.execution_id, attempt_index=job.attempt_index, lease_id=job.lease_id,
        lease_epoch=job.lease_epoch, attempt_id=job.attempt_id, payload=payload, **given,
    )  # fmt: skip


def new(job: c.ClaimedJob, op: int, payload: bytes = b"hello", **options: Any) -> c.NewFrame:
    given: dict[str, Any] = {"frame_type": "token", "mode": "append"} | options
    return c.NewFrame(job.execution_id, wire(job), op, payload=payload, **given)


def many(*rows: c.NewFrame, **options: Any) -> c.AppendFramesArgs:
    return c.AppendFramesArgs(partition=P0, items=list(rows), **options)


def reading(job: c.ClaimedJob, **options: Any) -> c.ReadFramesArgs:
    given: dict[str, Any] = {"attempt_index": job.attempt_index, "from_id": "-", "to_id": "+", "count_limit": 1_000}
    return c.ReadFramesArgs(execution_id=job.execution_id, **(given | options))


def writing(job: c.ClaimedJob, document: bytes = b'{"a":1}', version: int = 0) -> c.WriteSummaryArgs:
    return c.WriteSummaryArgs(
        execution_id=job.execution_id, fence=fence(job), document_json=document, expected_version=version,
    )  # fmt: skip


async def frames_of(engine: Engine, job: c.ClaimedJob, **options: Any) -> c.StreamFrames:
    return (await engine.call(reading(job, **options))).frames


async def payloads(engine: Engine, job: c.ClaimedJob, **options: Any) -> list[bytes]:
    return [f.payload for f in (await frames_of(engine, job, **options)).frames]


async def page_of(engine: Engine, job: c.ClaimedJob, after: str = "-", **options: Any) -> c.StreamPage:
    return await engine.call(c.ReadStreamArgs(execution_id=job.execution_id, after=after, **options))


async def keys_of(engine: Engine) -> set[str]:
    """Letters of the kinds of keys that streams are made of."""
    store = await invariants.read_store(engine.command)
    return {key.split(":")[3] for key in store.values if key.startswith(f"ff:{P0}:")} & {"t", "b", "n", "y"}


# ---- append --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["append", "best_effort"])
@pytest.mark.parametrize("payload", [b"", b"\x00\xff\r\n\xc3", b"x" * limits.FRAME_BYTES])
async def test_a_frame_is_read_back_byte_for_byte(engine: Engine, payload: bytes, mode: Any) -> None:
    job = await engine.running()
    added = await engine.call(frame(job, payload, mode=mode))
    assert added == c.Appended(f"{START_MS}-0", 1, False)
    (got,) = (await frames_of(engine, job)).frames
    assert got.id == added.entry_id and got.payload == payload
    assert got.fields == {"frame_type": "token", "mode": mode, "ts": str(START_MS - 7)}


async def test_a_frame_keeps_what_was_said_of_it(engine: Engine) -> None:
    job = await engine.running()
    said = {"encoding": "utf8", "metadata_json": '{"a":1}', "correlation_id": "c-1", "source": "worker"}
    await engine.call(frame(job, **said))
    (got,) = (await frames_of(engine, job)).frames
    assert got.fields == said | {"frame_type": "token", "mode": "append", "ts": str(START_MS - 7)}
    assert list(got.fields) == sorted(got.fields)


async def test_ids_rise_over_both_modes_over_attempts_and_when_the_clock_steps_back(engine: Engine) -> None:
    """One counter draws them: so a reader can merge, and one id is a place in the whole execution."""
    job = await engine.running(policy=retries(3))
    ids = []
    for step, mode in [(0, "append"), (0, "best_effort"), (5, "append"), (-3, "append"), (0, "best_effort")]:
        await engine.advance(step)
        ids.append((await engine.call(frame(job, mode=mode))).entry_id)
    await engine.fail(job)
    (again,) = await engine.claim()
    ids.append((await engine.call(frame(again))).entry_id)
    numbers = [tuple(map(int, id.split("-"))) for id in ids]
    assert numbers == sorted(set(numbers))
    assert numbers[:3] == [(START_MS, 0), (START_MS, 1), (START_MS + 5, 0)]
    page = await page_of(engine, again)
    assert [f.id for f in page.frames] == ids
    assert [f.best_effort for f in page.frames] == [False, True, False, False, True, False]
    assert [f.attempt_index for f in page.frames] == [0] * 5 + [1]


async def test_an_append_is_told_from_its_repeat_by_its_number(engine: Engine) -> None:
    job = await engine.running(policy=retries(1))
    first = await engine.call(frame(job, b"1", op=1))
    assert await engine.call(frame(job, b"1", op=1)) == c.Appended(first.entry_id, 1, True)
    second = await engine.call(frame(job, b"2", op=5))
    assert await engine.call(frame(job, b"1", op=1)) == c.Appended(second.entry_id, 2, True)
    await engine.call(frame(job, b"3"))
    await engine.call(frame(job, b"3"))
    assert await payloads(engine, job) == [b"1", b"2", b"3", b"3"], "without a number every call appends"
    await engine.fail(job)
    (again,) = await engine.claim()
    anew = await engine.call(frame(again, b"1", op=1))
    assert anew == c.Appended(f"{START_MS}-4", 1, False), "each lease counts from one"
    header = await engine.call(c.ReadHeaderArgs(partition=P0))
    assert header.fields["replays"] == "2"


async def test_a_worker_that_lost_its_job_cannot_append(engine: Engine) -> None:
    job = await engine.running()
    await engine.refused("execution_not_found", frame(job), execution_id=missing())
    await engine.refused("stale_lease", frame(job), lease_epoch=5)
    await engine.advance(TTL)
    await engine.refused("lease_expired", frame(job))
    await engine.tick()
    (again,) = await engine.claim()
    await engine.refused("stale_lease", frame(job))
    await engine.call(revoke(again.execution_id))
    await engine.refused("lease_revoked", frame(again))
    await engine.call(cancel(again.execution_id))
    await engine.refused("terminal", frame(again))
    assert await keys_of(engine) == set()


async def test_a_frame_that_cannot_be_taken_is_refused_by_name(engine: Engine) -> None:
    job = await engine.running()
    big = b"x" * (limits.FRAME_BYTES + 1)
    assert "65537" in await engine.refused("payload_too_large", frame(job), payload=big)
    await engine.refused("payload_too_large", frame(job, b"xxx"), max_payload_bytes=2)
    for bad in ("", "a\nb", "x" * 129):
        await engine.refused("invalid_frame_type", frame(job), frame_type=bad)
    long = "x" * 129
    for field, value in [
        ("mode", "summary"), ("encoding", "a b"), ("correlation_id", long), ("source", long), ("op", 0),
        ("metadata_json", "x" * (limits.REASON_BYTES + 1)), ("retention_maxlen", -1),
    ]:  # fmt: skip
        assert (await engine.refused("invalid_input", frame(job), **{field: value})).startswith(field)
    assert await keys_of(engine) == set()


async def test_the_first_frame_shows_that_the_holder_lives(engine: Engine) -> None:
    job = await engine.running()
    await engine.call(frame(job))
    await engine.advance(TTL)
    await engine.tick()
    assert (await engine.read(job.execution_id)).fields["crashes"] == "1"


# ---- many ------------------------------------------------------------------------------------------------


async def test_frames_of_many_jobs_are_answered_one_by_one(engine: Engine) -> None:
    a, b, ended = await engine.running(), await engine.running(), await engine.running()
    await engine.complete(ended)
    gone = c.NewFrame(missing(), "a 1 a", 1, "token", "append", b"")
    rows = [
        new(a, 1, b"a1"), new(b, 1, b"b1"), new(a, 2, b"a2"), new(a, 2, b"a2"), new(ended, 1), gone, new(b, 0),
        new(b, 2, b"x" * 65_537), new(b, 3, frame_type=""), new(b, 4, mode="summary"), new(b, 5, b"b2"),
    ]  # fmt: skip
    answer = await engine.call(many(*rows))
    assert [(i.state, i.detail) for i in answer.items] == [
        ("appended", f"{START_MS}-0"), ("appended", f"{START_MS}-0"), ("appended", f"{START_MS}-1"),
        ("replayed", f"{START_MS}-1"), ("error", "terminal"), ("error", "execution_not_found"),
        ("error", "invalid_input"), ("error", "payload_too_large"), ("error", "invalid_frame_type"),
        ("error", "invalid_input"), ("appended", f"{START_MS}-1"),
    ]  # fmt: skip
    assert await payloads(engine, a) == [b"a1", b"a2"] and await payloads(engine, b) == [b"b1", b"b2"]
    again = await engine.call(many(*rows))
    assert [i.state for i in again.items] == ["replayed"] * 4 + ["error"] * 6 + ["replayed"]
    assert await payloads(engine, a) == [b"a1", b"a2"], "a batch that is sent again appends nothing"


async def test_each_frame_of_a_batch_shows_its_own_fence(engine: Engine) -> None:
    job = await engine.running()
    stranger = c.NewFrame(job.execution_id, "w9.s0.0.0 1 w9.s0.0.0", 2, "token", "append", b"no")
    answer = await engine.call(many(stranger, new(job, 1, b"1"), stranger, new(job, 2, b"2")))
    assert [i.state for i in answer.items] == ["error", "appended", "error", "appended"]
    assert {i.detail for i in answer.items if i.state == "error"} == {"stale_lease"}
    assert await payloads(engine, job) == [b"1", b"2"]


async def test_a_row_that_cannot_be_read_costs_its_neighbours_nothing(engine: Engine) -> None:
    job = await engine.running()
    answer = await engine.raw("ff_append_frames", P0, "", 2, job.execution_id, "nofence", 1, "t", "append", "x", "", "",
                              job.execution_id, wire(job), 1, "t", "append", "y", "", "")  # fmt: skip
    assert [row[0] for row in answer[1]] == [b"error", b"appended"]
    await engine.refused("invalid_input", many(new(job, 2)), retention_maxlen=-1)


# ---- retention -------------------------------------------------------------------------------------------


async def test_a_flood_of_best_effort_frames_pushes_out_nothing_that_is_kept(engine: Engine) -> None:
    """Each mode has a stream of its own, so neither bound depends on what the other takes in."""
    job = await engine.running()
    await engine.call(frame(job, b"kept"))
    for at in range(0, 1_600, 200):
        rows = [new(job, 1 + at + n, b"%d" % (at + n), mode="best_effort") for n in range(200)]
        await engine.call(many(*rows))
    got = await frames_of(engine, job, count_limit=10_000)
    assert got.frames[0].payload == b"kept" and got.frames[-1].payload == b"1599"
    assert limits.LIVE_FRAMES_N <= len(got.frames) - 1 <= limits.LIVE_FRAMES_N + 100, EXACT
    assert await payloads(engine, job, visibility=c.TailVisibility.EXCLUDE_BEST_EFFORT) == [b"kept"]
    page = await page_of(engine, job, visibility=c.TailVisibility.EXCLUDE_BEST_EFFORT)
    assert [f.payload for f in page.frames] == [b"kept"]


async def test_a_caller_may_keep_fewer_frames_or_all(engine: Engine) -> None:
    job = await engine.running()
    for at in range(0, 600, 200):
        await engine.call(many(*[new(job, 1 + at + n) for n in range(200)], retention_maxlen=100))
    assert 100 <= len(await payloads(engine, job)) <= 200, EXACT
    await engine.call(frame(job, b"small", retention_maxlen=1))
    assert len(await payloads(engine, job)) <= 101, EXACT
    before = len(await payloads(engine, job))
    await engine.call(many(*[new(job, 1_000 + n) for n in range(200)], retention_maxlen=0))
    assert len(await payloads(engine, job)) == before + 200


async def test_large_frames_are_kept_in_smaller_number(engine: Engine) -> None:
    """The bound is one of memory too: what the frames weigh on average decides how many are kept."""
    job = await engine.running()
    large, op = b"x" * limits.FRAME_BYTES, 0
    most = limits.LIVE_BYTES // limits.FRAME_BYTES
    for _ in range(20):
        rows = [new(job, op := op + 1, large, mode="best_effort") for _ in range(10)]
        await engine.call(many(*rows))
    key = f"ff:{P0}:b:{uuid_of(job.execution_id)}:0"
    kept = await engine.command("XLEN", key)
    assert most <= kept <= most + 100, EXACT
    for at in range(10):
        await engine.call(many(*[new(job, op + 1 + 200 * at + n, b"s", mode="best_effort") for n in range(200)]))
    kept = await engine.command("XLEN", key)
    assert kept > most + 100, "and small ones in larger number again"


async def test_only_the_streams_of_the_last_attempts_are_kept(engine: Engine) -> None:
    job = await engine.running(policy=retries(200))
    for n in range(limits.STREAMS_N + 3):
        await engine.call(many(new(job, 1, b"%d" % n), new(job, 2, mode="best_effort")))
        await engine.fail(job)
        (job,) = await engine.claim()
    store = await invariants.read_store(engine.command)
    kept = [key for key in store.values if key.startswith((f"ff:{P0}:t:", f"ff:{P0}:b:"))]
    assert len(kept) == 2 * limits.STREAMS_N
    page = await page_of(engine, job)
    assert page.frames[0].payload == b"3" and len(page.frames) == 2 * limits.STREAMS_N
    assert len((await engine.read(job.execution_id, "attempts")).attempts) == limits.ATTEMPTS_N
    old = await frames_of(engine, job, attempt_index=1)
    assert (old.frames, old.closed_reason) == ([], "attempt_interrupted"), "the log does not go back that far"


async def test_all_streams_go_with_the_job(engine: Engine) -> None:
    job = await engine.running(policy=retries(1))
    await engine.call(many(new(job, 1), new(job, 2, mode="best_effort")))
    await engine.fail(job)
    (job,) = await engine.claim()
    await engine.call(many(new(job, 1), new(job, 2, mode="best_effort")))
    await engine.call(writing(job))
    assert await keys_of(engine) == {"t", "b", "n", "y"}
    await engine.complete(job)
    await engine.advance(1)
    await engine.call(c.PurgeArgs(partition=P0, lane_id="mail", outcome="completed", before_ms=engine.now))
    assert await keys_of(engine) == set()


# ---- read --------------------------------------------------------------------------------------------------


async def filled(engine: Engine, n: int = 10, **options: Any) -> tuple[c.ClaimedJob, list[str]]:
    job = await engine.running(**options)
    ids = []
    for at in range(n):
        if at % 3 == 0:
            await engine.advance(1)
        ids.append((await engine.call(frame(job, b"%d" % at, mode="append" if at % 2 else "best_effort"))).entry_id)
    return job, ids


async def test_reading_takes_both_ends_in_and_tailing_leaves_the_place_out(engine: Engine) -> None:
    job, ids = await filled(engine)
    got = await frames_of(engine, job, from_id=ids[2], to_id=ids[5])
    assert [f.id for f in got.frames] == ids[2:6] and not got.more
    assert [f.id for f in (await page_of(engine, job, ids[2])).frames] == ids[3:]


async def test_the_grammar_of_cursors(engine: Engine) -> None:
    job, ids = await filled(engine)
    ms = ids[4].partition("-")[0]
    same = [id for id in ids if id.startswith(ms)]
    assert [f.id for f in (await frames_of(engine, job, from_id=ms, to_id=ms)).frames] == same
    start, end = c.StreamCursor.START.to_wire(), c.StreamCursor.END.to_wire()
    assert [f.id for f in (await frames_of(engine, job, from_id=start, to_id=end)).frames] == ids
    assert (await frames_of(engine, job, from_id=end, to_id=end)).frames == []
    assert [f.id for f in (await page_of(engine, job, str(c.StreamCursor.from_beginning()))).frames] == ids
    now = await page_of(engine, job, end)
    assert (now.frames, now.cursor, now.at_attempt) == ([], ids[-1], 0)
    at = await page_of(engine, job, ms)
    assert [f.id for f in at.frames] == [id for id in ids if id > f"{ms}-0"], "a millisecond stands for its first entry"
    for bad in ("", "(1-1", "1-", "-1", "1-1-1", "9" * 16, "1-" + "9" * 16, "x"):
        await engine.refused("invalid_offset", reading(job), from_id=bad)
        await engine.refused("invalid_offset", reading(job), to_id=bad)
        await engine.refused("invalid_offset", c.ReadStreamArgs(execution_id=job.execution_id), after=bad)


async def test_pages_of_any_size_join_to_the_whole(engine: Engine) -> None:
    job, ids = await filled(engine, 30, policy=retries(1))
    await engine.fail(job)
    (job,) = await engine.claim()
    ids.append((await engine.call(frame(job))).entry_id)
    for limit in (1, 2, 7, 31, 100):
        seen, place, more = [], "-", True
        while more:
            page = await page_of(engine, job, place, limit=limit)
            seen += [f.id for f in page.frames]
            place, more = page.cursor, page.more
            assert len(page.frames) <= limit
        assert seen == ids, limit
    got = await frames_of(engine, job, attempt_index=0, count_limit=4)
    assert [f.id for f in got.frames] == ids[:4] and got.more


async def test_one_answer_is_bounded_by_its_bytes(engine: Engine) -> None:
    job = await engine.running()
    large = b"x" * limits.FRAME_BYTES
    for n in range(5):
        await engine.call(many(*[new(job, 1 + 10 * n + i, large) for i in range(10)]))
    got = await frames_of(engine, job)
    assert got.more and limits.CLAIM_BYTES <= sum(len(f.payload) for f in got.frames) <= limits.CLAIM_BYTES + len(large)
    page = await page_of(engine, job)
    rest = await page_of(engine, job, page.cursor)
    assert page.more and not rest.more and len(page.frames) + len(rest.frames) == 50


async def test_merging_is_that_of_a_naive_model(engine: Engine) -> None:
    rng = random.Random(4)
    job = await engine.running(policy=retries(20))
    model: list[tuple[int, bytes, bool]] = []
    for n in range(300):
        if rng.random() < 0.02:
            await engine.fail(job)
            (job,) = await engine.claim()
        await engine.advance(rng.choice([0, 0, 0, 1, -1]))
        mode = rng.choice(["append", "best_effort"])
        await engine.call(frame(job, b"%d" % n, mode=mode))
        model.append((job.attempt_index, b"%d" % n, mode == "best_effort"))
    page = await page_of(engine, job, limit=1_000)
    assert [(f.attempt_index, f.payload, f.best_effort) for f in page.frames] == model
    for _ in range(20):
        at = rng.randrange(len(model))
        rest = await page_of(engine, job, page.frames[at].id, limit=1_000)
        assert rest.frames == page.frames[at + 1 :] and rest.at_attempt == page.frames[at].attempt_index


async def test_a_read_that_makes_no_sense_is_refused(engine: Engine) -> None:
    job = await engine.running()
    await engine.refused("execution_not_found", reading(job), execution_id=missing())
    await engine.refused("execution_not_found", c.ReadStreamArgs(execution_id=missing()))
    for count in (0, limits.STREAM_READ_N + 1):
        assert "count_limit" in await engine.refused("invalid_input", reading(job), count_limit=count)
        await engine.refused("invalid_input", c.ReadStreamArgs(execution_id=job.execution_id), limit=count)
    await engine.refused("invalid_input", reading(job), attempt_index=-1)
    await engine.refused("invalid_input", reading(job), visibility="some")
    await engine.refused("invalid_input", c.ReadStreamArgs(execution_id=job.execution_id), visibility="some")


async def test_a_job_that_has_emitted_nothing_has_an_empty_open_stream(engine: Engine) -> None:
    id = await engine.submit()
    page = await engine.call(c.ReadStreamArgs(execution_id=id))
    assert page == c.StreamPage([], "0-0", -1, -1, "", False)
    got = await engine.call(c.ReadFramesArgs(
        execution_id=id, attempt_index=0, from_id="-", to_id="+", count_limit=1,
    ))  # fmt: skip
    assert got.frames == c.StreamFrames.empty_open()


# ---- closing -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("end", "reason"), [
    ("complete", "attempt_success"), ("fail", "attempt_failure"), ("cancel", "attempt_cancelled"),
    ("retry", "attempt_failure"), ("expire", "attempt_interrupted"), ("deadline", "attempt_failure"),
])  # fmt: skip
async def test_a_stream_is_closed_with_the_attempt_and_says_why(engine: Engine, end: str, reason: str) -> None:
    policy = retries(1, backoff=FixedBackoff(delay_ms=50)) if end == "retry" else None
    options: dict[str, Any] = {"policy": policy} if policy else {}
    job = await engine.running(**options)
    await engine.call(frame(job))
    assert not (await frames_of(engine, job)).is_closed()
    await engine.advance(10)
    if end == "complete":
        await engine.complete(job)
    elif end in ("fail", "retry"):
        await engine.fail(job)
    elif end == "cancel":
        await engine.call(cancel(job.execution_id, "operator_override"))
    elif end == "deadline":
        await engine.call(c.ExpireExecutionArgs(execution_id=job.execution_id, expire_reason="execution_deadline"))
    else:
        await engine.advance(TTL)
        await engine.tick()
    got = await frames_of(engine, job)
    assert (got.closed_at, got.closed_reason) == (engine.now, reason)
    assert [f.payload for f in got.frames] == [b"hello"], "what was emitted stays readable"
    ended = {"complete": "completed", "fail": "failed", "cancel": "cancelled", "deadline": "expired"}
    assert (await page_of(engine, job)).state == ended.get(end, "")


async def test_an_interruption_that_goes_on_later_closes_nothing(engine: Engine) -> None:
    job = await engine.running()
    await engine.call(frame(job, b"1", op=1))
    await engine.call(unclaim(job))
    assert not (await frames_of(engine, job)).is_closed()
    (again,) = await engine.claim()
    assert again.attempt_index == 0
    await engine.call(frame(again, b"2", op=1))
    assert await payloads(engine, again) == [b"1", b"2"]


async def test_readers_are_told_of_frames_of_attempts_and_of_the_end(engine: Engine) -> None:
    job = await engine.running(policy=retries(1))
    ear = await engine.listen(engine.backend.stream_channel(job.execution_id))
    await engine.call(many(new(job, 1), new(job, 2)))
    assert [text for _, text in await ear.heard()] == [f"{START_MS}-1"], "one message for a call's frames"
    await engine.call(many(new(job, 2)))
    assert await ear.heard() == [], "none for a repeat"
    await engine.fail(job)
    assert [text for _, text in await ear.heard()] == ["delayed"]
    (job,) = await engine.claim()
    assert "active" in [text for _, text in await ear.heard()]
    await engine.complete(job)
    assert [text for _, text in await ear.heard()] == ["completed"]


async def test_a_replayed_job_goes_on_in_a_stream_of_its_own(engine: Engine) -> None:
    job = await engine.running()
    await engine.call(frame(job, b"old"))
    await engine.complete(job)
    await engine.call(c.ReplayExecutionArgs(execution_id=job.execution_id))
    assert (await page_of(engine, job)).state == ""
    (again,) = await engine.claim()
    await engine.call(frame(again, b"new"))
    page = await page_of(engine, again)
    assert [(f.attempt_index, f.payload) for f in page.frames] == [(0, b"old"), (1, b"new")]
    assert page.attempt_index == 1
