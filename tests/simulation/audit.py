"""What stands in the store against what the model knows: records, timers, leases, header, feed."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from ffengine import check
from tests.lua.invariants import field_names
from tests.simulation import audit_admission, audit_durable, audit_flows
from tests.simulation.records import QUEUED, Execution, Partition
from tests.simulation.violation import Violation

if TYPE_CHECKING:
    from tests.simulation.world import World


@cache
def _names() -> tuple[str, ...]:
    """Short names in the order of `_values`."""
    return tuple(field_names()[name] for name in _COMPARED)


_COMPARED = (
    "state", "reason", "lane", "task", "priority", "cap", "fair", "retries", "crashes", "unseen", "hand_backs",
    "replays", "run", "lease_epoch", "lease_id", "created_at", "cancel_until", "grant", "attempt_deadline_at", "waiter",
    "version", "journal", "suspension", "suspend_until", "waitpoints", "paused", "unpinned", "flow", "node", "deps",
    "outs", "inputs", "children", "due", "unhandled", "adm", "unique", "lane_quota",
)  # fmt: skip


def _values(x: Execution) -> tuple[object, ...]:
    """What a record must have, whatever its state; an unset or zero field is absent."""
    return (
        x.state, x.reason, x.lane.no, x.task, x.priority or None, None if x.cap == "-" else x.cap, x.fair,
        x.retries or None, x.crashes or None, x.unseen or None, x.hand_backs or None, x.replays or None, x.run or None,
        x.epoch or None, x.lease_id or None, x.created_at, x.cancel_until, x.grant, x.attempt_deadline,
        f"{x.waiter[0]} {x.waiter[1]}" if x.waiter else None, None if x.version == 1 else x.version,
        None if x.d.began is None else f"{x.d.began[0]} {x.d.began[1]}", 1 if x.d.suspension else None, x.suspend_until,
        1 if x.d.waitpoints else None, x.paused, 1 if x.unpinned else None, *_as_member(x),
    )  # fmt: skip


def _as_member(x: Execution) -> tuple[object, ...]:
    e = x.edges
    upstreams = e.grouped or len(e.incoming) > len(e.children())
    return (
        x.flow.uuid if x.flow else None, x.node or None, 1 if upstreams else None, 1 if e.outgoing else None, x.inputs,
        1 if e.children() else None, x.due, 1 if x.unhandled else None, x.adm, x.unique, x.lane_quota,
    )  # fmt: skip


def _of_state(x: Execution) -> dict[str, object]:
    """What it must have in the state it is in. What it may keep from an earlier one is left out."""
    wanted: dict[str, object] = {}
    if not x.terminal:
        # A completion under a fence is known by its state; the word need not stand in the record.
        wanted = {"ended_by": x.ended_by, "deadline_at": x.deadline_at, "attempt_left_ms": x.left_ms}
    if x.state in QUEUED:
        wanted["turn"] = x.turn
    elif x.state in ("active", "granted", "delayed") or x.terminal:
        wanted["at"] = x.at
    return wanted


def wrong_fields(x: Execution, stored: dict[str, str]) -> list[str]:
    names = field_names()
    wrong = [
        f"{name} is {stored.get(short)}, should be {value}"
        for name, short, value in zip(_COMPARED, _names(), _values(x), strict=True)
        if stored.get(short) != (None if value is None else str(value))
    ]
    if stored.get(names["ended_by"]) == "-":
        del stored[names["ended_by"]]  # the same as none: written over it, because taking a field away costs more
    for name, value in _of_state(x).items():
        if stored.get(names[name]) != (None if value is None else str(value)):
            wrong.append(f"{name} is {stored.get(names[name])}, should be {value}")
    for name, value, unset in (
        ("next", x.next, "initial"),
        ("attempt", None if x.attempt is None else str(x.attempt), "0" if x.lease_id else None),
        ("attempt_id", x.attempt_id or None, x.lease_id or None),
    ):
        if stored.get(names[name], unset) != value:
            wrong.append(f"{name} is {stored.get(names[name])}, should be {value}")
    heard = stored.get(names["heard"]) == stored.get(names["lease_epoch"], "")
    if x.state == "active" and heard != (x.heard == x.epoch):
        wrong.append(f"heard is {heard}, should be {x.heard == x.epoch}")
    return wrong


def _text(raw: Any) -> dict[str, str]:
    flat = raw.items() if isinstance(raw, dict) else zip(raw[::2], raw[1::2], strict=True)
    return {name.decode(): value.decode(errors="surrogateescape") for name, value in flat}


def _zset(raw: Any) -> dict[str, int]:
    if raw and isinstance(raw[0], list):
        return {member.decode(): int(float(score)) for member, score in raw}
    return {raw[i].decode(): int(float(raw[i + 1])) for i in range(0, len(raw), 2)}


def _core(id: str) -> str:
    partition, _, uuid = id.rpartition(":")
    return f"ff:{partition}:x:{uuid}"


def records(world: World, executions: list[Execution]) -> None:
    """The named records are as the model has them."""
    raw = world.wire.pipe([("HGETALL", _core(x.id)) for x in executions])
    for x, got in zip(executions, raw, strict=True):
        wrong = wrong_fields(x, _text(got))
        if wrong:
            raise Violation(f"record {wrong[0].split()[0]}", f"{x.id} ({x.state}): {'; '.join(wrong)}")
    audit_durable.executions(world, executions)
    audit_flows.edges(world, executions)


def everything(world: World, *, whole: bool) -> None:
    """The records that are there and no others, all timers and leases, the header, the feed since the last look.
    `whole`: also compare what has ended, which nothing but a replay or a purge may change."""
    audit_admission.everything(world)
    for p in world.model.partitions.values():
        if not p.key.startswith("{fp"):
            continue
        key = f"ff:{p.key}"
        found, timers, leases, header, feed, reap = world.wire.pipe([
            ("KEYS", f"{key.replace('{', '[{]')}:x:*"), ("ZRANGE", f"{key}:timers", 0, -1, "WITHSCORES"),
            ("ZRANGE", f"{key}:leases", 0, -1, "WITHSCORES"), ("HGETALL", key),
            ("XRANGE", f"{key}:ev", f"({world.cursors.get(p.key, '0-0')}", "+"),
            ("ZRANGE", f"{key}:reap", 0, -1, "WITHSCORES"),
        ])  # fmt: skip
        stored = {name.decode().rpartition(":")[2] for name in found}
        if stored != set(p.records):
            lost, extra = set(p.records) - stored, stored - set(p.records)
            raise Violation("records", f"{p.key} lost {sorted(lost)}, has {sorted(extra)} that should not be")
        records(world, [x for x in p.records.values() if whole or not x.terminal])
        for what, got, wanted in (("timers", _zset(timers), p.timers), ("leases", _zset(leases), p.leases),
                                  ("reap", _zset(reap), p.reap)):  # fmt: skip
            if got != wanted:
                raise Violation(what, f"{p.key}: {_difference(wanted, got)}")
        _check_header(p, _text(header))
        audit_durable.kids(world, p)
        audit_flows.flows(world, p)
        said: list[str] = []
        for entry, fields in feed:
            world.cursors[p.key] = entry.decode()
            said += [_transition(fields[i], fields[i + 1]) for i in range(0, len(fields), 2)]
        if said != p.feed:
            same = next((i for i, pair in enumerate(zip(said, p.feed, strict=False)) if len(set(pair)) > 1), None)
            at = min(len(said), len(p.feed)) if same is None else same
            raise Violation("feed", f"{p.key} says {said[at:]}, the model {p.feed[at:]}")
        p.feed.clear()


class _Direct:
    """The store as the checker wants it: a backend whose calls have answered before anybody can wait."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def call(self, args: Any) -> Any:
        return self._world.peek(args)


