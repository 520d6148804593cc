"""Differential replay: traces of the simulation give the same answers and keyspaces on Valkey, Redis and memory://."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from tests.simulation import place, run, virtual_library
from tests.simulation.faults import Faults
from tests.simulation.replay import differences, played
from tests.simulation.wire import Place
from tests.simulation.world import Step

REDIS = shutil.which("redis-server")
OTHERS = ["memory", *([REDIS] if REDIS else [])]
"""Debian's Redis 7.0 takes part where it is installed, as in `make conformance-redis`."""


@pytest.fixture(scope="module")
def valkey() -> Iterator[Place]:
    with place() as here:
        yield here


@pytest.fixture(scope="module")
def traces(valkey: Place) -> list[list[Step]]:
    reports = [run(seed, 300, on=valkey, faults=Faults(flush=0.01)) for seed in (20, 21)]
    assert [report.violation for report in reports] == [None, None]
    return [report.trace for report in reports]


@pytest.mark.parametrize("other", OTHERS)
def test_answers_and_keyspaces_agree(valkey: Place, traces: list[list[Step]], other: str) -> None:
    with place(other) as there:
        for trace in traces:
            assert differences(trace, valkey, there, virtual_library()) == []


def test_a_difference_is_told(valkey: Place, traces: list[list[Step]]) -> None:
    """A trace that is cut short on one side leaves another keyspace there."""
    library = virtual_library()
    whole, cut = played(traces[0], valkey, library), played(traces[0][:-30], valkey, library)
    assert whole[0][: len(cut[0])] == cut[0] and whole[1] != cut[1]
