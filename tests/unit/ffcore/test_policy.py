"""A policy says what it means: defaults are the seed's, nothing unsupported is ignored, backoff is bounded."""

from __future__ import annotations

import math

import msgspec
import pytest

from ffcore import limits
from ffcore.errors import InvalidArgument
from ffcore.ids import BudgetId
from ffcore.policy import (
    NOT_YET,
    ExecutionPolicy,
    ExponentialBackoff,
    FallbackPolicy,
    FallbackTier,
    FixedBackoff,
    RetryPolicy,
    RoutingRequirements,
    StreamPolicy,
    SuspensionPolicy,
    TimeoutPolicy,
    backoff_ms,
    check_policy,
)


def test_defaults_are_the_seeds() -> None:
    policy = ExecutionPolicy()
    assert (policy.priority, policy.max_reclaim_count, policy.max_replay_count) == (0, 100, 10)
    assert policy.max_signals_per_execution == 10_000 and policy.retry_policy is None
    assert RetryPolicy().max_retries == 3 and RetryPolicy().retryable_categories == []
    assert RetryPolicy().backoff == ExponentialBackoff(
        initial_delay_ms=1_000, max_delay_ms=60_000, multiplier=2.0, jitter=False
    )
    assert TimeoutPolicy().max_reclaim_count == 100
    assert SuspensionPolicy().timeout_behavior == "fail"
    assert (StreamPolicy().durability_mode, StreamPolicy().retention_maxlen) == ("buffered", 10_000)


def test_a_policy_is_stored_as_json_with_tagged_backoff() -> None:
    policy = ExecutionPolicy(
        retry_policy=RetryPolicy(backoff=FixedBackoff(delay_ms=5)),
        routing_requirements=RoutingRequirements(required_capabilities=frozenset({"gpu"})), lease_ms=5_000,
    )
    text = msgspec.json.encode(policy)
    stored = msgspec.json.decode(text)
    assert stored["retry_policy"]["backoff"] == {"type": "fixed", "delay_ms": 5}
    assert stored["routing_requirements"]["required_capabilities"] == ["gpu"]
    assert msgspec.json.decode(text, type=ExecutionPolicy) == policy


def test_exponential_backoff_is_stored_with_all_its_numbers() -> None:
    assert msgspec.json.decode(msgspec.json.encode(RetryPolicy()))["backoff"] == {
        "type": "exponential", "initial_delay_ms": 1_000, "max_delay_ms": 60_000, "multiplier": 2.0, "jitter": False,
    }


def test_a_policy_of_a_newer_version_can_still_be_read() -> None:
    assert msgspec.json.decode(b'{"priority":3,"novelty":true}', type=ExecutionPolicy).priority == 3


# ---- refusals ----------------------------------------------------------------------------------------

UNSUPPORTED = [
    ExecutionPolicy(fallback_policy=FallbackPolicy(tiers=[FallbackTier(provider="p", model="m")])),
    ExecutionPolicy(suspension_policy=SuspensionPolicy()),
    ExecutionPolicy(stream_policy=StreamPolicy()),
    ExecutionPolicy(routing_requirements=RoutingRequirements(preferred_locality="eu")),
    ExecutionPolicy(routing_requirements=RoutingRequirements(isolation_level="vm")),
]


@pytest.mark.parametrize("policy", UNSUPPORTED)
def test_a_field_that_would_be_ignored_is_refused(policy: ExecutionPolicy) -> None:
    with pytest.raises(InvalidArgument, match="not supported yet") as caught:
        check_policy(policy)
    assert caught.value.code == "unsupported_policy"


def test_each_unsupported_field_has_its_refusal() -> None:
    refused: set[str] = set()
    for policy in UNSUPPORTED:
        with pytest.raises(InvalidArgument) as caught:
            check_policy(policy)
        refused.add(str(caught.value).split()[2])
    assert refused == NOT_YET


def test_supported_fields_pass() -> None:
    check_policy(ExecutionPolicy())
    check_policy(ExecutionPolicy(budget_ids=[BudgetId("{b:0}:018f0000-0000-7000-8000-000000000000")]))
    check_policy(ExecutionPolicy(
        priority=5, retry_policy=RetryPolicy(), timeout_policy=TimeoutPolicy(attempt_timeout_ms=1), lease_ms=30_000,
        dedup_window_ms=0, routing_requirements=RoutingRequirements(required_capabilities=frozenset({"gpu"})),
    ))


@pytest.mark.parametrize("make", [
    lambda: ExecutionPolicy(priority=101),
    lambda: ExecutionPolicy(max_reclaim_count=-1),
    lambda: ExecutionPolicy(max_replay_count=2**32),
    lambda: ExecutionPolicy(lease_ms=limits.LEASE_TTL_MIN_MS - 1),
    lambda: ExecutionPolicy(dedup_window_ms=limits.SPAN_MAX_MS + 1),
    lambda: RetryPolicy(max_retries=-1),
    lambda: RetryPolicy(max_retries=True),
    lambda: RetryPolicy(retryable_categories=[""]),
    lambda: FixedBackoff(delay_ms=-1),
    lambda: ExponentialBackoff(multiplier=0.5),
    lambda: ExponentialBackoff(multiplier=math.nan),
    lambda: ExponentialBackoff(multiplier=math.inf),
    lambda: ExponentialBackoff(max_delay_ms=limits.SPAN_MAX_MS + 1),
    lambda: TimeoutPolicy(attempt_timeout_ms=0),
    lambda: RoutingRequirements(required_capabilities=frozenset({"a,b"})),
])
def test_absurd_numbers_are_refused(make: object) -> None:
    assert callable(make)
    with pytest.raises(InvalidArgument):
        make()


# ---- backoff -----------------------------------------------------------------------------------------


def test_fixed_backoff_is_fixed() -> None:
    retry = RetryPolicy(backoff=FixedBackoff(delay_ms=250))
    assert {backoff_ms(retry, n, 0.3) for n in (0, 1, 50, 10**9)} == {250}


def test_exponential_backoff_doubles_up_to_its_bound() -> None:
    assert [backoff_ms(RetryPolicy(), n, 0.0) for n in range(8)] == [
        1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 60_000, 60_000,
    ]


@pytest.mark.parametrize("retry_n", [0, 1, 64, 10**6, 2**63])
@pytest.mark.parametrize("multiplier", [1.0, 2.0, 1_000.0])
def test_no_number_of_retries_overflows(retry_n: int, multiplier: float) -> None:
    strategy = ExponentialBackoff(
        initial_delay_ms=limits.SPAN_MAX_MS, max_delay_ms=limits.SPAN_MAX_MS, multiplier=multiplier, jitter=True
    )
    assert 0 <= backoff_ms(RetryPolicy(backoff=strategy), retry_n, 0.999) <= limits.SPAN_MAX_MS


def test_a_negative_retry_number_counts_as_none() -> None:
    assert backoff_ms(RetryPolicy(), -5, 0.0) == 1_000


def test_jitter_is_half_to_whole_of_the_delay() -> None:
    retry = RetryPolicy(backoff=ExponentialBackoff(jitter=True))
    assert backoff_ms(retry, 1, 0.0) == 1_000
    assert backoff_ms(retry, 1, 0.5) == 1_500
    assert 1_990 <= backoff_ms(retry, 1, 0.9999) <= 2_000
    assert backoff_ms(retry, 30, 0.9999) <= 60_000
