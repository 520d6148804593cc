"""A chaos run in small (`tests/chaos`): two hundred jobs, a few workers killed and stopped, the network cut.

It shows that the harness still goes together with the code; what counts is the full run, `make chaos`.
"""

from __future__ import annotations

import msgspec

from tests.chaos.__main__ import perform
from tests.chaos.plan import Size
from tests.chaos.report import Report

SIZE = Size(
    jobs=200, seconds=7.0, workers=3, lease_s=1.0, patience_s=20.0,
    faults={
        "worker_kill": 5, "worker_pause": 2, "ticker_kill": 1, "submitter_kill": 1, "proxy_cut": 2, "server_kill": 1,
    },
)  # fmt: skip


def test_a_small_run_loses_nothing_and_ends_nothing_twice() -> None:
    status, said = perform(SIZE, quiet=True)
    assert said, "the run left no report"
    report = msgspec.json.decode(said, type=Report)
    # How fast work is recovered depends on the machine, and what a run this short meets is left to chance.
    assert [wrong for wrong in report.wrong if wrong.sort not in ("recovery", "coverage")] == []
    assert report.jobs == SIZE.jobs and (report.lost, report.duplicated, report.violations) == (0, 0, {})
    assert status == int(bool(report.wrong))
