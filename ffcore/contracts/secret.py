"""Secrets: the key ring that signs waitpoint tokens; which kid signs, which still verify, until when."""

from __future__ import annotations

import re
from typing import Final

from ffcore import checks
from ffcore.args import Args, Outcome, Row
from ffcore.errors import InvalidArgument
from ffcore.ids import PartitionKey

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


class Noop(Outcome, tag="noop"):
    """The same kid and secret are current already."""

    kid: str


RotateWaitpointHmacSecretOutcome = Rotated | Noop


class RotateWaitpointHmacSecretArgs(Args[RotateWaitpointHmacSecretOutcome]):
    """Make a new kid sign in one partition; tokens of the old one verify until the grace is over."""

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


class RotateWaitpointHmacSecretAllArgs(Args[RotateWaitpointHmacSecretAllResult]):
    """The same in every partition; no single function, the caller fans out."""

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
    same_secret: bool


SeedOutcome = Seeded | AlreadySeeded


class SeedWaitpointHmacSecretArgs(Args[SeedOutcome]):
    """Install the first secret; harmless at every start."""

    kid: str
    secret_hex: str
    at: PartitionKey

    def __post_init__(self) -> None:
        check_kid(self.kid)
        check_secret_hex(self.secret_hex)
