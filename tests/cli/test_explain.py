"""`ff job explain`: reasons with their numbers, for people and for programs."""

from __future__ import annotations

from tests.cli.conftest import FF


def submit(ff: FF, *words: str) -> str:
    return str(ff("submit", "cli.double", "1", *words, "--json").record["execution_id"])


def test_a_job_in_line_tells_its_place(ff: FF, lane: str) -> None:
    ids = [submit(ff, "--lane", lane) for _ in range(3)]
    for execution_id in ids:
        told = ff("job", "explain", execution_id, "--json").records
        assert [row["code"] for row in told] == ["no_worker"]
        assert told[0]["execution_id"] == execution_id and told[0]["runnable"] is False


def test_a_hold_and_a_paused_lane_are_both_told(ff: FF, lane: str) -> None:
    execution_id = submit(ff, "--lane", lane)
    ff("lane", "pause", lane)
    ff("hold", "--task", "cli.double", "--reason", "provider down")
    try:
        told = {row["code"]: row for row in ff("job", "explain", execution_id, "--json").records}
        assert {"lane_paused", "held", "no_worker"} == set(told)
        assert told["held"]["detail"] == "task:cli.double: provider down"
        assert "provider down" in ff("job", "explain", execution_id).out
    finally:
        ff("release", "--task", "cli.double")


def test_a_job_nobody_knows_is_not_found(ff: FF) -> None:
    assert ff("job", "explain", "{fp:0}:00000000-0000-7000-8000-00000000dead").code == 3
