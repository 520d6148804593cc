"""One store under test: calls, a clock that tests move, and the few steps that most tests begin with."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Awaitable, Callable, Iterable
from functools import cache
from typing import Any, TypeVar

import msgspec
import pytest

import ffcore.contracts as c
from ffbackend_valkey.backend import ValkeyBackend
from ffbackend_valkey.library import Library, assemble, lua_root
from ffbackend_valkey.stores import connect
from ffcore import ids
from ffcore.args import Args
from ffcore.backend import StoreConfig
from ffcore.errors import EngineBug, EngineError, Rejected
from ffcore.ids import PartitionKey
from ffcore.policy import ExecutionPolicy, FixedBackoff, RetryPolicy, TimeoutPolicy
from ffcore.tokens import Ring
from ffcore.wire import pack_pairs
from ffengine import check
from tests.integration.proxy import until
from tests.lua import invariants

R = TypeVar("R")
START_MS = 1_800_000_000_000
P0 = ids.partition_key(0)
P1 = ids.partition_key(1)
W0 = ids.partition_key(0, "w")
TTL = 30_000
_serial = itertools.count()
_revisions = itertools.count(1)


def on_test_clock(source: str) -> str:
    """`shared/clock.lua` with its one door for time reading a key that tests write."""
    real = 'redis.call("TIME")'
    assert source.count(real) == 1, "shared/clock.lua reads the time in one place"
    return source.replace(
        real, '(function() local ms = tonumber(redis.call("GET", "ff:test:clock")) '
        "return { math.floor(ms / 1000), ms % 1000 * 1000 } end)()"
    )  # fmt: skip


@cache
def library_of() -> Library:
    """The library on the clock of tests."""
    return assemble(replace={"shared/clock.lua": on_test_clock((lua_root() / "shared/clock.lua").read_text())})


_loaded: dict[str, str] = {}
"""By store, the library that was loaded last."""


async def open_engine(url: str, lib: Library | None = None) -> Engine:
    """An empty store behind `url`: flushed, loaded, initialised with two execution partitions."""
    lib = lib or library_of()
    bare = await connect(url, init=False, check=False, lib=lib)
    bare.use_secrets(Secret())
    await bare.command("FLUSHALL")
    # Compiling the library takes the server longer than most tests do: it stays from one to the next, unless it is
    # another. A changed one may say the same of itself, so what was loaded last counts as well.
    there = await bare.loaded()
    if there is None or there.sha != lib.sha or _loaded.get(url) != lib.sha:
        await bare.command("FUNCTION", "FLUSH")
        _loaded[url] = lib.sha
    await bare.command("SET", "ff:test:clock", START_MS)
    await bare.load_library()
    await bare.initialise(StoreConfig(fp=2))
    return Engine(bare)


class Secret:
    """The ring of a test: one secret at first, others as it adds them."""

    def __init__(self) -> None:
        self.held = Ring({"k1": b"a secret of tests, 32 bytes long"})

    async def ring(self, *, fresh: bool = False) -> Ring:
        return self.held

    async def add(self, kid: str, secret: bytes) -> bool:
        known = {one: self.held.secret(one) for one in self.held.kids if one != kid}
        self.held = Ring(known | {kid: secret})
        return True


def told(name: str, values: dict[str, Any], partition: PartitionKey = P0, revision: int | None = None) -> Any:
    """A record of settings comes to one partition; each time as the next change of the store."""
    return c.ApplySettingsArgs(
        partition=partition, name=name, revision=revision or next(_revisions), since=0,
        values=pack_pairs({name: str(value) for name, value in values.items()}),
    )  # fmt: skip


def lane_told(lane: str = "mail", partition: PartitionKey = P0, **values: Any) -> Any:
    """The same for a lane. Bounds of count and bytes are those of one partition here."""
    shared = {name: 2 * values[name] for name in ("count", "bytes", "max_bytes") if name in values}
    return told(f"lane:{lane}", values | shared, partition)


def force(args: Any, **fields: Any) -> Any:
    """Set fields past the contract's own checks: what a program of another hand might send."""
    for name, value in fields.items():
        msgspec.structs.force_setattr(args, name, value)
    return args


