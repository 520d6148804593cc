"""`ff budget`: create, list, show, reset, report, raise, remove."""

from __future__ import annotations

import pytest

from tests.cli.conftest import FF


@pytest.fixture
def team(lane: str) -> str:
    """A budget that no other test uses."""
    return lane


def create(ff: FF, team: str, *words: str) -> dict[str, object]:
    return ff("budget", "create", team, "--hard", "tokens=100", "--hard", "usd=1.5", *words, "--json").record


def test_a_budget_is_made_changed_listed_and_shown(ff: FF, team: str) -> None:
    made = create(ff, team, "--soft", "tokens=80", "--reset", "86400", "--scope", "tenant=t1")
    assert (made["hard_limits"], made["soft_limits"]) == ({"tokens": 100, "usd": 1.5}, {"tokens": 80})
    assert (made["scope_type"], made["scope_id"], made["reset_interval_s"]) == ("tenant", "t1", 86_400)
    assert made["created_at"] and made["next_reset_at"]
    changed = ff("budget", "create", team, "--hard", "tokens=200", "--json").record
    assert (changed["budget_id"], changed["hard_limits"]) == (made["budget_id"], {"tokens": 200})
    assert team in [one["name"] for one in ff("budget", "list", "--json").records]
    shown = ff("budget", "show", team, "--json").record
    assert (shown["usage"], shown["reserved"], shown["period"], shown["spenders"]) == (
        dict.fromkeys(shown["usage"], 0), dict.fromkeys(shown["reserved"], 0), 1, [],
    )  # fmt: skip
    assert team in ff("budget", "list").out
    assert "tokens=200" in ff("budget", "show", team).out


def test_reports_are_counted_and_told_of(ff: FF, team: str) -> None:
    create(ff, team, "--soft", "tokens=80")
    told = ff("budget", "report", team, "tokens=50", "usd=0.25", "--key", "r1", "--json").record
    assert (told["answer"], told["applied"], told["dimension"]) == ("ok", True, None)
    again = ff("budget", "report", team, "tokens=50", "usd=0.25", "--key", "r1", "--json").record
    assert (again["answer"], again["applied"]) == ("already_applied", False)
    soft = ff("budget", "report", team, "tokens=40", "--json").record
    assert (soft["answer"], soft["dimension"], soft["usage"], soft["limit"]) == ("soft_breach", "tokens", 90, 80)
    hard = ff("budget", "report", team, "tokens=20", "--json")
    assert (hard.code, hard.record["answer"], hard.record["applied"]) == (0, "hard_breach", True)
    shown = ff("budget", "show", team, "--json").record
    assert (shown["usage"]["tokens"], shown["usage"]["usd"], shown["last_breach_dim"]) == (110, 0.25, "tokens")
    assert "hard limit tokens is passed: 115 of 100" in ff("budget", "report", team, "tokens=5").out


def test_a_report_that_is_refused_is_exit_code_1(ff: FF, team: str) -> None:
    create(ff, team, "--on-breach", "refuse")
    ran = ff("budget", "report", team, "tokens=101", "--json")
    assert (ran.code, ran.record["answer"], ran.record["applied"]) == (1, "hard_breach", False)
    assert "is refused" in ff("budget", "report", team, "tokens=101").out
    assert ff("budget", "show", team, "--json").record["usage"].get("tokens", 0) == 0


def test_a_budget_is_reset_and_raised(ff: FF, team: str) -> None:
    create(ff, team)
    ff("budget", "report", team, "tokens=60")
    told = ff("budget", "reset", team, "--json").record
    assert (told["answer"], told["period"], told["next_reset_at"]) == ("reset", 2, None)
    assert ff("budget", "show", team, "--json").record["usage"].get("tokens", 0) == 0
    for _ in range(2):
        raised = ff("budget", "raise", team, "tokens=50", "--key", "k1", "--json").record
        assert raised["hard_limits"]["tokens"] == 150
    assert "tokens=160" in ff("budget", "raise", team, "tokens=10").out


def test_a_budget_is_removed_when_that_is_meant(ff: FF, team: str) -> None:
    create(ff, team)
    assert ff("budget", "rm", team).code == 2
    assert ff("budget", "rm", team, "--yes", "--json").record == {"name": team, "answer": "removed"}
    assert ff("budget", "show", team).code == 3


def test_what_is_no_amount_is_a_mistake(ff: FF, team: str) -> None:
    create(ff, team)
    for wrong in ("tokens", "=5", "tokens=x", "tokens=-1", "tokens=nan"):
        assert ff("budget", "report", team, wrong).code == 2
    assert ff("budget", "create", team + "-b").code == 2
    assert ff("budget", "create", team + "-b", "--hard", "tokens=1", "--scope", "t1").code == 2
    assert ff("budget", "show", team + "-b").code == 3
