"""Subscriptions: what happens in the store, as it happens, from all partitions, with a cursor to go on from.

The feed is a bounded log of each partition. One cursor holds a place in each; a place that has been trimmed away is
refused, `cursor_expired`, never skipped. Order holds within a partition; between them it is by time, per look.

Looking is polling, on purpose. A blocking read would take a connection per subscription (and node), because it holds up
whatever shares it; a message per append would put a command into every transition, of which most stores have no
follower. A look at all partitions is one write of a call each: 50 a second while there is news, two while there is not.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from ffcore import checks, ids
from ffcore.contracts.flow import FlowInfo, ReadFlowArgs
from ffcore.contracts.reads import EventEntry, ReadEventsArgs, ReadExecutionArgs, StoredExecution
from ffcore.errors import InvalidArgument, NotFound
from ffcore.ids import ExecutionId, FlowId, PartitionKey
from ffcore.states import STATES, LifecyclePhase
from ffsdk.times import from_ms
from ffsdk.views import Event

if TYPE_CHECKING:
    from ffsdk.client import Client

Kind = Literal["completion", "lease", "signal", "operator", "flow"]
KINDS = ("completion", "lease", "signal", "operator", "flow")
PAGE_N = 100
IDLE_S, IDLE_MAX_S = 0.02, 0.5
"""Pause after a look that found nothing: doubled up to the second, so that a busy feed is followed closely."""
OLDEST = "-"
_PLACE = re.compile(r"(-|\d+-\d+)(?:\+(\d{1,5}))?")
_TERMINAL = frozenset(word for word, row in STATES.items() if row.phase is LifecyclePhase.TERMINAL)
_OPERATORS = frozenset({
    "cancel_requested", "held", "released", "unblocked", "paused", "pause_pending", "unpaused", "resumed", "operator",
    "approved", "escalated", "steps_unclaimed", "replay", "operator_override", "priority", "signal_by_operator",
    "token_refused",
})  # fmt: skip
"""First words of a reason that somebody outside the job brought about, or that asks for somebody."""
_SIGNAL = "signal "
"""How the reason of an entry begins that tells of a signal: its name, what became of it and the waitpoint follow."""
_BESIDE_THE_LEASE = frozenset({
    "signal", "signal_by_operator", "token_refused", "waitpoint_closed", "pause_pending", "unpaused", "priority",
    "steps_unclaimed",
})  # fmt: skip
"""Words of entries on a job that runs and goes on running as it did."""
_WORKER = re.compile(r"(.+)\.[A-Za-z0-9]+\.\d+\.\d+")
"""A batch claim's lease id begins with the worker's instance; that of the two-step claim says nothing of it."""
_FLOW = re.compile(r"(?:^| )flow=([0-9a-f-]{36})$")
"""How the reason ends that tells of the end of a flow's member."""
_LEASE_WORDS = frozenset({"active", "reclaimable", "revoked"})


def without_flow(reason: str) -> tuple[str, str | None]:
    """A reason as people read it, and the uuid of the flow whose member has ended; None: it is of no flow."""
    found = _FLOW.search(reason)
    return (reason[: found.start()] or "-", found[1]) if found else (reason, None)


class Place:
    """Where one partition's feed is read from: behind an entry, less what was already delivered of the next."""

    __slots__ = ("after", "skip")

    def __init__(self, after: str, skip: int = 0) -> None:
        self.after, self.skip = after, skip

    def __str__(self) -> str:
        return f"{self.after}+{self.skip}" if self.skip else self.after


def parse_cursor(text: str, partitions: list[PartitionKey]) -> dict[PartitionKey, Place]:
    """The places of a cursor. InvalidArgument for one of another store or shape."""
    parts = text.split(".") if isinstance(text, str) else []
    if len(parts) != len(partitions) or not all(_PLACE.fullmatch(part) for part in parts):
        raise InvalidArgument(f"cursor {text!r:.80}: pass the .cursor of an event of this store, or {OLDEST!r}")
    places: dict[PartitionKey, Place] = {}
    for partition, part in zip(partitions, parts, strict=True):
        after, _, skip = part.partition("+")
        places[partition] = Place(after, int(skip or 0))
    return places


