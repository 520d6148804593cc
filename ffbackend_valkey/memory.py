"""memory://: the same Lua in this process, on fakeredis and lupa, with a clock that can be skipped ahead.

One store per process and name. Replies are the raw ones a server would send, because commands go straight
to fakeredis's command processor: no client, no RESP, no response callbacks in between. What a server does
that fakeredis does not (out of memory, AOF, WAIT, clusters) is absent, and blocking commands are refused.

Links have the shape of Multiplexer, BlockingConnection and Subscriber and raise the same errors.

The rule kept here: a command sees one instant. It reads the server's clock once, and TIME, `XADD *` and
expiry inside that command all answer that instant, as a real server does.

Known to differ from a server, and therefore banned in lua/: `pcall(redis.call, ...)` (its error value is no
string; use `redis.pcall`), `error({err = ...})` (loses its text; return `redis.error_reply`), the libraries
`bit`, `struct` and `cmsgpack`, and fractions read back from scores as text (`0.10000000000000001`; exact as
numbers). Native expiry is late by up to 1 ms.

Reaches into fakeredis below its public classes, so only the release line it was tried with will do; the
probes that run on both servers guard it (tests/unit/ffbackend_valkey/test_memory.py).
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any, ClassVar, Final

from ffbackend_valkey import memory_cjson
from ffbackend_valkey.connection import Reply, Word, read_refusal
from ffbackend_valkey.subscriber import Listener
from ffbackend_valkey.virtual_time import VirtualClock
from ffcore.errors import EngineBug, EngineError, Incompatible, Unavailable

try:
    import redis
    from fakeredis import FakeServer, _helpers
    from fakeredis._helpers import SimpleError
    from fakeredis._socket import _base
    from fakeredis._socket._fakesocket import FakeSocket
    from fakeredis.commands_mixins import scripting_mixin, server_mixin
    from fakeredis.commands_mixins._lua_functions import FunctionsEngine
    from fakeredis.model import _stream
except ImportError as missing:
    raise Incompatible(
        f"memory:// needs fakeredis 2.40 with Lua ({missing}): pip install 'fakeredis[lua]>=2.40,<2.41', "
        f"or use embedded://DIR"
    ) from missing

SERVER_VERSION: Final = (9, 1, 2)
"""The Valkey release whose behaviour and error texts fakeredis is asked to imitate."""


class MemoryServer:
    """One in-process store: its data, its function library and its clock."""

    _by_name: ClassVar[dict[str, MemoryServer]] = {}
    _guard: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, name: str = "", clock: VirtualClock | None = None) -> None:
        if scripting_mixin.LUA_VERSION != "5.1":
            raise Incompatible(
                f"memory:// runs the library on Lua 5.1 as servers do, and FAKEREDIS_LUA_VERSION asks for "
                f"{scripting_mixin.LUA_VERSION}: unset it before fakeredis is first imported"
            )
        self.name = name
        self.clock = clock or VirtualClock()
        self.fake = FakeServer(version=SERVER_VERSION, server_type="valkey")
        # Made here, not on the first FCALL, to give it a cjson that behaves like the server's.
        engine: Any = _Functions(
            scripting_mixin.LUA_MODULE, "valkey", SERVER_VERSION, scripting_mixin._lua_redis_log,
            memory_cjson.encode, memory_cjson.decode, memory_cjson.NULL,
        )  # fmt: skip
        setattr(self.fake, "_lua_functions", engine)  # noqa: B010  fakeredis looks for exactly this attribute

    @classmethod
    def get(cls, name: str) -> MemoryServer:
        """The store of that name in this process; made on first use."""
        with cls._guard:
            server = cls._by_name.get(name)
            if server is None:
                server = cls._by_name[name] = cls(name)
            return server

    @classmethod
    def discard(cls, name: str) -> None:
        """Forget a store: the next `get` makes an empty one. Links to the old one keep working on it."""
        with cls._guard:
            cls._by_name.pop(name, None)

    def link(self) -> MemoryLink:
        """A connection for the event loop."""
        return MemoryLink(self)

    def blocking(self) -> MemoryBlocking:
        """A connection for a thread."""
        return MemoryBlocking(self)

    def subscriber(self) -> MemorySubscriber:
        """A connection that receives messages, in the running event loop."""
        return MemorySubscriber(self)


class _ServerTime:
    """Stands where fakeredis imports `time`. While one of our commands runs in this thread, its instant is
    the time; any other user of fakeredis in the process gets the wall clock as before."""

    def __init__(self) -> None:
        self.current = threading.local()

    def time(self) -> float:
        instant: _Instant | None = getattr(self.current, "instant", None)
        return time.time() if instant is None else instant

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)


class _Instant(float):
    """Seconds, as fakeredis wants them, that give back their exact milliseconds: `int(1000 * seconds)` would
    now and then be one too small, and a lease would end 1 ms early once in a hundred runs."""

    ms: int

    def __new__(cls, ms: int) -> _Instant:
        self = super().__new__(cls, ms / 1000)
        self.ms = ms
        return self

    def __mul__(self, factor: float) -> float:
        return self.ms * factor // 1000 if isinstance(factor, int) else float(self) * factor

    __rmul__ = __mul__


_server_time: Final = _ServerTime()
# The four places that read the time for anything a store can see; the rest only stamps client lists.
for _module in (_helpers, _base, server_mixin, _stream):
    setattr(_module, "time", _server_time)  # noqa: B010  a module of fakeredis, not ours to annotate


class _Functions(FunctionsEngine):
    """Function libraries whose redis.pcall hands Lua the error as a string, as a server does, not as an object."""

    def _redis_pcall(self, *args: Any) -> Any:
        try:
            return self._redis_call(*args)
        except SimpleError as error:
            return self.runtime.table_from({b"err": error.value.encode()})


class _Socket(FakeSocket):
    """A client of the fake server that hands every reply and message to a callback, under the server's lock."""

    def __init__(self, server: MemoryServer, deliver: Callable[[Any], None]) -> None:
        self._deliver = deliver
        self._clock = server.clock
        super().__init__(server.fake, 0, client_class=redis.Redis)

    def put_response(self, msg: Any) -> None:
        self._deliver(msg)

    def run(self, fields: list[bytes]) -> None:
        current = _server_time.current
        current.instant = _Instant(self._clock.now_ms)
        try:
            self._process_command(fields)
        finally:
            current.instant = None

    def _decode_error(self, error: SimpleError) -> Any:
        # Here the text is still as a server would send it; redis-py's parser would take its first word off.
        return read_refusal(error.value)

    def _function_redis_call(self, lua_runtime: Any, read_only: bool, *args: Any) -> Any:
        # Servers write a number in the fewest digits that give it back; fakeredis always in seventeen.
        words = [repr(arg).encode() if type(arg) is float else arg for arg in args]
        return super()._function_redis_call(lua_runtime, read_only, *words)

    def _blocking(self, timeout: float | None, func: Any, shape: Any = None) -> Any:
        # Waiting here would stop the event loop that has to send the message waited for.
        found = func(True)
        if found is None:
            raise SimpleError("ERR memory:// does not wait inside a command; subscribe to be woken instead")
        return found if shape is None else shape(found)


