"""The checker's driver: read every partition's pages and say what is wrong, without stopping anybody.

    async def violations(
        backend: Backend, *, memory: Memory | None = None, partitions: Iterable[PartitionKey] | None = None,
        limit: int = LIMIT,
    ) -> list[Violation]

What is right is said in `docs/model.md` (I1 to I22). `lua/shared/check.lua` decides what one instant can decide, page
by page; here is what takes more than one page: the chains of the feed, sums of a lane, and what a `Memory` keeps from
pass to pass. A system at work gives no false alarm: what may have changed between two pages is not compared.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

import msgspec

from ffcore import limits
from ffcore.backend import Backend
from ffcore.contracts.check import CheckArgs, Checked, SeenEvent, SeenRecord
from ffcore.contracts.reads import ExecutionRef, ReadOutcomesArgs
from ffcore.ids import ExecutionId, PartitionKey, partition_of, uuid_of
from ffcore.states import STATES, TerminalOutcome

FAMILIES: Final = ("fp", "b", "q", "w")
LIMIT: Final = 200
"""Records, members and transitions of one page: some 3 ms of a held server."""
FEED_PAGES_MAX: Final = 5_000
"""A feed that grows faster than it is read is not read to its end; its last transitions are then not compared."""
_ENDED: Final = frozenset(word for word, row in STATES.items() if row.outcome is not TerminalOutcome.NONE)


class Violation(msgspec.Struct, frozen=True, order=True):
    """One thing that is not as the model says."""

    invariant: str
    """`I1` to `I22` of docs/model.md."""
    partition: PartitionKey
    id: str
    """The execution it is about, or the partition."""
    detail: str
    remedy: str = ""
    """What a repair would do; empty: none can."""
    object: str = ""
    """What to name to it; empty: the execution."""


class Told(NamedTuple):
    """The last the feed told of an execution, and what its record said when that was read."""

    event: SeenEvent
    to: str
    epoch: int
    why: str


class Feed:
    """What has been read of a partition's feed."""

    def __init__(self) -> None:
        self.read_to = ""
        """The last event read."""
        self.told: dict[str, Told] = {}
        """By uuid."""
        self.cut = False
        """Entries may have been lost before they were read."""


class Memory:
    """What a checker remembers from pass to pass: one per store and run of checks, never across a loss that is known
    (a failover without confirmed writes, a restored copy)."""

    def __init__(self) -> None:
        self.acknowledged: set[str] = set()
        """Ids of submits the store has acknowledged; each must exist, unless it was seen to end and was purged since.
        The caller adds to it."""
        self.records: dict[PartitionKey, dict[str, SeenRecord]] = {}
        self.ended: set[str] = set()
        """Ids that were seen to have ended: they may be purged."""
        self.hwm: dict[PartitionKey, int] = {}
        self.feeds: dict[PartitionKey, Feed] = {}


async def violations(
    backend: Backend,
    *,
    memory: Memory | None = None,
    partitions: Iterable[PartitionKey] | None = None,
    limit: int = LIMIT,
) -> list[Violation]:
    """What is wrong with a store now; nothing, if the engine is right. Repeatable while the system runs.

    memory: also compare with earlier passes, and hold records against the feed. partitions: only these, of all
    families otherwise. Raises what calls raise: Unavailable, NotInitialised for a partition without a header.
    """
    if partitions is None:
        partitions = [key for family in FAMILIES for key in backend.config.keys(family)]
    found: dict[Violation, None] = {}
    libraries: dict[str, PartitionKey] = {}
    looked: dict[PartitionKey, _Pass] = {}
    for key in partitions:
        one = looked[key] = await _look(backend, key, memory, limit)
        found |= dict.fromkeys(one.found())
        libraries.setdefault(one.library, key)
    if len(libraries) > 1:
        told = ", ".join(f"{sha} answers for {key}" for sha, key in sorted(libraries.items()))
        found[Violation("I21", min(libraries.values()), min(libraries.values()), f"libraries differ: {told}")] = None
    if memory is not None:
        found |= dict.fromkeys(await _lost(backend, memory, looked))
        for key, one in looked.items():
            one.keep(memory, key)
    return sorted(found)


