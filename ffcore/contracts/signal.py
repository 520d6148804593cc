"""Signals: messages to a waitpoint. A signal with a key is one signal however often it is sent."""

from __future__ import annotations

from typing import ClassVar

import msgspec

from ffcore import checks, limits
from ffcore.args import Args, Outcome, veiled
from ffcore.ids import ExecutionId, SignalId, TimestampMs, WaitpointId, WaitpointToken


class SignalDuplicate(Outcome, tag="duplicate"):
    """The same key at the same waitpoint: nothing happened. What the first one was answered stands for as long as its
    key is remembered, whatever has become of the execution since."""

    existing_signal_id: SignalId
    effect: str = ""


class Accepted(Outcome, tag="accepted"):
    signal_id: SignalId
    effect: str
    """`resume_condition_satisfied`: the execution goes on. `appended_to_waitpoint`: it waits for more, or does not wait
    yet. `appended_to_waitpoint_duplicate`, `signal_ignored_matcher_failed`, `signal_ignored_not_in_condition`: kept,
    and brought nothing forward."""


DeliverSignalResult = Accepted | SignalDuplicate


def _check(name: str, category: str, payload: bytes | None, encoding: str | None, key: str | None) -> None:
    checks.text(name, "signal_name", limits.NAME_BYTES)
    checks.text(category, "signal_category", limits.NAME_BYTES)
    checks.size(payload, "payload", limits.SIGNAL_BYTES)
    checks.text(encoding, "payload_encoding", limits.NAME_BYTES)
    checks.text(key, "idempotency_key")


@veiled("waitpoint_token")
class DeliverSignalArgs(Args[DeliverSignalResult]):
    """Deliver a signal; the execution resumes in the same call if it was waiting for just this.

    An empty token is not refused here: every way of having no right token is answered by the store, alike. A waitpoint
    that nothing waits at yet keeps the signal. target_scope, created_at and now are the caller's own records. How long
    a resumption is delayed is for the suspension's policy to say, not for the sender: resume_delay_ms changes nothing,
    nor does signal_maxlen, since no signal that was accepted is ever trimmed.
    """

    COMPOSED: ClassVar[bool] = True

    execution_id: ExecutionId
    waitpoint_id: WaitpointId
    signal_id: SignalId
    signal_name: str
    signal_category: str
    source_type: str
    source_identity: str
    payload: bytes | None = None
    payload_encoding: str | None = None
    correlation_id: str | None = None
    idempotency_key: str | None = None
    target_scope: str
    created_at: TimestampMs | None = None
    dedup_ttl_ms: int | None = None
    resume_delay_ms: int | None = None
    max_signals_per_execution: int | None = None
    """A call may only lower what the execution's policy allows; None: that."""
    signal_maxlen: int | None = None
    waitpoint_token: WaitpointToken
    now: TimestampMs = TimestampMs(0)
    operator: bool = False
    """An operator's signal needs no token and leaves an entry of its own in the feed; source_identity says whose."""

    def __post_init__(self) -> None:
        _check(self.signal_name, self.signal_category, self.payload, self.payload_encoding, self.idempotency_key)
        checks.whole(self.created_at, "created_at")
        checks.span_ms(self.dedup_ttl_ms, "dedup_ttl_ms")
        checks.span_ms(self.resume_delay_ms, "resume_delay_ms")
        checks.whole(self.max_signals_per_execution, "max_signals_per_execution")
        checks.whole(self.signal_maxlen, "signal_maxlen")


class Buffered(Outcome, tag="buffered"):
    signal_id: SignalId


BufferSignalResult = Buffered | SignalDuplicate


@veiled("waitpoint_token")
class BufferSignalArgs(Args[BufferSignalResult]):
    """The same for a waitpoint that nothing suspends on yet: kept, counts later. Nobody has to know which of the two to
    use; they are one."""

    FUNCTION: ClassVar[str] = "ff_buffer_signal_for_pending_waitpoint"
    COMPOSED: ClassVar[bool] = True

    execution_id: ExecutionId
    waitpoint_id: WaitpointId
    signal_id: SignalId
    signal_name: str
    signal_category: str
    source_type: str
    source_identity: str
    payload: bytes | None = None
    payload_encoding: str | None = None
    idempotency_key: str | None = None
    target_scope: str
    waitpoint_token: WaitpointToken
    now: TimestampMs = TimestampMs(0)

    def __post_init__(self) -> None:
        _check(self.signal_name, self.signal_category, self.payload, self.payload_encoding, self.idempotency_key)


# ---- on the wire: the token's digest in place of the token ----------------------------------------------


class DeliverSignalWireArgs(Args[DeliverSignalResult]):
    """What a DeliverSignalArgs becomes."""

    FUNCTION: ClassVar[str] = "ff_deliver_signal"
    WIRE: ClassVar[bool] = True

    execution_id: ExecutionId
    waitpoint_id: WaitpointId
    signal_id: SignalId
    signal_name: str
    signal_category: str
    source_type: str
    source_identity: str
    payload: bytes | None = None
    payload_encoding: str | None = None
    correlation_id: str | None = None
    idempotency_key: str | None = None
    dedup_ttl_ms: int | None = None
    max_signals_per_execution: int | None = None
    token_digest: str
    """SHA-256 of the token (`ffcore.tokens.digest`)."""
    operator: bool = False


class BufferSignalWireArgs(Args[BufferSignalResult]):
    """What a BufferSignalArgs becomes."""

    FUNCTION: ClassVar[str] = "ff_buffer_signal_for_pending_waitpoint"
    WIRE: ClassVar[bool] = True

    execution_id: ExecutionId
    waitpoint_id: WaitpointId
    signal_id: SignalId
    signal_name: str
    signal_category: str
    source_type: str
    source_identity: str
    payload: bytes | None = None
    payload_encoding: str | None = None
    correlation_id: str | None = None
    idempotency_key: str | None = None
    dedup_ttl_ms: int | None = None
    max_signals_per_execution: int | None = None
    token_digest: str
    operator: bool = False


# ---- what a resumed execution is told of them ----------------------------------------------------------


class ResumeSignal(msgspec.Struct, frozen=True, kw_only=True):
    """A signal that helped to resume an execution, as its handler sees it."""

    signal_id: SignalId
    signal_name: str
    signal_category: str
    source_type: str
    source_identity: str
    correlation_id: str
    accepted_at: TimestampMs
    payload: bytes | None = None
