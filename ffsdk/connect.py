"""From a URL to a Backend: the only module of this room that imports one, and only when it is needed.

The rule: a program that was given no URL does not quietly get a store of its own, unless it is plain that
somebody works at it by hand.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar, cast

from ffcore.errors import InvalidArgument
from ffsdk.times import wall_ms

if TYPE_CHECKING:
    from ffbackend_valkey.virtual_time import IdleSkipper
    from ffcore.args import Args
    from ffcore.backend import Backend

R = TypeVar("R")
Durability = Literal["accepted", "fsync", "replicated"]
DEFAULT_DIR = ".flowfabric"


def resolve_url(
    url: str | None, *, env: Mapping[str, str] | None = None, isatty: bool | None = None, verb: str | None = None
) -> str:
    """The URL given, or FF_URL, or the local default where one may be started (`ff dev`, a terminal, FF_DEV=1,
    a directory that exists already). InvalidArgument that names FF_URL otherwise."""
    if url is not None:
        if not isinstance(url, str) or not url:
            raise InvalidArgument(f"url is {url!r:.60}: use text such as valkey://localhost:6379, or None for FF_URL")
        return url
    env = os.environ if env is None else env
    if named := env.get("FF_URL"):
        return named
    from ffbackend_valkey.embedded import may_start_embedded, no_url

    directory = Path(DEFAULT_DIR)
    if isatty is None:
        # Both: a service may have a terminal on one side. A program without a console has None there.
        streams: tuple[Any, ...] = (sys.stdin, sys.stdout)
        isatty = all(stream is not None and stream.isatty() for stream in streams)
    if not may_start_embedded(env, bool(isatty), directory.is_dir(), verb):
        raise no_url(directory)
    return f"embedded://./{DEFAULT_DIR}"


def check_durability(durability: str) -> None:
    """Refuse words that are none."""
    if durability not in ("accepted", "fsync", "replicated"):
        raise InvalidArgument(f"durability {durability!r:.40}: use accepted, fsync or replicated")


async def open_backend(url: str | None = None, *, durability: str = "accepted", verb: str | None = None) -> Backend:
    """Open the store a URL names. Raises InvalidArgument (URL), Unavailable (no answer, refused, bad password),
    Incompatible (a server or library that cannot serve us), NotInitialised (run `ff init`)."""
    check_durability(durability)
    found = resolve_url(url, verb=verb)
    from ffbackend_valkey.stores import connect

    return await connect(found, durability=cast("Durability", durability))


async def require_durability(backend: Backend, durability: str) -> None:
    """Refuse (Incompatible) a store that does not keep what is asked; for a single submit that wants more."""
    check_durability(durability)
    if durability != "accepted":
        from ffbackend_valkey.backend import ValkeyBackend
        from ffbackend_valkey.stores import check_server

        if isinstance(backend, ValkeyBackend):
            await check_server(backend, durability)


async def call_replicated(backend: Backend, args: Args[R]) -> R:
    """A call that is answered when a replica has it. Unavailable, code `not_replicated` (it may have applied), if none
    had it in time: repeat it."""
    from ffbackend_valkey.backend import ValkeyBackend

    return await (backend.call_replicated(args) if isinstance(backend, ValkeyBackend) else backend.call(args))


def clock_of(backend: Backend) -> Callable[[], int]:
    """The clock from which a client counts relative times: this machine's, or the store's own if it is virtual."""
    if not backend.url.startswith("memory://"):
        return wall_ms
    clock = VirtualStore(backend.url).clock
    return lambda: clock.now_ms


class Clock(Protocol):
    """Of a virtual store."""

    @property
    def now_ms(self) -> int: ...


class VirtualStore:
    """A memory:// store and its time, for tests of users' code."""

    def __init__(self, url: str) -> None:
        if not url.startswith("memory://"):
            raise InvalidArgument(f"{url} has no virtual clock: only memory:// has one")
        from ffbackend_valkey.memory import MemoryServer
        from ffbackend_valkey.url import parse_url

        self.url, self._name = url, parse_url(url).name
        self._clock = MemoryServer.get(self._name).clock

    @property
    def clock(self) -> Clock:
        return self._clock

    async def soonest(self, backend: Backend) -> int | None:
        """When the next thing is due in the store, retention aside; None: never. A tick's own answer looks a second
        ahead at most, which would make a month of virtual time two million looks."""
        from ffbackend_valkey import keys
        from ffbackend_valkey.backend import ValkeyBackend

        assert isinstance(backend, ValkeyBackend)
        config = backend.config
        partitions = [key for family in ("fp", "b", "q", "w") for key in config.keys(family)]
        names = [keys.header(p) + part for p in partitions for part in (":timers", ":leases", ":schedules")]
        heads = await asyncio.gather(*(backend.command("ZRANGE", name, 0, 0, "WITHSCORES") for name in names))
        return min((int(float(head[1])) for head in heads if head), default=None)

    def skipper(self, next_due: Callable[[], Awaitable[int | None]], *, ceiling_ms: int | None) -> IdleSkipper:
        """Skips idle time of the running loop; see `ffbackend_valkey.virtual_time.IdleSkipper`."""
        from ffbackend_valkey.virtual_time import IdleSkipper

        return IdleSkipper(self._clock, next_due, ceiling_ms=ceiling_ms)

    def discard(self) -> None:
        """Forget the store and all it holds."""
        from ffbackend_valkey.memory import MemoryServer

        MemoryServer.discard(self._name)