class Engine:
    def __init__(self, backend: ValkeyBackend) -> None:
        self.backend = backend
        self.now = START_MS
        self._claims = itertools.count()

    # ---- calls

    async def call(self, args: Args[R], **fields: Any) -> R:
        return await self.backend.call(force(copy.copy(args), **fields) if fields else args)

    async def refused(self, code: str, args: Args[Any], **fields: Any) -> str:
        """The call is refused with this code; answers the detail."""
        with pytest.raises(Rejected) as caught:
            await self.call(args, **fields)
        assert caught.value.code == code, caught.value
        assert type(caught.value) is Rejected.by_code[code]
        return caught.value.detail

    async def bug(self, *words: Any) -> str:
        """The raw command is malformed: an FFBUG error reply, and nothing is written."""
        before = await invariants.read_store(self.command)
        with pytest.raises(EngineBug) as caught:
            await self.command(*words)
        assert "FFBUG" in str(caught.value) and "user_function" not in str(caught.value), caught.value
        assert await invariants.read_store(self.command) == before
        return str(caught.value)

    async def command(self, *words: Any) -> Any:
        return await self.backend.command(*words)

    async def raw(self, function: str, partition: str, *argv: Any) -> Any:
        return await self.command("FCALL", function, 2, f"ff:{partition}", f"ff:{partition}:absent", *argv)

    async def close(self) -> None:
        await self.backend.close()

    async def violations(self) -> list[str]:
        """What is wrong with the store; each time as a checker that has never looked before."""
        store = await invariants.read_store(self.command)
        found = await check.violations(
            self.backend, memory=check.Memory(), partitions=map(PartitionKey, invariants.partitions(store))
        )
        return [f"{v.invariant} {v.id}: {v.detail}" for v in found] + invariants.strays(store)

    async def fresh(self) -> None:
        """Empty the store within a test (functions stay): for properties over many small stores."""
        await self.command("FLUSHALL")
        self.now = START_MS
        await self.command("SET", "ff:test:clock", START_MS)
        await self.backend.initialise(StoreConfig(fp=2))

    # ---- time

    async def at(self, ms: int) -> None:
        """Set the server's clock."""
        self.now = ms
        await self.command("SET", "ff:test:clock", ms)

    async def advance(self, ms: int) -> None:
        """Let time pass with nobody calling."""
        await self.at(self.now + ms)

    async def pass_time(self, ms: int) -> None:
        """Let time pass under a live ticker: the partitions never look abandoned."""
        end = self.now + ms
        while self.now < end:
            await self.at(min(end, self.now + 1_000))
            await self.tick()

    async def tick(self, partition: PartitionKey = P0, limit: int = 200, ticker: str = "t1", force: bool = True) -> Any:
        ticked = await self.call(c.TickArgs(partitions=[partition], ticker=ticker, limit=limit, force=force))
        return ticked.partitions[0]

    # ---- the usual steps

    def new_id(self, partition: PartitionKey = P0, key: str | None = None) -> Any:
        """In order of creation: ids break ties, and a test must know how."""
        if key is not None:
            return f"{partition}:{ids.uuid8(key.encode())}"
        return f"{partition}:{next(_serial):08x}-0000-7000-8000-000000000000"

    def creation(self, id: Any = None, **options: Any) -> c.CreateExecutionArgs:
        given: dict[str, Any] = {
            "execution_id": id or self.new_id(), "namespace": "default", "lane_id": "mail", "execution_kind": "send",
            "input_payload": b"hello", "digest": b"d" * 16,
        } | options  # fmt: skip
        policy = given.get("policy")
        if isinstance(policy, dict):
            given["policy"] = ExecutionPolicy(**policy)
        return c.CreateExecutionArgs(**given)

    async def submit(self, **options: Any) -> Any:
        """Create one execution; answers its id."""
        created = await self.call(self.creation(**options))
        assert isinstance(created, c.Created)
        return created.execution_id

    async def submit_many(self, n: int, partition: PartitionKey = P0, **options: Any) -> list[Any]:
        rows = [c.NewExecution(self.new_id(partition), b"d" * 16, b"hello") for _ in range(n)]
        given: dict[str, Any] = {"namespace": "default", "lane_id": "mail", "execution_kind": "send"} | options
        for at in range(0, n, 200):
            answer = await self.call(c.CreateManyArgs(partition=partition, items=rows[at : at + 200], **given))
            assert all(item.state == "created" for item in answer.items), answer
        return [row.execution_id for row in rows]

    def claiming(self, limit: int = 1, n: int | None = None, **options: Any) -> c.ClaimBatchArgs:
        given: dict[str, Any] = {
            "partitions": [P0], "lanes": ["mail"], "capability_sets": [], "limit": limit, "worker_id": "w",
            "worker_instance_id": "w1", "lease_ttl_ms": TTL,
        } | options  # fmt: skip
        slot = given.pop("slot", "s0")
        serial = next(self._claims) if n is None else n
        return c.ClaimBatchArgs(claim_id=f"{given['worker_instance_id']}.{slot}.{serial}", **given)

    async def claim(self, limit: int = 1, **options: Any) -> list[c.ClaimedJob]:
        return (await self.call(self.claiming(limit, **options))).jobs

    async def running(self, *, claim: dict[str, Any] | None = None, **options: Any) -> c.ClaimedJob:
        """Create one execution and claim it."""
        id = await self.submit(**options)
        (job,) = await self.claim(lanes=[options.get("lane_id", "mail")], **(claim or {}))
        assert job.execution_id == id
        return job

    async def complete(self, job: c.ClaimedJob, result: bytes | None = b"done") -> Any:
        return await self.call(completion(job, result_payload=result))

    async def fail(self, job: c.ClaimedJob, category: str = "error", **options: Any) -> Any:
        return await self.call(failure(job, failure_category=category, **options))

    async def read(self, id: Any, parts: str = "") -> c.StoredExecution:
        return await self.call(c.ReadExecutionArgs(execution_id=id, parts=parts))

    async def state(self, id: Any) -> str:
        return (await self.read(id)).fields["state"]

    async def timers(self, partition: PartitionKey = P0) -> dict[str, int]:
        """What is due and when: timers, leases under ``lease:<uuid>``."""
        store = await invariants.read_store(self.command)
        out = {name: int(due) for name, due in store.values.get(f"ff:{partition}:timers", {}).items()}
        return out | {f"lease:{m}": int(due) for m, due in store.values.get(f"ff:{partition}:leases", {}).items()}

    async def listen(self, *channels: str) -> Ear:
        ear = Ear(self, list(channels))
        await ear.open()
        return ear


