"""The face of the package: its names, what importing it costs, and the two clients with one list of methods."""

from __future__ import annotations

import inspect
import subprocess
import sys
import typing
from collections.abc import Iterator

import pytest

import ffsdk as ff
from ffsdk import budgets, client, flow, job, lanes, node, quotas, schedules, sync, sync_schedules
from ffsdk.submit import SubmitOptions


def public(cls: type) -> set[str]:
    return {name for name in dir(cls) if not name.startswith("_")}


def test_every_public_name_exists() -> None:
    assert [name for name in ff.__all__ if not hasattr(ff, name)] == []
    with pytest.raises(AttributeError):
        ff.nonsense  # type: ignore[attr-defined]


def test_importing_the_package_imports_no_backend_and_no_client() -> None:
    """A script that declares tasks must not pay for connections; a typo in a store's package must not break it."""
    code = "import sys, ffsdk; ffsdk.App; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    heavy = [
        name
        for name in loaded
        if name.startswith(("redis", "ffbackend_valkey", "ffcore.contracts", "fakeredis", "lupa"))
    ]
    assert heavy == []


ASYNC_ONLY = {"open", "backend", "submitter", "waiters", "tails", "pace", "lane_names", "namespace"}
ASYNC_ONLY |= {"draft", "submitted"}


@pytest.mark.parametrize(
    ("mine", "theirs"),
    [
        (client.Client, sync.Client), (job.Job, sync.Job), (lanes.Lane, sync.Lane), (flow.Flow, sync.Flow),
        (node.Node, sync.Node), (schedules.Schedule, sync_schedules.Schedule),
        (budgets.BudgetHandle, sync.BudgetHandle), (quotas.QuotaHandle, sync.QuotaHandle),
    ],
)  # fmt: skip
def test_the_blocking_facade_has_every_method_with_the_same_parameters(mine: type, theirs: type) -> None:
    assert public(mine) - public(theirs) <= ASYNC_ONLY
    for name in public(mine) & public(theirs):
        here, there = inspect.getattr_static(mine, name), inspect.getattr_static(theirs, name)
        if inspect.isfunction(here):
            assert list(inspect.signature(here).parameters) == list(inspect.signature(there).parameters), name


@pytest.fixture
def error_classes() -> Iterator[list[type[BaseException]]]:
    from ffsdk import errors

    yield [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, BaseException)]


def test_every_error_a_user_can_meet_is_public(error_classes: list[type[BaseException]]) -> None:
    """Otherwise `except ff.X` cannot be written. The families at the bottom cover the rest."""
    covered = tuple(
        value
        for name in ff.__all__
        if isinstance(value := getattr(ff, name), type) and issubclass(value, BaseException)
    )
    assert [cls for cls in error_classes if not issubclass(cls, covered)] == []


def test_every_option_of_a_submit_may_be_given_as_none() -> None:
    """Callers hand on what their own callers left out, and their type checker has to agree."""
    hints = typing.get_type_hints(SubmitOptions)
    assert {"delay", "at", "lane", "requires", "durability"} <= set(hints)
    assert [name for name, hint in hints.items() if type(None) not in typing.get_args(hint)] == []
