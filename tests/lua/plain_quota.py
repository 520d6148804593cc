"""Quotas the simple way: all starts in a list, all places in a dict, gone through each time. The store must agree."""

from __future__ import annotations

from typing import NamedTuple


class Start(NamedTuple):
    at: int
    execution: str
    epoch: int


class Subject:
    """One key of a quota."""

    def __init__(self) -> None:
        self.starts: list[Start] = []
        self.places: dict[str, int] = {}
        """Execution -> epoch of its lease."""


class PlainQuota:
    def __init__(self, window_ms: int, rate: int, most: int) -> None:
        self.window_ms, self.rate, self.most = window_ms, rate, most
        self.subjects: dict[str, Subject] = {}

    def of(self, key: str) -> Subject:
        return self.subjects.setdefault(key, Subject())

    def within(self, key: str, now: int) -> list[Start]:
        """Starts in the window that ends now, oldest first."""
        return sorted(start for start in self.of(key).starts if now - start.at < self.window_ms)

    def wait(self, key: str, now: int) -> int:
        """How long until a start is let: until then, ask of every later instant."""
        inside = self.within(key, now)
        if not self.rate or len(inside) < self.rate:
            return 0
        return inside[len(inside) - self.rate].at + self.window_ms - now

    def admit(self, key: str, execution: str, epoch: int, now: int) -> tuple[str, int | None]:
        """The word, and for `rate` the time to wait."""
        subject = self.of(key)
        held = subject.places.get(execution)
        known = any((s.execution, s.epoch) == (execution, epoch) for s in self.within(key, now))
        if held == epoch or known:
            return "already", None
        if held is not None and held > epoch:
            return "concurrency", None
        if wait := self.wait(key, now):
            return "rate", wait
        if self.most and held is None and len(subject.places) >= self.most:
            return "concurrency", None
        if self.rate:
            subject.starts.append(Start(now, execution, epoch))
        if self.most:
            subject.places[execution] = epoch
        return "admitted", None

    def end(self, key: str, execution: str, epoch: int, undo: bool) -> None:
        """A lease has ended; `undo`: before its start."""
        subject = self.of(key)
        if subject.places.get(execution, epoch + 1) <= epoch:
            del subject.places[execution]
        if undo:
            subject.starts = [s for s in subject.starts if (s.execution, s.epoch) != (execution, epoch)]

    def verified(self, key: str, execution: str, epoch: int, held: bool) -> None:
        subject = self.of(key)
        if not held and subject.places.get(execution) == epoch:
            del subject.places[execution]

    def forget_before(self, now: int) -> None:
        """Starts nobody can see any more, whatever the limits become."""
        for subject in self.subjects.values():
            subject.starts = [start for start in subject.starts if now - start.at < self.window_ms]