async def _look(backend: Backend, key: PartitionKey, memory: Memory | None, limit: int) -> _Pass:
    one = _Pass(key, memory)
    cursor: str | None = None
    feed_pages_n = 0
    while True:
        page = await backend.call(
            CheckArgs(
                partition=key, cursor=cursor, limit=limit, remember=memory is not None, feed_after=one.began_at or None
            )
        )
        one.take(page)
        cursor = page.cursor
        feed_pages_n += cursor.startswith("e ")
        if not cursor or feed_pages_n > FEED_PAGES_MAX:
            one.whole = not cursor
            break
    unseen = [uuid for uuid in one.feed.told if uuid not in one.fresh and f"{key}:{uuid}" not in one.seen]
    one.present = set(unseen) - await _gone(backend, key, unseen)
    return one


async def _gone(backend: Backend, key: PartitionKey, uuids: Sequence[str]) -> set[str]:
    """Which of these do not exist. A scan does not show all there is when the server was restarted under it."""
    gone: set[str] = set()
    for start in range(0, len(uuids), limits.ROWS_N):
        rows = [ExecutionRef(ExecutionId(f"{key}:{uuid}")) for uuid in uuids[start : start + limits.ROWS_N]]
        answer = await backend.call(ReadOutcomesArgs(partition=key, items=rows))
        gone |= {uuid_of(item.execution_id) for item in answer.items if item.state == "unknown"}
    return gone


async def _lost(backend: Backend, memory: Memory, looked: dict[PartitionKey, _Pass]) -> list[Violation]:
    """Acknowledged submits that are nowhere and were never seen to end (I10)."""
    found: list[Violation] = []
    for key, one in looked.items():
        missing = sorted(
            id for id in memory.acknowledged
            if partition_of(id) == key and id not in one.seen and id not in memory.ended and not one.told_of_end(id)
        )  # fmt: skip
        found += [
            Violation("I10", key, f"{key}:{uuid}", "its submit was acknowledged and it does not exist")
            for uuid in sorted(await _gone(backend, key, [uuid_of(id) for id in missing]))
        ]
    return found


