"""Which outcomes, refusals and moves a simulation must have reached, and which it cannot.

`MALFORMED` and the tables below say why a pair is not asked for here; `tests/lua/test_every_outcome.py` demands that
each of them is produced by a test. Everything else that is missing after the fixed budget is a failure.
"""

from __future__ import annotations

from collections.abc import Iterable

from ffbackend_valkey.library import Library

Pair = tuple[str, str]

MALFORMED = frozenset({
    "invalid_input", "invalid_tag_key", "invalid_policy_json", "invalid_capabilities", "unsupported_policy",
    "payload_too_large", "too_many_names", "partial_fence_triple", "invalid_grace_ms", "invalid_offset",
    "cursor_expired", "store_full", "lane_full", "not_initialised", "invalid_frame_type", "invalid_waitpoint_key",
    "flow_too_large",
})  # fmt: skip
"""Refusals of input that no part of this program sends, or of a store at one of its limits."""
FUNCTIONS_NOT_ASKED_FOR: dict[str, str] = {
    "ff_library": "asked by a backend that connects",
    "ff_check": "the checker itself, asked beside every run",
    "ff_repair": "changes only what is broken, and nothing is",
}
OUTCOMES_NOT_ASKED_FOR: dict[Pair, str] = {
    ("ff_block_execution", "invalid_blocking_reason"): "the contract refuses it before it is sent",
    ("ff_init_partition", "initialised"): "done once, before a run begins",
    ("ff_seed_waitpoint_hmac_secret", "invalid_kid"): "the contract refuses it before it is sent",
    ("ff_rotate_waitpoint_hmac_secret", "invalid_kid"): "the contract refuses it before it is sent",
    ("ff_pause_execution", "execution_not_eligible"): "only sagas have something to undo",
    ("ff_suspend", "signal_limit_exceeded"): "megabytes of signals kept for one wait",
    ("ff_wait", "signal_limit_exceeded"): "megabytes of signals kept for one wait",
    ("ff_stage_dependency_edge", "self_referencing_edge"): "the contract refuses it before it is sent",
    ("ff_apply_dependency_to_child", "execution_not_in_flow"): "both ends of a staged edge are members for good",
    ("ff_resolve_dependency", "satisfied"): "graphs are small: edges are resolved in the call that ends their upstream",
    ("ff_resolve_dependency", "impossible"): "the same",
    ("ff_create_budget", "invalid_budget_scope"): "nothing in this program makes such a budget",
    ("ff_create_quota_policy", "invalid_quota_spec"): "the same of quotas",
    ("ff_change_quota", "invalid_quota_spec"): "the same",
    ("ff_promote_blocked_to_eligible", "promoted"): "what waits for nothing more was made ready when that became so",
}
MOVES_NOT_ASKED_FOR: dict[Pair, str] = {
    ("skipped", "ready"): "what was skipped is reopened by the replay upstream, before anybody could replay it",
}


def outcomes(library: Library) -> set[Pair]:
    """Every (function, outcome or refusal) of a library that a simulation must reach."""
    asked = [s for s in library.signatures.values() if s.name not in FUNCTIONS_NOT_ASKED_FOR]
    declared = {(s.name, word) for s in asked for word in (*s.returns, *s.errors)}
    return {pair for pair in declared if pair[1] not in MALFORMED and pair not in OUTCOMES_NOT_ASKED_FOR}


QUEUED = ("ready", "reclaimable", "revoked")
ENDED = ("completed", "failed", "cancelled", "expired")
MOVES: frozenset[Pair] = frozenset(
    [("-", "ready"), ("-", "delayed"), ("active", "completed"), ("active", "failed"), ("active", "delayed"),
     ("active", "blocked"), ("active", "ready"), ("active", "reclaimable"), ("active", "revoked"),
     ("granted", "active"), ("granted", "ready"), ("granted", "reclaimable"), ("granted", "failed"),
     ("delayed", "ready"), ("blocked", "ready"), ("blocked", "reclaimable"), ("blocked", "failed"),
     ("active", "suspended"), ("delayed", "blocked"), ("granted", "blocked"), ("blocked", "delayed"),
     ("blocked", "blocked"), ("-", "blocked"), ("blocked", "skipped"), ("skipped", "blocked"),
     ("cancelled", "blocked"), ("expired", "blocked")]
    + [("suspended", to) for to in ("ready", "delayed", "blocked", "cancelled", "expired", "failed")]
    + [(state, to) for state in QUEUED for to in ("granted", "active", "blocked")]
    + [(state, to) for state in (*QUEUED, "granted", "delayed", "blocked", "active") for to in ("cancelled", "expired")]
    + [(state, "ready") for state in ENDED]
)  # fmt: skip
"""The moves drawn in docs/model.md."""


def missing(library: Library, seen: Iterable[Pair], moves: Iterable[Pair]) -> list[str]:
    """What was to be reached and was not."""
    got, moved = set(seen), set(moves)
    out = [f"{function} {word}" for function, word in sorted(outcomes(library) - got)]
    out += [f"{a} -> {b}" for a, b in sorted(MOVES - moved)]
    return out + [f"{a} -> {b} is a move no page draws" for a, b in sorted(moved - MOVES - set(MOVES_NOT_ASKED_FOR))]
