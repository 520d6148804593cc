"""What stands in the store of admission against what the model knows: what is owed, which sets are halted, budgets and
their reservations, places of quotas, who holds a key.

The engine keeps sums; here usage is the sum of the reports, what is reserved the sum of the reservations, and what runs
the number of the places, each counted anew.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.simulation.ledger import amounts_of
from tests.simulation.records import Partition
from tests.simulation.rules_quotas import digest
from tests.simulation.violation import Violation

if TYPE_CHECKING:
    from tests.simulation.world import World


def _hash(raw: Any) -> dict[str, str]:
    flat = raw.items() if isinstance(raw, dict) else zip(raw[::2], raw[1::2], strict=True)
    return {name.decode(): value.decode(errors="surrogateescape") for name, value in flat}


def _compare(what: str, wanted: dict[str, Any], got: dict[str, Any]) -> None:
    wrong = {name for name in wanted.keys() | got.keys() if wanted.get(name) != got.get(name)}
    if wrong:
        shown = {name: (got.get(name), wanted.get(name)) for name in sorted(wrong)}
        raise Violation(what.split(" ")[0], f"{what}: stands, should be: {shown}")


def executions(world: World, p: Partition) -> None:
    """Of a partition of executions: the outbox, and the halts with their reasons."""
    key = f"ff:{p.key}"
    outbox, halts = world.wire.pipe([("HGETALL", f"{key}:outbox"), ("HGETALL", f"{key}:halts")])
    _compare(f"outbox of {p.key}", {row: " ".join(letter) for row, letter in p.outbox.items()}, _hash(outbox))
    rows = {name: row.split(" ") for name, row in _hash(halts).items()}
    stands = {name: (row[0], row[1], row[2], row[4], row[5]) for name, row in rows.items() if name[:2] != "o:"}
    wanted = {
        adm: (str(h.until), str(h.allow), str(int(h.passed)), h.kind, h.resource) for adm, h in p.halts.items()
    }  # fmt: skip
    _compare(f"halts of {p.key}", wanted, stands)
    _compare(f"releases of {p.key}", {f"o:{uuid}": str(gen) for uuid, (gen, _) in p.releases_seen.items()},
             {name: row[0] for name, row in rows.items() if name[:2] == "o:"})  # fmt: skip
    for (lane, cap, shut), ring in p.rings.items():
        name = f"{key}:{'shut' if shut else 'ring'}:{lane}:{cap}"
        (members,) = world.wire.pipe([("ZRANGE", name, 0, -1)])
        _compare(f"rings {name}", dict.fromkeys(ring, True), dict.fromkeys((m.decode() for m in members), True))


def budgets(world: World, p: Partition) -> None:
    key = f"ff:{p.key}"
    (listed,) = world.wire.pipe([("ZRANGE", f"{key}:budgets", 0, -1)])
    if sorted(name.decode() for name in listed) != sorted(p.budgets):
        raise Violation("budgets", f"{listed}, should be {sorted(p.budgets)}")
    for b in p.budgets.values():
        record, held = (_hash(raw) for raw in world.wire.pipe([
            ("HGETALL", f"{key}:budget:{b.uuid}"), ("HGETALL", f"{key}:res:{b.uuid}")]))  # fmt: skip
        wanted: dict[str, float] = {f"u:{dim}": b.used(dim) for dim in b.dims}
        wanted |= {f"h:{dim}": limit for dim, limit in b.hard.items()}
        wanted |= {f"s:{dim}": limit for dim, limit in b.soft.items()}
        wanted |= {f"r:{dim}": b.reserved(dim) for dim in b.dims if b.reserved(dim)}
        wanted |= {"period": b.period, "next": b.next, "breaches": b.breaches, "soft_breaches": b.soft_breaches}
        named = {name: float(value) for name, value in record.items() if name[1:2] == ":" or name in wanted}
        _compare(f"budget {b.uuid}", wanted, {name: n for name, n in named.items() if n or name[:2] != "r:"})
        stands = {id: text.split(" ") for id, text in held.items()}
        _compare(
            f"reservations of {b.uuid}",
            {id: (r.epoch, r.until, {d: n for d, n in r.left.items() if n}) for id, r in b.reservations.items()},
            {id: (int(row[0]), int(row[1]), amounts_of(row[2])) for id, row in stands.items()},
        )


def quotas(world: World, p: Partition) -> None:
    key = f"ff:{p.key}"
    for q in p.quotas.values():
        for word, places in q.places.items():
            (raw,) = world.wire.pipe([("HGETALL", f"{key}:run:{q.uuid}:{digest(word)}")])
            _compare(f"places of {q.uuid} {word}", {id: str(one.epoch) for id, one in places.items()}, _hash(raw))
    for uuid, u in p.uniques.items():
        (raw,) = world.wire.pipe([("HGETALL", f"{key}:uniq:{uuid}")])
        got = _hash(raw)
        if got or not u.until or u.until > p.now:
            wanted = {"holder": u.holder, "scope": u.scope, "taken": str(u.taken), "until": str(u.until),
                      "seen": str(int(u.seen))}  # fmt: skip
            _compare(f"key {uuid}", wanted, got)


def everything(world: World) -> None:
    for p in world.model.partitions.values():
        if p.key.startswith("{fp"):
            executions(world, p)
        elif p.key.startswith("{b"):
            budgets(world, p)
        elif p.key.startswith("{q"):
            quotas(world, p)