class _Commands:
    """Runs commands one at a time and returns their replies; an error reply is returned, not raised."""

    def __init__(self, server: MemoryServer) -> None:
        self._replies: list[Any] = []
        self._socket = _Socket(server, self._replies.append)

    def run(self, fields: list[bytes]) -> Reply:
        self._socket.run(fields)
        return self._replies.pop()

    def close(self) -> None:
        self._socket.close()


class MemoryLink:
    """What `Multiplexer` is to a server: calls of one turn of the loop run together, in order, at its end."""

    def __init__(self, server: MemoryServer) -> None:
        self._commands = _Commands(server)
        self._queue: list[tuple[list[bytes], asyncio.Future[Reply]]] = []
        self._closed = False

    @property
    def connected(self) -> bool:
        return not self._closed

    @property
    def in_flight(self) -> int:
        """Always 0: what runs has answered before anybody can look."""
        return 0

    @property
    def queued(self) -> int:
        return len(self._queue)

    def call(self, *command: Word) -> asyncio.Future[Reply]:
        """Queue one command; the future gets its raw reply or an EngineError. Cancelling it disturbs nobody."""
        loop = asyncio.get_running_loop()
        fields = _pack(command)
        reply: asyncio.Future[Reply] = loop.create_future()
        if self._closed:
            reply.set_exception(_closed())
            return reply
        # Never at once: a caller that awaits only finished futures would keep the loop from everybody else.
        if not self._queue:
            loop.call_soon(self._flush)
        self._queue.append((fields, reply))
        return reply

    async def acall(self, *command: Word) -> Reply:
        """Like `call`: there is always room."""
        return await self.call(*command)

    async def close(self) -> None:
        """Fail what was queued and has not run. The data stays: it belongs to the process."""
        if self._closed:
            return
        self._closed = True
        queue, self._queue = self._queue, []
        for _, reply in queue:
            if not reply.done():
                reply.set_exception(_closed())
        self._commands.close()

    def _flush(self) -> None:
        queue, self._queue = self._queue, []
        for fields, reply in queue:
            # A caller that gave up is no reason not to run it: on a socket it would have been sent already.
            try:
                answer = self._commands.run(fields)
            except Exception as fault:  # in fakeredis: this call's alone, and it may have stopped half-way
                answer = EngineBug(f"memory:// failed in {fields[0]!r}: {type(fault).__name__}: {fault}")
                answer.__cause__ = fault
            if reply.done():
                continue
            if isinstance(answer, EngineError):
                reply.set_exception(answer)
            else:
                reply.set_result(answer)


