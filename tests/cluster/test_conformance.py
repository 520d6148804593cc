"""The conformance suite, on the cluster: what holds for any Backend holds for this one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.cluster.cluster import Cluster

ROOT = Path(__file__).resolve().parents[2]


def test_the_conformance_suite_passes_on_a_cluster(cluster: Cluster, measured: Callable[[str], None]) -> None:
    """As `FF_TEST_URL=valkey+cluster://... pytest tests/conformance` does; none of it is left out."""
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/conformance"],
        cwd=ROOT, env=os.environ | {"FF_TEST_URL": cluster.url}, capture_output=True, text=True, timeout=150,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    said = run.stdout.strip().splitlines()[-1]
    assert re.fullmatch(r"\d+ passed in .*", said), said
    measured(f"conformance suite: {said}")
