"""`ff schedule`: made, seen and steered from a shell."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from tests.cli.conftest import FF, Ran

RECORD = [
    "schedule", "schedule_id", "namespace", "state", "task", "lane", "when", "cron", "every_s", "at", "tz", "catch_up",
    "jitter_s", "start", "end", "next_at", "fires", "last_due", "last_at", "last_job", "refused", "refusal",
    "created_at", "changed_at", "revision",
]  # fmt: skip


@pytest.fixture
def ff(ff: FF, key: str) -> FF:
    """In a namespace of the test's own: the server is shared."""

    def run(*words: str, given: str = "") -> Ran:
        return ff(*words, "--namespace", key.replace("[", ".").replace("]", ""), given=given)

    return run


def add(ff: FF, *words: str) -> dict[str, object]:
    ran = ff("schedule", "add", "nightly", "cli.report", '{"day": 1}', "--lane", "night", *words, "--json")
    assert ran.code == 0, ran.err
    return ran.record


def test_the_same_command_again_changes_nothing(ff: FF) -> None:
    made = add(ff, "--cron", "0 3 * * *", "--tz", "Europe/Prague")
    assert list(made) == [*RECORD, "created", "changed"]
    assert (made["created"], made["changed"], made["state"], made["when"]) == (True, False, "active", "0 3 * * *")
    again = add(ff, "--cron", "0 3 * * *", "--tz", "Europe/Prague")
    assert (again["created"], again["changed"], again["revision"]) == (False, False, 1)
    other = add(ff, "--cron", "0 4 * * *", "--tz", "Europe/Prague", "--priority", "5", "--tag", "shop.a=b")
    assert (other["created"], other["changed"], other["revision"]) == (False, True, 2)
    said = ff("schedule", "add", "often", "cli.report", "--lane", "night", "--every", "90").out
    assert said.startswith("Schedule often is made, active; its next run is at 2")


def test_schedules_are_listed_and_shown(ff: FF) -> None:
    add(ff, "--every", "3600", "--jitter", "5", "--catch-up", "all", "--start", "2026-01-01T00:00")
    [listed] = ff("schedule", "list", "--json").records
    assert list(listed) == RECORD
    assert listed == ff("schedule", "show", "nightly", "--json").record
    assert (listed["every_s"], listed["jitter_s"], listed["catch_up"]) == (3600.0, 5.0, "all")
    assert listed["start"] == "2026-01-01T00:00:00.000Z"
    assert "every 60m" in ff("schedule", "list").out
    assert ff("schedule", "list", "--state", "paused").out.startswith("No schedules")
    dues = [row["due"] for row in ff("schedule", "next", "nightly", "-n", "3", "--json").records]
    assert len(dues) == 3 and dues == sorted(dues)


def test_a_schedule_is_paused_resumed_triggered_and_removed(ff: FF) -> None:
    add(ff, "--cron", "@daily")
    assert "is paused" in ff("schedule", "pause", "nightly").out
    assert ff("schedule", "pause", "nightly", "--json").record == {"schedule": "nightly", "changed": False}
    assert ff("schedule", "show", "nightly", "--json").record["state"] == "paused"
    assert "goes on" in ff("schedule", "resume", "nightly").out
    job = ff("schedule", "trigger", "nightly", "--json").record
    assert job["created"] is True
    assert ff("job", "show", str(job["execution_id"]), "--json").record["tags"]["schedule.name"] == "nightly"
    assert "is removed" in ff("schedule", "rm", "nightly").out
    assert ff("schedule", "rm", "nightly").code == 3
    assert ff("schedule", "show", "nightly").code == 3


def test_a_backfill_makes_each_run_once(ff: FF) -> None:
    add(ff, "--cron", "0 3 * * *")
    words = ("schedule", "backfill", "nightly", "2026-01-01", "2026-01-03T23:00", "--json")
    assert [row["created"] for row in ff(*words).records] == [True, True, True]
    assert [row["created"] for row in ff(*words).records] == [False, False, False]
    assert "No instant" in ff("schedule", "backfill", "nightly", "2026-01-01T04:00Z", "2026-01-01T05:00Z").out


def test_one_tick_of_a_shell_fires_what_is_due(ff: FF) -> None:
    """For a store that only has clients."""
    add(ff, "--at", datetime.now(UTC).isoformat())
    assert ff("engine", "tick", "--json").record["fired"] >= 1
    info = ff("schedule", "show", "nightly", "--json").record
    assert (info["fires"], info["state"]) == (1, "ended")
    assert ff("job", "show", str(info["last_job"]), "--json").record["state"] == "waiting"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--cron", "every day"), "cron"), ((), "exactly one"), (("--cron", "@daily", "--every", "5"), "exactly one"),
        (("--cron", "@daily", "--tz", "Nowhere/City"), "time zone"), (("--at", "tomorrow"), "write an instant"),
        (("--at", "2020-01-01"), "has passed"), (("--at", "2020-01-01", "--tz", "Nowhere"), "time zone"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_a_usage_error(ff: FF, words: tuple[str, ...], said: str) -> None:
    ran = ff("schedule", "add", "nightly", "cli.report", "--lane", "night", *words)
    assert ran.code == 2, ran.err
    assert said in ran.err


def test_a_task_nobody_has_published_needs_a_lane(ff: FF) -> None:
    ran = ff("schedule", "add", "nightly", "cli.report", "--cron", "@daily")
    assert ran.code != 0 and "lane" in ran.err
