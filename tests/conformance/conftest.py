"""The stores of the conformance suite: each test gets a URL whose store is empty, and a table of what it can do.

With FF_TEST_URL set the suite runs on that server alone, which it flushes.
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from ffbackend_valkey.backend import ValkeyBackend
from ffbackend_valkey.library import Library, assemble, lua_root
from ffbackend_valkey.stores import connect
from ffcore.backend import StoreConfig
from tests.integration.proxy import own_server

_names = itertools.count()


class Can(NamedTuple):
    """What a store is able to do; a test asks for the ones it needs, so that none is skipped."""

    initialise_itself: bool
    """A fresh store has its partitions without `ff init`."""
    keep: bool
    """Acknowledged work survives a restart (appendfsync always)."""
    evict: bool
    """Has an eviction policy that could drop work."""


STORES = {
    "valkey": Can(initialise_itself=False, keep=False, evict=True),
    "memory": Can(initialise_itself=True, keep=False, evict=False),
    "given": Can(initialise_itself=False, keep=True, evict=True),
}
RUN = ["given"] if os.environ.get("FF_TEST_URL") else ["valkey", "memory"]


def stores_that(can: str) -> list[str]:
    """Names of the stores of this run; a rule that no store of a run falls under has nothing to run on."""
    return [name for name in RUN if getattr(STORES[name], can)]


@pytest.fixture(scope="session")
def valkey_for_conformance() -> Iterator[str]:
    with own_server() as server:
        yield f"valkey://127.0.0.1:{server.port}"


@pytest.fixture(params=RUN)
def store(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def url(store: str, request: pytest.FixtureRequest) -> str:
    """The URL of an empty store."""
    match store:
        case "memory":
            return f"memory://conformance-{os.getpid()}-{next(_names)}"
        case "given":
            url = os.environ["FF_TEST_URL"]
        case _:
            url = str(request.getfixturevalue("valkey_for_conformance"))
    bare = await connect(url, init=False, check=False)
    await bare.command("FLUSHALL")
    await bare.command("FUNCTION", "FLUSH")
    await bare.close()
    return url


Opener = Callable[..., Awaitable[ValkeyBackend]]


@pytest.fixture
async def open_backend(url: str) -> AsyncIterator[Opener]:
    """Opens backends of this test's store (two partitions unless told otherwise) and closes them after it."""
    opened: list[ValkeyBackend] = []

    async def opener(**options: Any) -> ValkeyBackend:
        backend = await connect(url, **({"init": StoreConfig(fp=2)} | options))
        opened.append(backend)
        return backend

    yield opener
    for backend in opened:
        await backend.close()


@pytest.fixture
async def backend(open_backend: Opener) -> ValkeyBackend:
    return await open_backend()


@pytest.fixture
def library_version(tmp_path: Path) -> Callable[..., Library]:
    """Makes this library as another release would have it."""

    def make(version: int, compatible_since: int = 1, extra: str = "") -> Library:
        root = tmp_path / f"v{version}-{compatible_since}-{len(extra)}"
        shutil.copytree(lua_root(), root)
        manifest = root / "manifest.toml"
        _, _, files = manifest.read_text().partition("# Read in this order")
        head = f'name = "flowfabric"\nversion = {version}\ncompatible_since = {compatible_since}\n'
        manifest.write_text(f"{head}# Read in this order{files}")
        if extra:
            (root / "library.lua").write_text((root / "library.lua").read_text() + f"\n-- {extra}\n")
        return assemble(root)

    return make
