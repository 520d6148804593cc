"""What ff_read_stream says of frames that were kept once and are gone: a reader who comes from before them is told."""

from __future__ import annotations

import ffcore.contracts as c
from tests.lua.engine import Engine, retries
from tests.lua.test_stream import frame, frames_of, many, new, page_of, payloads


async def test_a_reader_slower_than_the_trimming_is_told_that_frames_are_gone(engine: Engine) -> None:
    """It went on behind the hole as if nothing had been there."""
    job = await engine.running(policy=retries(1))
    await engine.call(many(*[new(job, 1 + n, b"%d" % n) for n in range(100)]))
    slow = (await page_of(engine, job, limit=10)).cursor
    assert (await page_of(engine, job, slow)).gaps == []
    for at in range(100, 700, 200):
        await engine.call(many(*[new(job, 1 + at + n, b"%d" % (at + n)) for n in range(200)], retention_maxlen=200))
    left = await payloads(engine, job)
    for after in ("-", slow):
        page = await page_of(engine, job, after, limit=150)
        assert page.gaps == [c.StreamGap(page.frames[0].id, 700 - len(left))]
        assert [f.payload for f in page.frames] == left[:150]
        # Behind the oldest that is left nothing is missing.
        for here in (page.frames[0].id, page.cursor):
            assert (await page_of(engine, job, here)).gaps == []
    assert (await page_of(engine, job, "+")).gaps == []
    # A later attempt has a stream of its own.
    await engine.fail(job)
    (again,) = await engine.claim()
    await engine.call(frame(again, b"again"))
    assert len((await page_of(engine, job, slow)).gaps) == 1
    for at in (0, 200):
        await engine.call(many(*[new(again, 1 + at + n) for n in range(200)], retention_maxlen=100))
    page = await page_of(engine, job, limit=10_000)
    assert [(gap.dropped, next(f.attempt_index for f in page.frames if f.id == gap.before)) for gap in page.gaps] == [
        (700 - len(left), 0), (401 - len(await payloads(engine, again)), 1),
    ]  # fmt: skip


async def test_a_gap_stands_before_the_oldest_frame_that_is_kept(engine: Engine) -> None:
    """Also where frames of the other kind are older; and of those nobody is told."""
    job = await engine.running()
    await engine.call(many(*[new(job, 1 + n, b"live", mode="best_effort") for n in range(3)]))
    for at in (0, 200):
        await engine.call(many(*[new(job, 4 + at + n) for n in range(200)], retention_maxlen=100))
    first = await page_of(engine, job, limit=2)
    assert ([f.best_effort for f in first.frames], first.gaps) == ([True, True], [])
    (gap,) = (await page_of(engine, job, first.cursor)).gaps
    kept = await frames_of(engine, job, visibility=c.TailVisibility.EXCLUDE_BEST_EFFORT)
    assert gap == c.StreamGap(kept.frames[0].id, 400 - len(kept.frames))
    flood = await engine.running()
    for at in range(0, 600, 200):
        rows = [new(flood, 1 + at + n, mode="best_effort") for n in range(200)]
        await engine.call(many(*rows, retention_maxlen=100))
    assert (await page_of(engine, flood)).gaps == []
