"""Durations and instants as users write them, and as the engine keeps them.

The rule: a span is relative seconds or a timedelta, an instant is an aware datetime; a naive one is refused,
because nobody can say later which clock it meant.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

from ffcore import checks, limits
from ffcore.errors import InvalidArgument

Duration = int | float | timedelta
"""Seconds, or a timedelta."""


def span_ms(value: Duration, what: str, *, low_ms: int = 0) -> int:
    """Milliseconds of a span; InvalidArgument for one that is negative, too small, infinite or over ten years."""
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or seconds != seconds:
        raise InvalidArgument(f"{what} is {checks.shown(value, 60)}: use seconds or a timedelta")
    # Bounded first: neither a huge integer nor a huge float can be rounded to milliseconds.
    ms = round(seconds * 1000) if abs(seconds) <= limits.SPAN_MAX_MS else -1
    if not low_ms <= ms <= limits.SPAN_MAX_MS:
        said = f"{low_ms / 1000:g} to {limits.SPAN_MAX_MS // 1000} seconds"
        raise InvalidArgument(f"{what} is {checks.shown(value, 60)}: use {said}")
    return ms


def optional_ms(value: Duration | None, what: str, *, low_ms: int = 0) -> int | None:
    return None if value is None else span_ms(value, what, low_ms=low_ms)


def seconds(value: Duration | None, what: str) -> float | None:
    """A client-side wait in seconds; None waits for ever."""
    return None if value is None else span_ms(value, what) / 1000


def instant_ms(value: datetime, what: str) -> int:
    """Milliseconds since 1970 of an aware datetime."""
    if not isinstance(value, datetime):
        raise InvalidArgument(f"{what} is {value!r:.60}: use a datetime with a time zone")
    if value.tzinfo is None or value.utcoffset() is None:
        raise InvalidArgument(f"{what} is {value.isoformat()}, which names no time zone: pass tzinfo, such as UTC")
    return max(0, round(value.timestamp() * 1000))


def from_ms(value: int | str | None) -> datetime | None:
    """The instant in UTC; None for none (0 or an empty text)."""
    ms = int(value) if value else 0
    return datetime.fromtimestamp(ms / 1000, UTC) if ms > 0 else None


def wall_ms() -> int:
    """This machine's clock. Relative times of a submit are counted from it; the store's clock decides the rest."""
    return time.time_ns() // 1_000_000
