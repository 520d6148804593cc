"""What is true of a store between any two calls, checked by plain reads; no function of the library is asked.

The rule: the record is the truth. Every key leads to a record or to a permanent name, every index agrees with the
records, and nothing carries a TTL. Key patterns, field names and states are read from the Lua source itself.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from functools import cache
from typing import Any, NamedTuple

from ffbackend_valkey.library import lua_root
from ffcore import limits, states

Command = Callable[..., Awaitable[Any]]

BAND = 2**44
"""Turns in one priority band (`lua/shared/queue.lua`)."""
PERMANENT = {"ff:config", "ff:test:clock"}
_UUID = "[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_PARTS = {
    "id": f"(?P<id>{_UUID})", "lane": r"(?P<lane>\d+)", "cap": "(?P<cap>-|[0-9a-f]{12})", "state": "(?P<state>[a-z]+)",
    "band": r"(?P<band>\d+)", "string.sub(id, -3)": "(?P<bucket>[0-9a-f]{3})", "redis.sha1hex(id)": "[0-9a-f]{40}",
}  # fmt: skip


@cache
def _key_parts() -> dict[str, list[str]]:
    """Each name of `lua/shared/keys.lua` that makes a key, and the expressions it joins after the partition's."""
    text = (lua_root() / "shared/keys.lua").read_text()
    found: dict[str, list[str]] = {}
    for name, body in re.findall(r"^function keys\.(\w+)\(.*?\)\s*return (.*?) end", text, re.M):
        if not name.endswith("_channel") and name not in {"tag_of", "absent"}:
            first, *found[name] = [part.strip() for part in body.split("..")]
            assert first == "p.key", f"keys.{name} does not start with the partition's key"
    return found


def _joined(parts: list[str], known: dict[str, str], literal: Callable[[str], str]) -> str:
    return "".join(literal(part[1:-1]) if part.startswith('"') else known[part] for part in parts)


@cache
def key_patterns() -> dict[str, re.Pattern[str]]:
    """The keys of each kind. A part this does not know is an error, so that a new kind of key is looked at here."""
    head = r"ff:(?P<partition>\{(?:fp|b|q|w):\d+\})"
    return {name: re.compile(head + _joined(parts, _PARTS, re.escape)) for name, parts in _key_parts().items()}


def key_samples() -> dict[str, str]:
    """One key of each kind."""
    uuid = "00000000-0000-8000-8000-000000000abc"
    known = {"id": uuid, "lane": "1", "cap": "-", "state": "ready", "band": "100", "string.sub(id, -3)": "abc",
             "redis.sha1hex(id)": "0" * 40}  # fmt: skip
    return {name: "ff:{fp:0}" + _joined(parts, known, str) for name, parts in _key_parts().items()}


@cache
def field_names() -> dict[str, str]:
    """Short names of a record's fields, by the long ones."""
    text = (lua_root() / "shared/record.lua").read_text()
    block = re.search(r"local SHORT = \{(.*?)^\}", text, re.S | re.M)
    assert block, "shared/record.lua has no SHORT table"
    return dict(re.findall(r'(\w+) = "(\w+)"', re.sub(r"--.*", "", block[1])))


@cache
def state_table() -> dict[str, str]:
    """Each state of `lua/shared/state.lua` with the text of its row."""
    text = (lua_root() / "shared/state.lua").read_text()
    block = re.search(r"state\.TABLE = \{(.*?)^\}", text, re.S | re.M)
    assert block, "shared/state.lua has no state.TABLE"
    return dict(re.findall(r"^\s*(\w+)\s*=\s*\{([^}]*)\}", block[1], re.M))


def queued(state: str) -> bool:
    return "queued" in state_table()[state]


def terminal(state: str) -> bool:
    return "outcome" in state_table()[state]


def leased(state: str) -> bool:
    return "leased" in state_table()[state]


def timer_of(state: str) -> str | None:
    found = re.search(r'timer = "(\w+)"', state_table()[state])
    return found[1] if found else None


# ---- reading -----------------------------------------------------------------------------------------


class Store(NamedTuple):
    """Everything a store holds."""

    values: dict[str, Any]
    """Hash and zset as dict (zset: member to score), list and string as they are, stream as its length."""
    expiring: list[str]


def _pairs(raw: Any) -> list[tuple[Any, Any]]:
    if isinstance(raw, dict):
        return list(raw.items())
    return [(raw[i], raw[i + 1]) for i in range(0, len(raw), 2)]


