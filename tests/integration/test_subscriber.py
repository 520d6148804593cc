"""Hints over sharded channels; the promise under test: what is confirmed arrives, and every loss is reported."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator

import pytest

from ffbackend_valkey.connection import Link
from ffbackend_valkey.multiplexer import Multiplexer
from ffbackend_valkey.subscriber import Subscriber
from ffbackend_valkey.url import Target, parse_url
from ffcore.errors import Incompatible, Unavailable
from tests.integration.proxy import Proxy, own_server, until


@pytest.fixture
def channel() -> str:
    return f"test:{uuid.uuid4()}"


@contextlib.asynccontextmanager
async def listening(target: Target, **options: float) -> AsyncIterator[Subscriber]:
    subscriber = Subscriber(target, **options)  # type: ignore[arg-type]
    try:
        yield subscriber
    finally:
        await subscriber.close()


class Inbox:
    def __init__(self) -> None:
        self.messages: list[tuple[str, bytes]] = []
        self.gaps = 0

    def take(self, channel: str, data: bytes) -> None:
        self.messages.append((channel, data))

    def gap(self) -> None:
        self.gaps += 1


async def test_a_message_published_after_subscribe_returned_arrives(
    target: Target, direct: Multiplexer, channel: str
) -> None:
    inbox = Inbox()
    async with listening(target) as subscriber:
        for n in range(20):
            await subscriber.subscribe(f"{channel}:{n}", inbox.take)
            assert await direct.call("SPUBLISH", f"{channel}:{n}", b"\x00%d" % n) == 1
        await until(lambda: len(inbox.messages) == 20, "twenty messages")
        assert inbox.messages == [(f"{channel}:{n}", b"\x00%d" % n) for n in range(20)]


async def test_many_channels_can_be_subscribed_at_once(target: Target, direct: Multiplexer, channel: str) -> None:
    inbox = Inbox()
    async with listening(target) as subscriber:
        await asyncio.gather(*(subscriber.subscribe(f"{channel}:{n}", inbox.take) for n in range(200)))
        reached = await asyncio.gather(*(direct.call("SPUBLISH", f"{channel}:{n}", "x") for n in range(200)))
        assert reached == [1] * 200
        await until(lambda: len(inbox.messages) == 200)


async def test_a_channel_has_many_listeners_and_ends_with_the_last(
    target: Target, direct: Multiplexer, channel: str
) -> None:
    one, two = Inbox(), Inbox()
    async with listening(target) as subscriber:
        await subscriber.subscribe(channel, one.take)
        await subscriber.subscribe(channel, two.take)
        assert await direct.call("SPUBLISH", channel, "both") == 1
        await until(lambda: len(one.messages) == len(two.messages) == 1)
        await subscriber.unsubscribe(channel, one.take)
        assert await direct.call("SPUBLISH", channel, "two") == 1
        await until(lambda: len(two.messages) == 2)
        assert len(one.messages) == 1
        await subscriber.unsubscribe(channel)
        assert await direct.call("SPUBLISH", channel, "nobody") == 0
        await subscriber.unsubscribe(channel)
        await subscriber.subscribe(channel, one.take)
        assert await direct.call("SPUBLISH", channel, "again") == 1
        await until(lambda: one.messages[-1] == (channel, b"again"))


async def test_subscribing_again_while_unsubscribing_ends_subscribed(
    target: Target, direct: Multiplexer, channel: str
) -> None:
    inbox = Inbox()
    async with listening(target) as subscriber:
        await subscriber.subscribe(channel, inbox.take)
        for _ in range(10):
            await asyncio.gather(subscriber.unsubscribe(channel), subscriber.subscribe(channel, inbox.take))
        assert await direct.call("SPUBLISH", channel, "x") == 1
        await until(lambda: len(inbox.messages) == 1)


async def test_a_cut_is_survived_and_reported_as_a_gap(proxy: Proxy, direct: Multiplexer, channel: str) -> None:
    inbox = Inbox()
    async with listening(proxy.target) as subscriber:
        subscriber.on_gap(inbox.gap)
        await subscriber.subscribe(channel, inbox.take)
        await subscriber.subscribe(f"{channel}:2", inbox.take)
        assert inbox.gaps == 0
        for cut in (1, 2, 3):
            proxy.cut()
            await until(lambda cut=cut: inbox.gaps == cut, "the report of a gap")  # type: ignore[misc]
            # All channels were subscribed again before the gap was reported: a poll now misses nothing.
            assert await direct.call("SPUBLISH", channel, f"a{cut}") == 1
            assert await direct.call("SPUBLISH", f"{channel}:2", f"b{cut}") == 1
            await until(lambda cut=cut: len(inbox.messages) == 2 * cut)  # type: ignore[misc]
        subscriber.off_gap(inbox.gap)
        proxy.cut()
        await until(lambda: proxy.accepted == 5 and subscriber.connected, "the fifth connection")
        assert inbox.gaps == 3


async def test_a_channel_left_while_the_connection_is_made_anew_takes_no_other_along(
    proxy: Proxy, direct: Multiplexer, channel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    inbox, left = Inbox(), f"{channel}:left"
    async with listening(proxy.target) as subscriber:
        subscriber.on_gap(inbox.gap)
        await subscriber.subscribe(channel, inbox.take)
        await subscriber.subscribe(left, inbox.take)
        ask = subscriber._ask

        def leave(link: Link, verb: str, name: str) -> asyncio.Future[object]:
            if (verb, name) == ("SSUBSCRIBE", left):
                asyncio.get_running_loop().call_soon(subscriber.forget, left)
            return ask(link, verb, name)

        monkeypatch.setattr(subscriber, "_ask", leave)
        proxy.cut()
        await until(lambda: inbox.gaps == 1, "the report of a gap")
        assert await direct.call("SPUBLISH", channel, "after") == 1
        await until(lambda: inbox.messages == [(channel, b"after")])
        assert await direct.call("SPUBLISH", left, "nobody") == 0


async def test_a_connection_that_went_silent_is_noticed(proxy: Proxy, direct: Multiplexer, channel: str) -> None:
    """No reset, no end of file: a router forgot the connection."""
    inbox = Inbox()
    async with listening(proxy.target, ping_every=0.05) as subscriber:
        subscriber.on_gap(inbox.gap)
        await subscriber.subscribe(channel, inbox.take)
        proxy.drop_replies()
        await until(lambda: inbox.gaps == 1, "the report of a gap")
        assert await direct.call("SPUBLISH", channel, "after") >= 1
        await until(lambda: (channel, b"after") in inbox.messages)


async def test_a_quiet_connection_that_answers_pings_is_kept(proxy: Proxy, channel: str) -> None:
    inbox = Inbox()
    async with listening(proxy.target, ping_every=0.01) as subscriber:
        subscriber.on_gap(inbox.gap)
        await subscriber.subscribe(channel, inbox.take)
        asked = proxy.requested
        await until(lambda: proxy.requested > asked + 20 * len("*1\r\n$4\r\nPING\r\n"), "twenty pings")
        assert (inbox.gaps, proxy.accepted) == (0, 1)


async def test_subscribing_without_a_server_fails_in_bounded_time_and_works_when_it_is_back(
    proxy: Proxy, direct: Multiplexer, channel: str
) -> None:
    inbox = Inbox()
    await proxy.refuse()
    async with listening(proxy.target, connect_timeout=0.2) as subscriber:
        with pytest.raises(Unavailable, match=r"127\.0\.0\.1"):
            await subscriber.subscribe(channel, inbox.take)
        await proxy.start()
        await until(lambda: subscriber.connected)
        assert await direct.call("SPUBLISH", channel, "nobody") == 0
        await subscriber.subscribe(channel, inbox.take)
        assert await direct.call("SPUBLISH", channel, "x") == 1


async def test_a_subscription_asked_for_during_an_outage_is_made_after_it(
    proxy: Proxy, direct: Multiplexer, channel: str
) -> None:
    inbox = Inbox()
    async with listening(proxy.target, connect_timeout=10.0) as subscriber:
        await subscriber.subscribe(channel, inbox.take)
        await proxy.refuse()
        await until(lambda: not subscriber.connected)
        asked = asyncio.create_task(subscriber.subscribe(f"{channel}:2", inbox.take))
        await proxy.start()
        await asked
        assert await direct.call("SPUBLISH", f"{channel}:2", "x") == 1


async def test_a_cancelled_subscribe_leaves_nothing_behind(proxy: Proxy, direct: Multiplexer, channel: str) -> None:
    inbox = Inbox()
    async with listening(proxy.target) as subscriber:
        await subscriber.subscribe(f"{channel}:other", inbox.take)
        proxy.hold_replies()
        asked = asyncio.create_task(subscriber.subscribe(channel, inbox.take))
        await until(lambda: proxy.held > 0)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        proxy.release()
        await subscriber.subscribe(f"{channel}:next", inbox.take)
        assert await direct.call("SPUBLISH", channel, "nobody") == 0
        assert await direct.call("SPUBLISH", f"{channel}:other", "x") == 1


async def test_a_listener_that_raises_does_not_silence_the_others(
    target: Target, direct: Multiplexer, channel: str
) -> None:
    inbox = Inbox()
    heard: list[BaseException] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: heard.append(context["exception"]))

    def broken(_channel: str, _data: bytes) -> None:
        raise ValueError("broken listener")

    async with listening(target) as subscriber:
        await subscriber.subscribe(channel, broken)
        await subscriber.subscribe(channel, inbox.take)
        for data in ("a", "b"):
            await direct.call("SPUBLISH", channel, data)
        await until(lambda: len(inbox.messages) == 2)
    assert [str(one) for one in heard] == ["broken listener"] * 2


async def test_a_denied_channel_is_told_and_the_others_stay(channel: str) -> None:
    with own_server() as own:
        admin = await Multiplexer.open(parse_url(f"valkey://127.0.0.1:{own.port}"))
        await admin.call("ACL", "SETUSER", "lim", "on", ">pw", "+@all", "resetchannels", "&allowed*")
        inbox = Inbox()
        async with listening(parse_url(f"valkey://lim:pw@127.0.0.1:{own.port}")) as subscriber:
            await subscriber.subscribe("allowed:1", inbox.take)
            with pytest.raises(Incompatible, match="ACL"):
                await subscriber.subscribe("denied", inbox.take)
            await subscriber.subscribe("allowed:2", inbox.take)
            assert await admin.call("SPUBLISH", "allowed:1", "x") == 1
            assert await admin.call("SPUBLISH", "allowed:2", "x") == 1
            await until(lambda: len(inbox.messages) == 2)
        await admin.close()


async def test_a_wrong_password_is_told_at_once(channel: str) -> None:
    with own_server() as own:
        admin = await Multiplexer.open(parse_url(f"valkey://127.0.0.1:{own.port}"))
        await admin.call("CONFIG", "SET", "requirepass", "right")
        await admin.close()
        async with listening(parse_url(f"valkey://:CANARY@127.0.0.1:{own.port}"), connect_timeout=60.0) as subscriber:
            with pytest.raises(Incompatible, match="URL") as refused:
                await subscriber.subscribe(channel, Inbox().take)
            assert "CANARY" not in repr(refused.value)


async def test_after_close_nobody_is_called_and_nobody_can_subscribe(
    target: Target, direct: Multiplexer, channel: str
) -> None:
    inbox = Inbox()
    subscriber = Subscriber(target)
    await subscriber.subscribe(channel, inbox.take)
    await subscriber.close()
    await until_nobody_listens(direct, channel)
    with pytest.raises(Unavailable, match="closed"):
        await subscriber.subscribe(channel, inbox.take)
    assert inbox.messages == []
    await subscriber.close()


async def until_nobody_listens(direct: Multiplexer, channel: str) -> None:
    while await direct.call("SPUBLISH", channel, "x"):
        pass
