"""What the model holds of a partition: its executions, lanes, and everything else that stands in the store."""

from __future__ import annotations

from typing import Any

from ffcore import limits
from ffcore.policy import ExecutionPolicy
from tests.simulation.durable import Durable
from tests.simulation.flows import Edges, Flow
from tests.simulation.ledger import Budget, Halt, Line, Quota, Unique

NO_POLICY = ExecutionPolicy()
NO_RETENTION = (limits.RETENTION_AGE_MS, 0, 0)
QUEUED = frozenset({"ready", "reclaimable", "revoked"})
TERMINAL = ("completed", "failed", "cancelled", "expired", "skipped")
_ENDED = frozenset(TERMINAL)


class Execution:
    """A record. `at` is the state's own instant: end of the lease, of the delay, of the grant, or when it ended."""

    __slots__ = (
        "adm", "at", "attempt", "attempt_deadline", "attempt_id", "cancel_until", "cancelled_by", "cap", "category",
        "closed", "closed_n", "crashes", "created_at", "d", "deadline_at", "deadline_ms", "digest", "due", "edges",
        "eligible_at", "ended_by", "epoch", "fair", "flow", "grant", "hand_backs", "heard", "id", "inputs", "label",
        "lane", "lane_quota", "lease_id", "left_ms", "lines", "log", "namespace", "next", "node", "paused", "payload",
        "policy", "priority", "reason", "replays", "result", "retries", "run", "size", "state", "streams",
        "suspend_until", "tags", "task", "turn", "undo", "unhandled", "unique", "unpinned", "unseen", "uuid",
        "version", "waiter", "waiters", "worker",
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
        self.flow: Flow | None = None
        self.node = 0
        """Its number in the flow."""
        self.edges = Edges()
        self.due: int | None = None
        """Not before, once it waits for nothing."""
        self.inputs: str | None = None
        """Its payload is what its upstreams returned: ``1`` the only one's, ``*`` a list."""
        self.label = ""
        self.cancelled_by = ""
        """On whose behalf its cancel was asked for first."""
        self.lines: list[Line] = []
        """What it must be admitted by."""
        self.adm: str | None = None
        """The set of its budgets and quotas."""
        self.unique: str | None = None
        """It holds a key until it starts (q) or ends (a)."""
        self.lane_quota: str | None = None
        self.undo = False
        """Its lease ends before it has begun."""
        self.unhandled: str | None = None
        """It failed (f) or was cancelled (c), and nothing in its flow provides for that."""

    @property
    def fence(self) -> str:
        return f"{self.lease_id} {self.epoch} {self.attempt_id}"

    @property
    def has_begun(self) -> bool:
        """Whether some attempt has; a claim that was refused is none."""
        return self.attempt not in (None, -1)

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
    def klass(self) -> str:
        """Its queue within the lane."""
        return self.cap if self.adm is None else f"{self.cap}.{self.adm}"

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
        self.passed: dict[str, tuple[int, str]] = {}
        """By outcome: up to here there are only members of flows."""
        self.ready: dict[str, Execution] = {}
        self.quota: str | None = None
        """Which every job of it takes a place of."""
        self.weights: dict[str, float] = {}
        """By fairness key, where it is not one."""
        self.weighed = 0
        """Revision of the weights it has."""
        self.turns: dict[int, dict[str, float]] = {}
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
        self.flows: dict[str, Flow] = {}
        self.outbox: dict[str, tuple[str, str, str]] = {}
        """Row -> for whom, kind, body."""
        self.posted: dict[str, int] = {}
        """The last number given to each target."""
        self.applied: set[tuple[str, str]] = set()
        """Source and row of what was delivered here."""
        self.halts: dict[str, Halt] = {}
        self.rings: dict[tuple[int, str, bool], dict[str, tuple[int, int]]] = {}
        """By lane, capability set and whether they are shut: admission sets, by the place of their first job."""
        self.releases_seen: dict[str, tuple[int, int]] = {}
        """Of budgets and quotas: the last release heard of, and when."""
        self.budgets: dict[str, Budget] = {}
        self.quotas: dict[str, Quota] = {}
        self.uniques: dict[str, Unique] = {}
        self.refused_ever: set[tuple[str, str]] = set()
        """Partitions and admission sets that a quota has refused, or a budget that is gone."""
        self.schedules: dict[str, Any] = {}
        self.feed: list[str] = []
        """``uuid from to`` of each transition since the last look, and ``o`` for an operator's note."""
        # One call's own:
        self.ticking = False
        self.owed: list[tuple[str, str, str, str]] = []
        """What its answer tells of others: rows that are owed, and wakes."""
        self.to_wake: dict[str, set[tuple[str, str]]] = {}
        """Of those who wait for a resource and fit now, one must be woken."""
        self.ring_pending: list[tuple[Lane, str, bool, str, tuple[int, int]]] = []
        self.grace = 0
        self.grace_new = False
        self.fed = False
        self.settling: list[tuple[str, Any, str]] = []
        """What the ends of members lead to, and how these ended."""
        self.changed: dict[str, Flow] = {}
        """Flows this call has changed, in order."""
        self.stale: dict[str, int] = {}
        """Timers this call has cleared: they stand in the store until it closes, where what is due is looked for."""
        self.removed: list[Execution] = []
        """Members that went with their flow: their places in the indexes stand until the call closes."""
        self.bells: dict[tuple[int, str], int] = {}
        self.notices: dict[str, list[str]] = {}
        self.messages: list[tuple[str, str]] = []
        self.soonest: int | None = None
        self.unflushed: dict[str, tuple[int, str, tuple[int, int, str]] | None] = {}
        """Changes of queues this call has not written yet: what stood there before."""
        self.reap_noted: set[str] = set()
