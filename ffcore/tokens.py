"""Tokens: what opens a waitpoint, made from a secret; the store keeps only their digests.

    secret   bytes that never leave the programs that mint; named by a kid
    token    "<kid>:<hex>", an HMAC-SHA256 over execution, waitpoint and key: one token opens one waitpoint of one job
    digest   SHA-256 of the token: what callers send and the store compares
    gate token   "ff1.<N>.<uuid>.<waitpoint uuid>.<kid>.<hex>": a token that says where it leads, safe in a URL

Nothing here reads a clock, a file or the environment; where secrets come from: `ffbackend_valkey/secrets.py`.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping
from typing import Final, NamedTuple

from ffcore.contracts.secret import check_kid, check_secret_hex
from ffcore.errors import InvalidArgument, InvalidToken
from ffcore.ids import ExecutionId, WaitpointId, WaitpointToken, partition_index, partition_of, uuid_of
from ffcore.refusals import text_of

_UUID: Final = "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
_GATE: Final = re.compile(
    rf"ff1\.(0|[1-9][0-9]{{0,4}})\.({_UUID})\.({_UUID})\.([A-Za-z0-9_-]{{1,32}})\.([0-9a-f]{{64}})"
)


# ---- secrets -------------------------------------------------------------------------------------------


class Ring:
    """The secrets a program may mint with. `current` is the kid new tokens get; the others make older tokens again."""

    __slots__ = ("_secrets", "current")

    def __init__(self, secrets: Mapping[str, bytes], current: str | None = None) -> None:
        """current: the last one given, unless told otherwise."""
        if not secrets:
            raise InvalidArgument("a ring needs one secret at least")
        for kid, secret in secrets.items():
            check_kid(kid)
            check_secret_hex(secret.hex())
        self._secrets = dict(secrets)
        self.current = next(reversed(self._secrets)) if current is None else current
        if self.current not in self._secrets:
            raise InvalidArgument(f"kid {self.current!r:.60} is not in the ring", code="invalid_kid")

    @property
    def kids(self) -> list[str]:
        return list(self._secrets)

    def __contains__(self, kid: object) -> bool:
        return kid in self._secrets

    def secret(self, kid: str) -> bytes:
        """InvalidToken if the ring no longer has it."""
        if kid not in self._secrets:
            raise InvalidToken(
                f"the secret of kid {kid!r:.60} has left the ring, so its tokens cannot be made again; put it back "
                "into the secret file, or open a new gate", code="invalid_token",
            )  # fmt: skip
        return self._secrets[kid]

    def mint(
        self, execution_id: str, waitpoint_id: str, waitpoint_key: str, kid: str | None = None
    ) -> WaitpointToken:
        """The token of a waitpoint, by the current kid or the one it was opened with."""
        kid = kid or self.current
        return mint(self.secret(kid), kid, execution_id, waitpoint_id, waitpoint_key)

    def fingerprint(self, kid: str) -> str:
        return fingerprint(self.secret(kid))

    def __repr__(self) -> str:
        return f"<Ring of {', '.join(self._secrets)}; {self.current} signs>"


def fingerprint(secret: bytes) -> str:
    """Tells secrets apart without telling them: 32 hex digits."""
    return hmac.new(secret, b"flowfabric kid fingerprint", hashlib.sha256).hexdigest()[:32]


# ---- tokens --------------------------------------------------------------------------------------------


def mint(secret: bytes, kid: str, execution_id: str, waitpoint_id: str, waitpoint_key: str) -> WaitpointToken:
    """The token of one waitpoint. Each part is signed behind its length, so no two triples are signed alike."""
    signed = bytearray()
    for part in (execution_id, waitpoint_id, waitpoint_key):
        raw = part.encode()
        signed += len(raw).to_bytes(4, "big") + raw
    return WaitpointToken(f"{kid}:{hmac.new(secret, signed, hashlib.sha256).hexdigest()}")


def digest(token: str) -> str:
    """What of a token reaches the store. Empty for an empty token, which is refused as missing."""
    return hashlib.sha256(token.encode(errors="surrogatepass")).hexdigest() if token else ""


def kid_of(token: str) -> str:
    return token.partition(":")[0]


def fingerprint_of(token: str) -> str:
    """What views show of a token: 16 hex digits of its digest."""
    return digest(token)[:16]


# ---- gate tokens ---------------------------------------------------------------------------------------


class GateToken(NamedTuple):
    """A gate token, read."""

    execution_id: ExecutionId
    waitpoint_id: WaitpointId
    token: WaitpointToken


def gate_token(execution_id: str, waitpoint_id: str, token: str) -> str:
    """One URL-safe text that leads to a waitpoint and opens it."""
    kid, _, hex_digits = token.partition(":")
    number = partition_index(partition_of(execution_id))
    return f"ff1.{number}.{uuid_of(execution_id)}.{waitpoint_id}.{kid}.{hex_digits}"


def parse_gate_token(text: str) -> GateToken:
    """Read a gate token. One that cannot be read is refused like one that opens nothing, and not repeated."""
    if not text:
        raise refusal("missing_token")
    found = _GATE.fullmatch(text) if isinstance(text, str) else None
    if found is None:
        raise refusal("invalid_token")
    number, uuid, waitpoint, kid, hex_digits = found.groups()
    return GateToken(
        ExecutionId(f"{{fp:{number}}}:{uuid}"), WaitpointId(waitpoint), WaitpointToken(f"{kid}:{hex_digits}")
    )


class GateRecord(NamedTuple):
    """What the journal keeps of an opened gate."""

    waitpoint_id: str
    waitpoint_key: str
    kid: str
    """Empty: it was opened without a token."""

    def pack(self) -> bytes:
        """The three texts, each behind its length in bytes and a colon."""
        return b"".join(b"%d:%s" % (len(raw), raw) for raw in (text.encode() for text in self))

    @classmethod
    def parse(cls, packed: bytes) -> GateRecord:
        texts, at = list[str](), 0
        while at < len(packed) and len(texts) < len(cls._fields):
            colon = packed.index(b":", at)
            end = colon + 1 + int(packed[at:colon])
            texts.append(packed[colon + 1 : end].decode())
            at = end
        return cls(*texts)


def refusal(code: str, about: str = "") -> InvalidToken:
    """The refusal of a token, in the words of the store's own."""
    return InvalidToken(text_of(code, "", InvalidToken.__doc__ or "", "deliver signal", about), code=code)
