"""Logins, TLS, refusals and a thread's connection; the promise under test: typed errors that name the remedy."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ffbackend_valkey.blocking import BlockingConnection
from ffbackend_valkey.connection import FunctionMissing, Reply, async_connection, backoff, read_refusal, translate
from ffbackend_valkey.multiplexer import Multiplexer
from ffbackend_valkey.url import Target, parse_url
from ffcore.errors import EngineBug, EngineError, Incompatible, InvalidArgument, StoreFull, Unavailable
from tests.integration.proxy import Proxy, opened, own_server


@pytest.fixture(scope="module")
def locked() -> Iterator[Target]:
    with own_server() as server:
        admin = BlockingConnection(parse_url(f"valkey://127.0.0.1:{server.port}"))
        admin.call("CONFIG", "SET", "requirepass", "right")
        admin.close()
        yield parse_url(f"valkey://:right@127.0.0.1:{server.port}")


async def test_the_right_password_opens_every_kind_of_connection(locked: Target) -> None:
    async with opened(locked) as mux:
        assert await mux.call("ECHO", "in") == b"in"
        await mux.call("ACL", "SETUSER", "me", "on", ">p w", "allkeys", "allcommands")
        async with opened(parse_url(f"valkey://me:p%20w@127.0.0.1:{locked.port}")) as mine:
            assert await mine.call("ACL", "WHOAMI") == b"me"
    blocking = BlockingConnection(locked)
    assert blocking.call("ECHO", "in") == b"in"
    blocking.close()
    plain = async_connection(locked, role="confirm", timeout=5.0)
    await plain.connect()
    await plain.send_command("CLIENT", "GETNAME")
    assert await plain.read_response(disable_decoding=True) == b"ff:confirm"
    await plain.disconnect()


@pytest.mark.parametrize("login", ["", ":CANARY@", "nobody:CANARY@"])
async def test_a_wrong_password_is_told_with_the_remedy_and_without_the_password(
    locked: Target, login: str, caplog: pytest.LogCaptureFixture
) -> None:
    wrong = parse_url(f"valkey://{login}127.0.0.1:{locked.port}")
    with pytest.raises(Incompatible, match="URL") as refused:
        await Multiplexer.open(wrong)
    with pytest.raises(Incompatible, match="URL") as also:
        BlockingConnection(wrong).call("PING")
    said = f"{refused.value!r} {refused.value.detail} {refused.value.__cause__!r} {also.value!r} {also.value.detail}"
    assert "CANARY" not in said + caplog.text


async def test_a_password_for_a_server_that_has_none_is_told(target: Target) -> None:
    """Valkey takes any password for a user without one when it comes with HELLO; with AUTH it refuses."""
    try:
        mux = await Multiplexer.open(parse_url(f"valkey://:x@{target.host}:{target.port}"))
    except Incompatible as refused:
        assert "no password" in str(refused)
    else:
        assert await mux.call("ECHO", "in") == b"in"
        await mux.close()


async def test_a_changed_password_fails_held_calls_with_the_reason() -> None:
    """Waiting for the timeout would hide the only useful word."""
    with own_server() as server:
        target = parse_url(f"valkey://127.0.0.1:{server.port}")
        async with opened(target, connect_timeout=60.0) as mux, opened(target) as other:
            await mux.call("CONFIG", "SET", "requirepass", "new")
            await other.call("CLIENT", "KILL", "ID", await mux.call("CLIENT", "ID"))
            with pytest.raises((Incompatible, Unavailable)):
                await mux.call("ECHO", "lost with the connection")
            with pytest.raises(Incompatible, match="asks for a password"):
                await mux.call("ECHO", 1)


@pytest.mark.parametrize(("text", "expected", "code"), [
    ("LOADING Valkey is loading the dataset in memory", Unavailable, "loading"),
    ("BUSY Valkey is busy running a script.", Unavailable, "busy"),
    ("MISCONF Errors writing to the AOF file: No space left on device", Unavailable, "misconf"),
    ("READONLY You can't write against a read only replica.", Unavailable, "readonly"),
    ("CLUSTERDOWN Hash slot not served", Unavailable, "clusterdown"),
    ("TRYAGAIN Multiple keys request during rehashing of slot", Unavailable, "tryagain"),
    ("NOREPLICAS Not enough good replicas to write.", Unavailable, "noreplicas"),
    ("MOVED 3999 127.0.0.1:6381", Unavailable, "moved"),
    ("OOM command not allowed when used memory > 'maxmemory'.", StoreFull, "store_full"),
    ("WRONGPASS invalid username-password pair or user is disabled.", Incompatible, "incompatible"),
    ("NOAUTH Authentication required.", Incompatible, "incompatible"),
    ("NOPERM User lim has no permissions to run the 'get' command", Incompatible, "incompatible"),
    ("ERR ACL failure in script: User lim script: on @user_function:4.", Incompatible, "incompatible"),
    ("ERR unknown command 'FCALL', with args beginning with: 'f'", Incompatible, "incompatible"),
    ("ERR Function not found", FunctionMissing, "function_missing"),
    ("FFBUG ff_x: argument 2", EngineBug, "engine_bug"),
    ("ERR user_function:4: attempt to index nil script: on @user_function:4.", EngineBug, "engine_bug"),
    ("WRONGTYPE Operation against a key script: on @user_function:4.", EngineBug, "engine_bug"),
    ("BUSYGROUP Consumer Group name already exists", EngineBug, "engine_bug"),
])
def test_a_refusal_is_read_by_its_words(text: str, expected: type[EngineError], code: str) -> None:
    failure = read_refusal(text)
    assert type(failure) is expected
    assert failure.code == code
    assert failure.detail
    assert not getattr(failure, "may_have_applied", False), "the server answered, so nothing was applied"


def test_what_a_socket_raises_is_unavailable_and_what_nobody_expects_is_a_bug() -> None:
    for exc in (ConnectionResetError("reset"), TimeoutError(), OSError(113, "No route to host"), EOFError()):
        for applied in (True, False):
            failure = translate(exc, may_have_applied=applied)
            assert isinstance(failure, Unavailable) and failure.may_have_applied is applied
    assert isinstance(translate(KeyError("x"), may_have_applied=False), EngineBug)


def test_backing_off_grows_to_a_second_and_is_never_the_same_for_all() -> None:
    for attempt in range(50):
        most = min(1.0, 0.05 * 2 ** min(attempt, 10))
        drawn = {backoff(attempt) for _ in range(20)}
        assert all(most / 2 <= one <= most for one in drawn)
        assert len(drawn) > 1


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, ssl.SSLContext]:
    """A certificate for `localhost` that nobody has signed, and a server's context with it."""
    key, pem = tmp_path / "key.pem", tmp_path / "ca.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(pem)],
        check=True, capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem, key)
    return pem, context


