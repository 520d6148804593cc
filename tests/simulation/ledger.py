"""What the model holds of admission: budgets are lists of reports and reservations, quotas of starts and places.

Nothing is added up as it goes: what is used, reserved, started or running is counted anew each time it is asked for.
"""

from __future__ import annotations

Amounts = dict[str, float]


def amounts_of(text: str) -> Amounts:
    if text in ("", "-"):
        return {}
    return {name: float(value) for name, value in (part.split("=") for part in text.split(","))}


class Reservation:
    """What an execution may still spend of what it reserved, under the lease of this epoch."""

    def __init__(self, epoch: int, until: int, left: Amounts) -> None:
        self.epoch, self.until, self.left = epoch, until, left


class Budget:
    def __init__(self, id: str, now: int) -> None:
        self.id, self.uuid, self.created = id, id[id.index("}") + 2 :], now
        self.mode = "record"
        self.hard: Amounts = {}
        self.soft: Amounts = {}
        self.every = 0
        self.next = 0
        self.reports: list[tuple[str, Amounts]] = []
        """Of the period: who spent what."""
        self.reservations: dict[str, Reservation] = {}
        self.dims: set[str] = set()
        """Those it counts."""
        self.keys: dict[tuple[str, str], int] = {}
        """Who reported under what key: until when that is remembered."""
        self.waiting: dict[tuple[str, str], tuple[int, Amounts, int]] = {}
        """Partition and admission set that were refused: until when that is of use, what they need, the gen named."""
        self.told: dict[tuple[str, str], int] = {}
        """When who was woken last."""
        self.waits = False
        """Somebody is noted, though it may have been long ago."""
        self.period = 1
        self.breaches = self.soft_breaches = 0
        self.freed = False
        """By this call, and nobody was told yet."""

    def used(self, dim: str) -> float:
        return sum(spent.get(dim, 0.0) for _, spent in self.reports)

    def reserved(self, dim: str) -> float:
        return sum(r.left.get(dim, 0.0) for r in self.reservations.values())

    def why_not(self, wanted: Amounts) -> tuple[str, set[str]] | None:
        """`never`, `refused` and the dimensions that say so; None: it fits."""
        never = {dim for dim, limit in self.hard.items() if wanted.get(dim, 0.0) > limit}
        if never:
            return "never", never
        full = {
            dim for dim, limit in self.hard.items()
            if self.used(dim) >= limit or self.used(dim) + self.reserved(dim) + wanted.get(dim, 0.0) > limit
        }  # fmt: skip
        return ("refused", full) if full else None

    def standing(self, dims: set[str]) -> tuple[str, set[str]]:
        """A hard limit passed, a soft one, or neither."""
        hard = {dim for dim in dims if dim in self.hard and self.used(dim) > self.hard[dim]}
        soft = {dim for dim in dims if dim in self.soft and self.used(dim) > self.soft[dim]}
        return ("hard", hard) if hard else ("soft", soft) if soft else ("ok", set())


class Place:
    """A start that holds a place, under the lease of this epoch."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch


class Quota:
    def __init__(self, id: str, now: int) -> None:
        self.id, self.uuid, self.created = id, id[id.index("}") + 2 :], now
        self.window_ms = self.rate = self.most = 0
        self.latest = now
        """The latest time it was asked at."""
        self.starts: dict[str, list[tuple[int, str, int]]] = {}
        """By key word: when, who, under which epoch."""
        self.places: dict[str, dict[str, Place]] = {}
        self.waiting: dict[tuple[str, str, str], tuple[int, int, str]] = {}
        """Key word, partition, admission set: until when that is of use, the gen named, and what was refused."""

    def recent(self, key: str, now: int) -> list[tuple[int, str, int]]:
        return sorted(one for one in self.starts.get(key, []) if one[0] > now - self.window_ms)

    def kept(self, key: str) -> list[tuple[int, str, int]]:
        """Starts that have left the window are forgotten at some time, also for a clock that is set back after it."""
        return [one for one in self.starts.get(key, []) if one[0] > self.latest - self.window_ms]

    def wait(self, key: str, now: int, window_ms: int, rate: int, *, kept: bool = False) -> int:
        """How long until a window lets another start, if so many may be in it."""
        starts = sorted(self.kept(key) if kept else self.starts.get(key, []))
        if not rate or len(starts) < rate:
            return 0
        return max(0, starts[-rate][0] + window_ms - now)

    def running(self, key: str) -> dict[str, Place]:
        return self.places.setdefault(key, {})


class Unique:
    def __init__(self, holder: str, scope: str, taken: int, until: int) -> None:
        self.holder, self.scope, self.taken, self.until = holder, scope, taken, until
        self.seen = False
        """Its execution is there."""


class Halt:
    """An admission set that may not start now."""

    def __init__(self, until: int, resource: str, kind: str) -> None:
        self.until, self.resource, self.kind = until, resource, kind
        self.allow = 0
        """So many may, although it is halted."""
        self.passed = False
        """Some were let ask since the last refusal, and none of them was refused."""
        self.places: list[tuple[int, str]] = []
        """Lanes and capability sets it was taken out of."""


class Line:
    """One line of what an execution must be admitted by."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.kind, self.id, *rest = text.split(" ")
        self.uuid = self.id[self.id.index("}") + 2 :]
        self.partition = self.id[: self.id.index("}") + 1]
        self.rest: list[str] = rest

    @property
    def key(self) -> str:
        return self.rest[1] if self.kind == "q" else "-"


def lines_of(text: str | None) -> list[Line]:
    return [Line(line) for line in text.split("\n")] if text else []