async def read_store(command: Command) -> Store:
    """Read every key. For the small stores of tests."""
    names = sorted(key.decode() for key in await command("KEYS", "*"))
    values: dict[str, Any] = {}
    expiring: list[str] = []
    for name in names:
        if await command("PTTL", name) != -1:
            expiring.append(name)
        match await command("TYPE", name):
            case b"hash" | "hash":
                raw = _pairs(await command("HGETALL", name))
                values[name] = {k.decode(errors="surrogateescape"): v.decode(errors="surrogateescape") for k, v in raw}
            case b"zset" | "zset":
                raw = _pairs(await command("ZRANGE", name, 0, -1, "WITHSCORES"))
                values[name] = {member.decode(): float(score) for member, score in raw}
            case b"list" | "list":
                values[name] = await command("LRANGE", name, 0, -1)
            case b"stream" | "stream":
                values[name] = await command("XLEN", name)
            case _:
                values[name] = await command("GET", name)
    return Store(values, expiring)


# ---- checking ----------------------------------------------------------------------------------------


class _Partition:
    """The keys of one partition, by kind."""

    def __init__(self, tag: str, header: dict[str, str]) -> None:
        self.tag, self.header = tag, header
        self.kinds: dict[str, list[tuple[dict[str, str], Any]]] = {}

    def one(self, kind: str) -> dict[str, Any]:
        return self.kinds[kind][0][1] if self.kinds.get(kind) else {}

    def by(self, kind: str, *parts: str) -> dict[Any, Any]:
        rows = self.kinds.get(kind, [])
        return {match[parts[0]] if len(parts) == 1 else tuple(match[p] for p in parts): value for match, value in rows}


def violations(store: Store) -> list[str]:
    """What is wrong with a store; nothing, if the engine is right."""
    out = [f"{key} carries a TTL" for key in store.expiring]
    partitions = {
        key[3:]: _Partition(key[3:], value)
        for key, value in store.values.items()
        if re.fullmatch(r"ff:\{\w+:\d+\}", key)
    }
    for key, value in store.values.items():
        if key in PERMANENT or key[3:] in partitions:
            continue
        for kind, pattern in key_patterns().items():
            match = pattern.fullmatch(key)
            if match:
                partition = partitions.get(match["partition"])
                if partition is None:
                    out.append(f"{key} is of a partition without a header")
                else:
                    partition.kinds.setdefault(kind, []).append((match.groupdict(), value))
                break
        else:
            out.append(f"{key} has a name that nothing gives")
    for partition in partitions.values():
        out += [f"{partition.tag} {text}" for text in _check_partition(partition)]
    return out


def _check_partition(p: _Partition) -> Iterator[str]:
    short = field_names()
    records = {
        id: {long: raw[name] for long, name in short.items() if name in raw} for id, raw in p.by("core", "id").items()
    }
    lanes = {number: name for name, number in p.one("lanes").items() if not name.startswith("#")}
    for kind, rows in p.kinds.items():
        for match, _ in rows:
            if kind != "core" and "id" in match and match["id"] not in records:
                yield f"{kind} of {match['id']} is left over: its record is gone"
            if "lane" in match and match["lane"] not in lanes:
                yield f"{kind} is of lane {match['lane']}, which has no name"
            if "state" in match and match["state"] not in state_table():
                yield f"{kind} is of an unknown state {match['state']}"
    for id, x in records.items():
        for text in _check_record(p, id, x):
            yield f"{id} ({x.get('state')}): {text}"
    yield from _check_members(p, records, lanes)


