"""Connections to nodes that come and go, without a node: addresses nobody listens at."""

from __future__ import annotations

import asyncio

import pytest

from ffbackend_valkey.cluster_calls import ClusterCalls
from ffbackend_valkey.cluster_slots import SLOTS, Range
from ffbackend_valkey.url import parse_url
from ffcore.errors import Unavailable


async def test_a_node_that_only_confirmed_writes_is_left_like_any_other() -> None:
    """What waits for it goes to its successor at once, and no connection stays behind."""
    calls = ClusterCalls(parse_url("valkey+cluster://127.0.0.1:1"))
    calls.slots.adopt([Range(0, SLOTS - 1, ("127.0.0.1", 1), ())])
    waiting = calls.confirming.call("SET", "key", "x")
    calls.slots.adopt([Range(0, SLOTS - 1, ("127.0.0.1", 2), ())])
    async with asyncio.timeout(1):
        with pytest.raises(Unavailable) as away:
            await waiting
    assert (away.value.code, away.value.may_have_applied) == ("moved_away", False)
    again = calls.confirming.call("SET", "key", "x")
    await calls.close()
    with pytest.raises(Unavailable, match="closed"):
        await again