class Subscription:
    """An async iterator of events. It starts at its first use, or at ``async with``, which fixes "from now" there."""

    def __init__(
        self,
        client: Client,
        kind: Kind,
        *,
        lanes: Iterable[str] | None,
        tags: Mapping[str, str] | None,
        namespace: str | None,
        after: str | None,
    ) -> None:
        if kind not in KINDS:
            raise InvalidArgument(f"subscribe({kind!r:.40}): use {', '.join(KINDS[:-1])} or {KINDS[-1]}")
        if isinstance(lanes, str):
            raise InvalidArgument(f"lanes is {lanes!r:.60}: use a list of names")
        self._lanes = None if lanes is None else frozenset(ids.check_name(lane, "lane") for lane in lanes)
        self._tags = dict(tags or {})
        checks.tags(self._tags)
        self._namespace = None if namespace is None else ids.check_name(namespace, "namespace")
        if kind == "flow" and lanes is not None:
            raise InvalidArgument("a flow is in no lane, its members are: leave lanes= out, or follow completions")
        self._seen: dict[str, bool] = {}
        """Whether tags and namespace of the jobs, or the flows, of this look are wanted."""
        self._client, self._after = client, after
        self._kind: Kind = kind
        self._places: dict[PartitionKey, Place] | None = None
        self._ready: list[Event] = []
        self._pause_s = IDLE_S

    def __aiter__(self) -> Self:
        return self

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ready.clear()

    @property
    def cursor(self) -> str:
        """Behind everything handed out so far, for a start without an event to take it from."""
        if self._places is None:
            raise InvalidArgument("the subscription has not started: use `async with`, or take an event first")
        return self._ready_from if self._ready else _join(self._places)

    async def __anext__(self) -> Event:
        """The next event; waits for it. Raises `cursor_expired` (InvalidRequest) when the feed was trimmed past us."""
        await self.start()
        while not self._ready:
            self._ready_from = _join(self._places or {})
            if await self._look():
                self._pause_s = IDLE_S
            elif not self._ready:
                await self._client.pace.pause(self._pause_s)
                self._pause_s = min(self._pause_s * 2, IDLE_MAX_S)
        event = self._ready.pop(0)
        self._ready_from = event.cursor
        return event

    async def start(self) -> None:
        """Fix where it starts, if that is not done; the first event does it too."""
        if self._places is not None:
            return
        backend = self._client.backend
        partitions = backend.config.keys()
        if self._after == OLDEST:
            self._places = {partition: Place(OLDEST) for partition in partitions}
        elif self._after is not None:
            self._places = parse_cursor(self._after, partitions)
        else:
            heads = [await backend.call(ReadEventsArgs(partition=p, after=OLDEST, limit=1)) for p in partitions]
            # Behind the millisecond that has begun: what happens in it from here on is still to come.
            starts = zip(partitions, heads, strict=True)
            self._places = {p: Place(f"{max(0, head.now_ms - 1)}-999999999") for p, head in starts}

    async def _look(self) -> bool:
        """Read a page of every partition; whether there was anything at all."""
        assert self._places is not None
        partitions = list(self._places)
        asked = [ReadEventsArgs(partition=p, after=self._places[p].after, limit=PAGE_N) for p in partitions]
        answers = await self._client.backend.call_all(asked)
        entries: list[tuple[tuple[int, int], PartitionKey, EventEntry]] = []
        for partition, answer in zip(partitions, answers, strict=True):
            if isinstance(answer, Exception):
                raise answer
            for entry in answer.entries:
                ms, _, n = entry.event_id.partition("-")
                entries.append(((int(ms), int(n)), partition, entry))
        entries.sort(key=lambda found: found[0])
        await self._look_up([(partition, entry) for _, partition, entry in entries])
        for (at_ms, _), partition, entry in entries:
            await self._take(partition, entry, at_ms)
        return bool(entries)

    async def _take(self, partition: PartitionKey, entry: EventEntry, ms: int) -> None:
        """Turn one entry into events, each with the cursor behind it."""
        assert self._places is not None
        place = self._places[partition]
        pairs = list(zip(entry.fields[::2], entry.fields[1::2], strict=True))
        for at, (sort, text) in enumerate(pairs):
            if at < place.skip:
                continue
            last = at + 1 == len(pairs)
            self._places[partition] = Place(entry.event_id) if last else Place(place.after, at + 1)
            made = await self._event(partition, sort, text)
            if made is not None:
                self._ready.append(Event(kind=self._kind, cursor=_join(self._places), at=from_ms(ms), **made))
        self._places[partition] = Place(entry.event_id)

    async def _event(self, partition: PartitionKey, sort: str, text: str) -> dict[str, Any] | None:
        if sort == "o":
            return self._nobody(text)
        if sort == "f":
            return self._of_flow(partition, text)
        uuid, was, now, _, attempt, lane, lease_id, why = text.split(" ", 7)
        if not self._wants(was, now, why):
            return None
        execution_id = ExecutionId(f"{partition}:{uuid}")
        name = await self._client.lane_names.of(partition, lane, uuid)
        if self._lanes is not None and name not in self._lanes:
            return None
        if not self._seen.get(execution_id, True):
            return None
        signal: dict[str, Any] = {}
        why, flow = without_flow(why) if now in _TERMINAL and was != now else (why, None)
        if self._kind == "signal":
            signal["signal"], signal["effect"], signal["waitpoint_id"] = why.removeprefix(_SIGNAL).rsplit(" ", 2)
        holder = _WORKER.fullmatch(lease_id)
        return {
            "execution_id": execution_id, "lane": name, "from_state": None if was == "-" else _public(was),
            "to_state": _public(now), "attempt": int(attempt) if attempt.isdigit() else None,
            "worker": holder[1] if holder else None, "detail": "" if why == "-" else why,
            "flow_id": None if flow is None else FlowId(f"{partition}:{flow}"), **signal,
        }  # fmt: skip

    def _of_flow(self, partition: PartitionKey, text: str) -> dict[str, Any] | None:
        """What became of a flow as a whole."""
        uuid, was, now, why = text.split(" ", 3)
        flow_id = FlowId(f"{partition}:{uuid}")
        if self._kind != "flow" or not self._seen.get(flow_id, True):
            return None
        return {
            "execution_id": None, "lane": None, "from_state": None if was == "-" else was, "to_state": now,
            "attempt": None, "worker": None, "detail": "" if why == "-" else why, "flow_id": flow_id,
        }  # fmt: skip

    def _wants(self, was: str, now: str, why: str) -> bool:
        if self._kind == "completion":
            return now in _TERMINAL and was != now
        if self._kind == "flow":
            return False
        first = why.partition(" ")[0]
        if self._kind == "lease":
            touched = was in _LEASE_WORDS or now in _LEASE_WORDS
            return touched and not (was == now and first in _BESIDE_THE_LEASE)
        if self._kind == "signal":
            return why.startswith(_SIGNAL)
        return first in _OPERATORS or now == "revoked" or why.endswith(" paused")

    async def _look_up(self, entries: list[tuple[PartitionKey, EventEntry]]) -> None:
        """Read what the feed does not carry, of all jobs (or flows) of a look at once. A record that is gone has
        neither tags nor a namespace: it is left out, as if it had never had them."""
        self._seen.clear()
        if not self._tags and self._namespace is None:
            return
        wanted: dict[str, ReadExecutionArgs | ReadFlowArgs] = {}
        for partition, entry in entries:
            for sort, text in zip(entry.fields[::2], entry.fields[1::2], strict=True):
                found = f"{partition}:{text[:36]}"
                if sort == "f" and self._kind == "flow":
                    wanted[found] = ReadFlowArgs(flow_id=FlowId(found))
                elif sort == "e":
                    _, was, now, *_, why = text.split(" ", 7)
                    if self._wants(was, now, why):
                        wanted[found] = ReadExecutionArgs(execution_id=ExecutionId(found))
        asked: list[Any] = list(wanted.values())
        for asked_of, stored in zip(wanted, await self._client.backend.call_all(asked), strict=True):
            if isinstance(stored, Exception) and not isinstance(stored, NotFound):
                raise stored
            self._seen[asked_of] = not isinstance(stored, Exception) and self._fits(stored)

    def _fits(self, stored: StoredExecution | FlowInfo) -> bool:
        namespace: str
        if isinstance(stored, FlowInfo):
            namespace = stored.namespace
        else:
            namespace = stored.fields.get("namespace", "default")
        if self._namespace not in (None, namespace):
            return False
        return all(stored.tags.get(key) == value for key, value in self._tags.items())

    def _nobody(self, text: str) -> dict[str, Any] | None:
        """What an operator did to no job: to a lane, a hold, the secrets. It has neither tags nor a namespace."""
        words = text.split(" ")
        lane = words[1] if words[0] == "lane" and len(words) > 1 else None
        if self._kind != "operator" or self._tags or self._namespace is not None:
            return None
        if self._lanes is not None and lane not in self._lanes:
            return None
        return {
            "execution_id": None, "lane": lane, "from_state": None, "to_state": None, "attempt": None, "worker": None,
            "detail": text,
        }  # fmt: skip


def _public(word: str) -> str:
    """The public word of a stored one; a blocked job's depends on its reason, which the feed does not carry."""
    row = STATES.get(word)
    return row.public.value if row is not None and row.public is not None else "waiting"


def _join(places: Mapping[PartitionKey, Place]) -> str:
    return ".".join(str(place) for place in places.values())
