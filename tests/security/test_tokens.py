"""A hundred thousand tokens that open nothing, and what a listener on the server learns of those that do: nothing."""

from __future__ import annotations

import asyncio
import random
import string
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, NamedTuple

import pytest

import ffcore.contracts as c
from ffbackend_valkey.backend import ValkeyBackend
from ffbackend_valkey.secrets import GivenSecrets
from ffbackend_valkey.stores import connect
from ffcore import ids, tokens
from ffcore.backend import StoreConfig
from ffcore.errors import EngineError, InvalidToken
from ffengine import check
from tests.integration.proxy import own_server

HOSTILE_N = 100_000
BATCH_N = 2_000
OLD, NOW, OTHER = "aa" * 32, "bb" * 32, "cc" * 32
LETTERS = string.ascii_letters + string.digits + ":._-"


class Place(NamedTuple):
    """An open waitpoint and what opens it."""

    execution_id: Any
    waitpoint_id: Any
    key: str
    token: str


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with own_server() as server:
        yield server.port


@pytest.fixture
async def backend(port: int) -> AsyncIterator[ValkeyBackend]:
    bare = await connect(f"valkey://127.0.0.1:{port}", init=False, check=False)
    await bare.command("FLUSHALL")
    await bare.load_library()
    await bare.initialise(StoreConfig(fp=1))
    bare.use_secrets(GivenSecrets(f"old:{OLD}"))
    yield bare
    await bare.close()


async def running(backend: ValkeyBackend, n: int) -> list[c.ClaimedJob]:
    for _ in range(n):
        await backend.call(c.CreateExecutionArgs(
            execution_id=ids.new_execution_id(1), namespace="default", lane_id="mail", execution_kind="send",
            input_payload=b"x", digest=b"d" * 16,
        ))  # fmt: skip
    claim = c.ClaimBatchArgs(
        partitions=["{fp:0}"], lanes=["mail"], capability_sets=[], limit=n, worker_id="w", worker_instance_id="w1",
        lease_ttl_ms=3_600_000, claim_id=f"w1.s0.{random.randrange(10**9)}",
    )  # fmt: skip
    return (await backend.call(claim)).jobs


async def opened(backend: ValkeyBackend, job: c.ClaimedJob, key: str) -> Place:
    made = await backend.call(c.CreatePendingWaitpointArgs(
        execution_id=job.execution_id, lease_id=job.lease_id, lease_epoch=job.lease_epoch, attempt_id=job.attempt_id,
        attempt_index=job.attempt_index, waitpoint_id=ids.uuid7(), waitpoint_key=key, expires_in_ms=10**9,
    ))  # fmt: skip
    return Place(job.execution_id, made.waitpoint_id, key, made.waitpoint_token)


def sending(place: Place, token: str, **options: Any) -> c.DeliverSignalArgs:
    return c.DeliverSignalArgs(
        execution_id=place.execution_id, waitpoint_id=place.waitpoint_id, signal_id=ids.uuid7(), signal_name="ok",
        signal_category="external", source_type="web", source_identity="mallory", target_scope="waitpoint",
        waitpoint_token=token, **options,
    )  # fmt: skip


def mutated(token: str, rng: random.Random) -> str:
    at = rng.randrange(len(token))
    other = rng.choice([letter for letter in LETTERS if letter != token[at]])
    return token[:at] + other + token[at + 1 :]


