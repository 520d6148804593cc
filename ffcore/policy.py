"""How an execution wants to be treated: retry, timeout, routing and the rest; stored as JSON beside it.

Defaults are the seed's; the SDK has its own, friendlier ones. A field the engine does not honour yet is
refused by `check_policy`: none is ignored silently.
"""

from __future__ import annotations

from typing import Final

import msgspec

from ffcore import checks, limits
from ffcore.errors import InvalidArgument
from ffcore.ids import BudgetId, TimestampMs


class FixedBackoff(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="fixed"):
    delay_ms: int

    def __post_init__(self) -> None:
        checks.span_ms(self.delay_ms, "delay_ms")


class ExponentialBackoff(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="exponential"):
    """``min(initial * multiplier ** retries, max)``; with jitter, half to whole of it."""

    initial_delay_ms: int = 1_000
    max_delay_ms: int = 60_000
    multiplier: float = 2.0
    jitter: bool = False

    def __post_init__(self) -> None:
        checks.span_ms(self.initial_delay_ms, "initial_delay_ms")
        checks.span_ms(self.max_delay_ms, "max_delay_ms")
        if isinstance(self.multiplier, bool) or not 1.0 <= self.multiplier <= 1_000.0:
            raise InvalidArgument(f"multiplier is {self.multiplier!r}: use a number from 1 to 1000")


BackoffStrategy = FixedBackoff | ExponentialBackoff


class RetryPolicy(msgspec.Struct, frozen=True, kw_only=True):
    max_retries: int = 3
    backoff: BackoffStrategy = ExponentialBackoff()
    retryable_categories: list[str] = []
    """Failure categories that are retried; empty means all of them."""

    def __post_init__(self) -> None:
        checks.whole(self.max_retries, "max_retries", 0, checks.U32_MAX)
        for category in self.retryable_categories:
            checks.text(category, "a retryable category", limits.NAME_BYTES)


class TimeoutPolicy(msgspec.Struct, frozen=True, kw_only=True):
    attempt_timeout_ms: int | None = None
    """Pauses while the execution is suspended."""
    execution_deadline_ms: int | None = None
    """From creation, over all attempts; does not pause."""
    max_reclaim_count: int = 100

    def __post_init__(self) -> None:
        checks.span_ms(self.attempt_timeout_ms, "attempt_timeout_ms", 1)
        checks.span_ms(self.execution_deadline_ms, "execution_deadline_ms", 1)
        checks.whole(self.max_reclaim_count, "max_reclaim_count", 0, checks.U32_MAX)


class SuspensionPolicy(msgspec.Struct, frozen=True, kw_only=True):
    default_timeout_ms: int | None = None
    timeout_behavior: str = "fail"

    def __post_init__(self) -> None:
        checks.span_ms(self.default_timeout_ms, "default_timeout_ms", 1)


class FallbackTier(msgspec.Struct, frozen=True, kw_only=True):
    provider: str
    model: str
    timeout_ms: int | None = None


class FallbackPolicy(msgspec.Struct, frozen=True, kw_only=True):
    tiers: list[FallbackTier] = []


class RoutingRequirements(msgspec.Struct, frozen=True, kw_only=True):
    required_capabilities: frozenset[str] = frozenset()
    """A worker serves the execution if it has all of them."""
    preferred_locality: str | None = None
    isolation_level: str | None = None

    def __post_init__(self) -> None:
        checks.capabilities(self.required_capabilities)


class StreamPolicy(msgspec.Struct, frozen=True, kw_only=True):
    durability_mode: str = "buffered"
    retention_maxlen: int = 10_000
    retention_ttl_ms: int | None = None

    def __post_init__(self) -> None:
        checks.whole(self.retention_maxlen, "retention_maxlen")
        checks.span_ms(self.retention_ttl_ms, "retention_ttl_ms", 1)


class ExecutionPolicy(msgspec.Struct, frozen=True, kw_only=True):
    priority: int = 0
    """Used when the create call's own priority is 0."""
    delay_until: TimestampMs | None = None
    """Used when the create call has none."""
    retry_policy: RetryPolicy | None = None
    """None: a failure is final."""
    timeout_policy: TimeoutPolicy | None = None
    max_reclaim_count: int = 100
    """Crashes before the execution is given up as poisoned; the lower of the two counts holds."""
    suspension_policy: SuspensionPolicy | None = None
    fallback_policy: FallbackPolicy | None = None
    max_replay_count: int = 10
    budget_ids: list[BudgetId] = []
    """Budgets it must be admitted by, without an estimate: it waits while one of them is used up."""
    routing_requirements: RoutingRequirements | None = None
    dedup_window_ms: int | None = None
    """How long the key of a purged execution stays taken; None: one day."""
    stream_policy: StreamPolicy | None = None
    max_signals_per_execution: int = 10_000
    lease_ms: int | None = None
    """How long a worker's lease lasts between renewals; None: the worker's own setting."""

    def __post_init__(self) -> None:
        checks.priority(self.priority)
        checks.whole(self.delay_until, "delay_until")
        checks.whole(self.max_reclaim_count, "max_reclaim_count", 0, checks.U32_MAX)
        checks.whole(self.max_replay_count, "max_replay_count", 0, checks.U32_MAX)
        checks.span_ms(self.dedup_window_ms, "dedup_window_ms")
        checks.whole(self.max_signals_per_execution, "max_signals_per_execution", 0, checks.U32_MAX)
        checks.whole(self.lease_ms, "lease_ms", limits.LEASE_TTL_MIN_MS, limits.LEASE_TTL_MAX_MS)


NOT_YET: Final = frozenset({
    "fallback_policy", "preferred_locality", "isolation_level", "suspension_policy", "stream_policy",
})
"""Fields of `ExecutionPolicy` or `RoutingRequirements` that no part of the engine reads yet."""


def check_policy(policy: ExecutionPolicy) -> None:
    """Refuse what would be ignored: setting it and seeing nothing happen is worse than an error."""
    for part in (policy, policy.routing_requirements):
        if part is None:
            continue
        unset = type(part)()
        for name in part.__struct_fields__:
            if name in NOT_YET and getattr(part, name) != getattr(unset, name):
                raise InvalidArgument(
                    f"policy field {name} is not supported yet: leave it out", code="unsupported_policy"
                )


def backoff_ms(retry: RetryPolicy, retry_n: int, rng: float) -> int:
    """Milliseconds before the next attempt after `retry_n` retries; `rng` in [0, 1) is the jitter's draw.

    The same rule as `policy.backoff_ms` in lua/shared/policy.lua. The exponent is capped before the power
    is taken, so no number of retries overflows.
    """
    strategy, jitter = retry.backoff, 1.0
    if isinstance(strategy, FixedBackoff):
        delay = float(strategy.delay_ms)
    else:
        grown = strategy.initial_delay_ms * strategy.multiplier ** max(0, min(retry_n, 64))
        delay = min(grown, float(strategy.max_delay_ms))
        if strategy.jitter:
            jitter = 0.5 + min(max(rng, 0.0), 1.0) / 2
    return int(max(0.0, min(delay, float(limits.SPAN_MAX_MS))) * jitter)