class Ear:
    """Listens to channels. `heard` answers all that was sent before it was asked, without waiting for more."""

    def __init__(self, engine: Engine, channels: list[str]) -> None:
        self._engine, self._channels = engine, channels
        self._got: list[tuple[str, bytes]] = []

    async def open(self) -> None:
        await self._engine.backend.subscribe(self._channels, lambda channel, data: self._got.append((channel, data)))

    async def heard(self) -> list[tuple[str, str]]:
        """Channel (its last part) and text of each message since the last look, in order."""
        marks = [f"mark {next(_serial)}".encode() for _ in self._channels]
        for channel, mark in zip(self._channels, marks, strict=True):
            await self._engine.command("SPUBLISH", channel, mark)
        await until(lambda: set(marks) <= {data for _, data in self._got}, "the end of the messages")
        got, self._got = self._got, []
        return [(channel.rpartition(":")[2], data.decode()) for channel, data in got if not data.startswith(b"mark ")]


# ---- arguments made from a claimed job ---------------------------------------------------------------


def fence(job: c.ClaimedJob) -> c.LeaseFence:
    return c.LeaseFence(job.lease_id, job.lease_epoch, job.attempt_id)


def wire(job: c.ClaimedJob) -> str:
    return fence(job).wire


def completion(job: c.ClaimedJob, **options: Any) -> c.CompleteExecutionArgs:
    given: dict[str, Any] = {"fence": fence(job), "result_payload": b"done"} | options
    return c.CompleteExecutionArgs(execution_id=job.execution_id, attempt_index=job.attempt_index, **given)


