"""The Backend over one standalone server (or the in-process store).

One multiplexed connection carries every call of an event loop. A call is sent at most once per try; a
lost reply is repeated only where repeating is harmless, which is every operation that carries an id, a
fence or a claim id (`Args.REPEATABLE`).
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol, TypeVar

import msgspec

from ffbackend_valkey import keys
from ffbackend_valkey.binding import Binding, Word, all_args, bind
from ffbackend_valkey.composed import Composed
from ffbackend_valkey.confirm import UNCONFIRMED
from ffbackend_valkey.connection import FunctionMissing
from ffbackend_valkey.library import Library, Loaded, judge
from ffbackend_valkey.secrets import Secrets, secrets_for
from ffcore.args import Args
from ffcore.backend import BlockingCalls, StoreConfig, Subscription, settled
from ffcore.errors import (
    EngineBug,
    EngineError,
    Incompatible,
    InvalidArgument,
    NotInitialised,
    StoreFull,
    Unavailable,
)
from ffcore.ids import ExecutionId, PartitionKey, partition_index
from ffcore.operations import Operations

R = TypeVar("R")
Reply = Any
Listener = Callable[[str, bytes], None]
log = logging.getLogger("flowfabric.backend")

PATIENCE_S = 5.0
"""How long a repeatable call keeps trying while the store is away."""
HOPS_N = 5
"""So many redirections in a row are followed at once; then two nodes disagree, and a pause is due."""


class Calls(Protocol):
    def call(self, *command: Word) -> asyncio.Future[Reply]: ...
    async def close(self) -> None: ...


Send = Callable[..., asyncio.Future[Reply]]
"""Sends one command: `Calls.call`, or the same with an answer that waits for a replica."""


class Blocking(Protocol):
    def call(self, *command: Word) -> Reply: ...
    def close(self) -> None: ...


class Listening(Protocol):
    async def subscribe(self, channel: str, listener: Listener) -> None: ...
    async def unsubscribe(self, channel: str, listener: Listener | None = None) -> None: ...
    def on_gap(self, callback: Callable[[], None]) -> None: ...
    def off_gap(self, callback: Callable[[], None]) -> None: ...
    async def close(self) -> None: ...


class Store(Protocol):
    """Opens the kinds of connection a backend needs; one per URL (`stores.py`)."""

    url: str
    fresh_initialises: bool
    """embedded:// and memory:// initialise themselves; any other store wants `ff init`."""

    async def calls(self) -> Calls: ...
    def confirming(self) -> Calls: ...
    def blocking(self) -> Blocking: ...
    def listening(self) -> Listening: ...
    async def close(self) -> None: ...


def _refuse(partition: str, config: StoreConfig) -> None:
    raise InvalidArgument(f"{partition} is not a partition of this store, which has {msgspec.to_builtins(config)}")


