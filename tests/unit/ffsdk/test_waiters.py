"""Waiting, with a store that answers as it is told: what one waiter hears is his own."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from ffcore.errors import EngineBug, EngineError, Rejected
from ffcore.ids import ExecutionId
from ffsdk.pace import Pace
from ffsdk.waiters import Waiters

JOBS = [ExecutionId(f"{{fp:0}}:00000000-0000-7000-8000-{n:012}") for n in range(3)]


class Store:
    """Fails every call."""

    def __init__(self, failure: Exception) -> None:
        self._failure = failure

    def client_channel(self, partition: str, name: str) -> str:
        return f"{partition}:{name}"

    async def subscribe(self, *_: Any) -> Any:
        return self

    async def close(self) -> None:
        return None

    async def call(self, args: Any) -> Any:
        raise self._failure


def waiters_of(failure: Exception) -> Waiters:
    return Waiters(Store(failure), "me", Pace())  # type: ignore[arg-type]


@pytest.mark.parametrize("failure", [Rejected("no", code="unauthorized", detail="why"), ValueError("broken")])
async def test_whoever_waits_is_told_by_an_error_of_his_own(failure: Exception) -> None:
    """One error raised in many tasks collects the tracebacks and notes of all of them."""
    waiters = waiters_of(failure)
    told = await asyncio.gather(*(waiters.wait(job) for job in (*JOBS, JOBS[0])), return_exceptions=True)
    expected = failure if isinstance(failure, EngineError) else EngineBug("")
    assert [type(error) for error in told] == [type(expected)] * 4
    assert len({id(error) for error in told}) == 4
    if isinstance(failure, EngineError):
        assert all(vars(error) == vars(failure) for error in told)
    await waiters.close()


async def test_the_end_of_a_client_is_told_to_each_on_his_own() -> None:
    waiters = waiters_of(EngineBug("not asked"))
    waiting = [asyncio.ensure_future(waiters.wait(job)) for job in JOBS]
    await asyncio.sleep(0)
    await waiters.close()
    told = await asyncio.gather(*waiting, return_exceptions=True)
    assert [getattr(error, "code", "") for error in told] == ["closed"] * 3
    assert len({id(error) for error in told}) == 3
