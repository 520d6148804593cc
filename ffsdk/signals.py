"""Signals: sending one to a gate, and what a handler gets of those it waited for.

A gate's token says where its signal goes, so a sender needs nothing else. A signal with a key is one signal however
often it is sent, also after the job has gone on, or ended.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from ffcore import checks, ids, limits
from ffcore.errors import InvalidArgument
from ffcore.ids import ExecutionId, SignalId, WaitpointId, WaitpointToken
from ffsdk import payload as payloads

if TYPE_CHECKING:
    from ffcore.backend import Backend
    from ffsdk.gates import Gate
    from ffsdk.views import Waitpoint

ENCODING = "json"
NAME = "signal"
"""Of a signal whose sender gave none."""
APPROVED = "approved"
"""Of an operator's."""
SOURCE = "client"


class Signal(msgspec.Struct, frozen=True, kw_only=True):
    """A signal that a handler waited for."""

    gate: Gate[Any]
    """Equal to its own name, too: ``signal.gate == "manager"``."""
    name: str
    value: Any
    """Of the gate's type."""
    source: str
    key: str | None
    """None: its sender gave none."""


class SignalAnswer(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """What became of a signal. Answers to the same signal are equal, however often it was sent."""

    signal_id: str
    effect: str
    """`resume_condition_satisfied`: the job goes on. `appended_to_waitpoint`: kept, the job waits for more, or does not
    wait yet. `appended_to_waitpoint_duplicate`: kept, but what it would count for is met.
    `signal_ignored_matcher_failed`: kept, but the gate accepts other names. `signal_ignored_not_in_condition`:
    kept, but the job waits for something else."""
    duplicate: bool = False
    """It was sent before; nothing happened this time."""

    @property
    def ignored(self) -> bool:
        return self.effect.startswith("signal_ignored")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SignalAnswer) and (other.signal_id, other.effect) == (self.signal_id, self.effect)

    def __hash__(self) -> int:
        return hash((self.signal_id, self.effect))


# ---- by token --------------------------------------------------------------------------------------------


async def send(
    backend: Backend, token: str, value: Any, *, name: str | None, key: str | None, source: str | None,
    execution_id: str | None, waitpoint_id: str | None,
) -> SignalAnswer:  # fmt: skip
    """See `ffsdk.client.Client.signal`."""
    from ffcore import tokens

    place = tokens.parse_gate_token(token)
    there = ids.partition_index(ids.partition_of(place.execution_id)) < backend.config.fp
    if not there or execution_id not in (None, place.execution_id) or waitpoint_id not in (None, place.waitpoint_id):
        # Said in the store's own words, so that nobody can tell which part of a token was wrong.
        raise tokens.refusal("invalid_token")
    return await _deliver(
        backend, place.execution_id, place.waitpoint_id, value, name=NAME if name is None else name, key=key,
        source=SOURCE if source is None else source, token=place.token,
    )  # fmt: skip


async def _deliver(
    backend: Backend, execution_id: ExecutionId, waitpoint_id: WaitpointId, value: Any, *, name: str, key: str | None,
    source: str, token: WaitpointToken | None,
) -> SignalAnswer:  # fmt: skip
    """token: None for an operator's."""
    from ffcore.contracts.signal import DeliverSignalArgs, SignalDuplicate

    signal_id = SignalId(ids.uuid7())
    kind, identity = source_parts(source)
    answer = await backend.call(DeliverSignalArgs(
        execution_id=execution_id, waitpoint_id=waitpoint_id, signal_id=signal_id, signal_name=name,
        signal_category="operator" if token is None else "external", source_type=kind, source_identity=identity,
        payload=encoded(value), payload_encoding=ENCODING,
        # Without a key the signal is its own: what is sent again after a lost reply is still one.
        idempotency_key=signal_id if key is None else key, target_scope="waitpoint",
        waitpoint_token=WaitpointToken("") if token is None else token, operator=token is None,
    ))  # fmt: skip
    if isinstance(answer, SignalDuplicate):
        return SignalAnswer(signal_id=answer.existing_signal_id, effect=answer.effect, duplicate=True)
    return SignalAnswer(signal_id=answer.signal_id, effect=answer.effect)


# ---- by an operator --------------------------------------------------------------------------------------


async def approve(
    backend: Backend, execution_id: ExecutionId, gate: str | None, value: Any, *, name: str | None, key: str | None,
    who: str,
) -> tuple[SignalAnswer, str]:  # fmt: skip
    """Answer one of a job's open gates without its token, as the operator `who`; also answers the gate's name.

    gate   its name or waitpoint id; None: the only one the job waits at, or has open
    """
    from ffcore.contracts.reads import ReadExecutionArgs
    from ffsdk.recorded import waitpoints_of

    stored = await backend.call(ReadExecutionArgs(execution_id=execution_id))
    chosen = choose(await waitpoints_of(backend, stored), gate, execution_id)
    answer = await _deliver(
        backend, execution_id, WaitpointId(chosen.waitpoint_id), value, name=name or _name_for(chosen), key=key,
        source=f"operator:{who}", token=None,
    )  # fmt: skip
    return answer, chosen.gate


def choose(opened: Sequence[Waitpoint], gate: str | None, execution_id: str) -> Waitpoint:
    """The gate an operator means. InvalidArgument, with the names of those there are, if that cannot be told."""
    if gate is not None:
        found = [one for one in opened if gate in (one.gate, one.waitpoint_id)]
    else:
        found = [one for one in opened if one.state == "active"] or list(opened)
    if len(found) == 1:
        return found[0]
    names = ", ".join(sorted(one.gate for one in opened))
    if not opened:
        raise InvalidArgument(f"{execution_id} has no open gate; to let it go on, resume it (`ff job resume`)")
    if gate is None:
        raise InvalidArgument(f"{execution_id} has several open gates: name one of {names}")
    raise InvalidArgument(f"{execution_id} has no open gate {gate!r:.80}; open are {names}")


def _name_for(gate: Waitpoint) -> str:
    """A name that counts at this gate."""
    if not gate.names or APPROVED in gate.names:
        return APPROVED
    if len(gate.names) == 1:
        return gate.names[0]
    raise InvalidArgument(f"gate {gate.gate} accepts several names: say which of {', '.join(gate.names)} this is")


# ---- on the wire -----------------------------------------------------------------------------------------


def encoded(value: Any) -> bytes:
    """A signal's value on the wire."""
    return payloads.encode(value, "the signal's value", limits.SIGNAL_BYTES)


def source_parts(source: str) -> tuple[str, str]:
    """`web:dana` is of type `web` and identity `dana`; a source without a colon is all type."""
    checks.text(source, "source", limits.NAME_BYTES)
    kind, _, identity = source.partition(":")
    return kind, identity


def source_text(kind: str, identity: str) -> str:
    """The source as its sender wrote it."""
    return f"{kind}:{identity}" if identity else kind