class MemoryBlocking:
    """What `BlockingConnection` is to a server: for threads, which take turns; no event loop involved."""

    def __init__(self, server: MemoryServer) -> None:
        self._commands = _Commands(server)
        self._lock = threading.Lock()
        self._closed = False

    def call(self, *command: Word, timeout: float | None = None) -> Reply:
        """Run one command and return its raw reply; raises an EngineError. `timeout` is never reached."""
        with self._lock:
            if self._closed:
                raise _closed()
            answer = self._commands.run(_pack(command))
        if isinstance(answer, EngineError):
            raise answer
        return answer

    def close(self) -> None:
        with self._lock:
            if not self._closed:
                self._closed = True
                self._commands.close()


class MemorySubscriber:
    """What `Subscriber` is to a server: sharded channels, callbacks in the loop that made it, in the order sent.
    Messages are never lost here, so gap callbacks are kept and never called."""

    def __init__(self, server: MemoryServer) -> None:
        self._loop = asyncio.get_running_loop()
        self._listeners: dict[str, list[Listener]] = {}
        self._socket = _Socket(server, self._received)
        self._closed = False

    @property
    def connected(self) -> bool:
        return not self._closed

    async def subscribe(self, channel: str, listener: Listener) -> None:
        """Call `listener(channel, data)` in the loop for each message from now on; a channel may have several."""
        if self._closed:
            raise _closed()
        self._listeners.setdefault(channel, []).append(listener)
        self._socket.run([b"SSUBSCRIBE", channel.encode()])

    async def unsubscribe(self, channel: str, listener: Listener | None = None) -> None:
        """Remove one listener, or all; a message already on its way is dropped."""
        listeners = self._listeners.get(channel)
        if listeners is None:
            return
        if listener is None:
            listeners.clear()
        elif listener in listeners:
            listeners.remove(listener)
        if not listeners:
            del self._listeners[channel]
            self._socket.run([b"SUNSUBSCRIBE", channel.encode()])

    def on_gap(self, callback: Callable[[], None]) -> None:
        """Nothing is ever missed: never called."""

    def off_gap(self, callback: Callable[[], None]) -> None:
        """The counterpart of `on_gap`."""

    async def close(self) -> None:
        """Nobody is called afterwards."""
        if self._closed:
            return
        self._closed = True
        self._listeners.clear()
        # fakeredis forgets plain subscriptions of a closed client, but not sharded ones.
        self._socket.run([b"SUNSUBSCRIBE"])
        self._socket.close()

    def _received(self, message: Any) -> None:
        # Runs under the server's lock, in the publisher's thread: only note it, never call the user from here.
        kind, channel, data = message
        if kind == b"smessage":
            try:
                self._loop.call_soon_threadsafe(self._deliver, channel.decode(), data)
            except RuntimeError:  # the subscriber's loop has ended; so has anybody to tell
                pass

    def _deliver(self, channel: str, data: bytes) -> None:
        for listener in tuple(self._listeners.get(channel, ())):
            try:
                listener(channel, data)
            except Exception as fault:
                self._loop.call_exception_handler({"message": "a subscriber's callback failed", "exception": fault})


def _pack(command: tuple[Word, ...]) -> list[bytes]:
    fields: list[bytes] = []
    for word in command:
        if isinstance(word, bytes):
            fields.append(word)
        elif isinstance(word, str):
            fields.append(word.encode())
        elif type(word) in (int, float):
            fields.append(repr(word).encode())
        else:
            raise EngineBug(f"a command takes bytes, str, int and float, not {type(word).__name__}: {word!r}")
    return fields


def _closed() -> Unavailable:
    return Unavailable("the memory store was closed", code="closed", may_have_applied=False)
