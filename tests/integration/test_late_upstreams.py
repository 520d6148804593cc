"""What ended after its group was lost counts once a replay has opened that again."""

from __future__ import annotations

import pytest

import ffsdk as ff
from ffsdk.testing import Engine


@pytest.mark.parametrize("k", [2, 3])
async def test_what_came_after_a_group_was_lost_counts_once_it_is_replayed(k: int) -> None:
    app, down = ff.App(), True

    @app.task(retry=ff.Retry(max_attempts=1))
    async def load(name: str) -> str:
        if name.startswith("bad") and down:
            raise ff.Fatal("down")
        return name

    @app.task
    async def merge(names: list[str]) -> str:
        return "+".join(names)

    async with Engine(app) as eng:
        async with eng.client.flow("again") as flow:
            loads = [flow.add(load, "bad1"), flow.add(load, "bad2"), flow.add(load, "good", delay=60)]
            merged = flow.add(merge, after=ff.quorum(k, loads))
        assert (await flow.outcome()).counts["skipped"] == 1
        down = False
        for again in loads[: k - 1] if k == 3 else loads[1:2]:
            await again.replay()
        assert await merged.result() == ("bad1+bad2+good" if k == 3 else "bad2+good")
