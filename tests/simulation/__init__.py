"""Simulation: seeded runs of clients, workers and tickers on virtual time, with faults at every call.

    from tests.simulation import run, virtual_library
    report = run(7, 2_000, library=virtual_library({"lua/lease.lua": text}), on=place)
    assert report.violation is None
"""

from __future__ import annotations

from tests.simulation.run import Report, run
from tests.simulation.violation import Violation
from tests.simulation.wire import place, virtual_library

__all__ = ["Report", "Violation", "place", "run", "virtual_library"]
