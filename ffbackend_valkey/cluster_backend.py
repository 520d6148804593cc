"""The Backend over a cluster: one partition per call, one library on every primary.

The rule: what was refused before it ran (MOVED, ASK, TRYAGAIN, CLUSTERDOWN) is sent again, after a pause where no node
is named, for as long as the backend's patience lasts; what a lost connection may have applied is sent again only
where that is harmless, as on one server.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, TypeVar, cast

import msgspec

from ffbackend_valkey.backend import Reply, Send, Store, ValkeyBackend
from ffbackend_valkey.binding import Word
from ffbackend_valkey.cluster_calls import ClusterCalls
from ffbackend_valkey.cluster_slots import Address, goes_everywhere
from ffbackend_valkey.connection import FunctionMissing
from ffbackend_valkey.keys import header
from ffbackend_valkey.library import Library, Loaded, judge
from ffcore.args import Args
from ffcore.contracts.batch import ClaimBatchArgs, ClaimedBatch
from ffcore.contracts.upkeep import TickArgs, Ticked
from ffcore.errors import EngineBug, EngineError, Incompatible, Unavailable
from ffcore.ids import TimestampMs

R = TypeVar("R")
log = logging.getLogger("flowfabric.cluster")

PATIENCE_S: Final = 30.0
"""How long a call keeps trying: longer than a failover with the server's default node timeout of 15 s."""
SOON_S: Final = 1.0
"""How long a tick keeps trying: its ticker comes again, and has other partitions to look after."""
DOUBTS_N: Final = 256


class Primary:
    """One primary as the checks at boot see a server."""

    def __init__(self, url: str, ask: Callable[..., Awaitable[Reply]]) -> None:
        self.url, self._ask = url, ask

    async def command(self, *words: Word) -> Reply:
        return await self._ask(*words)


