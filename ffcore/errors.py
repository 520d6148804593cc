"""Every error the engine can raise, by family; the family tells you what to do.

    EngineError
      Rejected       the engine said no and will say no again: read `.code`, `.detail`
      Unavailable    no answer; `.may_have_applied` says whether the call may have taken effect
      EngineBug      the parts disagree (FFBUG, unknown tag, library mismatch): stop the process
      InvalidArgument  bad input, refused before anything was sent; also a ValueError

Each `Rejected` class names the codes it stands for; `.code` is the word Lua used. A code is listed here
once: in CODES if the seed has it (`spec/error_codes.json`), in OWN_CODES if this engine added it.
"""

from __future__ import annotations

import copy
from typing import ClassVar, Final, TypeVar

from ffcore.refusals import text_of

E = TypeVar("E", bound="EngineError")


class EngineError(Exception):
    """Base of everything the engine raises. `code` is the word the store used, `detail` what it said."""

    code: str = "engine_error"

    def __init__(self, message: str = "", *, code: str | None = None, detail: str = "") -> None:
        if code is not None:
            self.code = code
        self.detail = detail or message
        super().__init__(message or detail or self.code)


class InvalidArgument(EngineError, ValueError):
    """Bad input: refused before anything was sent. The message says what would be accepted."""

    code = "invalid_input"


class Unavailable(EngineError):
    """The store did not answer. `may_have_applied`: the call may have taken effect; repeat only what is
    idempotent (a keyed submit, anything fenced)."""

    code = "unavailable"

    def __init__(
        self, message: str = "", *, may_have_applied: bool = False, code: str | None = None, detail: str = ""
    ) -> None:
        self.may_have_applied = may_have_applied
        super().__init__(message, code=code, detail=detail)


class EngineBug(EngineError):
    """The parts disagree: a malformed call, an unknown answer, a library that is not ours."""

    code = "engine_bug"


class NotInitialised(EngineError):
    """The store holds no partitions. Run `ff init [--partitions N]` once."""

    code = "not_initialised"


class SecretMissing(EngineError):
    """There is no secret to sign a token with. The message names where one may come from."""

    code = "secret_missing"


class Incompatible(EngineError):
    """The store cannot serve this version: no Functions, another library, another partition count, an
    eviction policy that may drop data. The message names the remedy."""

    code = "incompatible"


