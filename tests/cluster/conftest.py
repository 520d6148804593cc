"""One cluster for the tests of this directory, empty and healthy before each, and what they measure, printed at the
end: these tests assert what must be true, never how long it took."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator

import pytest

import ffsdk as ff
from ffbackend_valkey.cluster_backend import ClusterBackend
from ffbackend_valkey.stores import connect
from ffcore.backend import StoreConfig
from tests.cluster.cluster import DURABLE, Cluster

CONFIG = StoreConfig(fp=16)
_measured: list[str] = []


@pytest.fixture(scope="session")
def the_cluster() -> Iterator[Cluster]:
    with Cluster(options=DURABLE) as cluster:
        yield cluster


@pytest.fixture
def cluster(the_cluster: Cluster) -> Cluster:
    """Every node up, every slot served, nothing stored; which node serves what is left as the last test made it."""
    for node in the_cluster.nodes:
        if not node.running:
            node.start()
    the_cluster.wait_healthy()
    the_cluster.flush()
    return the_cluster


@pytest.fixture
async def backend(cluster: Cluster) -> AsyncIterator[ClusterBackend]:
    """A backend of a store of sixteen partitions."""
    backend = await connect(cluster.url, init=CONFIG)
    assert isinstance(backend, ClusterBackend)
    yield backend
    await backend.close()


@pytest.fixture
async def app(cluster: Cluster, backend: ClusterBackend) -> AsyncIterator[ff.App]:
    """An app of that store, which is open for the length of the test."""
    app = ff.App(cluster.url)
    await app.backend()
    yield app
    await app.release()


@pytest.fixture
def measured() -> Callable[[str], None]:
    """Notes a line for the end of the run."""
    return _measured.append


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _measured:
        terminalreporter.section("measured")
        for line in _measured:
            terminalreporter.line(line)


async def in_thread(call: Callable[..., object], *args: object) -> None:
    """A helper of the cluster that blocks, while the loop goes on."""
    await asyncio.to_thread(call, *args)
