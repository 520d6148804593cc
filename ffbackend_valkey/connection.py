"""The one place that opens connections and reads errors; the rule: nothing is ever sent twice.

Three shapes of connection, all with the same login, name (`ff:<role>`), keepalive and connect timeout:
`open_link` (own protocol, for many callers or for a subscriber), `sync_connection` (for a thread) and
`async_connection` (for one caller who may block the connection, as WAIT does).
"""

from __future__ import annotations

import asyncio
import random
import socket
import ssl
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, Protocol, cast

import hiredis
import redis.asyncio.connection as aio
import redis.connection as sync
import redis.exceptions as refusals
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.retry import Retry

from ffbackend_valkey.url import Target
from ffcore import limits
from ffcore.errors import EngineBug, EngineError, Incompatible, InvalidArgument, StoreFull, Unavailable

Word = str | bytes | int | float
"""One word of a command."""
Reply = Any
"""A raw reply: bytes, int, None or a list of replies; an error inside a list is an EngineError in its place."""

CONNECT_TIMEOUT_S: Final = 5.0
RETRY_AFTER_MS: Final = limits.FULL_RETRY_MS
"""What StoreFull advises: memory is freed by finishing work, which takes seconds rather than milliseconds."""
_BACKOFF_FIRST_S: Final = 0.05
_BACKOFF_MOST_S: Final = 1.0

_untyped: Any = hiredis
pack: Final[Callable[[tuple[Word, ...]], bytes]] = _untyped.pack_command


class FunctionMissing(EngineError):
    """The server lacks the library (a new primary, FUNCTION FLUSH). Nothing ran: load it and repeat."""

    code = "function_missing"


# ---------------------------------------------------------------------------------------------------- errors

_TRY_LATER: Final = {
    "LOADING": "the server is reading its data from disk",
    "BUSY": "the server is busy with a long function",
    "MISCONF": "the server cannot write to its disk and refuses changes; free disk space or fix its permissions",
    "READONLY": "the server is a replica and takes no writes",
    "MASTERDOWN": "the server is a replica that has lost its primary",
    "NOREPLICAS": "too few replicas are connected (min-replicas-to-write)",
    "CLUSTERDOWN": "the cluster does not serve this slot now",
    "TRYAGAIN": "the slot is being moved to another node",
    "MOVED": "the slot lives on another node; for a cluster use valkey+cluster://",
    "ASK": "the slot is being moved to another node",
    "UNBLOCKED": "the server gave up a blocking command",
}
_LOGIN: Final = {
    "WRONGPASS": "the server refused the user name or password; correct them in the URL (valkey://user:pass@host)",
    "NOAUTH": "the server asks for a password; add it to the URL (valkey://user:pass@host)",
    "NOPERM": "the server's ACL denies this user a command, key or channel; grant what docs name, or use another user",
    "DENIED": "the server runs in protected mode; set a password on it and put that into the URL",
}
_SPELLED: Final[tuple[tuple[type[Exception], str], ...]] = (
    # redis-py strips the first word of these; subclasses come before their bases.
    (refusals.AuthenticationWrongNumberOfArgsError, "ERR"),
    (refusals.AuthenticationError, "WRONGPASS"),
    (refusals.NoPermissionError, "NOPERM"),
    (refusals.OutOfMemoryError, "OOM"),
    (refusals.BusyLoadingError, "LOADING"),
    (refusals.ReadOnlyError, "READONLY"),
    (refusals.MasterDownError, "MASTERDOWN"),
    (refusals.ClusterDownError, "CLUSTERDOWN"),
    (refusals.TryAgainError, "TRYAGAIN"),
    (refusals.MovedError, "MOVED"),
    (refusals.AskError, "ASK"),
    (refusals.ClusterCrossSlotError, "CROSSSLOT"),
)


