"""Steps as both sides of the wire know them: their keys, their entries in the journal, the keys of their effects.

A step is known by its name, the digest of its arguments, and how many steps of that name and digest the same run has
begun before it. So steps may run in any order, and one whose arguments changed is another step.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

import msgspec

from ffcore.errors import EngineBug, InvalidArgument

Kind = Literal["step", "sleep", "gate", "wait", "spawn"]
Status = Literal["ok", "fatal", "intent", "error"]

FINAL: Final = frozenset({"ok", "fatal"})
"""An entry of these is what the step came to, for good; the others say how far it got."""


# ---- keys ----------------------------------------------------------------------------------------------


def digest_of(args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """What a step's arguments are, in 64 hexadecimal digits; the same in every process.

    Raises InvalidArgument where they do not encode: such a step needs a digest of its own.
    """
    given = [list(args), dict(kwargs)]
    try:
        try:
            text = msgspec.json.encode(given, order="deterministic", enc_hook=_encode_rest)
        except TypeError:  # of mappings, that takes those alone whose keys are texts
            plain = msgspec.to_builtins(given, str_keys=True, enc_hook=_encode_rest)
            text = msgspec.json.encode(plain, order="deterministic")
    except (TypeError, ValueError, OverflowError, RecursionError) as wrong:
        raise InvalidArgument(
            f"the step's arguments cannot be told apart from other ones ({wrong}): pass what they encode to, or name "
            "them with digest=, a text that is the same whenever the step is"
        ) from wrong
    return hashlib.sha256(text).hexdigest()


def digest_of_text(text: str) -> str:
    """The digest a caller gave by name (`digest=`)."""
    return hashlib.sha256(b"\0" + text.encode(errors="surrogatepass")).hexdigest()


def _encode_rest(value: Any) -> Any:
    """Pydantic models say themselves what they are; anything else has no text that is the same in every process."""
    dump = getattr(value, "model_dump", None)
    if callable(dump):
        return dump(mode="json")
    raise TypeError(f"{type(value).__qualname__} does not encode")


def step_key(name: str, digest: str, occurrence: int) -> str:
    """The key an entry stands under: name, arguments, and how many such steps came before."""
    return f"{hashlib.sha256(name.encode()).hexdigest()[:12]}.{digest[:16]}.{occurrence}"


def name_part(key: str) -> str:
    """The part of a key that all steps of one name share."""
    return key[:12]


def effect_key(execution_id: str, journal_run: int, key: str) -> str:
    """What to send along with a step's effect, so that whoever receives it knows a repeat: 32 hexadecimal digits, the
    same over retries, reclaims and replays that go on; another one after `ContinueAs` and a fresh replay."""
    parts = (execution_id.encode(), b"%d" % journal_run, key.encode())
    return hashlib.sha256(b"".join(b"%d:%s" % (len(part), part) for part in parts)).hexdigest()[:32]


def began(text: str) -> tuple[int, int]:
    """Run and version of a journal's `began`."""
    run, _, version = text.partition(" ")
    return int(run), int(version)


# ---- entries -------------------------------------------------------------------------------------------


class JournalEntry(msgspec.Struct, frozen=True):
    """One recorded step."""

    seq: int
    key: str
    kind: str
    status: str
    at_ms: int
    attempt: int
    name: str
    value: bytes

    @classmethod
    def parse(cls, raw: bytes, seq: int = 0) -> JournalEntry:
        """An entry as the store has it: ``key kind status at attempt <bytes of the name>:<name><value>``."""
        try:
            key, kind, status, at_ms, attempt, rest = raw.split(b" ", 5)
            size, _, rest = rest.partition(b":")
            n = int(size)
            if n > len(rest):
                raise ValueError("it is cut off within the name")
            name = rest[:n].decode("utf-8", "replace")
            return cls(seq, key.decode(), kind.decode(), status.decode(), int(at_ms), int(attempt), name, rest[n:])
        except ValueError as wrong:
            raise EngineBug(f"a journal entry cannot be read ({wrong}): {raw!r:.120}") from wrong

    @property
    def final(self) -> bool:
        return self.status in FINAL

    @property
    def tries(self) -> int:
        """How often an unfinished step has failed."""
        return int(self.value.partition(b" ")[0]) if self.status == "error" else 0

    @property
    def reason(self) -> str:
        """Why the last try failed."""
        if self.status == "fatal":
            return self.failure.message
        return self.value.partition(b" ")[2].decode("utf-8", "replace") if self.status == "error" else ""

    @property
    def failure(self) -> StepFailure:
        """What a step that failed for good failed with."""
        return StepFailure.unpack(self.value)


def entries_of(raw: Sequence[bytes], first: int = 1) -> list[JournalEntry]:
    """The entries of a page, which begins with number `first`."""
    return [JournalEntry.parse(entry, seq) for seq, entry in enumerate(raw, first)]


def pack_error(tries: int, reason: str) -> bytes:
    """The value of a failed try."""
    return f"{tries} {reason}".encode()


class StepFailure(msgspec.Struct, frozen=True):
    """A failure that is recorded as what the step came to."""

    type: str
    """Name of the exception's class."""
    message: str
    category: str = "fatal"

    def pack(self) -> bytes:
        return pack_texts([self.type.encode(), self.message.encode(), self.category.encode()])

    @classmethod
    def unpack(cls, value: bytes) -> StepFailure:
        type_, message, category = (text.decode("utf-8", "replace") for text in unpack_texts(value))
        return cls(type_, message, category)


# ---- texts ---------------------------------------------------------------------------------------------


def pack_texts(texts: Sequence[bytes]) -> bytes:
    """Texts in a row, each with its length before it: what the value of an entry is made of where it has parts."""
    return b"".join(b"%d:%s" % (len(text), text) for text in texts)


def unpack_texts(packed: bytes) -> list[bytes]:
    out: list[bytes] = []
    at = 0
    try:
        while at < len(packed):
            colon = packed.index(b":", at)
            end = colon + 1 + int(packed[at:colon])
            if end > len(packed):
                raise ValueError("it is cut off")
            out.append(packed[colon + 1 : end])
            at = end
    except ValueError as wrong:
        raise EngineBug(f"texts with lengths cannot be read ({wrong}): {packed!r:.120}") from wrong
    return out
