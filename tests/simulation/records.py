"""What the model holds of a partition: its executions, lanes, and everything else that stands in the store."""

from __future__ import annotations

from ffcore import limits
from ffcore.policy import ExecutionPolicy
from tests.simulation.durable import Durable

NO_POLICY = ExecutionPolicy()
NO_RETENTION = (limits.RETENTION_AGE_MS, 0, 0)
QUEUED = frozenset({"ready", "reclaimable", "revoked"})
TERMINAL = ("completed", "failed", "cancelled", "expired", "skipped")
_ENDED = frozenset(TERMINAL)


class Execution:
    """A record. `at` is the state's own instant: end of the lease, of the delay, of the grant, or when it ended."""

    __slots__ = (
        "at", "attempt", "attempt_deadline", "attempt_id", "cancel_until", "cap", "category", "closed", "closed_n",
        "crashes", "created_at", "d", "deadline_at", "deadline_ms", "digest", "eligible_at", "ended_by", "epoch",
        "fair", "grant", "hand_backs", "heard", "id", "lane", "lease_id", "left_ms", "log", "namespace", "next",
        "paused", "payload", "policy", "priority", "reason", "replays", "result", "retries", "run", "size", "state",
        "streams", "suspend_until", "tags", "task", "turn", "unpinned", "unseen", "uuid", "version", "waiter",
        "waiters", "worker",
    )  # fmt: skip

    def __init__(self, id: str, lane: Lane, task: str, now: int) -> None:
        self.id, self.uuid, self.lane, self.task, self.created_at = id, id[id.index("}") + 2 :], lane, task, now
        self.state: str = "-"
        self.eligible_at = now
        self.reason: str | None = None
        self.next = "initial"
        self.priority = 0
        self.turn: int | None = None
        self.cap = "-"
        self.fair: str | None = None
        self.at = 0
        self.attempt: int | None = None
        """Index of the current attempt; None before the first claim, -1 after a first claim that was refused."""
        self.epoch = self.retries = self.crashes = self.unseen = self.hand_backs = self.replays = self.run = 0
        self.lease_id = self.attempt_id = self.worker = ""
        self.heard = -1
        self.attempt_deadline: int | None = None
        self.left_ms: int | None = None
        self.deadline_at: int | None = None
        self.deadline_ms: int | None = None
        self.ended_by: str | None = None
        self.cancel_until: int | None = None
        self.grant: str | None = None
        self.waiter: tuple[str, int] | None = None
        self.waiters: dict[str, int] = {}
        self.policy = NO_POLICY
        self.digest = b""
        self.payload = b""
        self.result: bytes | None = None
        self.tags: dict[str, str] = {}
        self.version, self.namespace = 1, "default"
        self.closed: int | None = None
        """The last attempt that was logged as ended while the execution went on."""
        self.closed_n = 0
        self.log: dict[int, str] = {}
        """How attempts that were logged have ended."""
        self.category = ""
        self.d = Durable()
        self.suspend_until: int | None = None
        self.paused: str | None = None
        """Since when an operator has paused it; and what it was delayed for, until when."""
        self.unpinned = False
        """No code has begun this run."""
        self.streams: int | None = None
        """The last attempt that has emitted frames."""
        self.size: int | None = None

    @property
    def fence(self) -> str:
        return f"{self.lease_id} {self.epoch} {self.attempt_id}"

    @property
    def durable(self) -> bool:
        """Whether it has anything beside its record."""
        d = self.d
        return bool(d.began or d.waitpoints or d.suspension or d.frames or d.summary or self.unpinned)

    @property
    def terminal(self) -> bool:
        return self.state in _ENDED

    @property
    def band(self) -> int:
        return limits.PRIORITY_MAX - self.priority

    @property
    def place(self) -> tuple[int, int, str]:
        """Where it stands among what is ready; an aged lane asks for its age, a strict one for its turn."""
        assert self.turn is not None
        if self.lane.aged is not None:
            return (0, self.eligible_at - self.priority * self.lane.aged * 1000, self.uuid)
        return (self.band, self.turn, self.uuid)


class Lane:
    def __init__(self, no: int, name: str) -> None:
        self.no, self.name = no, name
        self.state = "active"
        self.turn = 0
        self.keyed = False
        self.aged: int | None = None
        """Seconds a point of priority is worth; None: strict."""
        self.applied = 0
        """Revision of the settings it has."""
        self.caps: dict[str, str] = {}
        self.revision = 0
        self.bytes: int | None = None
        self.retention = NO_RETENTION
        self.ready: dict[str, Execution] = {}
        self.turns: dict[int, dict[str, int]] = {}
        """By band: the virtual time under ``-`` and each fairness key's finish."""

    @property
    def starts(self) -> bool:
        return self.state in ("active", "draining")


class Partition:
    def __init__(self, key: str, now: int) -> None:
        self.key, self.hwm, self.now = key, now, now
        self.offset = self.offset_at = self.grace_until = self.ticker_until = self.releases = 0
        self.ticker: str | None = None
        self.lanes: dict[str, Lane] = {}
        self.lanes_n = 0
        """Numbers given to lanes; none is given twice."""
        self.reached = 0
        """Revision of the settings that are known here; in the store's own partition the latest."""
        self.gate_revision = 0
        self.settings: dict[str, tuple[int, int, dict[str, str]]] = {}
        self.records: dict[str, Execution] = {}
        self.leases: dict[str, int] = {}
        self.timers: dict[str, int] = {}
        self.reap: dict[str, int] = {}
        self.holds: dict[str, str] = {}
        self.held: dict[str, int] = {}
        self.unknown: dict[str, int] = {}
        self.claims: dict[str, tuple[int, int, list[tuple[str, int]]]] = {}
        self.tombs: dict[str, dict[str, tuple[int, bytes]]] = {}
        self.park: dict[tuple[int, str], dict[str, int]] = {}
        self.workers: dict[str, int] = {}
        self.tasks: dict[str, tuple[int, bytes]] = {}
        self.kid: str | None = None
        """The one that signs."""
        self.kids: dict[str, tuple[str, int]] = {}
        """Kid -> fingerprint of its secret, until when it verifies (of the one that signs: 0)."""
        self.bad_tokens_at = 0
        self.feed: list[str] = []
        """``uuid from to`` of each transition since the last look, and ``o`` for an operator's note."""
        # One call's own:
        self.grace = 0
        self.grace_new = False
        self.fed = False
        self.bells: dict[tuple[int, str], int] = {}
        self.notices: dict[str, list[str]] = {}
        self.messages: list[tuple[str, str]] = []
        self.soonest: int | None = None
        self.unflushed: dict[str, tuple[int, str, tuple[int, int, str]] | None] = {}
        """Changes of queues this call has not written yet: what stood there before."""
        self.reap_noted: set[str] = set()
