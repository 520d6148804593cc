"""What a run does, and when: sizes, and faults drawn from a seed.

The rule: the same seed draws the same faults at the same offsets. Which process a fault meets is drawn too, but among
those that are alive at that moment, and when anything else happens is up to the machine: a run is repeated in kind, not
step by step (that is what the simulation is for).
"""

from __future__ import annotations

import random
from typing import Final

import msgspec

PER_150_S: Final[dict[str, int]] = {
    "worker_kill": 88, "worker_pause": 18, "worker_deploy": 4, "ticker_kill": 8, "submitter_kill": 3,
    "server_kill": 5, "server_pause": 1, "proxy_cut": 14, "proxy_swallow": 10, "long_script": 2,
    "memory_full": 1, "disk_full": 1,
}  # fmt: skip
"""Faults of a run of 150 seconds; another length has them in proportion, and at least one of each."""

KINDS: Final[dict[str, str]] = {
    "worker_kill": "SIGKILL of a worker, which is started again at once",
    "worker_pause": "SIGSTOP of a worker until well after its leases have ended, then SIGCONT",
    "worker_deploy": "SIGTERM of a worker: it drains, another takes its place",
    "ticker_kill": "SIGKILL of a ticker",
    "submitter_kill": "SIGKILL of the submitter, which goes on from its own log",
    "server_kill": "SIGKILL of the server, restarted on its AOF",
    "server_pause": "SIGSTOP of the server for longer than a lease",
    "proxy_cut": "every connection through the proxy cut",
    "proxy_swallow": "replies swallowed for a moment, then the connections cut",
    "long_script": "a function that never ends, until FUNCTION KILL",
    "memory_full": "maxmemory lowered to what is in use",
    "disk_full": "the disk of the AOF filled up: the server ends itself; restarted when there is room",
}
ON_SERVER: Final = frozenset({"server_kill", "server_pause", "long_script", "memory_full", "disk_full"})
"""One at a time: two outages at once show nothing that one does not."""


class Size(msgspec.Struct, frozen=True, kw_only=True):
    """How large a run is."""

    jobs: int = 4_500
    seconds: float = 150.0
    """During which jobs are submitted and faults happen; the drain comes after."""
    seed: int = 1
    workers: int = 5
    """Beside the one that takes the poisoned jobs."""
    concurrency: int = 8
    lease_s: float = 2.0
    partitions: int = 4
    tickers: int = 2
    mutant: str = ""
    faults: dict[str, int] = {}
    """How many of each kind; empty: as `faults_n` says."""
    patience_s: float = 60.0
    """For the drain, beside what a long run needs anyway."""
    timed: bool = True
    """Whether the times of recoveries are judged: on a machine that others use they are not the engine's."""

    @property
    def drain_s(self) -> float:
        """How long the jobs that are left may take once the faults have stopped."""
        return self.patience_s + self.seconds / 5

    @property
    def busy_n(self) -> int:
        """With so many jobs unfinished no more are submitted. Below the workers' slots, so that what waits to be
        recovered waits for the engine and not for room."""
        return round(self.workers * self.concurrency * 0.75)

    @property
    def live_n(self) -> int:
        """The same, with those that wait for others of their flow: an end may let many of them go at once."""
        return 2 * self.busy_n

    @property
    def slowest_s(self) -> float:
        """How long the time of faults may take on a machine that is busy with other things."""
        return self.seconds * 4

    @property
    def deadline_s(self) -> float:
        """After which the run ends, whatever it does."""
        return self.slowest_s + self.drain_s + 120.0


class Fault(msgspec.Struct, frozen=True):
    at_s: float
    kind: str
    whom: float
    """0 to 1: the place in the list of those it could meet."""
    span_s: float = 0.0
    """How long it lasts, for kinds that last."""


def faults_n(size: Size) -> dict[str, int]:
    """How many of each kind a run makes."""
    scaled = {kind: max(1, round(n * size.seconds / 150)) for kind, n in PER_150_S.items()}
    return size.faults or scaled


def schedule(size: Size) -> list[Fault]:
    """The faults of a run, by time. The first second and the last tenth stay quiet: there must be work to disturb,
    and time to see it recover."""
    rng = random.Random(size.seed)
    last = size.seconds * 0.92
    faults: list[Fault] = []
    for kind, n in faults_n(size).items():
        slot = (last - 1.0) / n
        for i in range(n):
            # One in each slot of its kind, so that none is bunched up at the end.
            at = 1.0 + slot * (i + rng.random())
            faults.append(Fault(round(at, 3), kind, rng.random(), round(_span(kind, i, size, rng), 3)))
    return sorted(faults, key=lambda fault: fault.at_s)


def _span(kind: str, i: int, size: Size, rng: random.Random) -> float:
    match kind:
        case "worker_pause":
            return size.lease_s * rng.uniform(1.15, 2.2)
        case "server_kill":
            # Each third time it stays away for longer than the grace needs to be given.
            return 2.5 + size.lease_s if i % 3 == 2 else rng.uniform(0.0, 0.6)
        case "server_pause":
            return 2.5 + size.lease_s
        case "proxy_swallow":
            return rng.uniform(0.05, 0.4)
        case "long_script":
            return rng.uniform(0.8, 1.5)
        case "memory_full":
            return min(8.0, size.seconds / 10)
        case "disk_full":
            return 0.5
    return 0.0
