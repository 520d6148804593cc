"""Assembly of the Lua library, its line map, what Lua and Python must say alike, and whom a program may replace."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from ffbackend_valkey import keys
from ffbackend_valkey.library import Library, Loaded, assemble, judge, library, lua_root
from ffcore import ids, limits, states
from ffcore.errors import Incompatible
from tests.lua import invariants


def lua(path: str) -> str:
    return (lua_root() / path).read_text()


# ---- assembly ----------------------------------------------------------------------------------------


def test_every_lua_file_is_in_the_manifest_and_every_entry_is_a_file() -> None:
    manifest = tomllib.loads(lua("manifest.toml"))
    there = {path.relative_to(lua_root()).as_posix() for path in lua_root().rglob("*.lua")}
    assert set(manifest["files"]) == there
    assert len(manifest["files"]) == len(there)


def test_the_source_opens_with_its_name_its_version_and_every_limit() -> None:
    lib = library()
    first, second, third = lib.source.splitlines()[:3]
    assert first == f"#!lua name={lib.name}"
    assert f"version = {lib.version}, " in second and f'sha = "{lib.sha}"' in second
    written = {name: int(value) for name, value in re.findall(r"(\w+) = (-?\d+)", third)}
    assert written == {name: value for name, value in vars(limits).items() if name.isupper() and isinstance(value, int)}


def test_lua_asks_only_for_limits_that_exist() -> None:
    asked = {name for path in lua_root().rglob("*.lua") for name in re.findall(r"LIMITS\.(\w+)", path.read_text())}
    assert asked and asked <= {name for name in vars(limits) if name.isupper()}


def test_the_hash_follows_the_contents_and_nothing_else() -> None:
    swapped = assemble(replace={"shared/clock.lua": lua("shared/clock.lua") + "\n-- another\n"})
    assert assemble().sha == library().sha != swapped.sha
    assert swapped.signatures == library().signatures


def test_a_changed_limit_is_another_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "ROWS_N", 7)
    changed = assemble()
    assert changed.sha != library().sha and "ROWS_N = 7" in changed.source


def test_a_capability_keeps_its_locals_to_itself() -> None:
    """A chunk may hold 200 locals; each file that is not shared is a block of its own."""
    lines = library().source.splitlines()
    for start, path in library().starts[1:]:
        assert lines[start - 1].startswith("do  ") == (not path.startswith("shared/")), path


def test_a_define_without_a_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "manifest.toml").write_text('name = "x"\nversion = 1\ncompatible_since = 1\nfiles = ["a.lua"]\n')
    (tmp_path / "a.lua").write_text("define {\n  args = {},\n}\n")
    with pytest.raises(ValueError, match="without a name"):
        assemble(tmp_path)


def test_signatures_are_read_from_their_declarations() -> None:
    claim = library().signatures["ff_claim_batch"]
    assert claim.args[:2] == ("lanes:json", "capability_sets:json")
    assert (claim.returns, claim.errors, claim.flags, claim.scope) == (
        ("claimed",),
        ("invalid_input",),
        ("allow-oom",),
        "many",
    )
    assert not claim.reads_only
    assert library().signatures["ff_read_execution"].reads_only
    assert library().signatures["ff_library"].scope == "none"
    assert library().signatures["ff_renew_lease"].scope == "one"


def test_only_what_admits_new_work_is_refused_over_maxmemory() -> None:
    """Everything a lease holder or the engine calls must go through, or a full store could never be drained."""
    refused = {s.name for s in library().signatures.values() if not {"allow-oom", "no-writes"} & set(s.flags)}
    admitting = {"ff_create_execution", "ff_create_many", "ff_init_partition"}
    assert refused >= {"ff_create_execution", "ff_create_many"}
    assert not {
        name for name in refused if name.startswith(("ff_complete", "ff_fail", "ff_claim", "ff_renew", "ff_cancel"))
    }
    assert admitting <= refused


# ---- the line map ------------------------------------------------------------------------------------


def test_a_line_of_the_assembled_source_is_found_in_its_file() -> None:
    lines = library().source.splitlines()
    for path in ("shared/define.lua", "execution.lua", "tick.lua"):
        text = lua(path).splitlines()
        number = len(text) // 2
        while lines.count(text[number - 1]) != 1:
            number += 1
        at = lines.index(text[number - 1]) + 1
        assert library().locate(f"ERR user_function:{at}: attempt to index") == f"ERR {path}:{number}: attempt to index"


def test_every_place_in_a_message_is_turned_and_the_rest_left_alone() -> None:
    lib = Library("x", 1, 1, "s", "", {}, ((1, "assembly"), (4, "a.lua"), (10, "b.lua")))
    assert lib.locate("user_function:4: x user_function:12 at 4:4") == "a.lua:1: x b.lua:3 at 4:4"
    assert lib.locate("user_function:2") == "assembly:2"
    assert lib.locate("nothing") == "nothing"


# ---- who replaces whom -------------------------------------------------------------------------------


def ours(version: int = 5) -> Library:
    return Library("flowfabric", version, 3, "ours", "", {}, ())


@pytest.mark.parametrize(
    ("theirs", "verdict"),
    [
        (None, "load"),
        (Loaded(version=5, sha="ours"), "go"),
        (Loaded(version=6, sha="other", compatible_since=5), "go"),
        (Loaded(version=9, sha="other", compatible_since=1), "go"),
    ],
)
def test_a_library_that_is_absent_is_loaded_and_one_that_answers_us_is_used(
    theirs: Loaded | None, verdict: str
) -> None:
    assert judge(ours(), theirs) == verdict


@pytest.mark.parametrize(
    ("theirs", "remedy"),
    [
        (Loaded(version=5, sha="other"), "ff library upgrade"),
        (Loaded(version=4, sha="older"), "ff library upgrade"),
        (Loaded(version=1, sha="ours"), "ff library upgrade"),
        (Loaded(version=6, sha="newer", compatible_since=6), "upgrade this program"),
    ],
)
def test_every_refusal_names_its_remedy(theirs: Loaded, remedy: str) -> None:
    with pytest.raises(Incompatible, match=remedy):
        judge(ours(), theirs)


# ---- what Lua and Python say alike -------------------------------------------------------------------


def test_keys_and_channels_of_python_are_those_of_lua() -> None:
    partition = ids.partition_key(3)
    text = lua("shared/keys.lua")
    bodies = dict(re.findall(r"^function keys\.(\w+)\([^)]*\)\s*return (.*?) end", text, re.M))

    def make(function: str, **parts: str) -> str:
        known = {"p.key": f"ff:{partition}", "header": f"ff:{partition}"} | parts
        return "".join(part[1:-1] if part.startswith('"') else known[part] for part in bodies[function].split(" .. "))

    assert keys.worker_channel(partition, "w1") == make("worker_channel", name="w1")
    assert keys.client_channel(partition, "c1") == make("client_channel", name="c1")
    assert keys.ticker_channel(partition) == make("ticker_channel")
    uuid = "00000000-0000-7000-8000-000000000abc"
    assert keys.stream_channel(ids.ExecutionId(f"{partition}:{uuid}")) == make("stream_channel", id=uuid)
    assert keys.pair(partition) == (keys.header(partition), make("absent"))
    pattern = re.search(r'keys\.tag_of\(header\) return string\.match\(header, "(.*?)"\)', text)
    assert pattern and pattern[1] == "^ff:({%a+:%d+})$"


def test_no_two_kinds_of_key_can_meet() -> None:
    """Every function of keys.lua makes names that only its own pattern matches."""
    patterns = invariants.key_patterns()
    samples = invariants.key_samples()
    assert samples.keys() == patterns.keys()
    for name, sample in samples.items():
        assert [kind for kind, pattern in patterns.items() if pattern.fullmatch(sample)] == [name], sample


def test_the_states_of_lua_are_the_states_of_python() -> None:
    table = invariants.state_table()
    assert list(table) == list(states.STATES)
    for word, row in states.STATES.items():
        outcome = re.search(r'outcome = "(\w+)"', table[word])
        assert (outcome[1] if outcome else "none") == row.outcome.value, word
        assert invariants.leased(word) == (row.ownership is states.OwnershipState.LEASED), word
        claimable = row.eligibility is states.EligibilityState.ELIGIBLE_NOW and word != "granted"
        assert invariants.queued(word) == claimable, word


def test_every_move_is_between_states_that_exist() -> None:
    block = re.search(r"state\.MOVES = \{(.*?)^\}", lua("shared/state.lua"), re.S | re.M)
    assert block
    froms = dict(re.findall(r"^\s*(\w+)\s*=\s*(\{[^}]*\}|\w+)", block[1], re.M))
    assert set(froms) == set(states.STATES)
    named = set(re.findall(r'"(\w+)"', block[1]))
    assert named <= set(states.STATES)


def test_lua_blocks_for_the_reasons_of_the_contract() -> None:
    block = re.search(r"local REASONS = \{(.*?)\}", lua("block.lua"), re.S)
    assert block
    assert set(re.findall(r"(\w+) = true", block[1])) == {reason.value for reason in states.REASONS["blocked"]}


def test_short_names_of_fields_are_each_used_once() -> None:
    short = invariants.field_names()
    assert len(set(short.values())) == len(short)
