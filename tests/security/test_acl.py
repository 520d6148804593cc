"""The shipped ACL file: each role can do its whole work on a real server, and a list of what it cannot."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest

import ffsdk as ff
from deploy import acl
from ffbackend_valkey.connection import read_refusal
from ffbackend_valkey.library import library
from ffcli.commands.doctor import examine
from ffcli.commands.library import initialise
from ffcli.options import Settings
from ffcore.contracts.lease import Revoked, RevokeLeaseArgs
from ffcore.errors import Incompatible
from ffcore.ids import WorkerInstanceId
from ffengine.tick import Ticker
from ffsdk.connect import open_backend
from tests.security.conftest import ACL, BINARIES, ROOT, Guarded, filled_in

WRITERS = ("ff-client", "ff-engine", "ff-loader", "ff-worker")
ROLES = (*WRITERS, "ff-reader")
NEVER = """acl bgsave client|kill client|list cluster|failover cluster|reset config debug dump eval eval_ro evalsha
    evalsha_ro failover flushall flushdb function|delete function|dump function|flush function|kill function|list
    function|restore keys migrate module monitor psubscribe publish replicaof restore save script shutdown slaveof
    slowlog subscribe swapdb""".split()


# ---- the file


def test_the_file_is_what_the_program_prints() -> None:
    printed = subprocess.run([sys.executable, "deploy/acl.py"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert printed.stdout == ACL.read_text(), "run: python deploy/acl.py > deploy/users.acl"


def test_there_is_no_default_secret_and_no_default_user() -> None:
    lines = ACL.read_text().splitlines()
    assert lines[0] == "user default off resetkeys resetchannels -@all"
    for line in lines[1:]:
        words = line.split()
        secrets = [word for word in words if word[0] in "#><" or word == "nopass"]
        assert secrets == [f"#SHA256_OF_THE_PASSWORD_OF_{words[1]}"]


@pytest.mark.parametrize("binary", sorted(BINARIES))
def test_a_server_does_not_start_with_a_placeholder_left(binary: str) -> None:
    one_left = [*filled_in().splitlines()[:-1], ACL.read_text().splitlines()[-1]]
    for text in (ACL.read_text(), "\n".join(one_left) + "\n"):
        server = Guarded(BINARIES[binary], text)
        assert server.process.wait(10) != 0
        assert "password hash must be exactly 64 characters" in server.stop()


def test_no_role_has_what_can_read_or_change_the_server_itself() -> None:
    for role, rules in acl.roles().items():
        granted = {rule[1:] for rule in rules if rule[0] == "+"}
        assert not granted & set(NEVER), role
        assert not [rule for rule in rules if rule.startswith(("+@", "~*", "&*", "all"))], role
        assert ("function|load" in granted) == (role == "ff-loader")


def test_the_server_agrees_on_what_reads(guarded: Guarded) -> None:
    """A command of lua/ that writes and is taken for a reading one would be in the reader's hands."""
    used = {name.partition("|")[0] for name in acl.commands_of_the_library()}
    rows = guarded.ask("admin", "COMMAND", "INFO", *sorted(used))
    flags = {row[0].decode(): {flag.decode() for flag in row[2]} for row in rows}
    assert flags.keys() == used, "a command of lua/ that this server does not know"
    writing = {name for name, words in flags.items() if "write" in words}
    reading = {name.partition("|")[0] for name in acl.commands_of_the_library() & acl.READS}
    assert reading == used - writing - {"spublish"}, "put what only reads into READS of deploy/acl.py, and nothing else"


# ---- what each role can do


class Denied:
    """What the server refused since the last look."""

    def __init__(self, server: Guarded) -> None:
        self._server = server
        server.ask("admin", "ACL", "LOG", "RESET")

    def since(self) -> set[tuple[str, str]]:
        """(role, what it wanted), without the one refusal that is meant: at boot every program asks for CONFIG."""
        rows = [dict(zip(row[::2], row[1::2], strict=True)) for row in self._server.ask("admin", "ACL", "LOG")]
        self._server.ask("admin", "ACL", "LOG", "RESET")
        found = {(row[b"username"].decode(), row[b"object"].decode()) for row in rows}
        return {one for one in found if one[1] != "config|get"}


@pytest.fixture
async def store(guarded: Guarded, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Guarded]:
    """An initialised store: loaded and created by the loader, with nothing else's help."""
    monkeypatch.setenv("FF_QUIET", "1")
    guarded.ask("admin", "FLUSHALL")
    guarded.ask("admin", "FUNCTION", "FLUSH")
    denied = Denied(guarded)
    await initialise(guarded.url("ff-loader"), 2)
    assert not denied.since()
    yield guarded


