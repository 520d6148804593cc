"""The simulation as a killer: its model predicts every answer, its audit compares what stands in the store."""

from __future__ import annotations

from pathlib import Path

from ffbackend_valkey.library import Library
from tests.mutants.killers import Kill, Server
from tests.mutants.mutant import Mutant
from tests.simulation import run
from tests.simulation.run import about_admission, about_flows

SEEDS = (*range(12), 14, 17)
STEPS = 800
OF_FLOWS = {"cascade", "dependency", "flow", "flows", "graph", "purge", "retention", "spawn", "submission"}
"""Files whose mutants meet the seeds about flows first."""
OF_ADMISSION = {
    "admission", "amounts", "budget", "budgets", "inbox", "outbox", "quota", "quotas", "schedule", "schedules",
    "spending", "unique", "waiting",
}  # fmt: skip
"""The same for admission, of which there are more."""
MORE = (18, 22, 26)


def simulation(server: Server, lib: Library, mutant: Mutant | None) -> Kill | None:
    """Seeded runs with faults at every call; a run ends by draining what is left."""
    calls = 0
    server.loaded = ""  # whoever was here before has left another library
    file = Path(mutant.patches[0].file).stem if mutant is not None else ""
    about = about_flows if file in OF_FLOWS else about_admission if file in OF_ADMISSION else None
    seeds = (*SEEDS, *MORE) if about is about_admission else SEEDS
    for seed in sorted(seeds, key=lambda seed: not about(seed)) if about is not None else seeds:
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
