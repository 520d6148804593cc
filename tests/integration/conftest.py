"""A server of the module's own, and an app and a lane named after the test. Files with other needs define their own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest

import ffsdk as ff
from ffbackend_valkey.stores import connect
from ffcore.backend import StoreConfig
from tests.integration.proxy import own_server


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with own_server() as server:
        url = f"valkey://127.0.0.1:{server.port}"

        async def init() -> None:
            await (await connect(url, init=StoreConfig(fp=4))).close()

        asyncio.run(init())
        yield url


@pytest.fixture
async def app(url: str, request: pytest.FixtureRequest) -> AsyncIterator[ff.App]:
    """An app of the test's own namespace, its store open for the length of the test."""
    app = ff.App(url, namespace=_name(request))
    await app.backend()
    yield app
    await app.release()


@pytest.fixture
def lane(request: pytest.FixtureRequest) -> str:
    return _name(request)


def _name(request: pytest.FixtureRequest) -> str:
    """The test's own name, as far as a lane or a namespace may carry it."""
    return request.node.name.replace("[", ".").replace("]", "")[:100]
