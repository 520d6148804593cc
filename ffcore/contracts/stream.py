"""Streams: frames an attempt emits, and the cursors readers resume from.

A cursor's public grammar is start, end or an entry id; the store's own markers for the ends never leave it.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import ClassVar, Final, Self

import msgspec

from ffcore import checks, limits
from ffcore.args import Args, Outcome, Row
from ffcore.contracts.text import Text
from ffcore.errors import InvalidArgument
from ffcore.ids import AttemptId, AttemptIndex, ExecutionId, LeaseEpoch, LeaseId, TimestampMs

STREAM_READ_HARD_CAP: Final = 10_000
_ENTRY_ID: Final = re.compile(r"[0-9]+(?:-[0-9]+)?")


# ---- cursor ------------------------------------------------------------------------------------------


class StreamCursorParseError(InvalidArgument):
    """Text that is no cursor; the subclass says in which way."""

    def __init__(self, message: str, cursor: str) -> None:
        super().__init__(message)
        self.cursor = cursor


class StreamCursorEmpty(StreamCursorParseError):
    pass


class StreamCursorBareMarkerRejected(StreamCursorParseError):
    """`-` and `+` mean something to the store, nothing to a reader."""


class StreamCursorMalformed(StreamCursorParseError):
    pass


class StreamCursor(Text):
    """start, end, ``<ms>`` or ``<ms>-<seq>``. Reading is inclusive; tailing is exclusive and wants an entry id."""

    __slots__ = ()

    START: ClassVar[StreamCursor]
    END: ClassVar[StreamCursor]

    @classmethod
    def parse(cls, text: str) -> Self:
        if text == "":
            raise StreamCursorEmpty("stream cursor must not be empty", text)
        if text in ("-", "+"):
            raise StreamCursorBareMarkerRejected(
                f"bare marker '{text}' is not a valid stream cursor; use 'start' or 'end'", text
            )
        if text not in ("start", "end") and not _ENTRY_ID.fullmatch(text):
            raise StreamCursorMalformed(
                f"invalid stream cursor '{text[:80]}' (expected 'start', 'end', '<ms>', or '<ms>-<seq>')", text
            )
        return cls(text)

    @classmethod
    def at(cls, entry_id: str) -> Self:
        cursor = cls.parse(entry_id)
        if not cursor.is_concrete():
            raise StreamCursorMalformed(f"'{entry_id}' is not an entry id", entry_id)
        return cursor

    @classmethod
    def from_beginning(cls) -> Self:
        """Where a tail starts that wants everything: after the entry that cannot exist."""
        return cls("0-0")

    def is_concrete(self) -> bool:
        return self not in ("start", "end")

    def to_wire(self) -> str:
        """The store's form. Never show it to a user."""
        return {"start": "-", "end": "+"}.get(self.wire, self.wire)


StreamCursor.START = StreamCursor("start")
StreamCursor.END = StreamCursor("end")


# ---- frames ------------------------------------------------------------------------------------------


class FrameKind(StrEnum):
    STDOUT = "stdout"
    STDERR = "stderr"
    EVENT = "event"
    BLOB = "blob"


class PatchKind(StrEnum):
    JSON_MERGE_PATCH = "json_merge_patch"


class Durable(msgspec.Struct, frozen=True, tag_field="type", tag="durable"):
    """Every frame is kept, up to the stream's length."""


class DurableSummary(msgspec.Struct, frozen=True, tag_field="type", tag="durable_summary"):
    """Frames are patches of one document; the document is what is kept."""

    patch_kind: PatchKind = PatchKind.JSON_MERGE_PATCH


