"""Quotas: how many executions may start in a window, and how many may run at once.

A quota counts for itself, or for each key apart (a tenant, an API key): what is counted together is a subject. Keys
travel as one word (`ffcore.admission.key_word`); "-" is the quota itself.
"""

from __future__ import annotations

from typing import ClassVar

from ffcore import checks, limits
from ffcore.args import Args, Outcome, Row
from ffcore.ids import PartitionKey, QuotaPolicyId, TimestampMs

LIMITS: tuple[str, ...] = ("window_seconds", "max_requests_per_window", "max_concurrent")


def _check_limits(args: object) -> None:
    for name, most in zip(LIMITS, (limits.QUOTA_WINDOW_S, limits.QUOTA_N, limits.QUOTA_N), strict=True):
        checks.whole(getattr(args, name), name, high=most, code="invalid_quota_spec")


class QuotaPolicyCreated(Outcome, tag="created"):
    quota_policy_id: QuotaPolicyId


class QuotaPolicyAlreadySatisfied(Outcome, tag="already_satisfied"):
    """It is there already, with the limits it was created with or changed to since."""

    quota_policy_id: QuotaPolicyId


CreateQuotaPolicyResult = QuotaPolicyCreated | QuotaPolicyAlreadySatisfied


class CreateQuotaPolicyArgs(Args[CreateQuotaPolicyResult]):
    """A limit of 0 does not limit; a limit of requests needs a window."""

    OFF_WIRE: ClassVar[frozenset[str]] = frozenset({"now"})

    quota_policy_id: QuotaPolicyId
    window_seconds: int
    max_requests_per_window: int
    max_concurrent: int
    now: TimestampMs = TimestampMs(0)
    name: str = ""
    namespace: str = "default"

    def __post_init__(self) -> None:
        _check_limits(self)


class QuotaChanged(Outcome, tag="changed"):
    """The limits as they are now."""

    window_seconds: int
    max_requests_per_window: int
    max_concurrent: int


class ChangeQuotaArgs(Args[QuotaChanged]):
    """Other limits from now on; what is None stays. Who waits for the quota is told to ask again."""

    quota_policy_id: QuotaPolicyId
    window_seconds: int | None = None
    max_requests_per_window: int | None = None
    max_concurrent: int | None = None

    def __post_init__(self) -> None:
        _check_limits(self)


class QuotaStatus(Outcome, tag="quota"):
    """A quota, and what one subject of it has used up."""

    name: str
    namespace: str
    window_seconds: int
    max_requests_per_window: int
    max_concurrent: int
    created_at: TimestampMs
    subjects: int
    """Keys (and the quota itself) that have something in their window, or running."""
    in_window: int
    """Starts within the window that ends now."""
    active: int
    """Places taken."""
    next_free_ms: int
    """How long until the window lets another start; 0: it does now."""
    waiting: int
    """Queues that were refused and wait for this subject."""


class ReadQuotaArgs(Args[QuotaStatus]):
    quota_policy_id: QuotaPolicyId
    key: str | None = None
    """As its word; None: the quota itself."""


class ListedQuota(Row):
    quota_policy_id: QuotaPolicyId
    name: str
    namespace: str
    window_seconds: int
    max_requests_per_window: int
    max_concurrent: int
    subjects: int


class QuotasPage(Outcome, tag="quotas_page"):
    quotas: list[ListedQuota]
    """By id."""
    cursor: str | None
    """Where to go on; None: that was all."""


class ListQuotasArgs(Args[QuotasPage]):
    partition: PartitionKey
    cursor: str | None = None
    limit: int = 100

    def __post_init__(self) -> None:
        checks.page(self.limit)


class QuotaDeleted(Outcome, tag="deleted"):
    pass


class DeleteQuotaArgs(Args[QuotaDeleted]):
    """Forget a quota. What runs goes on; who waits for it is told, and hears that it is gone."""

    quota_policy_id: QuotaPolicyId