async def test_tls_checks_the_certificate_and_the_name(
    target: Target, certificate: tuple[Path, ssl.SSLContext]
) -> None:
    ca, context = certificate
    proxy = Proxy(target, tls=context)
    await proxy.start()
    try:
        for good in (f"valkeys://localhost:{proxy.port}?ca={ca}", f"rediss://127.0.0.1:{proxy.port}?verify=none"):
            async with opened(parse_url(good)) as mux:
                assert await mux.call("ECHO", b"x" * 100_000) == b"x" * 100_000
            assert await asyncio.to_thread(call_once, parse_url(good), "ECHO", "y") == b"y"
        for bad in (f"valkeys://localhost:{proxy.port}", f"valkeys://127.0.0.1:{proxy.port}?ca={ca}"):
            with pytest.raises(Incompatible, match=r"\?ca="):
                await Multiplexer.open(parse_url(bad))
            with pytest.raises(Incompatible, match=r"\?ca="):
                await asyncio.to_thread(call_once, parse_url(bad), "ECHO", "y")
    finally:
        await proxy.close()


def call_once(target: Target, *command: str) -> Reply:
    blocking = BlockingConnection(target)
    try:
        return blocking.call(*command)
    finally:
        blocking.close()


async def test_a_ca_file_that_is_not_there_is_bad_input(target: Target) -> None:
    missing = parse_url(f"valkeys://{target.host}:{target.port}?ca=/no/such.pem")
    with pytest.raises(InvalidArgument, match="ca=/no/such"):
        await Multiplexer.open(missing)
    with pytest.raises(InvalidArgument, match="ca=/no/such"):
        await asyncio.to_thread(call_once, missing, "PING")


async def test_tls_with_a_server_that_speaks_none_ends_in_bounded_time(target: Target) -> None:
    """The server takes the greeting for the beginning of a command and waits for its end."""
    with pytest.raises(Unavailable, match=f"{target.host}:{target.port}"):
        await Multiplexer.open(parse_url(f"valkeys://{target.host}:{target.port}"), connect_timeout=0.3)


# ------------------------------------------------------------------------------------------------ a thread's connection


async def test_a_thread_s_call_with_a_lost_reply_executes_once(proxy: Proxy, direct: Multiplexer, key: str) -> None:
    blocking = BlockingConnection(proxy.target, timeout=0.2)
    assert await asyncio.to_thread(blocking.call, "INCR", key) == 1
    proxy.drop_replies()
    with pytest.raises(Unavailable) as lost:
        await asyncio.to_thread(blocking.call, "INCR", key)
    assert lost.value.may_have_applied
    assert await direct.call("GET", key) == b"2"
    assert await asyncio.to_thread(blocking.call, "INCR", key) == 3
    assert proxy.accepted == 2
    blocking.close()
    with pytest.raises(Unavailable, match="closed"):
        blocking.call("PING")


def test_threads_take_turns_and_get_their_own_replies(target: Target) -> None:
    blocking = BlockingConnection(target)
    wrong: list[object] = []

    def caller(who: int) -> None:
        wrong.extend(n for n in range(200) if blocking.call("ECHO", f"{who}:{n}") != f"{who}:{n}".encode())

    threads = [threading.Thread(target=caller, args=(who,)) for who in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    with pytest.raises(EngineBug, match="wrong number"):
        blocking.call("ECHO")
    assert blocking.call("ECHO", "still in step") == b"still in step"
    blocking.close()
