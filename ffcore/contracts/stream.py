"""Streams: frames an attempt emits, the cursors readers resume from, and the summary document beside them.

A cursor's public grammar is start, end or an entry id; the store's own markers for the ends never leave it.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import ClassVar, Final, Literal, Self

import msgspec

from ffcore import checks, limits
from ffcore.args import Args, Outcome, Row
from ffcore.contracts.batch import Fence
from ffcore.contracts.lease import LeaseFence
from ffcore.contracts.text import Text
from ffcore.errors import InvalidArgument
from ffcore.ids import AttemptId, AttemptIndex, ExecutionId, LeaseEpoch, LeaseId, PartitionKey, TimestampMs

STREAM_READ_HARD_CAP: Final = limits.STREAM_READ_N
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
    """Of this attempt, both modes, trimmed ones too."""
    replayed: bool = False
    """The operation was known: nothing was appended. The id is that of the lease's latest operation."""


AppendFrameResult = Appended


FrameMode = Literal["append", "best_effort"]
"""Kept with the stream, or for whoever looks now. The seed's third mode, the summary, has operations of its own."""


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
    mode: FrameMode = "append"
    op: int | None = None
    """Rises with every append of the lease: one that is not above the last is a repeat. None: every call appends."""

    OFF_WIRE: ClassVar[frozenset[str]] = frozenset({"attempt_index"})
    """The lease says which attempt it is of."""

    def __post_init__(self) -> None:
        checks.text(self.frame_type, "frame_type", limits.NAME_BYTES)
        checks.whole(self.op, "op", 1, limits.VERSION_MAX * 1_000_000)
        checks.whole(self.retention_maxlen, "retention_maxlen", 0, checks.U32_MAX)
        checks.whole(self.max_payload_bytes, "max_payload_bytes", 1, limits.FRAME_BYTES)
        checks.size(self.payload, "payload", self.max_payload_bytes or limits.FRAME_BYTES)
        checks.size(self.metadata_json, "metadata_json", limits.REASON_BYTES, code="invalid_input")


# ---- read --------------------------------------------------------------------------------------------


class StreamFrame(Row):
    id: str
    fields: dict[str, str]
    """Sorted by name: frame_type, mode, ts, and what else the frame was given."""
    payload: bytes = b""
    """Beside the other fields, because it is no text."""


class StreamFrames(Row):
    """`closed_reason`: attempt_success, attempt_failure, attempt_cancelled or attempt_interrupted."""

    frames: list[StreamFrame] = msgspec.field(default_factory=list[StreamFrame])
    closed_at: TimestampMs | None = None
    closed_reason: str | None = None
    more: bool = False
    """Frames of the range are left: one answer carries `limits.CLAIM_BYTES`. Read on behind the last one's id."""

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
    visibility: TailVisibility = TailVisibility.ALL

    def __post_init__(self) -> None:
        checks.whole(self.count_limit, "count_limit", 1, STREAM_READ_HARD_CAP)
        for position in (self.from_id, self.to_id):
            if position not in ("-", "+"):
                StreamCursor.at(position)


# ---- many at once --------------------------------------------------------------------------------------


class NewFrame(Row):
    execution_id: ExecutionId
    fence: Fence
    op: int
    frame_type: str
    mode: FrameMode
    payload: bytes
    encoding: str | None = None
    correlation_id: str | None = None


class ItemAppended(Row):
    state: Literal["appended", "replayed", "error"]
    detail: str
    """The frame's id (of a repeat: the lease's latest); for `error` the code."""
    text: str = ""
    """What the store said of the refusal."""


class AppendedMany(Outcome, tag="appended_many"):
    items: list[ItemAppended]


class AppendFramesArgs(Args[AppendedMany]):
    """Append up to 200 frames of executions of one partition, in order; each is answered on its own.

    Frames of one lease must come in the order of their operation numbers: have one call with them under way at a time.
    """

    partition: PartitionKey
    retention_maxlen: int | None = None
    """Frames to keep per stream and kind; None: the usual number, 0: all."""
    items: list[NewFrame]

    def __post_init__(self) -> None:
        checks.whole(self.retention_maxlen, "retention_maxlen", 0, checks.U32_MAX)


# ---- all attempts as one stream --------------------------------------------------------------------------


class TailFrame(Row):
    attempt_index: AttemptIndex
    id: str
    frame_type: str
    payload: bytes
    encoding: str
    correlation_id: str
    best_effort: bool


class StreamGap(Row):
    """Frames of an attempt that were kept once and are no longer, because more came than its stream holds."""

    before: str
    """The oldest frame that is left; it is on the page."""
    dropped: int
    """How many are gone. A reader who comes from behind the first of them has missed fewer."""


class StreamPage(Outcome, tag="page"):
    frames: list[TailFrame]
    cursor: str
    """Behind the last frame of the page; read on from here."""
    at_attempt: int
    """The attempt that the place asked for lies in; -1: before the first frame."""
    attempt_index: int
    """The attempt the execution is at; -1: none was started."""
    state: str
    """The stored state it ended in; empty: more frames may come."""
    more: bool
    gaps: list[StreamGap] = []  # noqa: RUF012 - msgspec copies it


class ReadStreamArgs(Args[StreamPage]):
    """An execution's frames behind a place, of all its attempts, in order. Ids rise over attempts: one id is a place.

    `after`: an entry id, ``-`` (from the first frame kept) or ``+`` (from here on). When nothing is left,
    `Backend.stream_channel(execution_id)` has a message for every change: the last id when frames came, else a word.
    """

    execution_id: ExecutionId
    after: str = "-"
    limit: int = 1000
    visibility: TailVisibility = TailVisibility.ALL

    def __post_init__(self) -> None:
        checks.whole(self.limit, "limit", 1, STREAM_READ_HARD_CAP)
        if self.after not in ("-", "+"):
            StreamCursor.at(self.after)


# ---- the summary -----------------------------------------------------------------------------------------


class Summary(Outcome, tag="summary"):
    summary: SummaryDocument | None
    """None: nothing was written yet."""


class ReadSummaryArgs(Args[Summary]):
    """The summary document of an execution's present run."""

    execution_id: ExecutionId


class SummaryWritten(Outcome, tag="written"):
    version: int


class WriteSummaryArgs(Args[SummaryWritten]):
    """Replace the summary by what a patch made of the version that was read; refused, `revision_conflict`, when that is
    no longer the latest. Sent again after a lost reply it answers the same."""

    execution_id: ExecutionId
    fence: LeaseFence
    document_json: bytes
    expected_version: int
    """0: there was none."""

    def __post_init__(self) -> None:
        checks.size(self.document_json, "document_json", limits.SUMMARY_BYTES)
        checks.whole(self.expected_version, "expected_version", 0, limits.VERSION_MAX * 1_000_000)