class BestEffortLiveConfig(msgspec.Struct, frozen=True, kw_only=True):
    ttl_ms: int
    maxlen_floor: int = 64
    maxlen_ceiling: int = 16_384
    ema_alpha: float = 0.2

    def __post_init__(self) -> None:
        checks.span_ms(self.ttl_ms, "ttl_ms", 1)
        checks.whole(self.maxlen_floor, "maxlen_floor", 1, checks.U32_MAX)
        checks.whole(self.maxlen_ceiling, "maxlen_ceiling", self.maxlen_floor, checks.U32_MAX)
        if not 0.0 < self.ema_alpha <= 1.0:
            raise InvalidArgument(f"ema_alpha is {self.ema_alpha!r}: use a number above 0, at most 1")


class BestEffortLive(msgspec.Struct, frozen=True, tag_field="type", tag="best_effort_live"):
    """For whoever looks now; gone soon after."""

    config: BestEffortLiveConfig


StreamMode = Durable | DurableSummary | BestEffortLive


class TailVisibility(StrEnum):
    ALL = "all"
    EXCLUDE_BEST_EFFORT = "exclude_best_effort"


class SummaryDocument(msgspec.Struct, frozen=True, kw_only=True):
    document_json: bytes
    version: int
    patch_kind: PatchKind
    last_updated_ms: int
    first_applied_ms: int


class Frame(msgspec.Struct, frozen=True, kw_only=True):
    bytes: bytes
    kind: FrameKind
    seq: int | None = None
    frame_type: str = ""
    correlation_id: str | None = None
    mode: StreamMode = Durable()


class Appended(Outcome, tag="appended"):
    entry_id: str
    frame_count: int


AppendFrameResult = Appended


class AppendFrameArgs(Args[AppendFrameResult]):
    """Append a frame to the attempt's stream; a worker that lost its lease cannot."""

    execution_id: ExecutionId
    attempt_index: AttemptIndex
    lease_id: LeaseId
    lease_epoch: LeaseEpoch
    attempt_id: AttemptId
    frame_type: str
    timestamp: TimestampMs
    payload: bytes
    encoding: str | None = None
    metadata_json: str | None = None
    correlation_id: str | None = None
    source: str | None = None
    retention_maxlen: int | None = None
    """0: do not trim."""
    max_payload_bytes: int | None = None
    """None: `limits.FRAME_BYTES`; may only lower it."""

    def __post_init__(self) -> None:
        checks.text(self.frame_type, "frame_type", limits.NAME_BYTES)
        checks.whole(self.retention_maxlen, "retention_maxlen", 0, checks.U32_MAX)
        checks.whole(self.max_payload_bytes, "max_payload_bytes", 1, limits.FRAME_BYTES)
        checks.size(self.payload, "payload", self.max_payload_bytes or limits.FRAME_BYTES)
        checks.size(self.metadata_json, "metadata_json", limits.REASON_BYTES, code="invalid_input")


# ---- read --------------------------------------------------------------------------------------------


class StreamFrame(Row):
    id: str
    fields: dict[str, str]
    """Sorted by name."""


class StreamFrames(Row):
    """`closed_reason`: attempt_success, attempt_failure, attempt_cancelled or attempt_interrupted."""

    frames: list[StreamFrame] = msgspec.field(default_factory=list[StreamFrame])
    closed_at: TimestampMs | None = None
    closed_reason: str | None = None

    @classmethod
    def empty_open(cls) -> StreamFrames:
        return cls()

    def is_closed(self) -> bool:
        """Nothing will follow: drain and stop."""
        return self.closed_at is not None


class Frames(Outcome, tag="frames"):
    frames: StreamFrames


ReadFramesResult = Frames


class ReadFramesArgs(Args[ReadFramesResult]):
    """Read frames between two positions, both included; `StreamCursor.to_wire` makes them."""

    FUNCTION: ClassVar[str] = "ff_read_attempt_stream"

    execution_id: ExecutionId
    attempt_index: AttemptIndex
    from_id: str
    to_id: str
    count_limit: int

    def __post_init__(self) -> None:
        checks.whole(self.count_limit, "count_limit", 1, STREAM_READ_HARD_CAP)
        for position in (self.from_id, self.to_id):
            if position not in ("-", "+"):
                StreamCursor.at(position)