def checked(world: World, partitions: list[Any]) -> None:
    """The engine's own checker, with what it remembers of its earlier passes over this store."""
    work = check.violations(_Direct(world), memory=world.memory, partitions=partitions)  # type: ignore[arg-type]
    try:
        work.send(None)
    except StopIteration as done:
        found: list[check.Violation] = done.value
    else:
        raise AssertionError("the checker waited for something other than the store")
    if found:
        told = "; ".join(f"{v.invariant} {v.id}: {v.detail}" for v in found[:5])
        raise Violation(f"invariant {found[0].invariant}", told)


def _transition(name: bytes, text: bytes) -> str:
    words = text.decode().split(" ")[:3]
    if name == b"f":
        return f"f {words[0]} {words[2]}"
    return " ".join(words) if name == b"e" else "o"


def _difference(wanted: dict[str, int], got: dict[str, int]) -> str:
    missing = {k: v for k, v in wanted.items() if got.get(k) != v}
    return f"should have {missing}, has {({k: v for k, v in got.items() if wanted.get(k) != v})}"


def _check_header(p: Partition, header: dict[str, str]) -> None:
    wanted = {"hwm": p.hwm, "offset": p.offset, "ticker_until": p.ticker_until, "holds": len(p.holds),
              "settings": p.reached}  # fmt: skip
    if p.grace_until >= p.hwm:
        # A grace that is over says nothing any more and may be forgotten.
        wanted["grace_until"] = p.grace_until
    for lane in p.lanes.values():
        wanted[f"a{lane.no}"] = sum(1 for uuid in p.leases if p.records[uuid].lane is lane)
        wanted[f"c{lane.no}"] = lane.revision
        wanted[f"y{lane.no}"] = lane.bytes or 0
        wanted[f"m{lane.no}"] = sum(1 for x in lane.ready.values() if x.adm is not None)
    wrong = {name: header.get(name) for name, value in wanted.items() if int(header.get(name, "0")) != value}
    states = {f"s{lane.no}": lane.state for lane in p.lanes.values()}
    wrong |= {name: header.get(name) for name, word in states.items() if header.get(name, "active") != word}
    if wrong:
        shown = {name: wanted.get(name, states.get(name)) for name in wrong}
        raise Violation("header", f"{p.key} says {wrong}, should be {shown}")