class ValkeyBackend(Operations):
    """Backend over one server. Use `ffbackend_valkey.connect`; methods belong to the event loop's thread."""

    def __init__(
        self, store: Store, calls: Calls, lib: Library, *, patience: float = PATIENCE_S, replicated: bool = False
    ) -> None:
        self._store, self._calls, self._library = store, calls, lib
        self._bindings = bindings_of(lib)
        self._patience = patience
        self._confirming: Calls | None = None
        self._replicated = replicated
        """Whether every write that promises something waits for a replica."""
        self._config: StoreConfig | None = None
        self._listening: Listening | None = None
        self._composed = Composed(lambda: secrets_for(store.url, self.command), lambda: self.config)
        self._known: frozenset[str] = frozenset()
        self._loading: asyncio.Lock = asyncio.Lock()
        self._closed = False

    # ---- facts

    @property
    def config(self) -> StoreConfig:
        if self._config is None:
            raise NotInitialised("the store is not initialised; run `ff init`")
        return self._config

    @property
    def initialised(self) -> bool:
        return self._config is not None

    @property
    def url(self) -> str:
        return self._store.url

    @property
    def grouped(self) -> bool:
        return True

    @property
    def library(self) -> Library:
        return self._library

    def use_secrets(self, source: Secrets) -> None:
        """Sign tokens with these, whatever the environment says."""
        self._composed = Composed(lambda: source, lambda: self.config)

    # ---- calls

    async def call(self, args: Args[R]) -> R:
        """One atomic transition. See `ffcore.backend.Backend.call`."""
        if args.COMPOSED:
            return await self._composed.call(args, self.call)
        return await self._transit(args, self._confirm if self._replicated else self._calls.call)

    async def call_replicated(self, args: Args[R]) -> R:
        """The same, answered when a replica has it too. Unavailable `not_replicated` (it may have applied) if none had
        it in time."""
        if args.COMPOSED:
            return await self._composed.call(args, self.call_replicated)
        return await self._transit(args, self._confirm)

    async def _transit(self, args: Args[R], send: Send) -> R:
        binding = self._bindings.get(type(args))
        if binding is None:
            raise EngineBug(f"{type(args).__name__} names no function of this library")
        for partition in binding.partitions(args):
            if partition not in self._known:
                self._check_partition(partition)
        command = binding.request(args)
        try:
            raw = await send(*command)
        except EngineError as failed:
            raw = await self._repeat(command, send, failed, self._patience_for(args), repeatable=args.REPEATABLE)
        outcome: R = binding.outcome(raw, args)
        return outcome

    def _confirm(self, *command: Word) -> asyncio.Future[Reply]:
        """Send a write that promises something so that its answer waits for a replica; anything else as it is."""
        if command[0] != "FCALL" or command[1] in UNCONFIRMED:
            return self._calls.call(*command)
        if self._confirming is None:
            self._still_open()
            self._confirming = self._store.confirming()
        return self._confirming.call(*command)

    def _still_open(self) -> None:
        """A connection opened after the end would be closed by nobody."""
        if self._closed:
            raise Unavailable("the backend is closed", code="closed", may_have_applied=False)

    def _check_partition(self, partition: str) -> None:
        if self._config is None and self._known:
            raise NotInitialised("the store is not initialised; run `ff init`")
        if self._config is not None:
            family = partition[1 : partition.index(":")]
            if partition_index(partition) >= getattr(self._config, family, 0):
                _refuse(partition, self._config)

    def _patience_for(self, args: Args[Any]) -> float:
        """Seconds a call keeps trying."""
        return self._patience

    async def _repeat(
        self, command: tuple[Word, ...], send: Send, failed: EngineError, patience: float, *, repeatable: bool
    ) -> Reply:
        """Go on after a failed try: load a missing library, follow a cluster's redirection, wait for a store that is
        away. The last failure says whether any of the tries may have taken effect."""
        deadline, pause, applied, hops, loads_n = time.monotonic() + patience, 0.02, False, 0, 0
        while True:
            applied = applied or getattr(failed, "may_have_applied", False)
            lead: Awaitable[Reply] | None = None
            if isinstance(failed, FunctionMissing):
                # Nothing ran, so repeating is always right. The server was replaced or flushed its functions.
                if loads_n and time.monotonic() > deadline:
                    raise EngineBug(f"the server has the library, and not all of its functions: {failed}") from failed
                loads_n += 1
                try:
                    await self.load_library()
                except Unavailable as away:
                    # Whatever became of the load, the call itself has not run.
                    failed = Unavailable(str(away), code=away.code, may_have_applied=False)
            if isinstance(failed, FunctionMissing):
                pass
            elif isinstance(failed, EngineBug):
                raise EngineBug(self._library.locate(str(failed))) from failed
            elif isinstance(failed, StoreFull) and applied:
                # This try wrote nothing; an earlier one may have. Who heard of this one alone would submit again.
                raise Unavailable(str(failed), may_have_applied=True) from failed
            elif not isinstance(failed, Unavailable):
                raise failed
            elif failed.code == "closed" or (applied and not repeatable) or time.monotonic() + pause > deadline:
                if applied and not failed.may_have_applied:
                    failed.may_have_applied = True
                raise failed
            else:
                hops += 1
                try:
                    lead = self._lead(command, send, failed) if hops % HOPS_N else None
                except EngineError as nowhere:
                    failed = nowhere
                    continue
                if lead is None:
                    await asyncio.sleep(pause * (0.5 + random.random()))
                    pause = min(pause * 2, 0.5)
            try:
                return await (lead if lead is not None else send(*command))
            except EngineError as again:
                failed = again

    def _lead(self, command: tuple[Word, ...], send: Send, failed: Unavailable) -> Awaitable[Reply] | None:
        """Where a refusal sends a command; None: nowhere, wait."""
        return None

    async def call_all(self, batch: Sequence[Args[R]]) -> list[R | EngineError]:
        """Many transitions in one turn of the loop; each succeeds or fails on its own."""
        return settled(await asyncio.gather(*(self.call(args) for args in batch), return_exceptions=True))

    async def command(self, *words: Word) -> Reply:
        """One plain command, for boot checks and tools; never a blocking one."""
        return await self._calls.call(*words)

    # ---- messages

    async def subscribe(
        self, channels: Sequence[str], on_message: Listener, on_gap: Callable[[], None] | None = None
    ) -> Subscription:
        if self._listening is None:
            self._still_open()
            self._listening = self._store.listening()
        listening = self._listening
        await asyncio.gather(*(listening.subscribe(c, on_message) for c in channels))
        if on_gap is not None:
            listening.on_gap(on_gap)
        return _Subscription(listening, list(channels), on_message, on_gap)

    def worker_channel(self, partition: PartitionKey, name: str) -> str:
        return keys.worker_channel(partition, name)

    def client_channel(self, partition: PartitionKey, name: str) -> str:
        return keys.client_channel(partition, name)

    def ticker_channel(self, partition: PartitionKey) -> str:
        return keys.ticker_channel(partition)

    def stream_channel(self, execution_id: ExecutionId) -> str:
        return keys.stream_channel(execution_id)

    def blocking(self) -> BlockingCalls:
        return _BlockingBackend(self._store.blocking(), self._bindings, self._library)

    # ---- boot

    async def loaded(self) -> Loaded | None:
        """The library the server holds, or None."""
        try:
            raw = await self.command("FCALL_RO", "ff_library", 0)
        except FunctionMissing:
            return None
        return msgspec.json.decode(raw, type=Loaded)

    async def load_library(self, *, replace: bool = False) -> Loaded | None:
        """Load this program's library. Never over a newer one, nor over another of the same version unless
        `replace` (`ff library upgrade`). Answers what was there before."""
        async with self._loading:
            there = await self.loaded()
            if there is not None and not replace:
                judge(self._library, there)
                return there
            if there is not None and there.version > self._library.version:
                raise Incompatible(
                    f"the store holds library version {there.version}, newer than ours, {self._library.version}: "
                    "upgrade this program instead; only a newer one may `ff library upgrade`"
                )
            words: list[Word] = ["FUNCTION", "LOAD"]
            if there is not None:
                words.append("REPLACE")
            try:
                await self.command(*words, self._library.source)
            except EngineBug as refused:
                # Two programs may load at the same moment: the second is told that it exists.
                if "already exists" not in str(refused):
                    raise EngineBug(self._library.locate(str(refused))) from refused
            return there

    async def read_config(self) -> StoreConfig | None:
        """The partition counts `ff init` fixed, or None for a store that was never initialised."""
        flat = await self.command("HGETALL", keys.CONFIG)
        if not flat:
            return None
        pairs = {flat[i].decode(): int(flat[i + 1]) for i in range(0, len(flat), 2)}
        config = StoreConfig(**{k: v for k, v in pairs.items() if k in StoreConfig.__struct_fields__})
        self._adopt(config)
        return config

    async def initialise(self, config: StoreConfig) -> StoreConfig:
        """Create every partition, then the store's config. Repeatable; other counts than the stored are refused."""
        from ffcore.contracts.upkeep import InitPartitionArgs

        known = await self.read_config()
        if known is not None and known != config:
            raise Incompatible(
                f"the store has {msgspec.to_builtins(known)} and partition counts never change; "
                f"use another store, or connect without --partitions"
            )
        counts = msgspec.json.encode(config).decode()
        self._adopt(config)
        for family in ("fp", "b", "q", "w"):
            for partition in config.keys(family):
                await self.call(InitPartitionArgs(partition=partition, counts=counts))
        # Last, so that a store whose init was interrupted is still uninitialised and can be initialised again.
        flat: list[Word] = []
        for name, value in msgspec.to_builtins(config).items():
            flat += [name, value]
        await self.command("HSET", keys.CONFIG, *flat)
        return config

    def _adopt(self, config: StoreConfig) -> None:
        self._config = config
        self._known = frozenset(p for f in ("fp", "b", "q", "w") for p in config.keys(f))

    async def close(self) -> None:
        self._closed = True
        if self._listening is not None:
            await self._listening.close()
        if self._confirming is not None:
            await self._confirming.close()
        await self._calls.close()
        await self._store.close()


