"""What stands in the store of flows against what the model knows: each flow's record and counters, its members, and the
edges of executions in both directions. The engine counts as it goes; here everything is counted from the members."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.simulation.flows import Edge, Flow
from tests.simulation.records import Execution, Partition
from tests.simulation.violation import Violation

if TYPE_CHECKING:
    from tests.simulation.world import World


def _hash(raw: Any) -> dict[str, str]:
    flat = raw.items() if isinstance(raw, dict) else zip(raw[::2], raw[1::2], strict=True)
    return {name.decode(): value.decode(errors="surrogateescape") for name, value in flat}


def flows(world: World, p: Partition) -> None:
    """The flows that are there and no others; of each its record and who its members are."""
    key = f"ff:{p.key}"
    (listed,) = world.wire.pipe([("ZRANGE", f"{key}:flows", 0, -1)])
    if sorted(name.decode() for name in listed) != sorted(p.flows):
        raise Violation("flows", f"{p.key} has {listed}, should have {sorted(p.flows)}")
    known = list(p.flows.values())
    raw = world.wire.pipe([command for f in known for command in (
        ("HGETALL", f"{key}:flow:{f.uuid}"), ("ZRANGE", f"{key}:members:{f.uuid}", 0, -1))])  # fmt: skip
    for i, f in enumerate(known):
        record, members = _hash(raw[2 * i]), [name.decode() for name in raw[2 * i + 1]]
        if members != [x.uuid for x in f.members[f.gone :]]:
            raise Violation("members", f"{p.key} {f.uuid}: {members}, should be {[x.uuid for x in f.members]}")
        if not f.gone:
            wanted = _record(f)
            wrong = {name: record.get(name, "0") for name, value in wanted.items() if record.get(name, "0") != value}
            if wrong:
                shown = {name: wanted[name] for name in wrong}
                raise Violation("flow", f"{p.key} {f.uuid} says {wrong}, should be {shown}")


def _record(f: Flow) -> dict[str, str]:
    counts = f.counts()
    blamed = [x.edges.blames for x in f.members]
    numbers: dict[str, int] = {
        **{letter: counts.get(letter, 0) for letter in "qdbasCFXES"}, "n": len(f.members), "e": f.edges_n,
        "r": f.revision, "z": f.bytes, "p": 0, "nf": sum(x.unhandled == "f" for x in f.members),
        "nb": blamed.count("f"), "nc": sum(x.unhandled == "c" for x in f.members) + blamed.count("c"),
        "ea": f.ended_at or 0, "xa": f.cancelled_at or 0, "m": f.mutated_at, "c": f.created_at,
    }  # fmt: skip
    out = {name: str(n) for name, n in numbers.items()}
    return out | {"st": f.state, "x": f.policy or "0", "o": f.outcome or "0"}


def edges(world: World, some: list[Execution]) -> None:
    """Edges of these executions, from both ends: forward and backward are the same, and nothing is counted wrongly."""
    some = [x for x in some if x.flow is not None]
    if not some:
        return
    raw = world.wire.pipe([command for x in some for command in (
        ("HGETALL", f"ff:{x.id[:6]}:in:{x.uuid}"), ("LRANGE", f"ff:{x.id[:6]}:out:{x.uuid}", 0, -1))])  # fmt: skip
    for i, x in enumerate(some):
        incoming, outgoing = _hash(raw[2 * i]), [uuid.decode() for uuid in raw[2 * i + 1]]
        wrong = _incoming(x, incoming)
        if outgoing != x.edges.outgoing:
            wrong = f"outgoing are {outgoing}, should be {x.edges.outgoing}"
        if wrong:
            raise Violation(f"edges {wrong.split()[0]}", f"{x.id} ({x.state}): {wrong}")


def _incoming(x: Execution, got: dict[str, str]) -> str | None:
    e = x.edges
    rows = {uuid: text.split(" ") for uuid, text in got.items() if len(uuid) == 36}
    flags = {uuid: words[5].rstrip("0123456789") if len(words) > 5 else "-" for uuid, words in rows.items()}
    told = {uuid: (words[1], words[2], flags[uuid]) for uuid, words in rows.items()}
    wanted = {edge.up: (edge.kind, edge.state, _flags(edge, told)) for edge in e.incoming.values()}
    if told != wanted:
        return f"incoming are {told}, should be {wanted}"
    counted = [e.incoming[uuid] for uuid in sorted(rows, key=lambda uuid: int(rows[uuid][0]))]
    if [edge for edge in counted if edge.kind != "c"] != [edge for edge in e.incoming.values() if edge.kind != "c"]:
        return f"order is {rows}, should be {list(e.incoming)}"
    applied, children = e.applied(), e.children()
    if e.grouped:
        ends = [edge.end for edge in applied]
        state = {"satisfied": "s", "impossible": "i" if e.missed else "c"}.get(e.decided, "p")
        numbers = [e.policy, e.k, e.cancel, len(applied), sum(edge.state in "Ss" for edge in applied),
                   sum(edge.state == "I" for edge in applied), ends.count("failed") + ends.count("expired"),
                   ends.count("skipped"), ends.count("cancelled"), state]  # fmt: skip
        group = " ".join(map(str, numbers))
        if got.get("g") != group:
            return f"group is {got.get('g')}, should be {group}"
    if children:
        told_c = f"{len(children)} {sum(edge.state == 'u' for edge in children)}"
        if got.get("c") != told_c:
            return f"children are {got.get('c')}, should be {told_c}"
    waits = got["w"].split(" ")[0] if "w" in got else None
    return f"waits for {waits}, should be {e.awaits}" if waits != e.awaits else None


def _flags(edge: Edge, told: dict[str, tuple[str, str, str]]) -> str:
    """What an edge that has been resolved was waited for says nothing any more."""
    if edge.state != "u":
        return told.get(edge.up, ("", "", "-"))[2]
    return ("x" if edge.abandoned else "") + ("w" if edge.awaited else "") or "-"
