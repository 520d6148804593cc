"""What has waited and what waits: the signals an execution was resumed with, and who is suspended."""

from __future__ import annotations

import msgspec

from ffcore import checks, limits
from ffcore.args import Args, Outcome, Row
from ffcore.contracts.signal import ResumeSignal
from ffcore.errors import EngineBug
from ffcore.ids import (
    AttemptIndex,
    ExecutionId,
    LaneId,
    PartitionKey,
    SignalId,
    SuspensionId,
    TimestampMs,
    WaitpointId,
)

# ---- what it was resumed with ------------------------------------------------------------------------


class ObservedSignal(Row):
    waitpoint_id: WaitpointId
    signal_id: SignalId
    name: str
    category: str
    source_type: str
    source_identity: str
    correlation_id: str
    accepted_at: TimestampMs
    idempotency_key: str
    payload_encoding: str
    payload: bytes

    @property
    def resume_signal(self) -> ResumeSignal:
        """The same in the contract's form."""
        return ResumeSignal(
            signal_id=self.signal_id, signal_name=self.name, signal_category=self.category,
            source_type=self.source_type, source_identity=self.source_identity, correlation_id=self.correlation_id,
            accepted_at=self.accepted_at, payload=self.payload,
        )  # fmt: skip


class ObservedSignals(Outcome, tag="signals"):
    suspension_id: SuspensionId
    """Empty: it never waited."""
    why: str
    """signal, operator or timeout; ended: the execution ended while it waited; empty: it waits."""
    resumed_at: TimestampMs
    signals: list[ObservedSignal]
    """Those that counted, in order of arrival."""
    next: int
    """Where the next page begins; 0: there is none."""


class ObserveSignalsArgs(Args[ObservedSignals]):
    """What the last suspension was resumed with, or has so far."""

    execution_id: ExecutionId
    skip: int = 0
    limit: int = limits.PAGE_N


class Waited(msgspec.Struct, frozen=True):
    """How a wait ended, as the journal keeps it."""

    why: str
    """signal, operator or timeout."""
    at_ms: TimestampMs
    signals: list[ObservedSignal]
    """Those that counted, in order of arrival."""


def parse_wait(value: bytes) -> Waited:
    """Read the value of a journal entry of kind wait: texts, each behind its length and a colon."""
    texts: list[bytes] = []
    at = 0
    while at < len(value):
        colon = value.index(b":", at)
        end = colon + 1 + int(value[at:colon])
        texts.append(value[colon + 1 : end])
        at = end
    width = len(ObservedSignal.__struct_fields__)
    if len(texts) < 2 or (len(texts) - 2) % width:
        raise EngineBug(f"a wait of {len(texts)} texts; two and then {width} for each signal were expected")
    signals: list[ObservedSignal] = []
    for i in range(2, len(texts), width):
        (waitpoint, signal, name, category, source, identity, correlation, accepted, key, encoding) = (
            text.decode() for text in texts[i : i + width - 1]
        )
        signals.append(ObservedSignal(
            WaitpointId(waitpoint), SignalId(signal), name, category, source, identity, correlation,
            TimestampMs(int(accepted)), key, encoding, texts[i + width - 1],
        ))  # fmt: skip
    return Waited(texts[0].decode(), TimestampMs(int(texts[1])), signals)


# ---- what is suspended -------------------------------------------------------------------------------


class SuspendedRow(Row):
    execution_id: ExecutionId
    lane_id: LaneId
    execution_kind: str
    reason: str
    """As it shows: a BlockingReason."""
    reason_code: str
    requested_by: str
    since: TimestampMs
    timeout_at: TimestampMs
    """0: none."""
    attempt_index: AttemptIndex
    waitpoints_n: int
    paused: bool


class SuspendedPage(Outcome, tag="suspended_page"):
    rows: list[SuspendedRow]
    now_ms: TimestampMs
    next_cursor: str
    """Empty: that was all."""


class ListSuspendedArgs(Args[SuspendedPage]):
    """Suspended executions of one partition, those that have waited longest first within a lane."""

    partition: PartitionKey
    lane_id: LaneId | None = None
    limit: int = limits.PAGE_N
    cursor: str | None = None

    def __post_init__(self) -> None:
        checks.page(self.limit)