def shop(url: str) -> ff.App:
    app, runs = ff.App(url), list[int]()

    @app.task(retry=ff.Retry(max_attempts=3, backoff=0.02))
    async def flaky(_: None, ctx: ff.Context) -> int:
        runs.append(ctx.attempt)
        if ctx.attempt == 0:
            raise ff.Failure("once", category="upstream")
        return ctx.attempt

    @app.task
    async def slow(seconds: float, ctx: ff.Context) -> str:
        await ctx.progress(10, "begun")
        await asyncio.sleep(seconds)
        return "slept"

    @app.task(requires={"gpu"})
    def picky(_: None) -> str:
        return "in a thread"

    @app.task
    async def parent(_: None) -> str:
        async with app.client() as client:
            return str(await (await client.submit(flaky, key="child")).result(timeout=20))

    return app


@contextlib.asynccontextmanager
async def working(app: ff.App, **options: Any) -> AsyncIterator[ff.Worker]:
    worker = app.worker(concurrency=4, capabilities={"gpu"}, **options)
    running = asyncio.create_task(worker.run())
    await asyncio.wait([asyncio.ensure_future(worker.started.wait()), running], return_when=asyncio.FIRST_COMPLETED)
    try:
        yield worker
    finally:
        worker.request_stop()
        await running


async def test_a_worker_drains_jobs_that_a_client_submits(store: Guarded) -> None:
    """Bells, renewals by the thread, retries and timers, progress, capabilities, a handler's own submit, leaving."""
    denied = Denied(store)
    app = shop(store.url("ff-worker"))
    async with working(app, lease=2.0), ff.connect(store.url("ff-client")) as client:
        jobs = [
            await client.submit("flaky"), await client.submit("slow", 1.0), await client.submit("picky"),
            await client.submit("parent"), await client.submit("flaky", delay=0.2, key="k", tags={"shop.tenant": "t"}),
            *await client.submit_many("slow", [0.0] * 20),
        ]  # fmt: skip
        values = await asyncio.gather(*(job.result(timeout=30) for job in jobs))
        # On a busy machine a lease may be lost, and that is an attempt more.
        assert [type(value) for value in values] == [int, str, str, str, int, *[str] * 20]
        assert values[0] >= 1 and values[1] == "slept"
        # A parked worker is rung: the bell reaches it although nothing polls within so short a time.
        stopped = await client.submit("slow", 60.0)
        await until_state(stopped, "active")
        await stopped.cancel("enough")
        assert isinstance(await stopped.outcome(timeout=30), ff.Cancelled)
    assert not denied.since()


async def until_state(job: ff.Job[Any], state: str) -> None:
    for _ in range(2000):
        if (await job.status()).state == state:
            return
        await asyncio.sleep(0.005)
    raise AssertionError(f"{job} is {(await job.status()).state}, not {state}")


async def test_a_client_can_use_every_part_of_its_interface(store: Guarded) -> None:
    denied = Denied(store)
    async with ff.connect(store.url("ff-client")) as client:
        job = await client.submit("x", lane="mail", key="k")
        assert (await client.submit("x", lane="mail", key="k")).id == job.id
        await job.status(), await job.explain()
        assert [one.id async for one in client.jobs(state="waiting")] == [job.id]
        lane = client.lane("mail")
        await lane.pause(), await lane.resume(), await lane.drain(), await lane.stats(), await lane.resume()
        await client.hold(task="x"), await client.release(task="x")
        await job.cancel("no")
        assert isinstance(await job.outcome(timeout=10), ff.Cancelled)
        await job.replay()
        assert (await client.cancel_many(state="waiting")).count == 1
        assert (await client.replay_many(state="cancelled")).count == 1
        assert (await client.cancel_many(state="waiting")).count == 1
        assert (await client.purge_many(state="cancelled")).count == 1
        events = client.subscribe("completion", after="-")
        assert (await anext(aiter(events))).execution_id == job.id
    assert not denied.since()


async def test_an_engine_ticks_and_steers(store: Guarded) -> None:
    """A ticker of its own, beside a worker that does not tick; leases, holds and purges."""
    denied = Denied(store)
    app = shop(store.url("ff-worker"))
    engine = await open_backend(store.url("ff-engine"))
    ticker = Ticker(engine, "engine-1")
    ticking = asyncio.create_task(ticker.run())
    try:
        async with working(app, tick=False), ff.connect(store.url("ff-engine")) as client:
            assert await (await client.submit("flaky", delay=0.1)).result(timeout=30) >= 1
            job = await client.submit("slow", 60.0)
            await until_state(job, "active")
            nobody = WorkerInstanceId("")
            taken = await engine.call(
                RevokeLeaseArgs(execution_id=job.id, worker_instance_id=nobody, reason="an operator")
            )
            assert isinstance(taken, Revoked)
            await job.cancel("enough")
            assert isinstance(await job.outcome(timeout=30), ff.Cancelled)
            await client.hold(tag=("shop.tenant", "t1"))
            await client.release(tag=("shop.tenant", "t1"))
            assert (await client.purge_many(state=["cancelled", "completed"])).count == 2
    finally:
        ticker.stop()
        await ticking
        await engine.close()
    assert not denied.since()