def _check_record(p: _Partition, id: str, x: dict[str, str]) -> Iterator[str]:
    state = x.get("state", "")
    if state not in state_table():
        yield "has no known state"
        return
    # Raises where the three words cannot stand together.
    if not terminal(state):
        # A first attempt's kind and start are not stored (lua/shared/record.lua, load).
        states.vector(state, x.get("reason"), x.get("next", "initial"), "started_at" in x or "lease_id" in x)
    elif "reason" in x:
        yield f"has ended and still has reason {x['reason']}"
    places = {("queue", *key): zset[id] for key, zset in p.by("queue", "lane", "cap").items() if id in zset}
    places |= {("index", *key): zset[id] for key, zset in p.by("index", "lane", "state").items() if id in zset}
    if id in p.one("leases"):
        places["leases",] = p.one("leases")[id]
    where: tuple[str, ...]
    score: float | None
    if queued(state):
        where = ("queue", x["lane"], x.get("cap", "-"))
        score = (limits.PRIORITY_MAX - int(x.get("priority", "0"))) * BAND + int(x["turn"])
        if x.get("cap") and x["cap"] not in p.by("caps", "lane").get(x["lane"], {}):
            yield f"waits under capability set {x['cap']}, which no worker can know"
    elif leased(state):
        where, score = ("leases",), int(x["at"])
    else:
        where = ("index", x["lane"], state)
        score = int(x["at"]) if timer_of(state) or terminal(state) else None
    if set(places) != {where}:
        yield f"is in {sorted(places)} and should be in {where}"
    elif score is not None and places[where] != score:
        yield f"has score {places[where]:.0f} in {where}, its record says {score}"
    wanted = dict.fromkeys(("delay", "grant", "deadline", "cancel_grace")) | {"unknown_task": None}
    if timer_of(state):
        wanted[timer_of(state) or ""] = x["at"]  # type: ignore[assignment]
    if not terminal(state) and "deadline_at" in x:
        wanted["deadline"] = x["deadline_at"]  # type: ignore[assignment]
    if not terminal(state) and "cancel_until" in x:
        wanted["cancel_grace"] = x["cancel_until"]  # type: ignore[assignment]
    for kind, due in wanted.items():
        got = p.one("timers").get(f"{kind}:{id}")
        if kind == "unknown_task":
            if (got is not None) != (id in p.one("unknown")):
                yield "its unknown_task timer and its place among the unknown disagree"
        elif (None if got is None else f"{got:.0f}") != due:
            yield f"timer {kind} is due at {got}, the record says {due}"
    if "payload" in p.kinds and id not in p.by("payload", "id"):
        yield "has no payload"
    if ("result_kept" in x) != (id in p.by("result", "id")):
        yield "its result and what the record says of it disagree"
    if id in p.by("detail", "id") and "detail" not in x:
        yield "has a detail hash the record does not know of"
    if id in p.one("held") and (state, x.get("reason")) != ("blocked", "paused_by_operator"):
        yield "is among the held"
    if id in p.one("unknown") and (state, x.get("reason")) != ("blocked", "waiting_for_capable_worker"):
        yield "is among the unknown"


def _check_members(p: _Partition, records: dict[str, dict[str, str]], lanes: dict[str, str]) -> Iterator[str]:
    holders: list[tuple[str, Any]] = [
        ("leases", p.one("leases")),
        ("held", p.one("held")),
        ("unknown", p.one("unknown")),
    ]
    holders += [(f"queue {key}", zset) for key, zset in p.by("queue", "lane", "cap").items()]
    holders += [(f"index {key}", zset) for key, zset in p.by("index", "lane", "state").items()]
    for name, zset in holders:
        for id in zset:
            if id not in records:
                yield f"{name} has {id}, which has no record"
    for member in p.one("timers"):
        kind, _, id = member.partition(":")
        if kind not in {"delay", "grant", "deadline", "cancel_grace", "unknown_task", "release", "hold", "outbox"}:
            yield f"timer {member} is of a kind this checker does not know"
        elif kind == "outbox":
            if id not in p.one("outbox"):
                yield f"timer {member} has no row in the outbox"
        elif kind != "release" and id not in records:
            yield f"timer {member} has no record"
    for row in p.one("outbox"):
        if f"outbox:{row}" not in p.one("timers"):
            yield f"row {row} of the outbox is never delivered"
    reap = p.one("reap")
    ended = Counter(x["lane"] for x in records.values() if terminal(x["state"]))
    running = Counter(x["lane"] for x in records.values() if leased(x["state"]))
    for number in lanes:
        if ended[number] and f"lane:{number}" not in reap:
            yield f"lane {lanes[number]} has {ended[number]} that ended and nothing will ever purge them"
        if int(p.header.get(f"a{number}", "0")) != running[number]:
            yield f"lane {lanes[number]} counts {p.header.get(f'a{number}')} running, there are {running[number]}"
        if f"y{number}" in p.header:
            kept = sum(
                int(x.get("size", "0")) for x in records.values() if x["lane"] == number and terminal(x["state"])
            )
            if int(p.header[f"y{number}"]) != kept:
                yield f"lane {lanes[number]} counts {p.header[f'y{number}']} bytes kept, there are {kept}"
    for bucket in p.by("tombs", "bucket"):
        if f"tomb:{bucket}" not in reap:
            yield f"tombstones {bucket} are never looked at"
    for slot in p.one("claims"):
        if f"claim:{slot}" not in reap:
            yield f"the claim memory of {slot} is never looked at"
    if int(p.header.get("holds", "0")) != len(p.one("holds")):
        yield f"counts {p.header.get('holds')} holds, there are {len(p.one('holds'))}"
