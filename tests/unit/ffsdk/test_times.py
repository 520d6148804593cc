"""Durations and instants as users write them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

import ffsdk as ff
from ffsdk import times


@pytest.mark.parametrize(("given", "ms"), [(1, 1_000), (0.0015, 2), (timedelta(minutes=2), 120_000), (0, 0)])
def test_a_span_is_seconds_or_a_timedelta(given: times.Duration, ms: int) -> None:
    assert times.span_ms(given, "delay") == ms


@pytest.mark.parametrize("given", [-1, timedelta(seconds=-1), float("nan"), float("inf"), "5", True, None, 10**12])
def test_other_spans_are_refused(given: Any) -> None:
    with pytest.raises(ff.InvalidArgument, match="delay"):
        times.span_ms(given, "delay")


def test_an_instant_carries_its_zone() -> None:
    at = datetime(2026, 1, 1, 12, tzinfo=timezone(timedelta(hours=2)))
    assert times.from_ms(times.instant_ms(at, "at")) == datetime(2026, 1, 1, 10, tzinfo=UTC)


@pytest.mark.parametrize("given", [datetime(2026, 1, 1), "2026-01-01", 5])
def test_a_naive_instant_is_refused(given: Any) -> None:
    with pytest.raises(ff.InvalidArgument):
        times.instant_ms(given, "at")
