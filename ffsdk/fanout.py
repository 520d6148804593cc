"""Calls that go to every partition: each succeeds or fails on its own, and the answer says which were not reached.

Nothing is rolled back: such changes are repeatable, so whoever finds the answer incomplete calls again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from ffcore.args import Args
from ffcore.errors import EngineError, Rejected
from ffcore.ids import PartitionKey
from ffsdk.views import FanOut

if TYPE_CHECKING:
    from ffcore.backend import Backend

R = TypeVar("R")


async def ask_all(
    backend: Backend, make: Callable[[PartitionKey], Args[R]], family: str = "fp"
) -> tuple[dict[PartitionKey, R], dict[PartitionKey, EngineError]]:
    """Answers and failures by partition."""
    partitions = backend.config.keys(family)
    answers = await backend.call_all([make(partition) for partition in partitions])
    reached: dict[PartitionKey, R] = {}
    failed: dict[PartitionKey, EngineError] = {}
    for partition, answer in zip(partitions, answers, strict=True):
        if isinstance(answer, EngineError):
            failed[partition] = answer
        else:
            reached[partition] = answer
    return reached, failed


async def change_all(backend: Backend, make: Callable[[PartitionKey], Args[R]]) -> FanOut:
    """Make a change everywhere. Raises a refusal if no partition took it: then the request itself is wrong."""
    reached, failed = await ask_all(backend, make)
    refusals = [error for error in failed.values() if isinstance(error, Rejected)]
    if not reached and refusals:
        raise refusals[0]
    return FanOut(reached=list(reached), not_reached={partition: str(error) for partition, error in failed.items()})
