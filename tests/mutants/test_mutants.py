"""The mutants fit the source, load, and a few of them die; `make mutants` kills them all."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mutants import operators
from tests.mutants.equivalent import EQUIVALENT
from tests.mutants.killers import Kill, Killer, Server
from tests.mutants.mutant import Drift, Patch, applied, library_with, mutated, read_lua
from tests.mutants.named import NAMED
from tests.mutants.simulation import simulation
from tests.mutants.walk import walk
from tests.simulation.wire import one

MODEL = Path(__file__).resolve().parents[2] / "docs/model.md"
OF_CLUSTERS = {"I21"}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


# ---- the list ----------------------------------------------------------------------------------------------


def test_every_invariant_of_the_model_has_a_mutant() -> None:
    numbered = set(re.findall(r"^\| (I\d+) \|", MODEL.read_text(), re.M))
    assert len(numbered) > 10
    assert numbered - OF_CLUSTERS - {mutant.invariant for mutant in NAMED} == set()


def test_ids_name_one_mutant_each_and_say_why() -> None:
    everything = [*NAMED, *operators.generated(everything=True)]
    assert len({mutant.id for mutant in everything}) == len(everything)
    assert all(mutant.why for mutant in everything)


def test_every_patch_fits_and_every_library_loads(server: Server) -> None:
    """A mutant that does not compile would be killed by anything."""
    wire = server.open()
    for mutant in [None, *NAMED, *operators.generated()]:
        one(wire, "FUNCTION", "LOAD", "REPLACE", library_with(mutant).source)
    wire.close()


def test_a_run_takes_at_least_twenty_generated_mutants() -> None:
    assert len(operators.generated()) >= 20
    assert {mutant.id.partition(":")[0] for mutant in operators.generated()} == set(operators.OPERATORS)


def test_what_is_listed_as_equivalent_exists() -> None:
    known = {mutant.id for mutant in operators.generated(everything=True)}
    assert set(EQUIVALENT) - known == set(), "the code has moved on: take these out of equivalent.py"
    assert all(len(reason) > 20 for reason in EQUIVALENT.values())


# ---- patches -----------------------------------------------------------------------------------------------

TEXT = 'local function a()\n  b(1)\nend\n\nlocal function c()\n  b(1)\nend\n'


def test_a_patch_changes_one_place() -> None:
    patched = applied("\n" + TEXT, Patch("x.lua", "b(1)", "b(2)", "local function c"))
    assert patched == "\n" + TEXT[: TEXT.rindex("b(1)")] + "b(2)\nend\n"


@pytest.mark.parametrize("patch", [Patch("tick.lua", "no such words", ""), Patch("tick.lua", "local", ""),
                                   Patch("tick.lua", "local", "", "function nobody")])  # fmt: skip
def test_words_that_do_not_stand_exactly_once_are_drift(patch: Patch) -> None:
    with pytest.raises(Drift):
        applied(read_lua("tick.lua"), patch)


def test_drift_says_where_the_words_went() -> None:
    with pytest.raises(Drift, match=r"lua/shared/fence\.lua has it"):
        mutated([Patch("tick.lua", "same = given == record.fence(x)", "")])


# ---- operators ---------------------------------------------------------------------------------------------

LUA = """
-- redis.call("ZREM", not, this)
local function f(p, x)
  redis.call("ZREM", keys.held(p), "a, (b")
  local n = redis.call("HDEL", k, "kept")
  if a <= b and c then timers.clear(p, "deadline", x.id) end
  state.move(p, x, "ready", why, "turn", queue.turn(p, x), "moved_at", p.now)
  if not ok then return reply.reject("no", "way") end
  g(n + 1, #t)
end
"""


@pytest.mark.parametrize(
    ("name", "cut"),
    [
        ("drop_write", ['redis.call("ZREM", keys.held(p), "a, (b")', 'timers.clear(p, "deadline", x.id)']),
        ("off_by_one", [" + 1", "<="]),
        ("swap_writes", ['queue.turn(p, x), "moved_at", p.now']),
        ("negate", ["a <= b and c", "not ok"]),
        ("drop_conjunct", ["a <= b and ", " and c"]),
        ("drop_refusal", ['if not ok then return reply.reject("no", "way") end']),
    ],
)
def test_an_operator_cuts_what_it_says(name: str, cut: list[str]) -> None:
    edits = list(operators.OPERATORS[name][0](LUA, operators.bare(LUA)))
    assert [LUA[edit.start : edit.end] for edit in edits] == cut


def test_a_swap_swaps() -> None:
    (edit,) = operators.swap_writes(LUA, operators.bare(LUA))
    assert edit.new == 'p.now, "moved_at", queue.turn(p, x)'


# ---- a few of them -----------------------------------------------------------------------------------------

SAMPLE: tuple[tuple[str, Killer], ...] = (
    ("lease_outlives_its_end", walk), ("fence_skips_attempt_id", walk), ("claim_memory_not_read", simulation),
    ("event_dropped", simulation), ("clock_runs_back", simulation),
)  # fmt: skip


@pytest.mark.parametrize("killer", [walk, simulation])
def test_the_library_as_it_is_survives(server: Server, killer: Killer) -> None:
    assert killer(server, library_with(None), None) is None


@pytest.mark.parametrize(("id", "killer"), SAMPLE)
def test_a_mutant_dies(server: Server, id: str, killer: Killer) -> None:
    (mutant,) = (mutant for mutant in NAMED if mutant.id == id)
    kill = killer(server, library_with(mutant), mutant)
    assert isinstance(kill, Kill) and kill.found
