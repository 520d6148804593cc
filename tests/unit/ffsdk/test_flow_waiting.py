"""Waiting for flows, with a store that answers as it is told: told by a message, by the poll, or that it is no use."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

import pytest

from ffcore.contracts.flow import AwaitFlowArgs, FlowInfo
from ffcore.errors import EngineBug, EngineError, NotFound, Unavailable
from ffcore.ids import FlowId
from ffsdk import waiters as module
from ffsdk.flows import outcome_of
from ffsdk.pace import Pace
from ffsdk.waiters import Waiters

UUID = "00000000-0000-7000-8000-000000000001"
FLOW = FlowId(f"{{fp:0}}:{UUID}")


def info(state: str, public: str = "running", **counts: int) -> FlowInfo:
    return FlowInfo(
        flow_id=FLOW, flow_kind="", namespace=cast("Any", "default"), name="f", state=state, public_flow_state=public,
        graph_revision=1, node_count=1, edge_count=0, created_at=cast("Any", 1), last_mutation_at=cast("Any", 1),
        ended_at=None, cancelled_at=None, cancel_reason=None, cancellation_policy=None, resolving=0, payload_bytes=0,
        counts=counts, tags={},
    )  # fmt: skip


class Store:
    """Answers one after the other, the last one for ever; `tell` is its channel."""

    def __init__(self, *answers: FlowInfo | Exception, deaf: bool = False) -> None:
        self.answers, self.asked_n, self.deaf = list(answers), 0, deaf
        self.tell: Callable[[str, bytes], None] | None = None

    def client_channel(self, partition: str, name: str) -> str:
        return f"{partition}:{name}"

    async def subscribe(self, channels: Any, heard: Any, *_: Any) -> Any:
        if self.deaf:
            raise Unavailable("no channel")
        self.tell = heard
        return self

    async def close(self) -> None: ...

    async def call(self, args: Any) -> Any:
        assert isinstance(args, AwaitFlowArgs) and args.client == "me"
        assert self.tell is not None or self.deaf, "heard before it is registered"
        self.asked_n += 1
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


def waiters_of(store: Store) -> Waiters:
    return Waiters(cast("Any", store), "me", Pace())


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


async def test_a_message_ends_the_wait_of_everybody() -> None:
    store = Store(info("live"), info("ended", "failed", failed=1, skipped=2))
    waiters = waiters_of(store)
    waiting = [asyncio.ensure_future(waiters.wait_flow(FLOW)) for _ in range(3)]
    await until(lambda: store.asked_n == 1)
    assert store.tell is not None
    store.tell("channel", f"{UUID} failed\n00000000-0000-7000-8000-000000000009 completed\n".encode())
    found = await asyncio.gather(*waiting)
    assert store.asked_n == 2, "one question for all who wait"
    outcome = outcome_of(found[0])
    assert (outcome.state, outcome.counts) == (
        "failed", {"completed": 0, "failed": 1, "cancelled": 0, "expired": 0, "skipped": 2},
    )  # fmt: skip
    await waiters.close()


async def test_a_flow_that_has_ended_is_answered_at_once() -> None:
    waiters = waiters_of(Store(info("purging", "completed")))
    assert (await waiters.wait_flow(FLOW)).public_flow_state == "completed"
    await waiters.close()


@pytest.mark.parametrize("deaf", [False, True])
async def test_a_lost_message_costs_a_poll(monkeypatch: pytest.MonkeyPatch, deaf: bool) -> None:
    monkeypatch.setattr(module, "POLL_S", 0.001)
    store = Store(info("live"), Unavailable("away"), info("live", "cancelled"), info("ended", "cancelled"), deaf=deaf)
    waiters = waiters_of(store)
    assert (await waiters.wait_flow(FLOW)).state == "ended", "cancelled is not ended: its jobs may still run"
    await waiters.close()


@pytest.mark.parametrize("failure", [NotFound("gone", code="flow_not_found"), ValueError("broken")])
async def test_what_repeating_does_not_mend_is_told_to_each_on_his_own(failure: Exception) -> None:
    waiters = waiters_of(Store(failure))
    told = await asyncio.gather(*(waiters.wait_flow(FLOW) for _ in range(2)), return_exceptions=True)
    assert [type(error) for error in told] == [NotFound if isinstance(failure, EngineError) else EngineBug] * 2
    assert told[0] is not told[1]
    await waiters.close()


async def test_who_gives_up_disturbs_nobody() -> None:
    store = Store(info("live"), info("ended", "completed"))
    waiters = waiters_of(store)
    first, second = (asyncio.ensure_future(waiters.wait_flow(FLOW)) for _ in range(2))
    await until(lambda: store.asked_n == 1)
    first.cancel()
    await asyncio.sleep(0)
    assert store.tell is not None
    store.tell("channel", f"{UUID} completed".encode())
    assert (await second).ended and first.cancelled()
    store.tell("channel", f"{UUID} completed".encode())
    await asyncio.sleep(0)
    assert store.asked_n == 2, "nobody waits for it any more"
    await waiters.close()


async def test_the_end_of_the_client_ends_the_wait() -> None:
    waiters = waiters_of(Store(info("live")))
    waiting = asyncio.ensure_future(waiters.wait_flow(FLOW))
    await asyncio.sleep(0)
    await waiters.close()
    with pytest.raises(Unavailable) as told:
        await waiting
    assert told.value.code == "closed"
    with pytest.raises(Unavailable):
        await waiters.wait_flow(FLOW)
