"""How a task is retried, in the words of a user; compiled into the engine's `RetryPolicy` once per task."""

from __future__ import annotations

import msgspec

from ffcore import checks
from ffcore.errors import InvalidArgument
from ffcore.policy import ExponentialBackoff, RetryPolicy
from ffsdk.times import Duration, span_ms


class Retry(msgspec.Struct, frozen=True, kw_only=True):
    """Attempts of a job that fails, and the pauses between them.

    The pause before retry n is ``backoff * factor ** n``, at most `max_backoff`; with `jitter` it is half to whole
    of that. `on` names the failure categories that are retried; None retries all but `ff.Fatal`.
    """

    max_attempts: int = 4
    """The first one included: 1 means no retry."""
    backoff: Duration = 1.0
    factor: float = 2.0
    max_backoff: Duration = 60.0
    jitter: bool = True
    on: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        checks.whole(self.max_attempts, "max_attempts", 1, 1_000_000)
        span_ms(self.backoff, "backoff")
        if span_ms(self.max_backoff, "max_backoff") < span_ms(self.backoff, "backoff"):
            raise InvalidArgument(
                f"backoff={self.backoff} is more than max_backoff={self.max_backoff}, which would cap it: raise both"
            )
        if isinstance(self.on, str) or (self.on is not None and not self.on):
            raise InvalidArgument("on= takes a tuple of failure categories, or None for all of them")
        if not isinstance(self.factor, int | float) or not 1 <= self.factor <= 1000:
            raise InvalidArgument(f"factor is {checks.shown(self.factor)}: use a number from 1 to 1000")
        self.policy()  # the engine's own bounds

    def policy(self) -> RetryPolicy:
        backoff = ExponentialBackoff(
            initial_delay_ms=span_ms(self.backoff, "backoff"), max_delay_ms=span_ms(self.max_backoff, "max_backoff"),
            multiplier=float(self.factor), jitter=self.jitter,
        )  # fmt: skip
        return RetryPolicy(max_retries=self.max_attempts - 1, backoff=backoff, retryable_categories=list(self.on or ()))


NO_RETRY = Retry(max_attempts=1)