def read_refusal(text: str) -> EngineError:
    """What an error reply means. The server answered, so the command did not take effect, except where a
    function broke half-way: that is an EngineBug."""
    word, _, rest = text.partition(" ")
    if word in _LOGIN:
        return Incompatible(f"{_LOGIN[word]} [{text}]", detail=text)
    if "ACL failure in script" in text or "The user executing the script can't" in text:  # Redis 7.0 says the latter
        return Incompatible(f"{_LOGIN['NOPERM']} [{text}]", detail=text)
    if "without any password configured" in text:
        return Incompatible("the server has no password; leave it out of the URL or set one there", detail=text)
    if word == "FFBUG" or "user_function:" in text:
        return EngineBug(text)
    if word == "OOM":
        return StoreFull(
            f"the store is over its memory limit; finish or purge work, or raise maxmemory [{text}]",
            code="store_full", detail=str(RETRY_AFTER_MS),
        )
    if word in _TRY_LATER:
        return Unavailable(f"{_TRY_LATER[word]} [{text}]", may_have_applied=False, code=word.lower(), detail=text)
    if "max number of clients reached" in text:
        return Unavailable(f"the server takes no more connections; raise maxclients [{text}]", detail=text)
    if "Function not found" in text:
        return FunctionMissing("the server does not have this function", detail=text)
    if "DB index is out of range" in text:
        return Incompatible("the server has no database of that number; change it in the URL", detail=text)
    lowered = rest.lower()
    if lowered.startswith(("unknown command", "unknown subcommand")):
        return Incompatible(
            f"the server does not know this command; Functions need Valkey >= 7.2 or Redis >= 7.0 [{text}]", detail=text
        )
    return EngineBug(text)


def translate(exc: BaseException, *, may_have_applied: bool, where: str = "") -> EngineError:
    """The engine's error for anything a connection raises. `may_have_applied` is the caller's knowledge of
    whether the command had left; an answer from the server overrules it."""
    if isinstance(exc, EngineError):
        return exc
    if isinstance(exc, hiredis.ReplyError):
        return read_refusal(str(exc))
    for cls, word in _SPELLED:
        if isinstance(exc, cls):
            return read_refusal(f"{word} {exc}")
    if isinstance(exc, refusals.ResponseError):
        return read_refusal(str(exc))
    if isinstance(exc, refusals.DataError):  # refused by redis-py: nothing was sent
        return EngineBug(str(exc))
    at = f" {where}" if where else ""
    deeper = exc.__cause__ or exc.__context__
    refused = exc if isinstance(exc, ssl.SSLError) else deeper
    if isinstance(refused, ssl.SSLCertVerificationError):
        return Incompatible(
            f"the certificate of{at or ' the server'} is not trusted; name its authority with ?ca=/path.pem "
            f"[{refused.verify_message}]"
        )
    if isinstance(refused, ssl.SSLError):
        return Incompatible(f"no TLS with{at or ' the server'}; without TLS use valkey:// [{refused.reason}]")
    if isinstance(exc, TimeoutError | refusals.TimeoutError):
        return Unavailable(f"no answer from{at or ' the server'} in time", may_have_applied=may_have_applied)
    if isinstance(exc, OSError | refusals.RedisError | hiredis.HiredisError | EOFError):
        said = str(exc) or type(exc).__name__
        return Unavailable(f"no connection to{at or ' the server'}: {said}", may_have_applied=may_have_applied)
    return EngineBug(f"unexpected {type(exc).__name__}: {exc}")


# ----------------------------------------------------------------------------------------------------- links


