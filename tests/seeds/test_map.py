"""MAP.md is complete and does not lie: every seed test has one row, and a row that names a test names a real one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SEEDS = (
    "flowfabric_contracts", "asupersync_remote", "fsqlite_remote_effects", "fsqlite_commit_repair", "telltale_durable",
)
NOUNS = frozenset("""
    execution attempt lease lane worker flow dependency suspension waitpoint signal step stream event budget quota
    admission outbox schedule saga remote effect commit
""".split())


class Row(NamedTuple):
    seed: str
    name: str
    ours: str
    note: str


def rows() -> list[Row]:
    found: list[Row] = []
    seed = ""
    for line in (HERE / "MAP.md").read_text().splitlines():
        if line.startswith("## "):
            seed = line.removeprefix("## ")
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| ") and cells[0] not in ("seed test name", "---"):
            assert len(cells) == 3, line
            found.append(Row(seed, *cells))
    return found


ROWS = rows()


def test_every_seed_test_has_exactly_one_row() -> None:
    listed = [line for line in (HERE / "seed_tests.txt").read_text().splitlines() if line]
    assert len(listed) == len(set(listed)) == 131
    assert sorted(f"{row.seed}:{row.name}" for row in ROWS) == sorted(listed)


def test_every_seed_has_its_section() -> None:
    assert re.findall(r"^## (\w+)$", (HERE / "MAP.md").read_text(), re.M) == list(SEEDS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.seed}:{row.name}")
def test_a_row_names_a_test_that_exists_a_plan_or_a_reason(row: Row) -> None:
    later = re.fullmatch(r"later: (\w+) \((tests/[\w/]+/test_\w+\.py)\)", row.ours)
    if row.ours == "n/a":
        assert row.note, "say why it does not apply"
    elif row.ours.startswith("later:"):
        assert later is not None and later[1] in NOUNS, row.ours
    else:
        path, _, name = row.ours.partition("::")
        assert re.search(rf"^(?:async )?def {re.escape(name)}\(", (ROOT / path).read_text(), re.M), row.ours


def test_the_contracts_seeds_own_tests_all_exist() -> None:
    ours = [row.ours for row in ROWS if row.seed == "flowfabric_contracts"]
    assert len(ours) == 21 and all("::" in target for target in ours)