class Rejected(EngineError):
    """The engine said no and will say no again."""

    codes: ClassVar[tuple[str, ...]] = ()
    by_code: ClassVar[dict[str, type[Rejected]]] = {}

    def __init_subclass__(cls, codes: tuple[str, ...] = (), **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        cls.codes = codes
        for code in codes:
            if code in Rejected.by_code:
                raise TypeError(f"error code {code!r} is claimed twice")
            Rejected.by_code[code] = cls


class NotFound(Rejected, codes=(
    "execution_not_found", "attempt_not_found", "flow_not_found", "budget_not_found", "quota_policy_not_found",
    "waitpoint_not_found", "stream_not_found", "lane_not_found", "worker_not_found", "task_not_found",
    "schedule_not_found",
)):
    """No record of that id. Detail `purged`: it existed and retention removed it."""


class StaleLease(Rejected, codes=(
    "stale_lease", "lease_expired", "lease_revoked", "lease_conflict", "no_active_lease", "stale_owner_cannot_append",
)):
    """The caller no longer holds the lease it names. Stop the handler; report nothing."""


class FenceRequired(Rejected, codes=("fence_required", "partial_fence_triple")):
    """A worker's call must carry its whole fence (lease_id, lease_epoch, attempt_id) or an operator source."""


class Terminal(Rejected, codes=("terminal",)):
    """The execution has ended; detail is its outcome."""


class WrongState(Rejected, codes=(
    "active_attempt_exists", "already_suspended", "attempt_already_terminal", "attempt_not_in_created_state",
    "attempt_not_started", "deps_not_satisfied", "execution_not_eligible", "execution_not_eligible_for_attempt",
    "execution_not_in_eligible_set", "execution_not_leaseable", "execution_not_reclaimable", "execution_not_suspended",
    "execution_not_terminal", "flow_already_terminal", "grant_already_exists", "max_replays_exhausted",
    "max_retries_exhausted", "no_eligible_execution", "not_a_resumed_execution", "not_blocked_by_deps", "not_runnable",
    "ok_already_applied", "pending_waitpoint_expired", "replay_not_allowed", "resume_condition_not_met",
    "stream_already_closed", "stream_closed", "target_not_signalable", "use_claim_resumed_execution",
    "waitpoint_closed",
    "waitpoint_not_open", "waitpoint_not_pending", "waitpoint_pending_use_buffer_script", "execution_already_in_flow",
    "execution_not_in_flow", "waitpoint_already_exists", "dependency_already_exists", "stale_graph_revision",
    "duplicate_signal", "not_blocked", "lane_closed", "purging", "version_pinned",
)):
    """The operation does not apply in the state the record is in; detail names the state."""


class ClaimGrantInvalid(Rejected, codes=("invalid_claim_grant", "claim_grant_expired")):
    """The grant is missing, belongs to another worker, or has run out. Ask for a new one."""


class CapabilityMismatch(Rejected, codes=("capability_mismatch",)):
    """The worker lacks a required capability; detail lists what is missing."""


class IdempotencyConflict(Rejected, codes=("idempotency_conflict",)):
    """The key was used before for a different request. Use another key, or send the same request."""


class InvalidRequest(Rejected, InvalidArgument, codes=(
    "invalid_input", "invalid_capabilities", "invalid_policy_json", "invalid_tag_key", "invalid_blocking_reason",
    "invalid_budget_scope", "invalid_dependency", "invalid_frame_type", "invalid_grace_ms", "invalid_kid",
    "invalid_lease_for_suspend", "invalid_offset", "invalid_quota_spec", "invalid_secret_hex",
    "invalid_waitpoint_for_execution", "invalid_waitpoint_key", "payload_too_large", "self_referencing_edge",
    "cycle_detected", "retention_limit_exceeded", "signal_limit_exceeded", "waitpoint_limit_exceeded", "unknown_task",
    "too_many_names", "flow_too_large",
    "cursor_expired", "unsupported_policy",
)):
    """The store refused the input; nothing was written."""


class JournalFull(Rejected, codes=("journal_full",)):
    """A run has recorded as many steps, or as many bytes of results, as it may. Begin a new run with
    `raise ff.ContinueAs(payload)`, or keep large results elsewhere and record their names."""


class InvalidToken(Rejected, codes=("invalid_token", "missing_token", "waitpoint_not_token_bound")):
    """The token does not open this waitpoint. Every cause looks alike to the sender."""


class BudgetExceeded(Rejected, codes=("budget_exceeded", "budget_soft_exceeded")):
    """A budget's limit is reached; what was spent is recorded."""

    budget_id: str = ""
    """Which, where a handler's own spending passed it (`ctx.spend`)."""
    dimension: str = ""
    usage: float = 0
    limit: float = 0


class AdmissionDenied(Rejected, codes=("rate_limit_exceeded", "concurrency_limit_exceeded")):
    """A quota is used up; detail says when to try again, in milliseconds."""


class Conflict(Rejected, codes=(
    "budget_attach_conflict", "quota_attach_conflict", "rotation_conflict", "revision_conflict", "unique_held",
)):
    """Somebody else's change came first; read again and decide."""


class Unauthorized(Rejected, codes=("unauthorized", "budget_override_not_allowed")):
    """The caller may not do this."""


class StoreFull(Rejected, codes=("store_full", "lane_full")):
    """The store is above its high-water mark, or over its memory limit, and takes no new work; detail is retry_after in
    milliseconds. Nothing was written: send it again then, or give `submit` patience."""

    @property
    def retry_after(self) -> float:
        """Seconds until asking again makes sense."""
        return int(self.detail) / 1000 if self.detail.isdigit() else 1.0


class Suspended(BaseException):
    """Unwinds a handler that gave up its lease to wait. Not an Exception, so that a handler's
    ``except Exception`` cannot swallow it."""


OWN_CODES: Final = frozenset({
    "idempotency_conflict", "lane_not_found", "worker_not_found", "task_not_found", "not_blocked", "lane_closed",
    "purging", "unknown_task", "too_many_names", "cursor_expired", "unsupported_policy", "missing_token",
    "revision_conflict", "store_full", "not_initialised", "journal_full", "version_pinned",
    "waitpoint_limit_exceeded", "flow_too_large",
    "unique_held", "lane_full", "schedule_not_found",
})
"""Codes this engine adds to the seed's; each is raised by at least one function."""


def alike(error: E) -> E:
    """The same error for another caller: raised in many tasks, one would collect all their tracebacks and notes."""
    mine = copy.copy(error)
    mine.__cause__ = error.__cause__
    return mine


def rejection(code: str, detail: str = "", *, asked: str = "", about: str = "") -> EngineError:
    """The exception a refusal from the store stands for; an unknown code is an EngineBug.

    asked: what the caller wanted, in words; about: the id it named. `ffcore.refusals` adds what to do next.
    """
    if code == "not_initialised":
        return NotInitialised(f"the store has no partition {detail}; run `ff init`", detail=detail)
    if code == "store_full":
        return StoreFull(
            "the store is above its high-water mark and takes no new work; finish or purge work, raise maxmemory, or "
            "move the mark (`ff store gate`)", code=code, detail=detail,
        )  # fmt: skip
    cls = Rejected.by_code.get(code)
    if cls is None:
        return EngineBug(f"the store refused with an unknown code {code!r}: {detail}", code=code, detail=detail)
    return cls(text_of(code, detail, cls.__doc__ or "", asked, about), code=code, detail=detail)
