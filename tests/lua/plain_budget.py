"""One budget in plain Python with exact decimals: what shared/budgets.lua must come to, written the long way."""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal

from ffcore.admission import parse_amounts

Amounts = dict[str, Decimal]


def decimals(text: str) -> Amounts:
    return {name: Decimal(value) for name, value in parse_amounts(text).items()}


@dataclass
class Reservation:
    epoch: int
    left: Amounts


@dataclass
class PlainBudget:
    hard: Amounts
    soft: Amounts
    every: int
    refuses: bool
    created_ms: int
    now_ms: int
    used: Amounts = field(default_factory=lambda: Amounts())
    held: dict[str, Reservation] = field(default_factory=lambda: dict[str, Reservation]())
    seen: set[tuple[str, str]] = field(default_factory=lambda: set[tuple[str, str]]())
    spent: dict[str, Amounts] = field(default_factory=lambda: dict[str, Amounts]())
    breaches: int = 0
    soft_breaches: int = 0
    period: int = 1

    def __post_init__(self) -> None:
        self.used = {name: Decimal(0) for name in {**self.hard, **self.soft}}

    @property
    def next_ms(self) -> int:
        return self.created_ms + ((self.now_ms - self.created_ms) // self.every + 1) * self.every if self.every else 0

    def advance(self, now_ms: int) -> None:
        """Time passes; whoever looks next finds a new period if one has begun."""
        if self.every and (now_ms - self.created_ms) // self.every > (self.now_ms - self.created_ms) // self.every:
            self.reset()
        self.now_ms = now_ms

    def reset(self) -> None:
        self.used = dict.fromkeys(self.used, Decimal(0))
        self.spent = {}
        self.period += 1

    def reserved(self, name: str) -> Decimal:
        return sum((one.left.get(name, Decimal(0)) for one in self.held.values()), Decimal(0))

    def limit(self, limits: Amounts, name: str) -> Decimal | None:
        return limits.get(name) or None

    def reserve(self, execution: str, epoch: int, text: str) -> str:
        wanted = {name: n for name, n in decimals(text).items() if name in self.used and n > 0}
        held = self.held.get(execution)
        if held and held.epoch >= epoch:
            return "granted" if held.epoch == epoch else "refused"
        self.held.pop(execution, None)
        limited = [name for name in self.used if self.limit(self.hard, name)]
        if any(wanted.get(name, 0) > self.hard[name] for name in limited):
            return "never"
        for name in limited:
            if (
                self.used[name] >= self.hard[name]
                or self.used[name] + self.reserved(name) + wanted.get(name, 0) > self.hard[name]
            ):
                return "refused"
        if wanted:
            self.held[execution] = Reservation(epoch, wanted)
        assert all(self.used[name] + self.reserved(name) <= self.hard[name] for name in limited)
        return "granted"

    def settle(self, execution: str, epoch: int) -> None:
        held = self.held.get(execution)
        if held and held.epoch <= epoch:
            del self.held[execution]

    def verified(self, execution: str, epoch: int, is_held: bool) -> None:
        held = self.held.get(execution)
        if held and held.epoch == epoch and not is_held:
            del self.held[execution]

    def spend(self, execution: str, epoch: int, key: str, text: str) -> str:
        given = {name: n for name, n in decimals(text).items() if name in self.used}
        mine = {name: n for name, n in given.items() if n > 0}
        if (execution, key) in self.seen:
            now = self.standing(list(given))
            return "already" if now == "ok" else now
        if not mine:
            return self.standing(list(mine))
        after = {name: self.used[name] + n for name, n in mine.items()}
        hard = [name for name, n in after.items() if self.limit(self.hard, name) and n > self.hard[name]]
        if hard:
            self.breaches += 1
            if self.refuses:
                return "hard"
        for name, n in after.items():
            warn = self.limit(self.soft, name)
            if warn and self.used[name] <= warn < n:
                self.soft_breaches += 1
        self.used.update(after)
        self.seen.add((execution, key))
        mine_of = self.spent.setdefault(execution, {})
        for name, n in mine.items():
            mine_of[name] = mine_of.get(name, Decimal(0)) + n
        held = self.held.get(execution)
        if held and held.epoch == epoch:
            held.left = {name: max(Decimal(0), n - mine.get(name, Decimal(0))) for name, n in held.left.items()}
        return self.standing(list(mine))

    def standing(self, names: list[str]) -> str:
        for word, limits in (("hard", self.hard), ("soft", self.soft)):
            if any((most := self.limit(limits, name)) and self.used[name] > most for name in names):
                return word
        return "ok"
