"""Frames that are part of a step: read when it is recorded, and once."""

from __future__ import annotations

from typing import Any

import pytest

import ffsdk as ff
from ffsdk.testing import Engine
from tests.integration.desk import task_of


async def test_frames_of_a_step_are_read_when_it_is_recorded_and_once() -> None:
    tries: list[int] = []

    def write() -> str:
        info = ff.step_info()
        tries.append(info.attempt)
        for word in ("one", b"\x00two"):
            info.emit(word, type="word")
        if len(tries) == 1:
            raise ConnectionError("this try is not recorded, and neither are its frames")
        return "written"

    async def work(_: Any, ctx: ff.Context) -> str:
        said: str = await ctx.step("write", write)
        if ctx.attempt < 2:
            raise ConnectionError("the next attempt finds the record, and emits nothing")
        return said

    app = ff.App()
    task = task_of(app, work)
    async with Engine(app) as eng:
        job = await eng.client.submit(task, None)
        assert await job.result() == "written"
        frames = [(f.type, f.value, f.attempt) async for f in job.stream()]
    assert tries == [0, 1]
    assert [f for f in frames if f[0] == "word"] == [("word", "one", 1), ("word", b"\x00two", 1)]


async def test_a_step_has_room_for_so_many_frames() -> None:
    async def work(kind: str, ctx: ff.Context) -> int:
        def write() -> int:
            with pytest.raises(ff.InvalidArgument, match="its record takes 100"):
                for _ in range(101):
                    ff.step_info().emit("x" * (20 if kind == "many" else 60_000))
            return 1

        return await ctx.step("write", write)

    app = ff.App()
    task = task_of(app, work)
    async with Engine(app) as eng:
        for kind, n in (("many", 100), ("large", 17)):
            job = await eng.client.submit(task, kind)
            assert await job.result() == 1
            assert len([f async for f in job.stream()]) == n
