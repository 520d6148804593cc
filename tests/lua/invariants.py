"""What only a test can look at: a whole store, key by key, and the names and tables of the Lua source itself.

What must be true of a store is checked by the library (`lua/shared/check.lua`, `ffengine/check.py`), which sees the
keys of its partitions. Here is what it cannot see: keys that belong to no partition.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from functools import cache
from typing import Any, NamedTuple

from ffbackend_valkey.library import lua_root

Command = Callable[..., Awaitable[Any]]

PERMANENT = {"ff:config", "ff:secrets", "ff:test:clock"}
_UUID = "[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_PARTS = {
    "id": f"(?P<id>{_UUID})", "lane": r"(?P<lane>\d+)", "cap": "(?P<cap>-|[0-9a-f]{12})",
    "class": r"(?P<class>(?:-|[0-9a-f]{12})(?:\.[0-9a-f]{12})?)", "state": "(?P<state>[a-z]+)",
    "band": r"(?P<band>\d+)", "attempt": r"(?P<attempt>\d+)",
    "fair": "(?P<fair>-|[0-9a-f]{12})", "key": "(?P<key>-|[0-9a-f]{20})",
    "string.sub(id, -3)": "(?P<bucket>[0-9a-f]{3})", "redis.sha1hex(id)": "[0-9a-f]{40}",
    'string.gsub(from, "[{}:]", "")': "[a-z]+[0-9]+",
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
    known = {
        "id": uuid, "lane": "1", "cap": "-", "class": "-.0123456789ab", "state": "ready", "band": "100", "fair": "-",
        "key": "-", "attempt": "0", "string.sub(id, -3)": "abc", "redis.sha1hex(id)": "0" * 40,
        'string.gsub(from, "[{}:]", "")': "fp1",
    }  # fmt: skip
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


def partitions(store: Store) -> list[str]:
    """The partitions that have a header."""
    return [key[3:] for key in store.values if re.fullmatch(r"ff:\{\w+:\d+\}", key)]


def strays(store: Store) -> list[str]:
    """Keys that no partition of the store has."""
    headers = [f"ff:{tag}" for tag in partitions(store)]
    return [
        f"{key} is of no partition"
        for key in store.values
        if key not in PERMANENT and not any(key == header or key.startswith(f"{header}:") for header in headers)
    ]
