"""Short runs of the simulation, that it is repeatable, and that it finds and shrinks what was planted."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ffbackend_valkey.library import lua_root
from tests.simulation import Report, coverage, place, run, virtual_library
from tests.simulation.faults import Faults
from tests.simulation.shrink import replayed, shrunk
from tests.simulation.wire import Place

ROOT = Path(__file__).resolve().parents[2]
BUSY = Faults(**{name: 3 * chance for name, chance in vars(Faults()).items()})


@pytest.fixture(scope="module")
def valkey() -> Iterator[Place]:
    with place() as here:
        yield here


def clean(report: Report) -> Report:
    if report.violation is not None:
        last = "\n".join(f"  {step}" for step in report.trace[-8:])
        pytest.fail(f"seed {report.seeds[0]}: {report.violation}\n{last}")
    return report


@pytest.mark.parametrize("seed", [0, 1, 2, 3, 5, 11])
def test_a_run_keeps_every_promise(valkey: Place, seed: int) -> None:
    report = clean(run(seed, 600, on=valkey))
    assert report.transitions > 100


def test_a_run_with_many_faults_keeps_every_promise(valkey: Place) -> None:
    report, unseen = Report(), set[str]()
    for seed in range(52, 58):
        report.add(clean(run(seed, 600, on=valkey, faults=BUSY)))
        unseen = {name for name in vars(Faults()) if name not in report.faults}
        if seed > 52 and unseen <= {"restart", "sleep"}:
            break
    assert unseen <= {"restart", "sleep"}, f"never happened: {unseen}"


def test_a_killed_server_changes_nothing() -> None:
    report = clean(run(3, 120, on="durable", faults=Faults(restart=0.03)))
    assert report.faults["restart"] > 0


def test_the_memory_store_ends_where_a_server_does(valkey: Place) -> None:
    """Same seed, same keyspace: nothing in a run depends on what it runs on."""
    ours = clean(run(7, 200, on=valkey))
    assert ours.sha256 == clean(run(7, 200, on="memory", check_every=100, checker_every=0)).sha256


def test_a_seed_gives_one_keyspace_in_every_process() -> None:
    salts = ("1", "3", "4")  # which order sets of tokens in different ways
    words = [sys.executable, "-m", "tests.simulation", "--seed", "5", "--steps", "250"]
    started = [
        subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONHASHSEED": salt})
        for salt in salts
    ]
    said = [process.communicate(timeout=60)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0, 0], said
    hashes = [line for text in said for line in text.splitlines() if line.startswith("keyspace sha256=")]
    assert len(hashes) == 3 and len(set(hashes)) == 1 and len(hashes[0]) == len("keyspace sha256=") + 64


def replaced(path: str, old: str, new: str) -> dict[str, str]:
    text = (lua_root() / path).read_text()
    assert text.count(old) == 1, f"{path} has {text.count(old)} times {old!r}: plant the bug elsewhere"
    return {path: text.replace(old, new)}


PLANTED = {
    "a fence that is not looked at": ("shared/fence.lua", 'return reply.reject("stale_lease", "held at epoch',
                                      'return nil and reply.reject("stale_lease", "held at epoch'),
    "a lost lease that never counts": ("shared/attempt.lua", "crashes, unseen = crashes + 1, 0", "unseen = 0"),
    "a recorded step that is recorded again": (
        "journal.lua", 'if was == "ok" or was == "fatal" then return true end', ""),
    "two counts with one tally": (
        "shared/condition.lua", 'tokens[i] = "t" .. i .. ":" .. token(', 'tokens[i] = "t:" .. token('),
    "a group that its first edge decides": (
        "shared/graph.lua", 'g.bad > 0 and "i" or g.ok == g.n and "s"', 'g.bad > 0 and "i" or g.ok > 0 and "s"'),
    "a member that is not counted": ("shared/flows.lua", "if left then flows.add(p, f, left, -1) end", ""),
    "a grant that never lapses": ("grant.lua", 'state.requeue(p, x, "grant_expired", "grant", false)', "p.idle = x"),
}  # fmt: skip


@pytest.mark.parametrize("bug", PLANTED)
def test_a_planted_bug_is_found_and_shrunk(valkey: Place, bug: str) -> None:
    library = virtual_library(replaced(*PLANTED[bug]))
    for seed in range(40):
        report = run(seed, 800, library=library, on=valkey, drain=False)
        if report.violation is not None:
            break
    assert report.violation is not None, "40 seeds passed over it"
    short = shrunk(report.trace, report.violation, valkey, library)
    assert len(short) <= 16 < len(report.trace), "\n".join(map(str, short))
    # The short trace blames the bug: without it nothing is wrong.
    assert replayed(short, valkey, library) is not None
    assert replayed(short, valkey, virtual_library()) is None


def test_what_a_run_need_not_reach_exists() -> None:
    """The tables of exceptions name only what the library declares, so that they cannot outlive their reasons."""
    library = virtual_library()
    declared = {(s.name, word) for s in library.signatures.values() for word in (*s.returns, *s.errors)}
    assert set(coverage.OUTCOMES_NOT_ASKED_FOR) <= declared
    assert {word for _, word in declared} >= coverage.MALFORMED - {"not_initialised", "cursor_expired", "store_full"}
    assert coverage.missing(library, declared, coverage.MOVES) == []
    assert coverage.missing(library, [], [])