class _Pass:
    """One partition, page by page."""

    def __init__(self, key: PartitionKey, memory: Memory | None) -> None:
        self.key, self._memory = key, memory
        self.whole = False
        """The feed was read to its end."""
        self.library = ""
        self.seen: dict[str, SeenRecord] = {}
        self.feed = memory.feeds.setdefault(key, Feed()) if memory is not None else Feed()
        self.began_at = self.feed.read_to
        """Where the feed is read from: what came before is known from earlier passes."""
        self._found: dict[Violation, None] = {}
        self.fresh: set[str] = set()
        """Whom the feed told of in this pass."""
        self.present: set[str] = set()
        """Whom it told of earlier, and who is there although the scan did not show it."""
        self._sizes: dict[str, tuple[str, int]] = {}
        self._kids: dict[tuple[str, str], int] = {}
        """Open waitpoints by execution and kid."""
        self._flows: dict[str, dict[str, int]] = {}
        """What flows of many members count, by uuid."""
        self._members: dict[str, tuple[str, str, bool]] = {}
        """Their members: flow, counter, and whether edges are still being resolved."""
        self._pages: list[Checked] = []
        """The first and the last."""

    def say(self, invariant: str, id: str, detail: str, remedy: str = "", object: str = "") -> None:
        self._found[Violation(invariant, self.key, id, detail, remedy, object)] = None

    # ---- page by page

    def take(self, page: Checked) -> None:
        for wrong in page.wrong:
            self.say(*msgspec.structs.astuple(wrong))
        if self._pages:
            before = self._pages[-1].facts
            if page.facts.hwm < before.hwm:
                self.say("I20", self.key, f"its time ran back from {before.hwm} to {page.facts.hwm}")
            if before.last_event and _stamp(page.facts.last_event) < _stamp(before.last_event):
                self.say("I17", self.key, f"its feed ran back from {before.last_event} to {page.facts.last_event}")
        self._pages = [self._pages[0], page] if self._pages else [page]
        self.library = page.facts.library
        self.seen |= {record.execution_id: record for record in page.seen}
        self._sizes |= {row.uuid: (row.lane, row.size) for row in page.sizes}
        self._kids |= {(row.uuid, row.kid): row.n for row in page.kids}
        self._flows |= {row.uuid: row.counts for row in page.flow_counts}
        self._members |= {row.uuid: (row.flow, row.counter, row.resolving) for row in page.flow_members}
        if page.facts.feed_full and _stamp(page.facts.first_event) > _stamp(self.feed.read_to):
            # What was cut off may have held the links between what we have read and what comes now.
            self.feed.told.clear()
            self.feed.cut = True
        for event in page.events:
            self._follow(event)
            self.feed.read_to = event.event_id

    def _follow(self, event: SeenEvent) -> None:
        """I8, I17: a transition begins where the last one of its execution ended, and every claim raises the epoch."""
        uuid, origin, to, number, _, _, _, why = event.text.split(" ", 7)
        id, epoch, last = f"{self.key}:{uuid}", int(number), self.feed.told.get(uuid)
        self.feed.told[uuid] = Told(event, to, epoch, why)
        self.fresh.add(uuid)
        if origin == "-":
            if last is not None and last.to not in _ENDED:
                self.say("I17", id, f"event {event.event_id} creates it again; the feed had it {last.to}")
            return
        claimed = to == "active" != origin
        if last is None:
            if not self.feed.cut:
                self.say("I17", id, f"event {event.event_id} moves it from {origin}; the feed had not told of it")
            return
        if origin != last.to:
            self.say("I17", id, f"event {event.event_id} moves it from {origin}; the feed had it {last.to}")
        if claimed and epoch <= last.epoch:
            self.say("I8", id, f"event {event.event_id} claims it at epoch {epoch}, after {last.epoch}")
        elif not claimed and epoch != last.epoch:
            self.say("I8", id, f"event {event.event_id} has epoch {epoch}, after {last.epoch}, and is no claim")

    # ---- at the end of the pass

    def found(self) -> Iterator[Violation]:
        if self.whole:
            self._hold_against_feed()
        self._add_up()
        if self._memory is not None:
            self._compare(self._memory)
        yield from self._found

    def _hold_against_feed(self) -> None:
        """What the feed told last of an execution is what its record said then. Whoever moved meanwhile was told of
        again, further on; that was read too. Whom it has not told of in this pass has not moved since the last one."""
        for uuid, (event, to, epoch, why) in self.feed.told.items():
            if uuid in self.present:
                continue
            id = f"{self.key}:{uuid}"
            record = self.seen.get(id)
            if uuid in self.fresh:
                state, number = event.state, event.lease_epoch
            else:
                state, number = (record.state, record.lease_epoch) if record is not None else ("gone", 0)
            if state == "gone":
                if to not in _ENDED:
                    self.say("I10", id, f"the feed had it {to} at {event.event_id}, and it does not exist")
            elif state != to:
                self.say("I17", id, f"the feed had it {to} at {event.event_id}, its record says {state}")
            elif number != epoch:
                self.say("I8", id, f"the feed had epoch {epoch} at {event.event_id}, its record says {number}")
            elif uuid in self.fresh and to == "blocked" and why.startswith("held ") and not event.held:
                self.say("I3", id, f"{why}, and not among those a release looks at", "put it among the held")
        if not self.feed.cut:
            for id in self.seen:
                if uuid_of(id) not in self.feed.told:
                    self.say("I17", id, "the feed never told of it")

    def _add_up(self) -> None:
        """I6 for bytes, I12 for large flows and I15 for kids, where nothing has moved while we read."""
        first, last = self._pages[0], self._pages[-1]
        if not self.whole or first.facts.last_event != last.facts.last_event:
            return
        # Edges are resolved without a word in the feed, but not without time.
        self._add_up_flows(still=first.facts.hwm == last.facts.hwm)
        if first.bytes != last.bytes:
            return
        for row in last.bytes:
            kept = sum(size for lane, size in self._sizes.values() if lane == row.lane)
            if kept != row.counted:
                number, _, what = row.lane.partition(" ")
                self.say(
                    "I6",
                    self.key,
                    f"lane {number} counts {row.counted} bytes {what or 'kept'}, there are {kept}",
                    "count again",
                    f" {what or 'bytes'} {number}",
                )
        if first.kid_counts != last.kid_counts:
            return
        counted = {row.kid: row.n for row in last.kid_counts if row.kid}
        for kid in sorted({kid for _, kid in self._kids} | set(counted)):
            there = sum(n for (_, by), n in self._kids.items() if by == kid)
            if there != counted.get(kid, 0):
                self.say("I15", self.key, f"kid {kid} counts {counted.get(kid, 0)} open waitpoints, there are {there}")

    def _add_up_flows(self, *, still: bool) -> None:
        there = {uuid: dict.fromkeys(counts, 0) for uuid, counts in self._flows.items()}
        for flow, counter, resolving in self._members.values():
            if flow in there:
                there[flow][counter] += 1
                there[flow]["resolving"] += resolving
        for uuid, counts in self._flows.items():
            for counter, n in counts.items():
                if n != there[uuid][counter] and (still or counter != "resolving"):
                    detail = f"counts {n} {counter}, there are {there[uuid][counter]}"
                    self.say("I12", f"{self.key}:{uuid}", detail, "count again", f":flow:{uuid}")

    def _compare(self, memory: Memory) -> None:
        facts = self._pages[-1].facts
        if facts.hwm < memory.hwm.get(self.key, 0):
            self.say(
                "I20", self.key, f"its time ran back from {memory.hwm[self.key]} to {facts.hwm} between two passes"
            )
        if _stamp(facts.last_event) < _stamp(self.began_at):
            self.say(
                "I17", self.key, f"its feed ran back from {self.began_at} to {facts.last_event} between two passes"
            )
        for id, then in memory.records.get(self.key, {}).items():
            now = self.seen.get(id)
            if now is not None and now.created_at == then.created_at:
                self._changed(id, then, now)

    def _changed(self, id: str, then: SeenRecord, now: SeenRecord) -> None:
        if now.lease_epoch < then.lease_epoch:
            self.say("I8", id, f"its epoch fell from {then.lease_epoch} to {now.lease_epoch}")
        if now.lease_epoch == then.lease_epoch and now.lease_id != then.lease_id:
            self.say("I8", id, f"epoch {now.lease_epoch} was given to {then.lease_id} and to {now.lease_id}")
        if now.run < then.run:
            self.say("I9", id, f"its run fell from {then.run} to {now.run}")
        # Whoever was skipped had no run to end: a replay of what he depends on opens him again.
        if then.state in _ENDED and then.state != "skipped" and now.run == then.run:
            if now.state != then.state:
                self.say("I9", id, f"it had ended as {then.state} and is {now.state} in the same run")
            elif (now.at, now.result) != (then.at, then.result):
                self.say("I9", id, "its end or its result has changed in the same run")

    # ---- between passes

    def told_of_end(self, id: str) -> bool:
        told = self.feed.told.get(uuid_of(id))
        return told is not None and told.to in _ENDED

    def keep(self, memory: Memory, key: PartitionKey) -> None:
        memory.hwm[key] = self._pages[-1].facts.hwm
        memory.records[key] = self.seen
        memory.ended |= {id for id, record in self.seen.items() if record.state in _ENDED}
        memory.ended |= {id for id in memory.acknowledged if partition_of(id) == key and self.told_of_end(id)}
        if self.whole:
            # Purged: what ended before this pass began would have been seen.
            gone = [
                uuid for uuid, told in self.feed.told.items()
                if told.to in _ENDED and uuid not in self.present
                and (told.event.state == "gone" if uuid in self.fresh else f"{key}:{uuid}" not in self.seen)
            ]  # fmt: skip
            for uuid in gone:
                del self.feed.told[uuid]


def _stamp(event_id: str) -> tuple[int, int]:
    """A stream id as its two numbers; (0, 0) for none."""
    if not event_id:
        return (0, 0)
    ms, _, serial = event_id.partition("-")
    return (int(ms), int(serial))
