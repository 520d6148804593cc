"""Writes that count once a replica has them, on one server with a replica behind a proxy."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest

from ffbackend_valkey.confirm import Confirming
from ffbackend_valkey.multiplexer import Multiplexer
from ffbackend_valkey.stores import connect
from ffbackend_valkey.url import Target, parse_url
from ffcore.backend import StoreConfig
from ffcore.errors import Unavailable
from tests.conformance.test_calls import creation
from tests.integration.proxy import Proxy, own_server, until


@pytest.fixture(scope="module")
def primary() -> Iterator[Target]:
    with own_server() as server:
        yield parse_url(f"valkey://127.0.0.1:{server.port}")


@pytest.fixture
async def replica(primary: Target) -> AsyncIterator[Multiplexer]:
    """A replica in step with the primary."""
    with own_server() as server:
        mux = await Multiplexer.open(parse_url(f"valkey://127.0.0.1:{server.port}"))
        at = await Multiplexer.open(primary)
        await at.call("CONFIG", "SET", "repl-diskless-sync-delay", 0)
        await mux.call("REPLICAOF", primary.host, primary.port)
        for _ in range(1000):
            if (await mux.call("ROLE"))[3] == b"connected":
                break
            await asyncio.sleep(0.01)
        yield mux
        await mux.call("REPLICAOF", "NO", "ONE")
        await mux.close()
        await at.close()


async def test_a_write_is_on_the_replica_when_it_is_answered(
    primary: Target, replica: Multiplexer, key: str
) -> None:
    confirming = Confirming(primary)
    for n in range(30):
        answers = await asyncio.gather(*(confirming.call("SET", f"{key}:{n}:{m}", "x") for m in range(20)))
        assert answers == [b"OK"] * 20
        assert await replica.call("EXISTS", *(f"{key}:{n}:{m}" for m in range(20))) == 20
    await confirming.close()


async def test_a_replica_that_stands_still_makes_every_write_of_the_group_doubtful_but_no_refusal(
    primary: Target, replica: Multiplexer, key: str
) -> None:
    confirming = Confirming(primary, wait_ms=100)
    await confirming.call("SET", key, "text")
    await replica.call("REPLICAOF", "NO", "ONE")
    calls = [("SET", key + "1", "x"), ("LPUSH", key, "x"), ("SET", key + "2", "x")]
    results = await asyncio.gather(*(confirming.call(*call) for call in calls), return_exceptions=True)
    assert [getattr(one, "code", one) for one in results] == ["not_replicated", "engine_bug", "not_replicated"]
    assert "WRONGTYPE" in str(results[1])
    assert all(isinstance(one, Unavailable) and one.may_have_applied for one in (results[0], results[2]))
    await confirming.close()


async def test_a_lost_answer_is_doubtful_and_what_waited_behind_it_is_sent(
    primary: Target, replica: Multiplexer, key: str
) -> None:
    proxy = Proxy(primary)
    await proxy.start()
    confirming = Confirming(proxy.target)
    await confirming.call("SET", key, 0)
    proxy.drop_replies()
    first = confirming.call("INCRBY", key, 1)
    await until(lambda: proxy.swallowed > 0, "the reply")
    second = confirming.call("INCRBY", key, 10)
    proxy.cut()
    with pytest.raises(Unavailable) as doubt:
        await first
    assert doubt.value.may_have_applied
    assert await second == 11, "sent once, on the next connection, and the first had applied once"
    await confirming.close()
    await proxy.close()


async def test_without_a_server_a_write_fails_in_bounded_time_and_was_never_sent(primary: Target) -> None:
    proxy = Proxy(primary)
    await proxy.start()
    await proxy.refuse()
    confirming = Confirming(proxy.target, connect_timeout=0.2)
    with pytest.raises(Unavailable) as refused:
        await confirming.call("SET", "x", 1)
    assert refused.value.may_have_applied is False
    await proxy.start()
    await confirming.close()
    with pytest.raises(Unavailable) as closed:
        await confirming.call("SET", "x", 1)
    assert closed.value.code == "closed"
    await proxy.close()


async def test_a_whole_backend_confirms_its_writes_and_reads_as_ever(primary: Target, replica: Multiplexer) -> None:
    await (await connect(primary.display, init=StoreConfig(fp=2))).close()
    backend = await connect(primary.display, durability="replicated", patience=0.2)
    made = await backend.call(creation())
    assert (await backend.call(creation(made.execution_id))).__class__.__name__ == "Duplicate"
    await replica.call("REPLICAOF", "NO", "ONE")
    with pytest.raises(Unavailable) as doubt:
        await backend.call(creation())
    assert (doubt.value.code, doubt.value.may_have_applied) == ("not_replicated", True)
    await backend.close()