class ClusterBackend(ValkeyBackend):
    """Backend over a cluster. Use `ffbackend_valkey.connect` with a valkey+cluster:// URL."""

    _calls: ClusterCalls

    def __init__(
        self, store: Store, calls: ClusterCalls, lib: Library, *, patience: float = PATIENCE_S, replicated: bool = False
    ) -> None:
        super().__init__(store, calls, lib, patience=patience, replicated=replicated)
        self._doubtful: dict[str, str] = {}
        """Claims whose answer from a partition was lost: that one is asked first when the claim is repeated."""
        self._keeps_library = False
        self._provided: set[Address] = set()
        self._providing: asyncio.Task[None] | None = None
        calls.slots.on_change(self._provide)

    @property
    def grouped(self) -> bool:
        return False

    @property
    def patience(self) -> float:
        """Seconds a call keeps trying."""
        return self._patience

    # ---- calls

    async def call(self, args: Args[R]) -> R:
        """One transition of one partition. A claim or a tick that names several is a call to each of them."""
        one: Args[R] = args
        if isinstance(args, ClaimBatchArgs) and len(args.partitions) > 1:
            return cast("R", await self._claim_each(args))
        if isinstance(args, TickArgs) and len(args.partitions) > 1:
            return cast("R", await self._tick_each(args))
        if isinstance(args, ClaimBatchArgs):
            return cast("R", await self._claim(args))
        return await super().call(one)

    def _patience_for(self, args: Args[Any]) -> float:
        return min(self._patience, SOON_S) if isinstance(args, TickArgs) else self._patience

    async def _claim(self, args: ClaimBatchArgs) -> ClaimedBatch:
        """Claim in one partition. If its node has been away from the start, the answer is that there is nothing now: a
        worker has better things to do than to wait for one partition. It looks again when the partition is heard of
        again, or when its park would end."""
        for key in args.partitions:
            if self._calls.away(header(key)):
                return _NOTHING
        try:
            return await super().call(args)
        except Unavailable as failed:
            if failed.may_have_applied or failed.code == "closed":
                raise
            return _NOTHING

    async def _claim_each(self, args: ClaimBatchArgs) -> ClaimedBatch:
        """Claim in one partition after the other, until there is enough. Every partition remembers the claim by its
        id, so a claim that is repeated finds what an answer that was lost had leased, and first looks there."""
        self._check_all(args.partitions)
        order, doubtful = list(args.partitions), self._doubtful.get(args.claim_id)
        order.sort(key=lambda key: key != doubtful)
        found: ClaimedBatch | None = None
        for key in order:
            want = args.limit - (len(found.jobs) if found is not None else 0)
            if want <= 0 and args.limit > 0:
                break
            try:
                answer = await self._claim(msgspec.structs.replace(args, partitions=[key], limit=want))
            except Unavailable as failed:
                if failed.may_have_applied:
                    self._doubtful[args.claim_id] = key
                    while len(self._doubtful) > DOUBTS_N:
                        del self._doubtful[next(iter(self._doubtful))]
                if found is None or not found.jobs:
                    raise
                return msgspec.structs.replace(found, again=True)
            found = answer if found is None else _joined(found, answer)
        assert found is not None
        self._doubtful.pop(args.claim_id, None)
        return found

    async def _tick_each(self, args: TickArgs) -> Ticked:
        """The limit is the call's, and each partition has its share of it, as in one call."""
        self._check_all(args.partitions)
        share = max(1, args.limit // len(args.partitions)) if args.limit > 0 else args.limit
        parts = [msgspec.structs.replace(args, partitions=[key], limit=share) for key in args.partitions]
        answers: list[Any] = await asyncio.gather(*(super(ClusterBackend, self).call(part) for part in parts))
        return Ticked([row for answer in answers for row in answer.partitions])

    def _check_all(self, partitions: Sequence[str]) -> None:
        for key in partitions:
            if key not in self._known:
                self._check_partition(key)

    async def command(self, *words: Word) -> Reply:
        """One plain command, to the node of its key; without a key to any primary, or to all of them where it concerns
        all (FLUSHALL, FUNCTION LOAD, CONFIG SET): then the first answers."""
        if goes_everywhere(words):
            return (await self._calls.everywhere(*words))[0]
        try:
            return await self._calls.call(*words)
        except Unavailable as failed:
            return await self._repeat(words, self._calls.call, failed, self._patience, repeatable=False)

    def _lead(self, command: tuple[Word, ...], send: Send, failed: Unavailable) -> Awaitable[Reply] | None:
        return self._calls.again(failed, command, send)

    # ---- boot

    def primaries(self) -> list[Primary]:
        """Each primary on its own, for checks."""
        nodes = [self._calls.node(address) for address in self._calls.slots.primaries]
        return [Primary(node.target.display, node.call) for node in nodes]

    async def loaded(self) -> Loaded | None:
        """The library, as the primary has it whose copy suits us least; None if one has none."""
        found = [there for _, there in await self._loaded_each()]
        if not found:
            raise Unavailable("no primary of the cluster answers", may_have_applied=False)
        if None in found:
            return None
        ours = self._library
        return min((one for one in found if one), key=lambda one: (one.version, one.sha == ours.sha))

    async def _loaded_each(self) -> list[tuple[Address, Loaded | None]]:
        """What each primary holds; those that do not answer are left out, and provided for when they do."""
        out: list[tuple[Address, Loaded | None]] = []
        for address in self._calls.slots.primaries:
            try:
                raw = await self._calls.node(address).call("FCALL_RO", "ff_library", 0)
                out.append((address, msgspec.json.decode(raw, type=Loaded)))
            except FunctionMissing:
                out.append((address, None))
            except Unavailable as away:
                log.warning("%s:%d does not answer; its library is looked at later: %s", *address, away)
        return out

    async def load_library(self, *, replace: bool = False) -> Loaded | None:
        """Load this program's library wherever it is missing; where another primary has a newer one that answers us,
        load that. With `replace` (`ff library upgrade`), replace older ones everywhere."""
        async with self._loading:
            each = await self._loaded_each()
            present = [there for _, there in each if there is not None]
            newest = max(present, key=lambda one: one.version, default=None)
            if replace:
                if len(each) < len(self._calls.slots.primaries):
                    raise Unavailable("a primary does not answer: upgrade the library when all do")
                if newest is not None and newest.version > self._library.version:
                    raise Incompatible(
                        f"the store holds library version {newest.version}, newer than ours, {self._library.version}"
                    )
            else:
                for one in present:
                    judge(self._library, one)
            source: str | bytes = self._library.source
            if newest is not None and newest.version > self._library.version:
                source = await self._source_at(next(a for a, there in each if there is newest))
            for address, there in each:
                if there is None or replace:
                    await self._load_at(address, source, replace=there is not None)
                self._provided.add(address)
            self._keeps_library = True
            if not present or len(present) < len(each):
                return None
            return min(present, key=lambda one: one.version)

    async def _load_at(self, address: Address, source: str | bytes, *, replace: bool) -> None:
        words: list[Word] = ["FUNCTION", "LOAD", *(["REPLACE"] if replace else []), source]
        try:
            await self._calls.node(address).call(*words)
        except EngineBug as refused:
            # Two programs may load at the same moment: the second is told that it exists.
            if "already exists" not in str(refused):
                raise EngineBug(self._library.locate(str(refused))) from refused

    async def _source_at(self, address: Address) -> bytes:
        """The library's text as a node holds it."""
        rows = await self._calls.node(address).call("FUNCTION", "LIST", "LIBRARYNAME", self._library.name, "WITHCODE")
        flat = rows[0]
        return cast("bytes", flat[flat.index(b"library_code") + 1])

    def _provide(self) -> None:
        """A node became a primary: it may be new, or have got its slots without the functions. See to it before
        somebody's call has to."""
        self._provided &= set(self._calls.slots.primaries)
        fresh = set(self._calls.slots.primaries) - self._provided
        if fresh and self._keeps_library and (self._providing is None or self._providing.done()):
            self._providing = asyncio.get_running_loop().create_task(self._provide_quietly())

    async def _provide_quietly(self) -> None:
        try:
            await self.load_library()
        except EngineError as failed:
            # Whoever calls a function there loads it, or is told.
            log.warning("the library could not be loaded on every primary: %s", failed)

    async def close(self) -> None:
        if self._providing is not None:
            self._providing.cancel()
            await asyncio.gather(self._providing, return_exceptions=True)
        await super().close()


_NOTHING: Final = ClaimedBatch(TimestampMs(0), [], again=False, sets_revision=0, parked=True)


def _joined(one: ClaimedBatch, two: ClaimedBatch) -> ClaimedBatch:
    """Two partitions' answers to one claim: parked only if all of them had nothing."""
    return ClaimedBatch(
        now_ms=max(one.now_ms, two.now_ms), jobs=[*one.jobs, *two.jobs], again=one.again or two.again,
        sets_revision=max(one.sets_revision, two.sets_revision), parked=one.parked and two.parked,
    )  # fmt: skip