class _Subscription:
    def __init__(
        self, listening: Listening, channels: list[str], on_message: Listener, on_gap: Callable[[], None] | None
    ) -> None:
        self._listening, self._channels, self._on_message, self._on_gap = listening, channels, on_message, on_gap

    async def close(self) -> None:
        if self._on_gap is not None:
            self._listening.off_gap(self._on_gap)
        await asyncio.gather(*(self._listening.unsubscribe(c, self._on_message) for c in self._channels))


class _BlockingBackend:
    """Calls for a thread: same contracts, a connection of its own, no repeating (the renewal loop repeats)."""

    def __init__(self, connection: Blocking, bindings: dict[type[Args[Any]], Binding], lib: Library) -> None:
        self._connection, self._bindings, self._library = connection, bindings, lib

    def call(self, args: Args[R]) -> R:
        binding = self._bindings[type(args)]
        try:
            outcome: R = binding.outcome(self._connection.call(*binding.request(args)), args)
        except FunctionMissing as missing:
            raise Unavailable("the store lost its library; the next call of the event loop loads it") from missing
        return outcome

    def close(self) -> None:
        self._connection.close()


_bound: dict[str, dict[type[Args[Any]], Binding]] = {}


def bindings_of(lib: Library) -> dict[type[Args[Any]], Binding]:
    """Bindings of a library, compiled once per process."""
    if lib.sha not in _bound:
        _bound[lib.sha] = bind(lib, all_args())
    return _bound[lib.sha]


