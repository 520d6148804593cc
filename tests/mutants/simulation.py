"""The simulation as a killer: its model predicts every answer, its audit compares what stands in the store."""

from __future__ import annotations

from pathlib import Path

from ffbackend_valkey.library import Library
from tests.mutants.killers import Kill, Server
from tests.mutants.mutant import Mutant
from tests.simulation import run
from tests.simulation.run import about_flows

SEEDS = (*range(10), 11, 17)
STEPS = 800
OF_FLOWS = {"cascade", "dependency", "flow", "flows", "graph", "purge", "retention", "spawn", "submission"}
"""Files whose mutants meet the seeds about flows first."""


def simulation(server: Server, lib: Library, mutant: Mutant | None) -> Kill | None:
    """Seeded runs with faults at every call; a run ends by draining what is left."""
    calls = 0
    server.loaded = ""  # whoever was here before has left another library
    flows_first = mutant is not None and Path(mutant.patches[0].file).stem in OF_FLOWS
    for seed in sorted(SEEDS, key=lambda seed: not about_flows(seed)) if flows_first else SEEDS:
        try:
            report = run(seed, STEPS, library=lib, on=server)
        except (TimeoutError, ConnectionError) as hung:
            server.again()
            return Kill("simulation", f"seed {seed}: {type(hung).__name__} {hung}", calls)
        except Exception as wrong:  # an answer that nothing can read: the control shows that it is not the harness
            return Kill("simulation", f"seed {seed}: {type(wrong).__name__} {wrong}", calls)
        calls += report.calls
        if report.violation:
            return Kill("simulation", f"seed {seed}: {report.violation}", calls)
    return None
