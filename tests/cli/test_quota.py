"""`ff quota`: create, list, show, remove."""

from __future__ import annotations

import pytest

from tests.cli.conftest import FF


@pytest.fixture
def api(lane: str) -> str:
    """A quota that no other test uses."""
    return lane


def test_a_quota_is_made_changed_listed_and_shown(ff: FF, api: str) -> None:
    made = ff("quota", "create", api, "--rate", "100/60", "--json").record
    assert (made["name"], made["rate"], made["rate_window_s"], made["concurrency"]) == (api, 100, 60, 0)
    changed = ff("quota", "create", api, "--concurrency", "5", "--json").record
    assert (changed["quota_id"], changed["rate"], changed["concurrency"]) == (made["quota_id"], 100, 5)
    assert api in [one["name"] for one in ff("quota", "list", "--json").records]
    shown = ff("quota", "show", api, "--key", "t1", "--json").record
    assert (shown["key"], shown["in_window"], shown["active"], shown["next_free_s"], shown["waiting"]) == (
        "t1", 0, 0, 0, 0,
    )  # fmt: skip
    assert shown["created_at"]
    assert api in ff("quota", "list").out


def test_a_quota_of_another_namespace_is_another(ff: FF, api: str) -> None:
    ff("quota", "create", api, "--concurrency", "5")
    assert ff("quota", "show", api, "--namespace", "other").code == 3
    assert ff("quota", "list", "--namespace", api).out.strip() == "No quotas."


def test_a_quota_is_removed_when_that_is_meant(ff: FF, api: str) -> None:
    ff("quota", "create", api, "--concurrency", "5")
    assert ff("quota", "rm", api).code == 2, "nobody can be asked"
    assert ff("quota", "rm", api, given="n\n").code == 1
    assert ff("quota", "rm", api, "--yes", "--json").record == {"name": api, "answer": "removed"}
    assert ff("quota", "show", api).code == 3
    assert ff("quota", "rm", api, "--yes").code == 3


def test_a_quota_without_limits_is_a_mistake(ff: FF, api: str) -> None:
    assert ff("quota", "create", api).code == 2
    assert ff("quota", "create", api, "--rate", "100").code == 2