class Link(asyncio.Protocol):
    """One socket and the order of its replies. It dies once; then every call in flight fails, once."""

    def __init__(self) -> None:
        self.waiting: deque[asyncio.Future[Reply]] = deque()
        self.sent = 0
        self.answered_any = False
        self.dead = False
        self.writable = True
        self.starved = False
        """Somebody waits for replies to make room; see `on_room`."""
        self.on_room: Callable[[], None] = _nothing
        self.on_lost: Callable[[Link], None] = _ignore
        self.on_push: Callable[[list[Reply]], None] = _ignore
        self.gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._transport: asyncio.Transport | None = None
        self._reader = hiredis.Reader(replyError=read_refusal, notEnoughData=_NOT_YET)

    def send(self, packed: bytes, callers: Sequence[asyncio.Future[Reply]]) -> None:
        """Write packed commands; the futures get their replies, in this order."""
        self.sent += len(callers)
        self.waiting.extend(callers)
        if self._transport is not None:
            self._transport.write(packed)

    def ask(self, *command: Word) -> asyncio.Future[Reply]:
        """Send one command now."""
        reply: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self.send(pack(command), (reply,))
        return reply

    def kill(self, why: str) -> None:
        """Drop the socket and fail what is in flight; harmless when repeated."""
        if self.dead:
            return
        self.dead = True
        self.answered_any = self.sent > len(self.waiting)
        if self._transport is not None:
            self._transport.abort()
        else:
            self._finish()
        lost, self.waiting = self.waiting, deque()
        for caller in lost:
            if not caller.done():
                caller.set_exception(Unavailable(why, may_have_applied=True))
        self.on_lost(self)

    # asyncio calls what follows.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        # The hot path: 5 us a call in all, so no method call, no timestamp and no bookkeeping per reply.
        reader, waiting = self._reader, self.waiting
        reader.feed(data)
        gets = reader.gets
        try:
            while (reply := gets()) is not _NOT_YET:
                if isinstance(reply, _SPECIAL):
                    self._special(reply)
                    if self.dead:  # a subscriber's callback may have closed it
                        return
                    continue
                caller = waiting.popleft()
                if not caller.done():  # a cancelled caller still consumes its reply
                    caller.set_result(reply)
        except hiredis.ProtocolError as garbled:
            self.kill(f"the server's answer cannot be read: {garbled}")
        except IndexError:
            self.kill("the server answered something that nobody asked")
        else:
            if self.starved:
                self.starved = False
                self.on_room()

    def _special(self, reply: Any) -> None:
        if isinstance(reply, hiredis.PushNotification):
            self.on_push(reply)
            return
        caller = self.waiting.popleft()
        if not caller.done():
            caller.set_exception(reply)

    def pause_writing(self) -> None:
        self.writable = False

    def resume_writing(self) -> None:
        self.writable = True
        self.on_room()

    def connection_lost(self, exc: Exception | None) -> None:
        self.kill(f"the connection was lost: {exc}" if exc else "the server closed the connection")
        self._finish()

    def _finish(self) -> None:
        if not self.gone.done():
            self.gone.set_result(None)


def _nothing() -> None:
    return


def _ignore(_: object) -> None:
    return


_NOT_YET: Final = object()
_SPECIAL: Final = (EngineError, hiredis.PushNotification)


async def open_link(target: Target, *, role: str, resp: int = 2, connect_timeout: float = CONNECT_TIMEOUT_S) -> Link:
    """Connect, log in and select the database. `resp=3` is for subscribers, which tell messages from replies by type;
    callers get RESP2, so that a reply is bytes, int, None or list whatever the command."""
    loop = asyncio.get_running_loop()
    link = Link()
    try:
        async with asyncio.timeout(connect_timeout):
            if target.kind == "unix":
                await loop.create_unix_connection(lambda: link, target.path)
            else:
                host, port = _address(target)
                context = tls_context(target) if target.tls else None
                transport, _ = await loop.create_connection(lambda: link, host, port, ssl=context)
                _keep_alive(transport)
            replies = [link.ask(*command) for command in _greeting(target, role, resp)]
            try:
                await asyncio.gather(*replies)
            finally:
                _forget(replies)
    except (Exception, asyncio.CancelledError) as exc:
        link.kill("the connection could not be set up")
        if isinstance(exc, asyncio.CancelledError):
            raise
        failure = translate(exc, may_have_applied=False, where=target.display)
        if isinstance(failure, Unavailable):
            # A connection that died during the greeting carried no command of any caller.
            failure.may_have_applied = False
        raise failure from exc
    link.sent = 0
    return link


def _forget(replies: Iterable[asyncio.Future[Reply]]) -> None:
    """A refused HELLO is reported once; the SELECT behind it fails as well, and nobody will ask why."""
    for reply in replies:
        if not reply.cancel() and not reply.cancelled():
            reply.exception()


def _greeting(target: Target, role: str, resp: int) -> list[tuple[Word, ...]]:
    login: tuple[Word, ...] = ()
    if target.username is not None or target.password is not None:
        login = ("AUTH", target.username or "default", target.password or "")
    greeting: list[tuple[Word, ...]] = [("HELLO", resp, *login, "SETNAME", f"ff:{role}")]
    if target.db:
        greeting.append(("SELECT", target.db))
    return greeting


