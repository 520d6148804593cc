"""What durable executions keep in the store against what the model knows: journal, waitpoints, signals, suspension,
frames, summary, and which kids sign and verify."""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import TYPE_CHECKING, Any

from tests.simulation.durable import Waitpoint, packed, unpacked
from tests.simulation.records import Execution, Partition
from tests.simulation.rules_steps import entry_text
from tests.simulation.violation import Violation

if TYPE_CHECKING:
    from tests.simulation.world import World

Hash = dict[bytes, bytes]


def _hash(raw: Any) -> Hash:
    return dict(raw) if isinstance(raw, dict) else dict(zip(raw[::2], raw[1::2], strict=True))


def _key(x: Execution, letter: str) -> str:
    return f"ff:{x.id.rpartition(':')[0]}:{letter}:{x.uuid}"


def executions(world: World, some: list[Execution]) -> None:
    """What these executions keep is as the model has it. Of most there is nothing, and nothing is asked."""
    some = [x for x in some if x.durable]
    if not some:
        return
    raw = world.wire.pipe([("HGETALL", _key(x, letter)) for x in some for letter in "jgmsy"])
    for i, x in enumerate(some):
        journal, waitpoints, signals, suspension, summary = map(_hash, raw[5 * i : 5 * i + 5])
        wrong = (
            _journal(x, journal) or _waitpoints(x, waitpoints) or _signals(x, signals) or _suspension(x, suspension)
            or _summary(x, summary)
        )  # fmt: skip
        if wrong:
            raise Violation(f"durable {wrong.split()[0]}", f"{x.id} ({x.state}): {wrong}")
        _frames(world, x)


def _journal(x: Execution, got: Hash) -> str | None:
    entries = x.d.by_seq()
    wanted: Hash = {b"%d" % entry.seq: entry_text(entry) for entry in entries}
    wanted |= {b"k" + entry.key.encode(): b"%d" % entry.seq for entry in entries}
    if entries:
        wanted[b"n"] = b"%d %d" % (len(entries), x.d.bytes)
    return f"journal is {got}, should be {wanted}" if got != wanted else None


def _waitpoints(x: Execution, got: Hash) -> str | None:
    d = x.d
    rows: dict[str, Any] = {name.decode(): text.decode() for name, text in got.items()}
    meta = rows.pop("m", "0 0")
    for name, text in rows.items():
        state, _, _, _, _, _, index, reason, _ = text.split(" ", 8)
        rows[name] = (state, index, reason)
    wanted = {id: _row(w) for id, w in d.waitpoints.items()}
    if rows != wanted:
        return f"waitpoints are {rows}, should be {wanted}"
    told = f"{len(d.open_waitpoints())} {d.next_expiry or 0}"
    return f"waitpoints open and next expiry are {meta}, should be {told}" if meta != told else None


def _row(w: Waitpoint) -> tuple[str, str, str]:
    return w.state, str(w.index or "."), w.reason or "."


def _signals(x: Execution, got: Hash) -> str | None:
    d = x.d
    kept = {int(name[1:]): text for name, text in got.items() if name[:1] == b"s"}
    wanted = {signal.seq: packed(*signal.texts) for signal in d.kept}
    if kept != wanted:
        return f"signals kept are {sorted(kept)}, should be {sorted(wanted)}"
    counts = {name[1:].decode(): int(text.split()[1]) for name, text in got.items() if name[:1] == b"c"}
    if {id: n for id, n in counts.items() if n} != Counter(signal.waitpoint_id for signal in d.kept):
        return f"signals of each waitpoint are counted as {counts}, kept are {sorted(kept)}"
    total = int(got.get(b"n", b"0").split()[0])
    if total != d.signals_n:
        return f"signals taken are {total}, should be {d.signals_n}"
    answers = {name: text.split(b" ")[:3] for name, text in got.items() if name[:1] == b"k"}
    told: dict[bytes, list[bytes]] = {}
    for (id, key), answer in d.dedup.items():
        name = b"k" + hashlib.sha1((id + key).encode()).hexdigest().encode()
        told[name] = [str(text).encode() for text in answer]
    return f"signals answered are {answers}, should be {told}" if answers != told else None


def _suspension(x: Execution, got: Hash) -> str | None:
    s = x.d.suspension
    if s is None:
        return "suspension is there" if got else None
    told = (got.get(b"i", b"").decode(), got.get(b"w", b"").decode().split())
    if told != (s.id, s.waitpoints):
        return f"suspension is {told}, should be {(s.id, s.waitpoints)}"
    if x.state == "suspended":
        n = int(got.get(b"m", b"0 0").split()[0])
        counted = [unpacked(got[b"m%d" % i]) for i in range(1, n + 1)]
        wanted = [unpacked(packed(*signal.texts)) for signal in s.counted]
        return f"suspension has counted {counted}, should be {wanted}" if counted != wanted else None
    return None


def _summary(x: Execution, got: Hash) -> str | None:
    wanted = x.d.summary[:2] if x.d.summary else None
    told = (int(got[b"version"]), got[b"document"]) if got else None
    return f"summary is {told}, should be {wanted}" if told != wanted else None


def _frames(world: World, x: Execution) -> None:
    """Both streams of every attempt, by id: the frames in their order, none of anybody without the lease."""
    attempts = sorted({frame.attempt for frame in x.d.frames})
    names = [f"{_key(x, letter)}:{attempt}" for attempt in attempts for letter in "tb"]
    raw = world.wire.pipe([("XRANGE", name, "-", "+") for name in names])
    found: list[tuple[tuple[int, int], str, bytes, int, str]] = []
    for i, entries in enumerate(raw):
        for id, fields in entries:
            named = dict(zip(fields[::2], fields[1::2], strict=True))
            ms, _, seq = id.partition(b"-")
            mode = "append" if i % 2 == 0 else "best_effort"
            found.append(((int(ms), int(seq)), named[b"t"].decode(), named[b"p"], attempts[i // 2], mode))
    found.sort()
    told = [(type, payload, attempt, mode) for _, type, payload, attempt, mode in found]
    wanted = [(frame.type, frame.payload, frame.attempt, frame.mode) for frame in x.d.frames]
    if told != wanted:
        raise Violation("frames", f"{x.id}: {told}, should be {wanted}")


def kids(world: World, p: Partition) -> None:
    """Who signs and who verifies, and how many open waitpoints each has."""
    (raw,) = world.wire.pipe([("HGETALL", f"ff:{p.key}:kids")])
    got = {name.decode(): text.decode() for name, text in _hash(raw).items()}
    counts = Counter(w.kid for x in p.records.values() for w in x.d.open_waitpoints() if w.kid)
    wanted: dict[str, str] = {f"k{kid}": f"{print_} {until}" for kid, (print_, until) in p.kids.items()}
    if p.kid is not None:
        wanted["current"] = p.kid
    told = {name: text for name, text in got.items() if name == "current" or name[:1] == "k"}
    open_n = {name[1:]: int(text) for name, text in got.items() if name[:1] == "n" and text != "0"}
    if told != wanted or open_n != counts:
        raise Violation("kids", f"{p.key} has {got}, should have {wanted} and open {dict(counts)}")

