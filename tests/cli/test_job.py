"""`ff submit` and `ff job`: from a payload to a result, and everything one can ask in between."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import FF, work

LISTED = [
    "execution_id",
    "task",
    "lane",
    "state",
    "reason",
    "priority",
    "attempts",
    "namespace",
    "worker",
    "created_at",
    "ended_at",
]


def submit(ff: FF, *args: str, given: str = "") -> str:
    ran = ff("submit", *args, given=given)
    assert ran.code == 0, ran.err
    return ran.out.strip()


def test_a_job_is_submitted_run_and_read(ff: FF, store: str) -> None:
    execution_id = submit(ff, "cli.double", "21", "--lane", "math")
    work(store, execution_id)
    assert ff("job", "result", execution_id).out == "42\n"
    assert ff("job", "result", execution_id, "--json").record == {
        "execution_id": execution_id,
        "state": "completed",
        "result": 42,
    }
    shown = ff("job", "show", execution_id, "--json").record
    assert (shown["state"], shown["attempts"], shown["lane"], shown["closed_attempts"]) == ("completed", 1, "math", [])


def test_a_payload_comes_from_an_argument_a_file_or_standard_input(ff: FF, lane: str, tmp_path: Path) -> None:
    (tmp_path / "payload.json").write_text('{"a": 1}')
    for given, args in (("", '{"a": 1}'), ("", f"@{tmp_path}/payload.json"), ('{"a": 1}', "-")):
        execution_id = submit(ff, "t", args, "--lane", lane, given=given)
        assert ff("job", "export", execution_id, "--json").record["payload"] == {"a": 1}


def test_a_key_answers_the_same_job_and_refuses_another_request(ff: FF, lane: str, key: str) -> None:
    first = ff("submit", "t", "1", "--lane", lane, "--key", key, "--json").record
    again = ff("submit", "t", "1", "--lane", lane, "--key", key, "--json").record
    assert (first["created"], again["created"]) == (True, False)
    assert first["execution_id"] == again["execution_id"]
    other = ff("submit", "t", "2", "--lane", lane, "--key", key)
    assert other.code == 1
    assert "idempotency_conflict" in other.err


def test_a_namespace_keeps_keys_apart_and_narrows_a_listing(ff: FF, lane: str, key: str) -> None:
    for namespace in ("one", "two"):
        assert ff("submit", "t", "--lane", lane, "--key", key, "--namespace", namespace, "--json").record["created"]
    assert len(ff("job", "list", "--lane", lane, "--json").records) == 2
    [only] = ff("job", "list", "--lane", lane, "--json", "--namespace", "two").records
    assert only["namespace"] == "two"


def test_an_unknown_task_needs_a_lane(ff: FF) -> None:
    ran = ff("submit", "nobody.knows.this", "1")
    assert ran.code == 1
    assert "unknown_task" in ran.err


def test_many_jobs_are_submitted_with_one_command(ff: FF, lane: str, key: str) -> None:
    ran = ff("submit", "t", "1", "--lane", lane, "--count", "2500", "--key", key, "--json").record
    assert (ran["submitted"], ran["created"]) == (2500, 2500)
    assert ff("lane", "stats", lane, "--json").record["waiting"] == 2500
    again = ff("submit", "t", "1", "--lane", lane, "--count", "2500", "--key", key, "--json").record
    assert (again["submitted"], again["created"]) == (2500, 0)


def test_a_listing_filters_and_its_records_keep_their_fields(ff: FF, lane: str) -> None:
    tagged = submit(ff, "t", "--lane", lane, "--tag", "shop.tenant=t1", "--priority", "7")
    delayed = submit(ff, "u", "--lane", lane, "--delay", "600")
    rows = {row["execution_id"]: row for row in ff("job", "list", "--lane", lane, "--json").records}
    assert [list(row) for row in rows.values()] == [LISTED, LISTED]
    assert (rows[tagged]["state"], rows[tagged]["priority"], rows[delayed]["state"]) == ("waiting", 7, "delayed")

    def found(*args: str) -> list[str]:
        return [row["execution_id"] for row in ff("job", "list", "--lane", lane, "--json", *args).records]

    assert found("--tag", "shop.tenant=t1") == [tagged]
    assert found("--state", "delayed") == [delayed]
    assert found("--task", "u") == [delayed]
    assert len(found("--limit", "1")) == 1


def test_a_listing_for_people_has_a_table(ff: FF, lane: str) -> None:
    execution_id = submit(ff, "t", "--lane", lane)
    head, row = ff("job", "list", "--lane", lane).out.splitlines()
    assert head.split() == ["id", "task", "lane", "state", "tries", "prio", "worker", "created"]
    assert row.split()[:5] == [execution_id, "t", lane, "waiting", "0"]
    assert ff("job", "list", "--lane", "nothing-here").out == "No jobs.\n"


def test_a_tag_without_a_value_is_refused(ff: FF, lane: str) -> None:
    assert ff("submit", "t", "--lane", lane, "--tag", "tenant").code == 2


def test_history_tells_how_a_job_came_to_its_end(ff: FF, store: str) -> None:
    execution_id = submit(ff, "cli.double", "1", "--lane", "math")
    work(store, execution_id)
    entries = ff("job", "history", execution_id, "--json").records
    assert [(e["from"], e["to"]) for e in entries] == [(None, "ready"), ("ready", "active"), ("active", "completed")]
    assert all(e["at"].endswith("Z") for e in entries)


def test_explain_says_why_a_job_does_not_run(ff: FF, lane: str) -> None:
    execution_id = submit(ff, "t", "--lane", lane)
    ff("lane", "pause", lane)
    told = ff("job", "explain", execution_id, "--json").records
    assert {"lane_paused", "no_worker"} <= {row["code"] for row in told}
    assert not any(row["runnable"] for row in told)


def test_cancel_and_replay_change_a_jobs_course(ff: FF, lane: str) -> None:
    execution_id = submit(ff, "t", "--lane", lane)
    assert ff("job", "replay", execution_id).code == 1  # it has not ended
    assert ff("job", "cancel", execution_id, "--reason", "a mistake", "--json").record["answer"] == "cancelled"
    shown = ff("job", "show", execution_id, "--json").record
    assert (shown["state"], shown["cancel_reason"]) == ("cancelled", "a mistake")
    assert ff("job", "replay", execution_id, "--mode", "fresh").code == 0
    assert ff("job", "show", execution_id, "--json").record["state"] == "waiting"


def test_an_export_holds_everything_about_one_job(ff: FF, store: str) -> None:
    execution_id = submit(ff, "cli.double", "4", "--lane", "math", "--tag", "shop.tenant=t1")
    work(store, execution_id)
    for args in ([], ["--json"]):
        told = json.loads(ff("job", "export", execution_id, *args).out)
        assert (told["payload"], told["result"], told["tags"]) == (4, 8, {"shop.tenant": "t1"})
        assert told["policy"]["retry_policy"]["max_retries"] == 3
        assert told["fields"]["state"] == "completed"
        assert len(told["history"]) == 3


@pytest.mark.parametrize("args", [["--wait", "--count", "2"], ["--timeout", "1"]], ids=["count", "timeout"])
def test_options_that_contradict_each_other_are_refused(ff: FF, lane: str, args: list[str]) -> None:
    assert ff("submit", "t", "--lane", lane, *args).code == 2