def failure(job: c.ClaimedJob, **options: Any) -> c.FailExecutionArgs:
    given: dict[str, Any] = {"fence": fence(job), "failure_reason": "it broke", "failure_category": "error"} | options
    return c.FailExecutionArgs(execution_id=job.execution_id, attempt_index=job.attempt_index, **given)


def delay(job: c.ClaimedJob, until_ms: int, **options: Any) -> c.DelayExecutionArgs:
    given: dict[str, Any] = {"fence": fence(job)} | options
    return c.DelayExecutionArgs(
        execution_id=job.execution_id, attempt_index=job.attempt_index, delay_until=until_ms, **given
    )  # fmt: skip


def unclaim(job: c.ClaimedJob, reason: str = "hand_back") -> c.UnclaimArgs:
    return c.UnclaimArgs(execution_id=job.execution_id, fence=wire(job), reason=reason)


def renewal(job: c.ClaimedJob, ttl_ms: int = TTL, **options: Any) -> c.RenewLeaseArgs:
    given: dict[str, Any] = {"fence": fence(job)} | options
    return c.RenewLeaseArgs(
        execution_id=job.execution_id, attempt_index=job.attempt_index, lease_ttl_ms=ttl_ms, **given
    )  # fmt: skip


def progress(job: c.ClaimedJob, **options: Any) -> c.UpdateProgressArgs:
    return c.UpdateProgressArgs(
        execution_id=job.execution_id, lease_id=job.lease_id, lease_epoch=job.lease_epoch, attempt_id=job.attempt_id,
        **options,
    )  # fmt: skip


def cancel(id: Any, source: str = "flow_cascade", **options: Any) -> c.CancelExecutionArgs:
    return c.CancelExecutionArgs(execution_id=id, reason="no longer wanted", source=c.CancelSource(source), **options)


def revoke(id: Any, **options: Any) -> c.RevokeLeaseArgs:
    given: dict[str, Any] = {"worker_instance_id": "", "reason": "stuck"} | options
    return c.RevokeLeaseArgs(execution_id=id, **given)


def retries(n: int, **options: Any) -> dict[str, Any]:
    """A policy that retries n times, at once unless told otherwise."""
    backoff = options.pop("backoff", None) or FixedBackoff(delay_ms=0)
    return {"retry_policy": RetryPolicy(max_retries=n, backoff=backoff, **options)}


def timeouts(**options: Any) -> dict[str, Any]:
    return {"timeout_policy": TimeoutPolicy(**options)}


def missing(partition: PartitionKey = P0) -> Any:
    """An id nobody created."""
    return f"{partition}:ffffffff-0000-7000-8000-00000000dead"


def states_of(answer: Iterable[Any]) -> list[str]:
    return [item.state for item in answer]


OPERATOR = c.CancelSource("operator_override")
Calls = Callable[..., Awaitable[Any]]
__all__ = [
    "OPERATOR", "P0", "P1", "START_MS", "TTL", "W0", "Calls", "Ear", "Engine", "EngineError", "cancel", "completion",
    "delay",
    "failure", "fence", "force", "lane_told", "library_of", "missing", "on_test_clock", "open_engine", "progress",
    "renewal", "retries", "revoke",
    "states_of", "timeouts", "told", "unclaim", "wire",
]  # fmt: skip
