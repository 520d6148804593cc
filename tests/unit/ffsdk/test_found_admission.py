"""Faults of admission that were found in use, on the bench of `test_admission`."""

from __future__ import annotations

import asyncio

import pytest

from ffsdk import admission as module
from ffsdk.asking import exceeded
from tests.unit.ffsdk.test_admission import BUDGET, Bench, budget, over, quota


async def test_what_a_worker_was_told_to_hold_it_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given back it would be claimed again at once, second after second."""
    monkeypatch.setattr(module, "STUCK_S", 0.0)
    bench = Bench(room=0)
    bench.keeps = True
    bench.admission.add([bench.held(0, budget())])
    await asyncio.sleep(0.05)
    assert (bench.stopped, bench.slowed, bench.admission.load) == ([], 0, 1)


async def test_a_job_that_its_handler_gave_back_had_started() -> None:
    """So what it took of a rate is used up."""
    bench = Bench()
    held = bench.held(1, quota(), budget())
    found = exceeded(held, over(BUDGET))
    assert found is not None
    bench.admission.again(held, found)
    assert [one for one, _ in bench.refused] == [held] and bench.ran
