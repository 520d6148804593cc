"""ff_read_summary, ff_write_summary: the document beside the stream."""

from __future__ import annotations

import ffcore.contracts as c
from ffcore import limits
from tests.lua.engine import START_MS, TTL, Engine, cancel, missing, retries, revoke
from tests.lua.test_continue import continuing
from tests.lua.test_stream import frame, reading, writing


async def summary_of(engine: Engine, job: c.ClaimedJob) -> c.SummaryDocument | None:
    return (await engine.call(c.ReadSummaryArgs(execution_id=job.execution_id))).summary


async def test_a_summary_is_replaced_only_by_who_has_read_the_latest(engine: Engine) -> None:
    job = await engine.running()
    assert await summary_of(engine, job) is None
    assert await engine.call(writing(job)) == c.SummaryWritten(1)
    await engine.advance(5)
    await engine.call(writing(job, b'{"a":[],"b":\xc3\xa9}', 1))
    assert await summary_of(engine, job) == c.SummaryDocument(
        document_json=b'{"a":[],"b":\xc3\xa9}', version=2, patch_kind=c.PatchKind.JSON_MERGE_PATCH,
        last_updated_ms=START_MS + 5, first_applied_ms=START_MS,
    )  # fmt: skip
    assert "version 2" in await engine.refused("revision_conflict", writing(job, b"{}", 1))
    await engine.refused("revision_conflict", writing(job, b"{}", 7))


async def test_a_summary_written_twice_is_written_once(engine: Engine) -> None:
    job = await engine.running()
    for _ in range(2):
        assert await engine.call(writing(job, b'{"a":2}', 0)) == c.SummaryWritten(1)


async def test_only_the_holder_writes_the_summary(engine: Engine) -> None:
    job = await engine.running()
    await engine.refused("execution_not_found", writing(job), execution_id=missing())
    await engine.refused("execution_not_found", c.ReadSummaryArgs(execution_id=missing()))
    await engine.refused("payload_too_large", writing(job), document_json=b"x" * (limits.SUMMARY_BYTES + 1))
    await engine.advance(TTL)
    await engine.refused("lease_expired", writing(job))
    await engine.tick()
    await engine.refused("stale_lease", writing(job))
    (job,) = await engine.claim()
    await engine.call(revoke(job.execution_id))
    await engine.refused("lease_revoked", writing(job))
    await engine.call(cancel(job.execution_id))
    await engine.refused("terminal", writing(job))
    assert await summary_of(engine, job) is None


async def test_a_summary_outlives_the_attempt_and_the_end(engine: Engine) -> None:
    job = await engine.running(policy=retries(1))
    await engine.call(writing(job))
    await engine.fail(job)
    (job,) = await engine.claim()
    await engine.call(writing(job, b'{"a":2}', 1))
    await engine.complete(job)
    found = await summary_of(engine, job)
    assert found is not None and (found.document_json, found.version) == (b'{"a":2}', 2)


async def test_a_new_run_begins_with_an_empty_summary_and_goes_on_in_a_stream_of_its_own(engine: Engine) -> None:
    job = await engine.running()
    await engine.call(writing(job))
    await engine.call(frame(job, b"first run"))
    await engine.call(continuing(job))
    assert await summary_of(engine, job) is None
    (again,) = await engine.claim()
    await engine.call(writing(again, b'{"a":3}'))
    await engine.call(frame(again, b"second run"))
    page = await engine.call(c.ReadStreamArgs(execution_id=job.execution_id))
    assert [(f.attempt_index, f.payload) for f in page.frames] == [(0, b"first run"), (1, b"second run")]
    assert (await engine.call(reading(job))).frames.closed_reason == "attempt_success"
    await engine.complete(again)
    await engine.call(c.ReplayExecutionArgs(execution_id=job.execution_id, mode="fresh"))
    assert await summary_of(engine, job) is None
