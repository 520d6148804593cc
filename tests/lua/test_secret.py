"""ff_seed_waitpoint_hmac_secret, ff_rotate_waitpoint_hmac_secret, ff_list_waitpoint_hmac_kids; and rotations of all."""

from __future__ import annotations

from typing import Any

import pytest

import ffcore.contracts as c
from ffcore import limits, tokens
from ffcore.errors import InvalidArgument, SecretMissing, Unavailable
from tests.lua.engine import P0, P1, Engine, force
from tests.lua.test_signal import delivering, opened
from tests.lua.test_waitpoint import close, opening

ONE = b"a secret of tests, 32 bytes long".hex()
"""What the ring of a test has."""
TWO, THREE = "22" * 32, "33" * 32


def seed(kid: str = "k1", secret: str = ONE) -> c.SeedWaitpointHmacSecretArgs:
    return c.SeedWaitpointHmacSecretArgs(kid=kid, secret_hex=secret, at=P0)


def rotate(kid: str = "k2", secret: str = TWO, grace_ms: int = 1_000) -> c.RotateWaitpointHmacSecretArgs:
    return c.RotateWaitpointHmacSecretArgs(new_kid=kid, new_secret_hex=secret, grace_ms=grace_ms, at=P0)


def rotate_all(kid: str = "k2", secret: str = TWO, grace_ms: int = 1_000) -> c.RotateWaitpointHmacSecretAllArgs:
    return c.RotateWaitpointHmacSecretAllArgs(new_kid=kid, new_secret_hex=secret, grace_ms=grace_ms)


async def kids(engine: Engine, at: Any = P0) -> c.WaitpointHmacKids:
    return await engine.call(c.ListWaitpointHmacKidsArgs(at=at))


class FixedRing:
    """A ring that only its owner changes."""

    def __init__(self, **secrets: str) -> None:
        self.held = tokens.Ring({kid: bytes.fromhex(text) for kid, text in secrets.items()})

    async def ring(self, *, fresh: bool = False) -> tokens.Ring:
        return self.held

    async def add(self, kid: str, secret: bytes) -> bool:
        return False


class Nothing:
    async def ring(self, *, fresh: bool = False) -> tokens.Ring:
        raise SecretMissing("set FF_SECRET_FILE")

    async def add(self, kid: str, secret: bytes) -> bool:
        return False


# ---- seed --------------------------------------------------------------------------------------------


async def test_the_first_secret_is_installed_once(engine: Engine) -> None:
    engine.backend.use_secrets(Nothing())
    assert await kids(engine) == c.WaitpointHmacKids(None, [])
    assert await engine.call(seed()) == c.Seeded("k1")
    assert await engine.call(seed()) == c.AlreadySeeded("k1", True)
    assert await engine.call(seed(secret=TWO)) == c.AlreadySeeded("k1", False)
    assert await engine.call(seed("k2", TWO)) == c.AlreadySeeded("k1", False)
    assert await kids(engine) == c.WaitpointHmacKids("k1", [])


async def test_the_store_has_fingerprints_and_no_secret(engine: Engine) -> None:
    await engine.call(seed())
    await engine.call(rotate())
    held = str(await engine.command("HGETALL", "ff:{fp:0}:kids"))
    assert ONE not in held and TWO not in held and tokens.fingerprint(bytes.fromhex(TWO)) in held


async def test_bad_kids_and_fingerprints_are_refused(engine: Engine) -> None:
    for kid in ("", "x" * 33, "a b", "a:b", "."):
        await engine.refused("invalid_kid", c.SeedWaitpointHmacSecretWireArgs(kid=kid, fingerprint="0" * 32, at=P0))
        await engine.refused(
            "invalid_kid", c.RotateWaitpointHmacSecretWireArgs(new_kid=kid, fingerprint="0" * 32, grace_ms=0, at=P0)
        )
    for mark in ("", "0" * 31, "G" * 32):
        await engine.refused("invalid_input", c.SeedWaitpointHmacSecretWireArgs(kid="k1", fingerprint=mark, at=P0))
        await engine.refused(
            "invalid_input", c.RotateWaitpointHmacSecretWireArgs(new_kid="k1", fingerprint=mark, grace_ms=0, at=P0)
        )
    for grace in (-1, limits.SPAN_MAX_MS + 1):
        await engine.refused("invalid_grace_ms", force(rotate(), grace_ms=grace))