def _address(target: Target) -> tuple[str, int]:
    if target.kind != "tcp":
        raise EngineBug(f"a connection goes to one server, not to {target.display}; pick a node first")
    return target.host, target.port


def _keep_alive(transport: asyncio.BaseTransport) -> None:
    sock = transport.get_extra_info("socket")
    if sock is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


def tls_context(target: Target) -> ssl.SSLContext:
    """Certificates and names are checked unless the URL says `?verify=none`."""
    try:
        context = ssl.create_default_context(cafile=target.ca)
    except OSError as exc:
        raise InvalidArgument(f"?ca={target.ca} of the store's URL cannot be read as PEM: {exc}") from exc
    if not target.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


class SyncConnection(Protocol):
    """What is used of redis-py's connection, whose own methods are partly untyped."""

    def connect(self) -> None: ...
    def disconnect(self) -> None: ...
    def can_read(self, timeout: float = 0) -> bool: ...
    def send_command(self, *args: Word, check_health: bool = True) -> None: ...
    def read_response(self, disable_decoding: bool = False, *, timeout: float | None = None) -> Reply: ...


class AsyncConnection(Protocol):
    """The same of its asyncio connection."""

    async def connect(self) -> None: ...
    async def disconnect(self) -> None: ...
    async def send_command(self, *args: Word) -> None: ...
    async def read_response(self, disable_decoding: bool = False, timeout: float | None = None) -> Reply: ...


def backoff(attempt: int) -> float:
    """Seconds before the next attempt: 50 ms doubling to 1 s, at random in the upper half, so that the workers
    which a restarted server lost together do not come back together."""
    most = min(_BACKOFF_MOST_S, _BACKOFF_FIRST_S * 2.0 ** min(attempt, 10))
    return most * random.uniform(0.5, 1.0)


# -------------------------------------------------------------------------------------------------- redis-py


def sync_connection(
    target: Target, *, role: str, timeout: float, connect_timeout: float = CONNECT_TIMEOUT_S
) -> SyncConnection:
    """A plain connection for a thread, not yet connected. Retries are off: redis-py's defaults send a command up
    to eleven times when replies are lost."""
    options = _options(target, role, timeout, connect_timeout, Retry(NoBackoff(), 0))
    # Any: redis-py leaves these constructors partly untyped.
    plain: Any = sync.UnixDomainSocketConnection if target.kind == "unix" else sync.Connection
    cls: Any = sync.SSLConnection if target.tls else plain
    return cast("SyncConnection", _unannounced(cls(**options)))


def async_connection(
    target: Target, *, role: str, timeout: float, connect_timeout: float = CONNECT_TIMEOUT_S
) -> AsyncConnection:
    """The same for one coroutine: for commands that hold the connection up, such as WAIT."""
    options = _options(target, role, timeout, connect_timeout, AsyncRetry(NoBackoff(), 0))
    plain: Any = aio.UnixDomainSocketConnection if target.kind == "unix" else aio.Connection
    cls: Any = aio.SSLConnection if target.tls else plain
    return cast("AsyncConnection", _unannounced(cls(**options)))


def _unannounced(connection: Any) -> Any:
    """Without CLIENT SETINFO: a round trip for nothing, and a refusal in the ACL log of every role we ship."""
    for name in ("driver_info", "lib_name", "lib_version"):  # by release of redis-py
        setattr(connection, name, None)
    return connection


def _options(
    target: Target, role: str, timeout: float, connect_timeout: float, retry: Retry | AsyncRetry
) -> dict[str, Any]:
    options: dict[str, Any] = {
        "db": target.db, "username": target.username, "password": target.password, "client_name": f"ff:{role}",
        "socket_timeout": timeout, "socket_connect_timeout": connect_timeout, "protocol": 2,
        "retry": retry,
    }
    if target.kind == "unix":
        return options | {"path": target.path}
    host, port = _address(target)
    options |= {"host": host, "port": port, "socket_keepalive": True}
    if target.tls:
        tls_context(target)  # for its check of ?ca=: redis-py reports a missing file as a lost connection
        options |= {
            "ssl_ca_certs": target.ca, "ssl_check_hostname": target.verify,
            "ssl_cert_reqs": "required" if target.verify else "none",
        }
    return options
