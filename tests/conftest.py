"""Servers and connections for tests: FF_TEST_URL if it is set, else a real Valkey that lives as long as the session."""

from __future__ import annotations

import gc
import os
import uuid
from collections.abc import AsyncIterator, Iterator

import pytest

from ffbackend_valkey.multiplexer import Multiplexer
from ffbackend_valkey.url import Target, parse_url
from tests.integration.proxy import Proxy, own_server

gc.set_threshold(100_000, 20, 20)
"""Thousands of tests leave a large heap behind; to go through it as often as a small one takes a tenth of the time."""


@pytest.fixture(scope="session")
def valkey_url() -> Iterator[str]:
    """The URL of a server that tests share: use keys of your own, and do not flush what others wrote."""
    given = os.environ.get("FF_TEST_URL")
    if given:
        yield given
        return
    with own_server() as server:
        yield f"valkey://127.0.0.1:{server.port}"


@pytest.fixture
def target(valkey_url: str) -> Target:
    return parse_url(valkey_url)


@pytest.fixture
def key() -> str:
    """A key that no other test uses."""
    return f"test:{uuid.uuid4()}"


@pytest.fixture
async def direct(target: Target) -> AsyncIterator[Multiplexer]:
    """A connection past every proxy, to see what the server did."""
    mux = await Multiplexer.open(target)
    yield mux
    await mux.close()


@pytest.fixture
async def proxy(target: Target) -> AsyncIterator[Proxy]:
    """A proxy in front of the shared server, listening."""
    proxy = Proxy(target)
    await proxy.start()
    yield proxy
    await proxy.close()