# ---- rotate ------------------------------------------------------------------------------------------


async def test_a_rotation_gives_the_old_kid_a_grace(engine: Engine) -> None:
    job, waitpoint = await opened(engine)
    assert await engine.call(rotate()) == c.Rotated("k1", "k2", 0, 1)
    assert await kids(engine) == c.WaitpointHmacKids("k2", [c.VerifyingKid("k1", engine.now + 1_000)])
    later = await engine.call(opening(job, "later"))
    assert later.kid == "k2"
    for one in (waitpoint, later):
        assert isinstance(await engine.call(delivering(job, one)), c.Accepted)
    await engine.advance(1_000)
    assert await kids(engine) == c.WaitpointHmacKids("k2", [])
    await engine.refused("invalid_token", delivering(job, waitpoint))
    assert isinstance(await engine.call(delivering(job, later)), c.Accepted)
    assert await engine.call(rotate("k3", THREE)) == c.Rotated("k2", "k3", 1, 2)
    await engine.call(close(job, waitpoint.waitpoint_id))
    assert await engine.call(rotate("k3", THREE)) == c.Noop("k3", 1)


async def test_a_rotation_sent_again_changes_nothing(engine: Engine) -> None:
    await engine.call(seed())
    assert await engine.call(rotate()) == c.Rotated("k1", "k2", 0, 0)
    await engine.advance(500)
    assert await engine.call(rotate()) == c.Noop("k2", 0)
    assert (await kids(engine)).verifying == [c.VerifyingKid("k1", engine.now + 500)]


async def test_a_kid_stands_for_one_secret(engine: Engine) -> None:
    engine.backend.use_secrets(FixedRing(k1=ONE, k2=TWO))
    await engine.call(seed())
    await engine.call(rotate())
    other = tokens.fingerprint(bytes.fromhex(THREE))
    for kid in ("k1", "k2"):
        call = c.RotateWaitpointHmacSecretWireArgs(new_kid=kid, fingerprint=other, grace_ms=0, at=P0)
        await engine.refused("rotation_conflict", call)
    with pytest.raises(InvalidArgument) as caught:
        await engine.call(rotate("k2", THREE))
    assert caught.value.code == "rotation_conflict" and THREE not in str(caught.value)


async def test_a_seeded_secret_is_one_that_mints(engine: Engine) -> None:
    """Where the ring is ours to change, it has what the partitions sign with."""
    await engine.call(seed("main", THREE))
    job, waitpoint = await opened(engine)
    assert waitpoint.kid == "main" and isinstance(await engine.call(delivering(job, waitpoint)), c.Accepted)


async def test_an_old_kid_comes_back_within_its_grace(engine: Engine) -> None:
    """And is the one that signs, with no end of its own left over from when it was not."""
    engine.backend.use_secrets(FixedRing(k1=ONE, k2=TWO))
    await engine.call(seed())
    await engine.call(rotate())
    await engine.call(rotate("k1", ONE))
    assert await kids(engine) == c.WaitpointHmacKids("k1", [c.VerifyingKid("k2", engine.now + 1_000)])
    await engine.advance(5_000)
    assert await engine.call(rotate("k3", THREE)) == c.Rotated("k1", "k3", 1, 0)


async def test_a_partition_remembers_a_bounded_number_of_kids(engine: Engine) -> None:
    engine.backend.use_secrets(FixedRing(k1=ONE))
    await engine.call(seed())
    for n in range(limits.KIDS_N - 1):
        await engine.call(rotate(f"r{n}", f"{n:064x}", 10_000))
    await engine.refused("rotation_conflict", rotate("last", THREE))
    await engine.advance(10_000)
    assert (await engine.call(rotate("last", THREE))).gc_count == limits.KIDS_N - 1


async def test_no_grace_ends_at_once(engine: Engine) -> None:
    job, waitpoint = await opened(engine)
    await engine.call(rotate(grace_ms=0))
    await engine.refused("invalid_token", delivering(job, waitpoint))


# ---- all partitions ----------------------------------------------------------------------------------


