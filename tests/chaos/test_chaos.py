"""A chaos run fails when the library is wrong: small runs of it on broken libraries, and one on the right one.

`make chaos-proof`; a harness that has never failed proves nothing.
"""

from __future__ import annotations

import msgspec
import pytest

from tests.chaos.__main__ import perform
from tests.chaos.mutants import MUTANTS
from tests.chaos.plan import KINDS, Size, schedule
from tests.chaos.report import Report

SMALL = Size(jobs=400, seconds=15.0, faults={"worker_kill": 6, "worker_pause": 12}, patience_s=15.0)


def small(mutant: str = "") -> Report:
    size = msgspec.structs.replace(SMALL, mutant=mutant)
    _, said = perform(size, quiet=True)
    assert said, "the run left no report"
    return msgspec.json.decode(said, type=Report)


CAUGHT = {
    "nofence": {"duplicated", "result"},
    "nolease": {"lost"},
    "noexpiry": {"lost"},
    "noindex": {"invariant"},
    "early": {"order"},
}
"""What each mutant must be caught by. That a run met too little is no proof that it would have noticed."""


@pytest.mark.parametrize("mutant", sorted(name for name, one in MUTANTS.items() if one.run == "faults"))
def test_a_broken_library_does_not_survive_a_small_run(mutant: str) -> None:
    report = small(mutant)
    assert not report.ok
    assert CAUGHT[mutant] & {wrong.sort for wrong in report.wrong}, report.wrong


def test_the_right_library_survives_the_same_run() -> None:
    report = small()
    assert [wrong for wrong in report.wrong if wrong.sort != "recovery"] == [], "its times are those of the machine"
    assert report.jobs == SMALL.jobs and report.coverage["stale"] and report.coverage["reclaimed"]


def test_the_same_seed_draws_the_same_faults() -> None:
    assert schedule(Size(seed=7)) == schedule(Size(seed=7)) != schedule(Size(seed=8))
    assert {fault.kind for fault in schedule(Size())} == set(KINDS)
    full = [fault.kind for fault in schedule(Size())]
    assert full.count("worker_kill") >= 80 and full.count("worker_pause") >= 15 and full.count("server_kill") >= 4
    assert Size().jobs >= 3_000