async def test_a_reader_lists_describes_and_examines_and_changes_nothing(
    store: Guarded, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with ff.connect(store.url("ff-client")) as client:
        id = (await client.submit("x", lane="mail", tags={"shop.tenant": "t"})).id
    before, denied = store.contents(), Denied(store)
    async with ff.connect(store.url("ff-reader")) as client:
        job = client.job(id)
        assert (await job.status()).state == "waiting"
        assert (await job.explain()).reasons
        assert [one.id async for one in client.jobs(lane="mail", tag=("shop.tenant", "t"))] == [id]
        assert (await client.lane("mail").stats()).depth["waiting"] == 1
    assert not [f for f in await examine(Settings(url=store.url("ff-reader"))) if f.level == "violation"]
    assert not denied.since()
    assert store.contents() == before


async def test_a_reader_tails_streams_and_subscribes_to_events(store: Guarded) -> None:
    """With bells, so that it need not poll; and to the end, although it may not register as one who waits for it."""
    url, release = store.url("ff-reader"), asyncio.Event()
    app = ff.App(store.url("ff-worker"))

    @app.task
    async def talk(n: int, ctx: ff.Context) -> None:
        if n:
            await ctx.summary({"words": n})
        for word in range(n):
            await ctx.emit(word)
        await release.wait()

    async with working(app), ff.connect(store.url("ff-client")) as client, ff.connect(url) as reader:
        loud, quiet = await client.submit("talk", 3), await client.submit("talk", 0)
        frames = reader.job(loud.id).stream()
        assert [(await anext(frames)).value for _ in range(3)] == [0, 1, 2]
        assert await reader.job(loud.id).summary() == {"words": 3}
        rest = [asyncio.ensure_future(anext(stream, None)) for stream in (frames, reader.job(quiet.id).stream())]
        async with reader.subscribe("completion", after="-") as events:
            await until_state(quiet, "active")
            release.set()
            assert {(await anext(events)).execution_id for _ in range(2)} == {loud.id, quiet.id}
        assert await asyncio.wait_for(asyncio.gather(*rest), 20) == [None, None]
        told = await asyncio.to_thread(
            subprocess.run, [sys.executable, "-m", "ffcli.main", "--url", url, "job", "tail", loud.id, "--raw"],
            cwd=ROOT, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert (told.stdout.split(), told.returncode) == (["0", "1", "2"], 0), told.stderr


# ---- what they cannot do

FORBIDDEN: dict[tuple[str, ...], tuple[str, ...]] = {
    # Words -> the roles that are refused. Keys: ff:x exists, other:x is somebody else's.
    ("CONFIG", "GET", "requirepass"): ROLES,
    ("CONFIG", "SET", "appendonly", "no"): ROLES,
    ("EVAL", "return redis.call('SET', KEYS[1], 1)", "1", "ff:x"): ROLES,
    ("SCRIPT", "LOAD", "return 1"): ROLES,
    ("FLUSHALL",): ROLES,
    ("FLUSHDB",): ROLES,
    ("FUNCTION", "FLUSH"): ROLES,
    ("FUNCTION", "DELETE", "flowfabric"): ROLES,
    ("FUNCTION", "LIST"): ROLES,
    ("MONITOR",): ROLES,
    ("KEYS", "*"): ROLES,
    ("SLOWLOG", "GET"): ROLES,
    ("CLIENT", "LIST"): ROLES,
    ("ACL", "LIST"): ROLES,
    ("ACL", "SETUSER", "ff-reader", "+@all"): ROLES,
    ("SHUTDOWN", "NOSAVE"): ROLES,
    ("REPLICAOF", "127.0.0.1", "1"): ROLES,
    ("INFO", "all"): ROLES,
    ("PUBLISH", "ff:x", "x"): ROLES,
    ("DUMP", "ff:x"): ROLES,
    ("GET", "other:x"): ROLES,
    ("SET", "other:x", "2"): ROLES,
    ("SSUBSCRIBE", "other:x"): ROLES,
    ("SPUBLISH", "other:x", "x"): ROLES,
    ("FCALL", "ff_hold", "2", "other:{fp:0}", "other:{fp:0}:absent", "task:x", ""): ROLES,
    ("FUNCTION", "LOAD", "REPLACE", "#!lua name=evil\nredis.register_function('evil', function() end)"): (
        "ff-client", "ff-engine", "ff-reader", "ff-worker",
    ),
    ("FCALL", "ff_init_partition", "2", "ff:{fp:9}", "ff:{fp:9}:absent", "{}"): ("ff-client", "ff-reader", "ff-worker"),
    ("FCALL", "ff_tick", "2", "ff:{fp:0}", "ff:{fp:0}:absent"): ("ff-client", "ff-loader", "ff-reader"),
    ("FCALL", "ff_claim_batch", "2", "ff:{fp:0}", "ff:{fp:0}:absent"): ("ff-client", "ff-loader", "ff-reader"),
    ("FCALL", "ff_revoke_lease", "2", "ff:{fp:0}", "ff:{fp:0}:absent"): (
        "ff-client", "ff-loader", "ff-reader", "ff-worker",
    ),
    ("FCALL", "ff_hold", "2", "ff:{fp:0}", "ff:{fp:0}:absent", "task:x", ""): ("ff-loader", "ff-reader"),
    ("FCALL_RO", "ff_hold", "2", "ff:{fp:0}", "ff:{fp:0}:absent", "task:x", ""): ROLES,
    ("SET", "ff:x", "2"): ("ff-reader",),
    ("HSET", "ff:config", "fp", "1"): ("ff-reader",),
    ("UNLINK", "ff:x"): ("ff-reader",),
    ("SPUBLISH", "ff:x", "x"): ("ff-reader",),
    ("SPUBLISH", "ff:{fp:0}:s:x", "x"): ("ff-reader",),
    ("SSUBSCRIBE", "ff:{fp:0}:w:x"): ("ff-reader",),
}  # fmt: skip
REFUSED = ("no permissions", "No permissions", "Can not execute a script with write flag")


async def test_what_a_role_may_not_do_is_refused_and_leaves_nothing_behind(store: Guarded) -> None:
    async with ff.connect(store.url("ff-client")) as client:
        await client.submit("x", lane="mail")
    store.ask("admin", "SET", "ff:x", "1")
    store.ask("admin", "SET", "other:x", "1")
    before = store.contents()
    for words, roles in FORBIDDEN.items():
        for role in roles:
            said = store.refusal(role, *words)
            assert any(text in said for text in REFUSED), (role, words, said)
    assert store.contents() == before, "partial writes"
    assert store.ask("admin", "FUNCTION", "LIST", "LIBRARYNAME", library().name)


async def test_nobody_gets_in_as_default_or_with_a_wrong_password(store: Guarded) -> None:
    for url in (f"unix://{store.socket}", f"unix://ff-worker:wrong@{store.socket}", f"unix://:x@{store.socket}"):
        with pytest.raises(Incompatible):
            await open_backend(url)


async def test_what_an_acl_cannot_protect_is_said_as_it_is(store: Guarded) -> None:
    """A function runs its commands with the rights of its caller, so who may call it may also write past it.
    SECURITY.md says so; should a server ever change that, the roles can become stricter."""
    for role in WRITERS:
        assert store.ask(role, "HSET", "ff:{fp:0}", "note", "past the state machine") is not None


async def test_a_library_that_needs_more_than_the_acl_gives_stops_half_way(store: Guarded) -> None:
    """Why a release's users.acl is loaded before its library: nothing takes back what a function wrote first."""
    source = """#!lua name=later
        redis.register_function('ff_tick', function(keys)
          redis.call('SET', keys[1] .. ':first', 1)
          return redis.call('EXPIRE', keys[1] .. ':first', 1)
        end)"""
    store.ask("admin", "FUNCTION", "FLUSH")
    store.ask("admin", "FUNCTION", "LOAD", source)
    said = store.refusal("ff-worker", "FCALL", "ff_tick", "1", "ff:{fp:0}")
    assert isinstance(read_refusal(f"ERR {said}"), Incompatible), "told as what it is, on every server"
    assert store.ask("admin", "GET", "ff:{fp:0}:first") == b"1"


@pytest.mark.parametrize("role", ["ff-worker", "ff-client"])
def test_the_functions_of_a_role_are_those_of_this_library(role: str) -> None:
    named = {rule.partition("|")[2] for rule in acl.roles()[role] if rule.startswith("+fcall|")}
    assert named <= set(library().signatures)
    assert {"ff_create_many", "ff_await"} <= named
    assert ("ff_claim_batch" in named) == (role == "ff-worker")