async def test_all_partitions_are_rotated_and_answer_for_themselves(engine: Engine) -> None:
    await opened(engine)
    await engine.call(seed())
    answer = await engine.call(rotate_all())
    assert [(row.partition, row.result) for row in answer.entries] == [
        (0, c.Rotated("k1", "k2", 0, 1)), (1, c.Rotated(None, "k2", 0, 0)),
    ]  # fmt: skip
    assert (answer.failed, answer.open_waitpoints) == ([], 1)
    again = await engine.call(rotate_all())
    assert [row.result for row in again.entries] == [c.Noop("k2", 1), c.Noop("k2", 0)]


async def test_what_could_not_be_rotated_is_listed_and_the_rest_stands(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    await engine.call(seed())
    transit = engine.backend._transit

    async def away(args: Any, send: Any) -> Any:
        if getattr(args, "at", "") == P1:
            raise Unavailable("the node is away", may_have_applied=False)
        return await transit(args, send)

    with monkeypatch.context() as patch:
        patch.setattr(engine.backend, "_transit", away)
        answer = await engine.call(rotate_all())
    (failed,) = answer.failed
    assert (failed.partition, failed.result) == (1, c.RotateFailed("unavailable", "the node is away"))
    assert (await kids(engine)).current_kid == "k2" and (await kids(engine, P1)).current_kid is None
    assert (await engine.call(rotate_all())).failed == []
    assert (await kids(engine, P1)).current_kid == "k2"


# ---- rings and partitions ----------------------------------------------------------------------------


async def test_a_partition_that_knows_no_kid_is_told_of_ours(engine: Engine) -> None:
    _, waitpoint = await opened(engine)
    assert waitpoint.kid == "k1" and (await kids(engine)).current_kid == "k1"


async def test_whoever_mints_follows_the_partition(engine: Engine) -> None:
    """The file has the new secret and the rotation has not been here yet; or it was here, and the file is older."""
    job, _ = await opened(engine)
    held = {"k1": (await engine.backend._composed.secrets.ring()).secret("k1").hex()}
    engine.backend.use_secrets(FixedRing(**held, k2=TWO))
    assert (await engine.call(opening(job, "b"))).kid == "k1"
    await engine.call(c.RotateWaitpointHmacSecretWireArgs(
        new_kid="k2", fingerprint=tokens.fingerprint(bytes.fromhex(TWO)), grace_ms=0, at=P0
    ))  # fmt: skip
    assert (await engine.call(opening(job, "c"))).kid == "k2"
    engine.backend.use_secrets(FixedRing(k1=held["k1"]))
    with pytest.raises(SecretMissing, match=r"kid k2 signs in \{fp:0\}"):
        await engine.call(opening(job, "d"))


async def test_without_any_secret_only_what_is_there_is_found(engine: Engine) -> None:
    job, _ = await opened(engine)
    first = await engine.call(opening(job, "gate", step="ab.01.0", step_name="gate"))
    engine.backend.use_secrets(Nothing())
    with pytest.raises(SecretMissing, match="FF_SECRET_FILE"):
        await engine.call(opening(job, "new"))
    again = await engine.call(opening(job, "gate", step="ab.01.0", step_name="gate"))
    assert again == c.WaitpointCreated(first.waitpoint_id, "gate", "", "k1", True)
    with pytest.raises(SecretMissing):
        await engine.call(minting(job, first))
    assert isinstance(await engine.call(delivering(job, first)), c.Accepted), "checking needs no secret"


def minting(job: c.ClaimedJob, waitpoint: Any, kid: str | None = None) -> c.MintTokenArgs:
    return c.MintTokenArgs(
        execution_id=job.execution_id, waitpoint_id=waitpoint.waitpoint_id, waitpoint_key=waitpoint.waitpoint_key,
        kid=kid,
    )  # fmt: skip


async def test_a_token_is_made_again_from_its_kid(engine: Engine) -> None:
    job, waitpoint = await opened(engine)
    await engine.call(rotate())
    assert await engine.call(minting(job, waitpoint, "k1")) == c.TokenMinted(waitpoint.waitpoint_token, "k1")
    assert (await engine.call(minting(job, waitpoint))).kid == "k2"
    with pytest.raises(tokens.InvalidToken, match="has left the ring"):
        await engine.call(minting(job, waitpoint, "k9"))
