"""Verbs that touch many jobs look first and ask."""

from __future__ import annotations

import pytest

from tests.cli.conftest import FF


@pytest.fixture
def full(ff: FF, lane: str) -> FF:
    """Five jobs wait in the lane."""
    assert ff("submit", "t", "--lane", lane, "--count", "5").code == 0
    return ff


def waiting(ff: FF, lane: str) -> int:
    found = ff("lane", "stats", lane, "--json").record["waiting"]
    assert isinstance(found, int)
    return found


def test_without_an_answer_nothing_is_changed(full: FF, lane: str) -> None:
    ran = full("job", "cancel-many", "--lane", lane)
    assert ran.code == 2
    assert "--yes" in ran.err
    assert waiting(full, lane) == 5


def test_no_is_no(full: FF, lane: str) -> None:
    ran = full("job", "cancel-many", "--lane", lane, given="n\n")
    assert ran.code == 1
    assert "not done" in ran.err
    assert waiting(full, lane) == 5


def test_yes_is_yes_after_a_count(full: FF, lane: str) -> None:
    ran = full("job", "cancel-many", "--lane", lane, given="y\n")
    assert ran.code == 0
    assert "5 of 5 jobs cancelled" in ran.out
    assert waiting(full, lane) == 0


def test_a_dry_run_shows_and_stops(full: FF, lane: str) -> None:
    ran = full("job", "cancel-many", "--lane", lane, "--dry-run", "--yes", "--json").record
    assert (ran["dry_run"], ran["matched"], len(ran["ids"])) == (True, 5, 5)
    assert "Would cancel 5 jobs" in full("job", "cancel-many", "--lane", lane, "--dry-run").out
    assert waiting(full, lane) == 5


def test_programs_must_say_yes(full: FF, lane: str) -> None:
    assert full("job", "cancel-many", "--lane", lane, "--json", given="y\n").code == 2
    done = full("job", "cancel-many", "--lane", lane, "--json", "--yes").record
    assert done == {"dry_run": False, "matched": 5, "done": 5, "refused": {}}


def test_a_filter_is_needed(full: FF) -> None:
    for verb in ("cancel-many", "replay-many", "purge-many"):
        ran = full("job", verb, "--yes")
        assert ran.code == 2, verb
        assert "--all" in ran.err


def test_replay_many_takes_what_failed_unless_told_otherwise(full: FF, lane: str) -> None:
    full("job", "cancel-many", "--lane", lane, "--yes")
    assert full("job", "replay-many", "--lane", lane, "--yes").out == "No job matches.\n"
    done = full("job", "replay-many", "--lane", lane, "--state", "cancelled", "--yes", "--json").record
    assert (done["matched"], done["done"]) == (5, 5)
    assert waiting(full, lane) == 5


def test_what_moved_on_meanwhile_is_told_and_is_exit_code_1(full: FF, lane: str) -> None:
    """A replay is refused after ten; the others go through."""
    one = full("job", "list", "--lane", lane, "--json").records[0]["execution_id"]
    for _ in range(10):
        full("job", "cancel", one)
        assert full("job", "replay", one).code == 0
    full("job", "cancel-many", "--lane", lane, "--yes")
    ran = full("job", "replay-many", "--lane", lane, "--state", "cancelled", "--yes", "--json")
    assert ran.code == 1
    assert ran.record == {"dry_run": False, "matched": 5, "done": 4, "refused": {"max_replays_exhausted": 1}}


def test_purge_many_forgets_what_has_ended_and_nothing_else(full: FF, lane: str) -> None:
    first = full("job", "list", "--lane", lane, "--json").records[0]["execution_id"]
    full("job", "cancel", first)
    assert full("job", "purge-many", "--lane", lane).code == 2
    assert full("job", "purge-many", "--lane", lane, "--dry-run", "--json").record["matched"] == 1
    assert (
        full("job", "purge-many", "--lane", lane, "--older-than", "3600", "--dry-run", "--json").record["matched"] == 0
    )
    assert full("job", "purge-many", "--lane", lane, "--yes", "--json").record["done"] == 1
    assert full("job", "show", first).code == 3
    assert waiting(full, lane) == 4


def test_many_pages_are_changed_to_the_last_job(ff: FF, lane: str) -> None:
    ff("submit", "t", "--lane", lane, "--count", "3000")
    assert ff("job", "cancel-many", "--lane", lane, "--yes", "--json").record["done"] == 3000
    assert ff("job", "purge-many", "--lane", lane, "--yes", "--json").record["done"] == 3000
    assert ff("job", "list", "--lane", lane, "--json").records == []
