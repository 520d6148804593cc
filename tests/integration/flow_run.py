"""What the tests of flows share: an app and a lane of the test's own, on a server or in the process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import ffsdk as ff
from ffsdk.testing import Engine

ONCE = ff.Retry(max_attempts=1)
STORES = ["server", "memory"]
"""In real time, and on virtual time."""


class Page(ff.Payload):
    url: str
    size: int


class Run:
    """An app, and the store to run it on."""

    def __init__(self, url: str | None, name: str) -> None:
        self.app, self.lane, self.url = ff.App(namespace=name), name, url

    @classmethod
    def of(cls, request: pytest.FixtureRequest) -> Run:
        """For a fixture with `STORES` for its parameters."""
        return cls(request.getfixturevalue("url") if request.param == "server" else None, name_of(request))

    def task(self, fn: Callable[..., Any] | None = None, **options: Any) -> Any:
        made = self.app.task(lane=self.lane, **options)
        return made if fn is None else made(fn)

    def engine(self, **options: Any) -> Engine:
        """With a worker, if there are tasks."""
        return Engine(self.app, url=self.url, **options)


def name_of(request: pytest.FixtureRequest) -> str:
    """The test's own name, as far as a lane or a namespace may carry it."""
    return request.node.name.replace("[", ".").replace("]", "")[:100]
