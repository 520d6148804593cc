"""The servers and the engine of the Lua tests. Each test gets an empty store and a clock that only it moves.

The rule kept after every test: a check of what it left behind finds nothing. With FF_TEST_URL set the suite runs
on that server alone, which it flushes; otherwise on a real Valkey and on memory://.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from ffbackend_valkey.binding import Binding
from ffbackend_valkey.memory import MemoryServer
from tests.integration.proxy import own_server
from tests.lua.engine import Engine, library_of, open_engine

HERE = Path(__file__).resolve().parent
LAST = "test_every_outcome_and_refusal_was_seen"


class Can(NamedTuple):
    """What a server is able to do; a test asks for the one it needs, so that none is skipped."""

    oom: bool
    """Refuses writes over maxmemory."""


SERVERS = {"valkey": Can(oom=True), "memory": Can(oom=False), "given": Can(oom=True)}
RUN = ["given"] if os.environ.get("FF_TEST_URL") else ["valkey", "memory"]


def servers_that_can(what: str) -> list[str]:
    return [name for name in RUN if getattr(SERVERS[name], what)]


@pytest.fixture(scope="session")
def valkey_for_lua() -> Iterator[str]:
    """A server of our own: tests here flush it."""
    with own_server() as server:
        yield f"valkey://127.0.0.1:{server.port}"


@pytest.fixture(scope="session", autouse=True)
def outcomes_seen() -> Iterator[None]:
    """Count only what these tests produce."""
    Binding.seen.clear()
    yield


@pytest.fixture(params=RUN)
def server(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def store_url(server: str, request: pytest.FixtureRequest) -> str:
    match server:
        case "memory":
            return f"memory://lua-{os.getpid()}"
        case "given":
            return os.environ["FF_TEST_URL"]
        case _:
            return str(request.getfixturevalue("valkey_for_lua"))


@pytest.fixture
async def engine(store_url: str) -> AsyncIterator[Engine]:
    engine = await open_engine(store_url)
    try:
        yield engine
        left = await engine.violations()
        assert not left, "the store is inconsistent after the test:\n  " + "\n  ".join(left)
    finally:
        await engine.close()
        MemoryServer.discard(store_url.removeprefix("memory://"))  # a Lua of its own each, for good otherwise


@pytest.fixture(scope="session")
def signatures() -> dict[str, tuple[set[str], set[str]]]:
    """Outcomes and refusals of each function, as declared."""
    return {s.name: (set(s.returns), set(s.errors)) for s in library_of().signatures.values()}


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The coverage test comes last, and only where every test of this directory runs."""
    ours = [item for item in items if item.path.parent == HERE]
    last = [item for item in ours if item.name == LAST]
    whole = {path.name for path in HERE.glob("test_*.py")} == {item.path.name for item in ours}
    narrowed = config.getoption("keyword") or config.getoption("markexpr") or any("::" in a for a in config.args)
    for item in last:
        items.remove(item)
    if whole and not narrowed:
        items.extend(last)
    elif last:
        config.hook.pytest_deselected(items=last)
