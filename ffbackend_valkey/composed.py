"""Requests that no function takes as they are: what must not travel stays here, what is needed first is made here.

    tokens     minted from the ring; the store gets their digests, and of signals that come in too
    secrets    stay in the ring; the store gets their fingerprints
    a suspend  gets its condition compiled and its fresh waitpoints' tokens
    rotate_all is a rotation in each partition
    a flow     is sent, described and cancelled by parts (`composed_flow.py`)

A partition that has never heard of a kid is told of ours when it first refuses one (`invalid_kid`); one that signs with
another kid is followed, since a rotation reaches the partitions one by one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, NamedTuple, TypeVar

import msgspec

from ffbackend_valkey import composed_flow
from ffbackend_valkey.composed_flow import Call
from ffbackend_valkey.secrets import Secrets
from ffcore import tokens
from ffcore.args import Args
from ffcore.backend import StoreConfig
from ffcore.conditions import compile_condition, keys_of
from ffcore.contracts.attempt import Handle, HandleKind
from ffcore.contracts.condition import ResumeCondition
from ffcore.contracts.lease import LeaseFence
from ffcore.contracts.secret import (
    MintTokenArgs,
    Noop,
    Rotated,
    RotateFailed,
    RotateWaitpointHmacSecretAllArgs,
    RotateWaitpointHmacSecretAllEntry,
    RotateWaitpointHmacSecretAllResult,
    RotateWaitpointHmacSecretArgs,
    RotateWaitpointHmacSecretWireArgs,
    Seeded,
    SeedOutcome,
    SeedWaitpointHmacSecretArgs,
    SeedWaitpointHmacSecretWireArgs,
    TokenMinted,
)
from ffcore.contracts.signal import (
    BufferSignalArgs,
    BufferSignalResult,
    BufferSignalWireArgs,
    DeliverSignalArgs,
    DeliverSignalResult,
    DeliverSignalWireArgs,
)
from ffcore.contracts.suspension import (
    AdditionalWaitpointBinding,
    BoundWaitpoint,
    ExecutionSuspended,
    Fresh,
    ResumePolicy,
    SuspendAlreadySatisfied,
    SuspendArgs,
    Suspended,
    SuspendExecutionArgs,
    SuspendExecutionResult,
    SuspendOutcome,
    SuspendOutcomeDetails,
    SuspendWaitpoint,
    SuspendWireArgs,
    SuspendWireResult,
    SuspensionAlreadySatisfied,
    TimeoutBehavior,
    UsePending,
    WaitpointBinding,
    WireSuspended,
)
from ffcore.contracts.waitpoint import (
    CreatePendingWaitpointArgs,
    CreatePendingWaitpointWireArgs,
    WaitpointCreated,
    WaitpointHmac,
)
from ffcore.errors import EngineBug, EngineError, InvalidArgument, InvalidToken, Rejected, SecretMissing
from ffcore.ids import PartitionKey, WaitpointToken, check_id, partition_index, partition_of

R = TypeVar("R")
W = TypeVar("W")

TRIES_N: Final = 3
"""With our kid, with the one the partition named, and once more when a rotation came between."""
NO_KID: Final = "."
"""No kid is called this: whatever is new is refused under it, and what is there is found."""
ROTATIONS_N: Final = 16
"""Partitions of a rotation that are asked at once."""


FUNCTIONS: Final[dict[type[Args[Any]], tuple[str, ...]]] = {
    DeliverSignalArgs: ("ff_deliver_signal",),
    BufferSignalArgs: ("ff_buffer_signal_for_pending_waitpoint",),
    CreatePendingWaitpointArgs: ("ff_create_pending_waitpoint", "ff_seed_waitpoint_hmac_secret"),
    SuspendArgs: ("ff_suspend", "ff_seed_waitpoint_hmac_secret"),
    SuspendExecutionArgs: ("ff_suspend", "ff_seed_waitpoint_hmac_secret"),
    MintTokenArgs: (),
    SeedWaitpointHmacSecretArgs: ("ff_seed_waitpoint_hmac_secret",),
    RotateWaitpointHmacSecretArgs: ("ff_rotate_waitpoint_hmac_secret",),
    RotateWaitpointHmacSecretAllArgs: ("ff_rotate_waitpoint_hmac_secret",),
    **composed_flow.FUNCTIONS,
}
"""Which functions of the library each of them may call."""


class _Signed(NamedTuple):
    """A ring, and the kid of it that a partition signs with."""

    ring: tokens.Ring
    kid: str


class Composed:
    """Makes of each composed request what the store takes, and of its answer what the caller expects."""

    def __init__(self, secrets: Callable[[], Secrets], config: Callable[[], StoreConfig]) -> None:
        """secrets: where they come from, asked when one is first needed."""
        self._open, self._config = secrets, config
        self._source: Secrets | None = None
        self._kids: dict[str, str] = {}
        """The kid each partition was last seen to sign with."""
        self._does: dict[type[Args[Any]], Callable[[Any, Call], Awaitable[Any]]] = {
            DeliverSignalArgs: self._deliver,
            BufferSignalArgs: self._buffer,
            CreatePendingWaitpointArgs: self._create,
            SuspendArgs: self._suspend,
            SuspendExecutionArgs: self._suspend_execution,
            MintTokenArgs: self._mint,
            SeedWaitpointHmacSecretArgs: self._seed,
            RotateWaitpointHmacSecretArgs: self._rotate,
            RotateWaitpointHmacSecretAllArgs: self._rotate_all,
            **composed_flow.DOES,
        }

    async def call(self, args: Args[R], call: Call) -> R:
        """Do one request by means of `call`."""
        does = self._does.get(type(args))
        if does is None:
            raise EngineBug(f"{type(args).__name__} is composed, and nothing here composes it")
        answer: R = await does(args, call)
        return answer

    @property
    def secrets(self) -> Secrets:
        if self._source is None:
            self._source = self._open()
        return self._source

    # ---- signals

    async def _deliver(self, args: DeliverSignalArgs, call: Call) -> DeliverSignalResult:
        self._in_this_store(args)
        return await call(DeliverSignalWireArgs(
            execution_id=args.execution_id, waitpoint_id=args.waitpoint_id, signal_id=args.signal_id,
            signal_name=args.signal_name, signal_category=args.signal_category, source_type=args.source_type,
            source_identity=args.source_identity, payload=args.payload, payload_encoding=args.payload_encoding,
            correlation_id=args.correlation_id, idempotency_key=args.idempotency_key, dedup_ttl_ms=args.dedup_ttl_ms,
            max_signals_per_execution=args.max_signals_per_execution,
            token_digest="" if args.operator else tokens.digest(args.waitpoint_token), operator=args.operator,
        ))  # fmt: skip

    async def _buffer(self, args: BufferSignalArgs, call: Call) -> BufferSignalResult:
        self._in_this_store(args)
        return await call(BufferSignalWireArgs(
            execution_id=args.execution_id, waitpoint_id=args.waitpoint_id, signal_id=args.signal_id,
            signal_name=args.signal_name, signal_category=args.signal_category, source_type=args.source_type,
            source_identity=args.source_identity, payload=args.payload, payload_encoding=args.payload_encoding,
            idempotency_key=args.idempotency_key, token_digest=tokens.digest(args.waitpoint_token),
        ))  # fmt: skip

    def _in_this_store(self, args: DeliverSignalArgs | BufferSignalArgs) -> None:
        """A token that leads to a partition this store does not have is as wrong as any other."""
        check_id(args.execution_id)
        if partition_index(partition_of(args.execution_id)) >= self._config().fp:
            raise tokens.refusal("invalid_token" if args.waitpoint_token else "missing_token", args.execution_id)

    # ---- waitpoints

    async def _create(self, args: CreatePendingWaitpointArgs, call: Call) -> WaitpointCreated:
        check_id(args.execution_id)
        where = (args.execution_id, args.waitpoint_id, args.waitpoint_key)

        async def open_with(signed: _Signed | None) -> WaitpointCreated:
            token = signed.ring.mint(*where, signed.kid) if signed else None
            opened = await call(CreatePendingWaitpointWireArgs(
                execution_id=args.execution_id, fence=LeaseFence(args.lease_id, args.lease_epoch, args.attempt_id),
                waitpoint_id=args.waitpoint_id, waitpoint_key=args.waitpoint_key, expires_in_ms=args.expires_in_ms,
                kid=signed.kid if signed else NO_KID, token_digest=tokens.digest(token or NO_KID),
                step=args.step, step_name=args.step_name, version=args.version,
            ))  # fmt: skip
            if opened.replayed or token is None:
                # What was opened before may have been signed by another kid, or be another waitpoint altogether.
                ring = signed.ring if signed else None
                token = _minted(ring, args.execution_id, opened.waitpoint_id, opened.waitpoint_key, opened.kid)
            return WaitpointCreated(opened.waitpoint_id, opened.waitpoint_key, token, opened.kid, opened.replayed)

        try:
            return await self._signing(partition_of(args.execution_id), open_with, call)
        except SecretMissing as missing:
            # What was opened before is found without a secret; only a new one needs a token.
            try:
                return await open_with(None)
            except Rejected as refused:
                raise (missing if refused.code == "invalid_kid" else refused) from None

    async def _signing(
        self, partition: PartitionKey, attempt: Callable[[_Signed | None], Awaitable[W]], call: Call
    ) -> W:
        """Make a request whose tokens the kid of a partition must sign, and follow the partition in which that is."""
        tries_n = 0
        while True:
            tries_n += 1
            ring = await self.secrets.ring(fresh=tries_n > 1)
            known = self._kids.get(partition, "")
            signed = _Signed(ring, known if known in ring else ring.current)
            try:
                answer = await attempt(signed)
            except Rejected as refused:
                if refused.code != "invalid_kid" or tries_n == TRIES_N:
                    raise
                await self._follow(partition, refused.detail, call)
            else:
                self._kids[partition] = signed.kid
                return answer

    async def _follow(self, partition: PartitionKey, signs: str, call: Call) -> None:
        """A partition refused our kid: none signs there yet (NO_KID: ours does from now on), or another one does."""
        ring = await self.secrets.ring(fresh=True)
        if signs == NO_KID:
            seeded = await call(SeedWaitpointHmacSecretWireArgs(
                kid=ring.current, fingerprint=ring.fingerprint(ring.current), at=partition
            ))  # fmt: skip
            signs = seeded.kid
        if signs not in ring:
            raise SecretMissing(
                f"kid {signs} signs in {partition}, and its secret is not among ours ({', '.join(ring.kids)}): give "
                "this program the ring that the others have, or rotate to one of these (`ff secret rotate`)"
            )
        self._kids[partition] = signs

    async def _mint(self, args: MintTokenArgs, call: Call) -> TokenMinted:
        ring = await self.secrets.ring()
        kid = args.kid or ring.current
        if kid not in ring:
            ring = await self.secrets.ring(fresh=True)
        return TokenMinted(ring.mint(args.execution_id, args.waitpoint_id, args.waitpoint_key, kid), kid)

    # ---- suspensions

    async def _suspend(self, args: SuspendArgs, call: Call) -> SuspendOutcome:
        check_id(args.at)
        keys = keys_of(args.waitpoints, args.resume_condition)
        policy = args.resume_policy
        wire = SuspendWireArgs(
            execution_id=args.at, fence=args.fence, suspension_id=args.suspension_id,
            condition=compile_condition(args.resume_condition, keys), reason_code=args.reason_code,
            requested_by=args.requested_by, timeout_at=args.timeout_at, timeout_behavior=args.timeout_behavior,
            consume_matched_signals=policy.consume_matched_signals,
            retain_signal_buffer_until_closed=policy.retain_signal_buffer_until_closed,
            close_waitpoint_on_resume=policy.close_waitpoint_on_resume, resume_delay_ms=policy.resume_delay_ms,
            continuation_metadata_pointer=args.continuation_metadata_pointer,
            idempotency_key=args.idempotency_key or None, waitpoints=[],
        )  # fmt: skip
        answer, bound = await self._suspend_with(wire, args.waitpoints, keys, call)
        first, *others = bound
        details = SuspendOutcomeDetails(
            suspension_id=answer.suspension_id, waitpoint_id=first.waitpoint_id, waitpoint_key=first.waitpoint_key,
            waitpoint_token=first.waitpoint_token, additional_waitpoints=others,
        )  # fmt: skip
        if isinstance(answer, WireSuspended):
            return Suspended(details, _handle(args, answer), answer.replayed)
        return SuspensionAlreadySatisfied(details, answer.replayed)

    async def _suspend_execution(self, args: SuspendExecutionArgs, call: Call) -> SuspendExecutionResult:
        if args.fence is None:
            raise InvalidArgument("a worker suspends with its fence", code="fence_required")
        check_id(args.execution_id)
        condition, policy = _decoded(args.resume_condition_json, args.resume_policy_json)
        binding: WaitpointBinding = Fresh(args.waitpoint_id, args.waitpoint_key)
        if args.use_pending_waitpoint:
            binding = UsePending(args.waitpoint_id)
        auto = args.timeout_behavior == "auto_resume"
        behavior = TimeoutBehavior.AUTO_RESUME_WITH_TIMEOUT_SIGNAL if auto else TimeoutBehavior(args.timeout_behavior)
        wire = SuspendWireArgs(
            execution_id=args.execution_id, fence=args.fence, attempt_index=args.attempt_index,
            suspension_id=args.suspension_id, condition=compile_condition(condition, [args.waitpoint_key]),
            reason_code=args.reason_code, requested_by=args.requested_by, timeout_at=args.timeout_at,
            timeout_behavior=behavior, consume_matched_signals=policy.consume_matched_signals,
            retain_signal_buffer_until_closed=policy.retain_signal_buffer_until_closed,
            close_waitpoint_on_resume=policy.close_waitpoint_on_resume, resume_delay_ms=policy.resume_delay_ms,
            continuation_metadata_pointer=args.continuation_metadata_pointer, waitpoints=[],
        )  # fmt: skip
        answer, (bound, *_) = await self._suspend_with(wire, [binding], [args.waitpoint_key], call)
        shape = ExecutionSuspended if isinstance(answer, WireSuspended) else SuspendAlreadySatisfied
        return shape(answer.suspension_id, bound.waitpoint_id, bound.waitpoint_key, bound.waitpoint_token)

    async def _suspend_with(
        self, wire: SuspendWireArgs, bindings: Sequence[WaitpointBinding], keys: Sequence[str], call: Call
    ) -> tuple[SuspendWireResult, list[AdditionalWaitpointBinding]]:
        """Suspend on waitpoints whose fresh ones get tokens; answers each with its token, the primary one first."""

        async def suspend(signed: _Signed | None) -> tuple[SuspendWireResult, tokens.Ring | None]:
            rows: list[SuspendWaitpoint] = []
            for binding, key in zip(bindings, keys, strict=True):
                if isinstance(binding, UsePending) or signed is None:
                    rows.append(SuspendWaitpoint(binding.waitpoint_id, key, fresh=isinstance(binding, Fresh)))
                else:
                    token = signed.ring.mint(wire.execution_id, binding.waitpoint_id, key, signed.kid)
                    rows.append(SuspendWaitpoint(binding.waitpoint_id, key, signed.kid, tokens.digest(token)))
            answer = await call(msgspec.structs.replace(wire, waitpoints=rows))
            return answer, signed.ring if signed else None

        if any(isinstance(binding, Fresh) for binding in bindings):
            answer, ring = await self._signing(partition_of(wire.execution_id), suspend, call)
        else:
            # Nothing is signed; the ring is only for telling again the token of what is open.
            answer, ring = (await suspend(None))[0], await self._ring_if_any()
        return answer, [_bound(ring, wire.execution_id, one) for one in answer.waitpoints]

    async def _ring_if_any(self) -> tokens.Ring | None:
        try:
            return await self.secrets.ring()
        except SecretMissing:
            return None

    # ---- secrets

    async def _seed(self, args: SeedWaitpointHmacSecretArgs, call: Call) -> SeedOutcome:
        await self._unlike(args.kid, args.secret_hex)
        secret = bytes.fromhex(args.secret_hex)
        answer = await call(SeedWaitpointHmacSecretWireArgs(
            kid=args.kid, fingerprint=tokens.fingerprint(secret), at=args.at
        ))  # fmt: skip
        if isinstance(answer, Seeded) or answer.same_secret:
            await self._install(args.kid, args.secret_hex)
        return answer

    async def _rotate(self, args: RotateWaitpointHmacSecretArgs, call: Call) -> Rotated | Noop:
        await self._install(args.new_kid, args.new_secret_hex)
        return await self._rotate_one(args.new_kid, args.new_secret_hex, args.grace_ms, args.at, call)

    async def _rotate_all(
        self, args: RotateWaitpointHmacSecretAllArgs, call: Call
    ) -> RotateWaitpointHmacSecretAllResult:
        await self._install(args.new_kid, args.new_secret_hex)
        room = asyncio.Semaphore(ROTATIONS_N)

        async def rotate(index: int, at: PartitionKey) -> RotateWaitpointHmacSecretAllEntry:
            async with room:
                try:
                    result = await self._rotate_one(args.new_kid, args.new_secret_hex, args.grace_ms, at, call)
                except EngineBug:
                    raise
                except EngineError as failed:
                    return RotateWaitpointHmacSecretAllEntry(index, RotateFailed(failed.code, str(failed)))
                return RotateWaitpointHmacSecretAllEntry(index, result)

        partitions = self._config().keys("fp")
        rows = await asyncio.gather(*(rotate(index, at) for index, at in enumerate(partitions)))
        return RotateWaitpointHmacSecretAllResult(list(rows))

    async def _rotate_one(
        self, kid: str, secret_hex: str, grace_ms: int, at: PartitionKey, call: Call
    ) -> Rotated | Noop:
        answer = await call(RotateWaitpointHmacSecretWireArgs(
            new_kid=kid, fingerprint=tokens.fingerprint(bytes.fromhex(secret_hex)), grace_ms=grace_ms, at=at
        ))  # fmt: skip
        self._kids[at] = kid
        return answer

    async def _install(self, kid: str, secret_hex: str) -> None:
        """Into the ring, where the ring is ours to change: a partition must not sign with what nobody has."""
        ring = await self._unlike(kid, secret_hex)
        if ring is None or ring.current != kid:
            await self.secrets.add(kid, bytes.fromhex(secret_hex))

    async def _unlike(self, kid: str, secret_hex: str) -> tokens.Ring | None:
        """The ring as it is now. A kid of it stands for one secret."""
        try:
            ring = await self.secrets.ring(fresh=True)
        except SecretMissing:
            return None
        if kid in ring and ring.secret(kid) != bytes.fromhex(secret_hex):
            raise InvalidArgument(
                f"kid {kid} stands for another secret in the ring: choose a new name", code="rotation_conflict"
            )
        return ring


# ---- helpers -------------------------------------------------------------------------------------------


def _handle(args: SuspendArgs, answer: WireSuspended) -> Handle:
    return Handle.of(HandleKind.SUSPENDED, args.at, LeaseFence.parse(answer.fence))


def _minted(ring: tokens.Ring | None, execution_id: str, waitpoint_id: str, key: str, kid: str) -> WaitpointToken:
    """The token of what was opened before; empty when no secret of ours makes it."""
    if ring is None or not kid:
        return WaitpointToken("")
    try:
        return ring.mint(execution_id, waitpoint_id, key, kid)
    except InvalidToken:
        return WaitpointToken("")


def _bound(ring: tokens.Ring | None, execution_id: str, one: BoundWaitpoint) -> AdditionalWaitpointBinding:
    token = _minted(ring, execution_id, one.waitpoint_id, one.waitpoint_key, one.kid)
    return AdditionalWaitpointBinding(one.waitpoint_id, one.waitpoint_key, WaitpointHmac(token))


def _decoded(condition: str, policy: str) -> tuple[ResumeCondition, ResumePolicy]:
    try:
        return (
            msgspec.json.decode(condition, type=ResumeCondition),
            msgspec.json.decode(policy or "{}", type=ResumePolicy),
        )
    except msgspec.MsgspecError as wrong:
        raise InvalidArgument(f"the condition or the policy of a suspension cannot be read: {wrong}") from None