async def test_a_hundred_thousand_hostile_tokens_open_nothing_and_learn_nothing(backend: ValkeyBackend) -> None:
    """Near misses, other places' tokens, forged kids, kids whose grace is over, and noise: one refusal for all."""
    rng = random.Random(7)
    one, two = await running(backend, 2)
    expired = await opened(backend, one, "expired")
    await backend.call(c.RotateWaitpointHmacSecretAllArgs(new_kid="now", new_secret_hex=NOW, grace_ms=0))
    backend.use_secrets(GivenSecrets(f"old:{OLD},now:{NOW}"))
    mine, beside = await opened(backend, one, "a"), await opened(backend, one, "b")
    other = await opened(backend, two, "a")
    ring = tokens.Ring({"old": bytes.fromhex(OLD), "now": bytes.fromhex(NOW), "forged": bytes.fromhex(OTHER)})
    where = (mine.execution_id, mine.waitpoint_id, mine.key)
    token = mine.token
    hostile: dict[str, Callable[[], tuple[Place, str]]] = {
        "mutated": lambda: (mine, mutated(token, rng)),
        "mutated twice": lambda: (mine, mutated(mutated(token, rng), rng) + "0"),
        "truncated": lambda: (mine, token[: rng.randrange(1, len(token))]),
        "extended": lambda: (mine, token + rng.choice(LETTERS)),
        "another case": lambda: (mine, token.upper()),
        "another execution's": lambda: (mine, other.token),
        "at another execution": lambda: (other, token),
        "another waitpoint's": lambda: (mine, beside.token),
        "at another waitpoint": lambda: (beside, token),
        "at no waitpoint": lambda: (mine._replace(waitpoint_id=ids.uuid7()), token),
        "expired kid": lambda: (expired, expired.token),
        "expired kid, right place": lambda: (mine, ring.mint(*where, "old")),
        "another name of a kid": lambda: (mine, ring.mint(*where, "now").replace("now:", "old:")),
        "unknown kid": lambda: (mine, ring.mint(*where, "forged")),
        "another key": lambda: (mine, ring.mint(*where[:2], "admin", "now")),
        "its digest": lambda: (mine, tokens.digest(token)),
        "its fingerprint": lambda: (mine, f"now:{tokens.fingerprint_of(token)}"),
        "blanks": lambda: (mine, f" {token}"),
        "noise": lambda: (mine, "".join(chr(rng.randrange(1, 0x2FFF)) for _ in range(rng.randrange(1, 80)))),
    }  # fmt: skip
    kinds = list(hostile)
    refusals, accepted = Counter[tuple[str, str, str]](), list[str]()
    for start in range(0, HOSTILE_N, BATCH_N):
        names = [kinds[(start + n) % len(kinds)] for n in range(BATCH_N)]
        places = [hostile[name]() for name in names]
        answers = await backend.call_all([sending(place, guess) for place, guess in places])
        for name, (place, _), answer in zip(names, places, answers, strict=True):
            if not isinstance(answer, EngineError):
                accepted.append(name)
            else:
                assert type(answer) is InvalidToken and answer.detail == str(answer), (name, answer)
                refusals[answer.code, str(answer), place.execution_id] += 1
    assert accepted == []
    # The text names the execution the caller named, and nothing else differs.
    assert len({(code, text.replace(id, "")) for code, text, id in refusals}) == 1 and len(refusals) == 2
    assert sum(refusals.values()) == HOSTILE_N
    assert next(iter(refusals))[0] == "invalid_token"
    feed = str(await backend.call(c.ReadEventsArgs(partition="{fp:0}", limit=100)))
    assert 1 <= feed.count("token_refused") <= 100, "a flood of guesses leaves a few entries"
    for place in (mine, beside, other):
        assert isinstance(await backend.call(sending(place, place.token)), c.Accepted), "and the right ones still work"
    (missing,) = await backend.call_all([sending(mine, "")])
    assert isinstance(missing, InvalidToken) and missing.code == "missing_token"
    assert not await check.violations(backend)


class Listener:
    """MONITOR: every word of every command the server carries out."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.heard = b""

    async def __aenter__(self) -> Listener:
        reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port, limit=1 << 24)
        self._writer.write(b"MONITOR\r\n")
        assert await reader.readline() == b"+OK\r\n"
        self._reading = asyncio.create_task(self._read(reader))
        return self

    async def _read(self, reader: asyncio.StreamReader) -> None:
        while b"end of the test" not in self.heard:
            self.heard += await reader.read(1 << 20)

    async def __aexit__(self, *failed: object) -> None:
        await asyncio.wait_for(self._reading, 20)
        self._writer.close()


@pytest.mark.parametrize("encoded", [b"", b"\x00\xff"])
async def test_no_command_carries_a_token_or_a_secret(backend: ValkeyBackend, port: int, encoded: bytes) -> None:
    """Neither a listener nor the slow log nor any key of the store has one, of all that opening, suspending,
    signalling, seeding and rotating send."""
    await backend.command("CONFIG", "SET", "slowlog-log-slower-than", 0)
    await backend.command("CONFIG", "SET", "slowlog-max-len", 100_000)
    await backend.command("SLOWLOG", "RESET")
    backend.use_secrets(GivenSecrets(f"old:{OLD}"))
    async with Listener(port) as listener:
        await backend.call(c.SeedWaitpointHmacSecretArgs(kid="old", secret_hex=OLD, at="{fp:0}"))
        (job,) = await running(backend, 1)
        place = await opened(backend, job, "a")
        await backend.call(sending(place, place.token, payload=encoded, idempotency_key="k"))
        with pytest.raises(InvalidToken):
            await backend.call(sending(place, f"{place.token}0"))
        suspended = await backend.call(c.SuspendArgs(
            suspension_id=ids.uuid7(), waitpoints=[c.fresh()], resume_condition=c.OperatorOnly(), at=job.execution_id,
            fence=c.LeaseFence(job.lease_id, job.lease_epoch, job.attempt_id),
            reason_code=c.SuspensionReasonCode.WAITING_FOR_OPERATOR_REVIEW,
        ))  # fmt: skip
        second = suspended.details.waitpoint_token
        await backend.call(sending(place._replace(waitpoint_id=suspended.details.waitpoint_id), second))
        await backend.call(c.RotateWaitpointHmacSecretAllArgs(new_kid="now", new_secret_hex=NOW, grace_ms=10**6))
        await backend.call(c.ListPendingWaitpointsArgs(execution_id=job.execution_id))
        await backend.command("ECHO", "end of the test")
    heard = listener.heard.lower()
    slow = repr(await backend.command("SLOWLOG", "GET", -1)).lower().encode()
    keys = await backend.command("KEYS", "*")
    held = b"".join([await backend.command("DUMP", key) for key in keys]).lower()
    assert b"ff_deliver_signal" in heard and tokens.digest(place.token).encode() in heard, "it listened"
    for secret in (OLD, NOW, place.token, place.token.partition(":")[2], second.partition(":")[2]):
        for where in (heard, slow, held):
            assert secret.lower().encode() not in where and bytes.fromhex(secret.rpartition(":")[2]) not in where
