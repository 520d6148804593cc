"""Secrets: the key ring that signs waitpoint tokens; which kid signs, which still verify, until when."""

from __future__ import annotations

import re
from typing import ClassVar, Final

from ffcore import checks
from ffcore.args import Args, Outcome, Row, veiled
from ffcore.errors import InvalidArgument
from ffcore.ids import ExecutionId, PartitionKey, WaitpointId, WaitpointToken, check_id

_KID: Final = re.compile(r"[A-Za-z0-9_-]{1,32}")
_HEX: Final = re.compile(r"(?:[0-9a-fA-F]{2}){16,128}")


def check_kid(value: object) -> None:
    if not isinstance(value, str) or not _KID.fullmatch(value):
        raise InvalidArgument(f"kid {value!r:.60}: use 1 to 32 of A-Z a-z 0-9 _ -", code="invalid_kid")


def check_secret_hex(value: object) -> None:
    # The message must not show any of it.
    if not isinstance(value, str) or not _HEX.fullmatch(value):
        raise InvalidArgument("a secret is 16 to 128 bytes written as hex digits", code="invalid_secret_hex")


def _check_rotation(kid: str, secret_hex: str, grace_ms: int) -> None:
    check_kid(kid)
    check_secret_hex(secret_hex)
    checks.whole(grace_ms, "grace_ms", code="invalid_grace_ms")


class VerifyingKid(Row):
    kid: str
    expires_at_ms: int


class WaitpointHmacKids(Outcome, tag="kids"):
    current_kid: str | None
    """None: no secret was ever installed."""
    verifying: list[VerifyingKid]


class ListWaitpointHmacKidsArgs(Args[WaitpointHmacKids]):
    at: PartitionKey


class Rotated(Outcome, tag="rotated"):
    previous_kid: str | None
    new_kid: str
    gc_count: int
    """Kids whose grace was over, removed."""
    open_waitpoints: int = 0
    """Open waitpoints that an older kid signed: their tokens end with its grace."""


class Noop(Outcome, tag="noop"):
    """The same kid and secret are current already."""

    kid: str
    open_waitpoints: int = 0


RotateWaitpointHmacSecretOutcome = Rotated | Noop


@veiled("new_secret_hex")
class RotateWaitpointHmacSecretArgs(Args[RotateWaitpointHmacSecretOutcome]):
    """Make a new kid sign in one partition; tokens of the old one verify until the grace is over. The secret stays
    here: the store gets its fingerprint."""

    COMPOSED: ClassVar[bool] = True

    new_kid: str
    new_secret_hex: str
    grace_ms: int
    at: PartitionKey

    def __post_init__(self) -> None:
        _check_rotation(self.new_kid, self.new_secret_hex, self.grace_ms)


class RotateFailed(Outcome, tag="failed"):
    """This partition was not rotated; the others stand, and the whole may be run again."""

    code: str
    detail: str


class RotateWaitpointHmacSecretAllEntry(Row):
    partition: int
    result: Rotated | Noop | RotateFailed


class RotateWaitpointHmacSecretAllResult(Outcome, tag="rotations"):
    entries: list[RotateWaitpointHmacSecretAllEntry]

    @property
    def failed(self) -> list[RotateWaitpointHmacSecretAllEntry]:
        return [entry for entry in self.entries if isinstance(entry.result, RotateFailed)]

    @property
    def open_waitpoints(self) -> int:
        """How many the grace will cut off, in the partitions that answered."""
        return sum(entry.result.open_waitpoints for entry in self.entries if not isinstance(entry.result, RotateFailed))


@veiled("new_secret_hex")
class RotateWaitpointHmacSecretAllArgs(Args[RotateWaitpointHmacSecretAllResult]):
    """The same in every partition of executions, each on its own: what failed is listed; the whole may be run again."""

    COMPOSED: ClassVar[bool] = True

    new_kid: str
    new_secret_hex: str
    grace_ms: int

    def __post_init__(self) -> None:
        _check_rotation(self.new_kid, self.new_secret_hex, self.grace_ms)


class Seeded(Outcome, tag="seeded"):
    kid: str


class AlreadySeeded(Outcome, tag="already_seeded"):
    """`same_secret` False: the kid stands for another secret. Rotate to a new kid instead."""

    kid: str
    """The one that signs."""
    same_secret: bool


SeedOutcome = Seeded | AlreadySeeded


@veiled("secret_hex")
class SeedWaitpointHmacSecretArgs(Args[SeedOutcome]):
    """Install the first secret; harmless at every start."""

    COMPOSED: ClassVar[bool] = True

    kid: str
    secret_hex: str
    at: PartitionKey

    def __post_init__(self) -> None:
        check_kid(self.kid)
        check_secret_hex(self.secret_hex)


# ---- tokens ----------------------------------------------------------------------------------------------


@veiled("token")
class TokenMinted(Outcome, tag="minted"):
    token: WaitpointToken
    kid: str


class MintTokenArgs(Args[TokenMinted]):
    """The token of a waitpoint that is open already, made again from its kid. The store is not asked: a token for a
    waitpoint that does not exist opens nothing. Raises InvalidToken for a kid that has left the ring."""

    COMPOSED: ClassVar[bool] = True

    execution_id: ExecutionId
    waitpoint_id: WaitpointId
    waitpoint_key: str
    kid: str | None = None
    """None: the one that new tokens get."""

    def __post_init__(self) -> None:
        check_id(self.execution_id)
        checks.text(self.waitpoint_id, "waitpoint_id")
        checks.text(self.waitpoint_key, "waitpoint_key")
        if self.kid is not None:
            check_kid(self.kid)


# ---- on the wire: a fingerprint in place of the secret ---------------------------------------------------


class RotateWaitpointHmacSecretWireArgs(Args[RotateWaitpointHmacSecretOutcome]):
    """What a RotateWaitpointHmacSecretArgs becomes."""

    FUNCTION: ClassVar[str] = "ff_rotate_waitpoint_hmac_secret"
    WIRE: ClassVar[bool] = True

    new_kid: str
    fingerprint: str
    """`ffcore.tokens.fingerprint`."""
    grace_ms: int
    at: PartitionKey


class SeedWaitpointHmacSecretWireArgs(Args[SeedOutcome]):
    """What a SeedWaitpointHmacSecretArgs becomes."""

    FUNCTION: ClassVar[str] = "ff_seed_waitpoint_hmac_secret"
    WIRE: ClassVar[bool] = True

    kid: str
    fingerprint: str
    at: PartitionKey
