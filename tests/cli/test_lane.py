"""`ff lane`: limits, back-pressure and weights; what is halted. The rest is in `test_operator.py`."""

from __future__ import annotations

from tests.cli.conftest import FF


def test_a_lane_is_limited_and_shown_and_let_go(ff: FF, lane: str) -> None:
    ff("submit", "t", "--lane", lane)
    told = ff("lane", "limit", lane, "--concurrency", "3", "--rate", "100/60", "--json").record
    assert (told["concurrency"], told["rate"], told["rate_window_s"], told["not_reached"]) == (3, 100, 60, {})
    shown = ff("lane", "show", lane, "--json").record
    assert (shown["concurrency"], shown["rate"], shown["rate_window_s"], shown["behind"]) == (3, 100, 60.0, [])
    quota = ff("quota", "show", f"lane:{lane}", "--json").record
    assert (quota["concurrency"], quota["rate"], quota["active"]) == (3, 100, 0)
    ff("lane", "limit", lane, "--concurrency", "2")
    assert ff("lane", "show", lane, "--json").record["rate"] == 0, "both are set together"
    assert "has no limit" in ff("lane", "limit", lane, "--off").out
    assert ff("lane", "show", lane, "--json").record["concurrency"] == 0


def test_a_limit_wants_something(ff: FF, lane: str) -> None:
    for words in ([], ["--off", "--concurrency", "1"], ["--rate", "5"], ["--rate", "0/5"], ["--rate", "5/x"]):
        assert ff("lane", "limit", lane, *words).code == 2


def test_a_lane_with_a_backlog_refuses_submits(ff: FF, lane: str) -> None:
    ff("submit", "t", "--lane", lane)
    told = ff("lane", "backlog", lane, "--count", "4", "--json").record
    assert (told["max_count"], told["max_bytes"]) == (4, None)
    codes = [ff("submit", "t", "--lane", lane).code for _ in range(20)]
    assert 1 in codes
    assert "lane_full" in ff("submit", "t", "--count", "50", "--lane", lane, "--json").err
    assert ff("lane", "show", lane, "--json").record["max_count"] == 4
    ff("lane", "backlog", lane, "--count", "0")
    assert ff("submit", "t", "--lane", lane).code == 0
    assert ff("lane", "backlog", lane).code == 2


def test_weights_are_given_listed_and_taken_back(ff: FF, lane: str) -> None:
    ff("submit", "t", "--lane", lane)
    told = ff("lane", "weights", lane, "t1=4", "a=b=0.5", "--json").record
    assert (told["weights"], told["not_reached"]) == ({"t1": 4.0, "a=b": 0.5}, {})
    assert ff("lane", "weights", lane, "--json").records == [
        {"lane": lane, "key": "a=b", "weight": 0.5},
        {"lane": lane, "key": "t1", "weight": 4.0},
    ]
    ff("lane", "weights", lane, "t1=1", "a=b=1")
    assert "weigh the same" in ff("lane", "weights", lane).out
    for wrong in ("t1", "=4", "t1=x", "t1=0", "t1=-1"):
        assert ff("lane", "weights", lane, wrong).code == 2
    assert ff("lane", "weights", lane, "t1=101").code in (1, 2)
