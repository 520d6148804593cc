"""The buffer before the handlers: what it holds must not wait there while another worker is idle."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

import ffsdk as ff
from ffcore.contracts.batch import ClaimedJob
from ffcore.errors import InvalidArgument
from ffsdk import runner as module
from ffsdk.held import Held
from ffsdk.inputs import Taken
from ffsdk.isolation import Isolated
from ffsdk.runner import Runners


class Outcomes:
    """Notes what becomes of the jobs."""

    def __init__(self) -> None:
        self.done: list[Held] = []
        self.given_back: list[Held] = []
        self.read: Taken | None = None

    def completed(self, held: Held, result: bytes | None) -> None:
        self.done.append(held)

    def stopped(self, held: Held) -> None:
        assert held.why == "stop", "as when a worker stops: back to its place, without counting"
        self.given_back.append(held)

    def context_of(self, held: Held, task: Any) -> Any:
        raise NotImplementedError

    def failed(self, held: Held, error: BaseException) -> None:
        raise error

    def unfit(self, held: Held, error: InvalidArgument, category: str) -> None:
        raise error

    def unknown(self, held: Held) -> None:
        raise AssertionError(held)

    async def inputs(self, held: Held) -> Taken | None:
        return self.read

    def arm(self, held: Held) -> None:
        raise NotImplementedError


class Job:
    """As much of a claimed job as a runner reads."""

    task, version, lease_id, journal, inputs = "wait", 1, "l", None, None

    def __init__(self, payload: bytes) -> None:
        self.payload = payload


def held(payload: str) -> Held:
    return Held(cast("ClaimedJob", Job(payload.encode())), cast("Any", None), 60.0, 20.0, 0.0)


class Rig:
    def __init__(self, concurrency: int = 2, prefetch: int | None = None) -> None:
        app = ff.App("memory://runner")
        self.gate = asyncio.Event()
        self.outcomes, self.started = Outcomes(), 0

        @app.task
        async def wait(long: bool) -> None:
            self.started += 1
            if long:
                await self.gate.wait()

        self.runners = Runners(self.outcomes, cast("Isolated", None), app.tasks, concurrency, prefetch)


async def until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STUCK_S", 0.02)


async def test_a_buffer_that_does_not_move_is_given_back() -> None:
    """Handlers were short, so jobs were taken in advance; now they are long, and another worker may be idle."""
    rig = Rig()
    rig.runners.add([held("false")])
    await until(lambda: rig.outcomes.done)
    assert rig.runners.capacity() > 2, "short handlers are worth a buffer"
    rig.runners.add([held("true") for _ in range(10)])
    await until(lambda: rig.outcomes.given_back)
    assert len(rig.outcomes.given_back) == 8 and rig.runners.running_n == 2
    assert rig.runners.capacity() == 2, "or the worker would take them again at once"
    rig.gate.set()
    await until(lambda: len(rig.outcomes.done) == 3)
    await rig.runners.close()


async def test_a_buffer_that_moves_is_kept() -> None:
    rig = Rig(concurrency=1)
    rig.runners.add([held("true"), *(held("false") for _ in range(500))])
    await until(lambda: rig.started)
    rig.gate.set()
    await until(lambda: len(rig.outcomes.done) == 501)
    assert not rig.outcomes.given_back
    await rig.runners.close()


async def test_who_asked_for_a_prefetch_keeps_what_he_asked_for() -> None:
    rig = Rig(concurrency=1, prefetch=5)
    rig.runners.add([held("true") for _ in range(4)])
    await asyncio.sleep(module.STUCK_S * 3)
    assert len(rig.runners.buffer) == 3 and not rig.outcomes.given_back
    await rig.runners.close()
