"""Gates: places where a handler waits for the outside world, opened before anybody is told of them.

    gate = await ctx.gate("manager", Verdict)
    await ctx.step("ask", send_mail, gate.token)
    verdict = await gate.wait(timeout=3600, on_timeout="resume")

Opening is journaled: a handler that runs again gets the same gate, so a token that has left the house stays good. A
wait gives up the lease and the worker's slot; when it is over, the handler runs again and finds the answer recorded.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, TypeVar, cast

from ffcore import checks, ids, limits, tokens
from ffcore.errors import InvalidArgument, InvalidToken, SecretMissing, alike
from ffcore.ids import AttemptIndex, ExecutionId, SuspensionId, WaitpointId
from ffcore.steps import digest_of_text
from ffsdk import payload as payloads
from ffsdk import steps, times
from ffsdk.conditions import Condition, check_names, matcher_of, together
from ffsdk.errors import GateTimeout, InvalidSignal
from ffsdk.signals import Signal, source_text

if TYPE_CHECKING:
    from ffcore.contracts.condition import ResumeCondition
    from ffsdk.context import Context
    from ffsdk.durable import Durable

T = TypeVar("T")

OPENED: Final = digest_of_text("gate")
"""A gate is known by its name, and how many of that name came before."""
OnTimeout = Literal["fail", "cancel", "expire", "resume", "escalate"]
BEHAVIORS: Final = {
    "fail": "fail", "cancel": "cancel", "expire": "expire", "resume": "auto_resume_with_timeout_signal",
    "escalate": "escalate",
}  # fmt: skip


class Gate(Condition, Generic[T]):
    """An open gate of a running handler. Equal to its own name, so that ``signal.gate == "manager"`` works.

    name, execution_id, waitpoint_id, names (those that count; None: any)
    """

    __slots__ = ("_ctx", "_decoder", "_token", "execution_id", "name", "names", "waitpoint_id", "waitpoint_key")

    def __init__(
        self, ctx: Context, name: str, names: tuple[str, ...] | None, decoder: Any, waitpoint_id: str,
        waitpoint_key: str, token: str | InvalidToken,
    ) -> None:  # fmt: skip
        self.name, self.names, self.execution_id = name, names, ctx.execution_id
        self.waitpoint_id, self.waitpoint_key = waitpoint_id, waitpoint_key
        self._ctx, self._decoder, self._token = ctx, decoder, token

    @property
    def token(self) -> str:
        """What opens it: one URL-safe text that says where it leads. Whoever has it may signal; treat it as a password.

        Raises InvalidToken if the secret that made it has left the ring (waiting still works).
        """
        if isinstance(self._token, InvalidToken):
            raise alike(self._token)
        return self._token

    async def wait(self, timeout: times.Duration | None = None, on_timeout: OnTimeout = "fail") -> T | Any:
        """Suspend until a signal comes; answers its value, of the gate's type. None: an operator let the job go on.

        on_timeout   what happens after `timeout`: "fail", "cancel" or "expire" end the job; "resume" raises GateTimeout
                     here, with the gate still open; "escalate" waits as long again for an operator, then fails

        Raises InvalidSignal for a value that is not of the gate's type. Holds no worker meanwhile: what the handler
        did before is not done again where it was a step.
        """
        received = await wait(self._ctx, [self], timeout, on_timeout)
        return received[-1].value if received else None

    # ---- as a condition

    def gates(self) -> list[Gate[Any]]:
        return [self]

    def contract(self) -> ResumeCondition:
        from ffcore.contracts.condition import Single

        return Single(self.waitpoint_key, matcher_of(self.names))

    def decode(self, raw: bytes | None, signal: str, source: str) -> T:
        try:
            return cast("T", payloads.decode(self._decoder, raw or b"null", f"the signal {signal!r} from {source}"))
        except InvalidArgument as unfit:
            raise InvalidSignal(f"gate {self.name}: {unfit}", gate=self.name, raw=raw) from unfit

    def model_dump(self, *, mode: str = "json") -> str:
        """What it is in a result or a step: its name. (Payloads ask for it as they ask a pydantic model.)"""
        return self.name

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return f"<Gate {self.waitpoint_key} of {self.execution_id}>"

    def __eq__(self, other: object) -> bool:
        if isinstance(other, str):
            return other == self.name
        return isinstance(other, Gate) and other.waitpoint_id == self.waitpoint_id

    def __hash__(self) -> int:
        return hash(self.name)


# ---- opening ---------------------------------------------------------------------------------------------


async def open_gate(
    ctx: Context, name: str, type_: type[T] | Any = Any, names: str | Iterable[str] | None = None
) -> Gate[T]:
    """See `ffsdk.context.Context.gate`."""
    steps.check_name(name, "gate")
    accepted, decoder = check_names(names), payloads.decoder(type_, f"gate {name}")
    durable = ctx.durable
    with durable.in_flight(name):
        # Its type and names are not part of what it is: code may learn to accept more while a job waits.
        step, entry = await durable.claim("gate", name, OPENED)
        if entry is None:
            waitpoint_id, key, token = await _open(durable, name, step)
        else:
            waitpoint_id, key, kid = tokens.GateRecord.parse(entry.value)
            token = await _minted(durable, name, waitpoint_id, key, kid)
    return Gate(ctx, name, accepted, decoder, waitpoint_id, key, token)


async def _open(durable: Durable, name: str, step: str) -> tuple[str, str, str | InvalidToken]:
    """Open it in the store, which records that in the same call; answers waitpoint, key and token."""
    from ffcore.contracts.waitpoint import CreatePendingWaitpointArgs

    fence, execution_id = durable.fence, ExecutionId(durable.execution_id)
    made = await durable.call(CreatePendingWaitpointArgs(
        execution_id=execution_id, lease_id=fence.lease_id, lease_epoch=fence.lease_epoch, attempt_id=fence.attempt_id,
        attempt_index=AttemptIndex(durable.ctx.attempt), waitpoint_id=WaitpointId(ids.uuid7()),
        waitpoint_key=key_of(name, step), expires_in_ms=limits.SPAN_MAX_MS, step=step, step_name=name,
        version=durable.version,
    ))  # fmt: skip
    if not made.waitpoint_token:  # an earlier call of this step had opened it, and its reply was lost
        return made.waitpoint_id, made.waitpoint_key, _lost(name, made.kid)
    token = tokens.gate_token(execution_id, made.waitpoint_id, made.waitpoint_token)
    return made.waitpoint_id, made.waitpoint_key, token


async def _minted(durable: Durable, name: str, waitpoint_id: str, key: str, kid: str) -> str | InvalidToken:
    """The token of a gate that is open already; the store is not asked. Where there is no secret any more, waiting must
    still work: reading the token raises what this answers."""
    from ffcore.contracts.secret import MintTokenArgs

    if not kid:
        return _lost(name, kid)
    try:
        made = await durable.host.backend.call(MintTokenArgs(
            execution_id=ExecutionId(durable.execution_id), waitpoint_id=WaitpointId(waitpoint_id), waitpoint_key=key,
            kid=kid,
        ))  # fmt: skip
    except (InvalidToken, SecretMissing):
        return _lost(name, kid)
    return tokens.gate_token(durable.execution_id, waitpoint_id, made.token)


def _lost(name: str, kid: str) -> InvalidToken:
    return InvalidToken(
        f"the secret that made the token of gate {name} (kid {kid or 'none'}) has left the ring, so it cannot be made "
        "again: put it back into the secret file, or open another gate", code="invalid_token",
    )  # fmt: skip


def key_of(name: str, step: str) -> str:
    """What a gate is called outside: its name, and which of the gates of this name it is."""
    nth = int(step.rpartition(".")[2])
    return name if nth == 0 else f"{name}#{nth + 1}"


# ---- waiting ---------------------------------------------------------------------------------------------


async def wait(
    ctx: Context, conditions: Sequence[Any], timeout: times.Duration | None = None, on_timeout: OnTimeout = "fail"
) -> list[Signal]:
    """See `ffsdk.context.Context.wait`."""
    from ffcore import conditions as compiled
    from ffcore.contracts.suspension import (
        SuspensionReasonCode,
        TimeoutBehavior,
        WaitArgs,
        WaitedWaitpoint,
        WaitSuspended,
    )

    condition, timeout_ms = together(conditions), times.optional_ms(timeout, "timeout")
    if not isinstance(on_timeout, str) or on_timeout not in BEHAVIORS:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidArgument(f"on_timeout is {checks.shown(on_timeout)}: use {', '.join(BEHAVIORS)}")
    if timeout is None and on_timeout != "fail":
        raise InvalidArgument(f"on_timeout={on_timeout!r} without timeout= would never happen: say when")
    gates = condition.gates()
    for gate in gates:
        if gate.execution_id != ctx.execution_id:
            raise InvalidArgument(f"gate {gate} belongs to another job: a handler waits at gates it has opened itself")
    contract = condition.contract()
    durable = ctx.durable
    name, text = step_name(str(condition)), identity(condition)
    with durable.in_flight(name):
        step, entry = await durable.claim("wait", name, digest_of_text(text))
    if entry is not None:
        return received(condition, entry.value, timeout_ms)
    reason = SuspensionReasonCode.WAITING_FOR_SIGNAL if gates else SuspensionReasonCode.WAITING_FOR_OPERATOR_REVIEW
    answer = await durable.suspend(WaitArgs(
        execution_id=ExecutionId(ctx.execution_id), fence=durable.fence, suspension_id=SuspensionId(ids.uuid7()),
        step=step, step_name=name, version=durable.version,
        condition=compiled.compile_condition(contract, [gate.waitpoint_key for gate in gates]),
        timeout_ms=timeout_ms, timeout_behavior=TimeoutBehavior(BEHAVIORS[on_timeout]), reason_code=reason,
        waitpoints=[WaitedWaitpoint(WaitpointId(gate.waitpoint_id)) for gate in gates],
    ))  # fmt: skip
    assert not isinstance(answer, WaitSuspended), "the job is suspended, and its handler goes on"
    return received(condition, answer.value, timeout_ms)


def received(condition: Condition, value: bytes, timeout_ms: int | None) -> list[Signal]:
    """What a recorded wait came to: its signals in order of arrival. Raises GateTimeout, InvalidSignal."""
    from ffcore.contracts.suspended import parse_wait

    waited, gates = parse_wait(value), {gate.waitpoint_id: gate for gate in condition.gates()}
    found: list[Signal] = []
    for one in waited.signals:
        gate, source = gates[one.waitpoint_id], source_text(one.source_type, one.source_identity)
        found.append(Signal(
            gate=gate, name=one.name, value=gate.decode(one.payload, one.name, source), source=source,
            # Its own id is what the client sends in place of no key.
            key=None if one.idempotency_key in ("", one.signal_id) else one.idempotency_key,
        ))  # fmt: skip
    if waited.why == "timeout":
        raise GateTimeout(str(condition), timeout_ms or 0, found)
    return found


def step_name(text: str) -> str:
    """A condition as the journal names the wait for it."""
    raw = text.encode()
    return text if len(raw) <= limits.NAME_BYTES else raw[: limits.NAME_BYTES - 3].decode(errors="ignore") + "..."


def identity(condition: Condition) -> str:
    """What makes a wait this wait: what it is made of, and exactly which gates."""
    return " ".join(["wait", str(condition), *(gate.waitpoint_key for gate in condition.gates())])
