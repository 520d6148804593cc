"""The seven dimensions follow from three stored words; what follows must never contradict itself."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest

from ffcore.errors import EngineBug
from ffcore.states import (
    NEXT,
    REASONS,
    STATES,
    AttemptState,
    BlockingReason,
    EligibilityState,
    LifecyclePhase,
    OwnershipState,
    PublicState,
    StateVector,
    TerminalOutcome,
    derive_public,
    vector,
)

LEGAL: list[tuple[str, str | None, str, bool]] = [
    (state, reason, next_, started)
    for state in STATES
    for reason in REASONS.get(state) or (None,)
    for next_ in NEXT
    for started in (False, True)
]


@pytest.mark.parametrize(("state", "reason", "next_", "started"), LEGAL)
def test_the_table_agrees_with_the_derivation(state: str, reason: str | None, next_: str, started: bool) -> None:
    v = vector(state, reason, next_, started)
    assert v.public_state == derive_public(v.lifecycle_phase, v.eligibility_state, v.terminal_outcome)


def line(v: StateVector) -> tuple[str, ...]:
    return tuple(getattr(v, name).value for name in v.__struct_fields__)


ROWS = {
    ("ready", None, "initial", False):
        "runnable unowned eligible_now waiting_for_worker none pending_first_attempt waiting",
    ("ready", None, "retry", True):
        "runnable unowned eligible_now waiting_for_worker none pending_retry_attempt waiting",
    ("ready", None, "replay", True):
        "runnable unowned eligible_now waiting_for_worker none pending_replay_attempt waiting",
    ("ready", None, "resumed", True):
        "runnable unowned eligible_now waiting_for_worker none attempt_interrupted waiting",
    ("ready", None, "compensation", True):
        "runnable unowned eligible_now waiting_for_worker none attempt_interrupted waiting",
    ("reclaimable", None, "reclaim", True):
        "runnable lease_expired_reclaimable eligible_now waiting_for_worker none attempt_interrupted waiting",
    ("revoked", None, "reclaim", True):
        "runnable lease_revoked eligible_now waiting_for_worker none attempt_interrupted waiting",
    ("granted", None, "reclaim", True):
        "runnable unowned eligible_now waiting_for_worker none attempt_interrupted waiting",
    ("delayed", "waiting_for_retry_backoff", "retry", True):
        "runnable unowned not_eligible_until_time waiting_for_retry_backoff none pending_retry_attempt delayed",
    ("delayed", "waiting_for_delay", "initial", False):
        "runnable unowned not_eligible_until_time waiting_for_delay none pending_first_attempt delayed",
    ("blocked", "waiting_for_children", "resumed", True):
        "runnable unowned blocked_by_dependencies waiting_for_children none attempt_interrupted waiting_children",
    ("blocked", "waiting_for_budget", "initial", False):
        "runnable unowned blocked_by_budget waiting_for_budget none pending_first_attempt rate_limited",
    ("blocked", "waiting_for_quota", "initial", False):
        "runnable unowned blocked_by_quota waiting_for_quota none pending_first_attempt rate_limited",
    ("blocked", "waiting_for_capable_worker", "initial", False):
        "runnable unowned blocked_by_route waiting_for_capable_worker none pending_first_attempt waiting",
    ("blocked", "waiting_for_locality_match", "initial", False):
        "runnable unowned blocked_by_route waiting_for_locality_match none pending_first_attempt waiting",
    ("blocked", "paused_by_policy", "initial", False):
        "runnable unowned blocked_by_lane_state paused_by_policy none pending_first_attempt waiting",
    ("blocked", "paused_by_operator", "initial", False):
        "runnable unowned blocked_by_operator paused_by_operator none pending_first_attempt waiting",
    ("blocked", "paused_by_flow_cancel", "initial", False):
        "runnable unowned blocked_by_operator paused_by_flow_cancel none pending_first_attempt waiting",
    ("active", None, "initial", True): "active leased not_applicable none none running_attempt active",
    ("suspended", "waiting_for_signal", "resumed", True):
        "suspended unowned not_applicable waiting_for_signal none attempt_interrupted suspended",
    ("completed", None, None, True): "terminal unowned not_applicable none success attempt_terminal completed",
    ("failed", None, "retry", True): "terminal unowned not_applicable none failed attempt_terminal failed",
    ("cancelled", None, "initial", False): "terminal unowned not_applicable none cancelled none cancelled",
    ("expired", None, None, True): "terminal unowned not_applicable none expired attempt_terminal expired",
    ("skipped", None, None, False): "terminal unowned not_applicable none skipped none skipped",
}


@pytest.mark.parametrize("stored", ROWS)
def test_a_stored_state_looks_as_documented(stored: tuple[str, str | None, str | None, bool]) -> None:
    assert " ".join(line(vector(*stored))) == ROWS[stored]


def test_every_state_and_every_reason_is_documented() -> None:
    assert {row[0] for row in ROWS} == set(STATES)
    assert {row[1] for row in ROWS if row[0] == "blocked"} == REASONS["blocked"]


@pytest.mark.parametrize(("state", "reason", "next_"), [
    ("queued", None, "initial"),
    ("delayed", None, "retry"),
    ("delayed", "waiting_for_children", "retry"),
    ("blocked", "waiting_for_signal", "initial"),
    ("suspended", "", "resumed"),
    ("active", "waiting_for_signal", "initial"),
    ("ready", None, "fallback"),
    ("ready", None, None),
])
def test_words_that_do_not_belong_together_are_an_engine_bug(state: str, reason: str | None, next_: str | None) -> None:
    """A guess here would show an operator a state that the store does not have."""
    with pytest.raises(EngineBug):
        vector(state, reason, next_, False)


def test_an_absent_reason_may_arrive_as_empty_text() -> None:
    assert vector("ready", "", "initial", False) == vector("ready", None, "initial", False)


def test_derivation_covers_what_this_engine_never_stores() -> None:
    """Records of the seed's other backends: submitted, or terminal without an outcome."""
    for eligibility, outcome in itertools.product(EligibilityState, TerminalOutcome):
        assert derive_public(LifecyclePhase.SUBMITTED, eligibility, outcome) is PublicState.WAITING
    assert derive_public(
        LifecyclePhase.TERMINAL, EligibilityState.NOT_APPLICABLE, TerminalOutcome.NONE
    ) is PublicState.FAILED


def test_exactly_the_terminal_states_are_terminal() -> None:
    terminal = {row.public for row in STATES.values() if row.phase is LifecyclePhase.TERMINAL}
    assert {state for state in PublicState if state.is_terminal} == terminal


def test_every_dimension_value_that_can_be_stored_is_reachable() -> None:
    """What no record can show stays listed, so that a new move does not slip in unseen."""
    seen = {word for stored in LEGAL for word in zip(StateVector.__struct_fields__, line(vector(*stored)), strict=True)}
    unreachable = {
        (name, value.value)
        for name, kind in (
            ("lifecycle_phase", LifecyclePhase), ("ownership_state", OwnershipState),
            ("eligibility_state", EligibilityState), ("blocking_reason", BlockingReason),
            ("terminal_outcome", TerminalOutcome), ("attempt_state", AttemptState), ("public_state", PublicState),
        )
        for value in kind
    } - seen
    assert unreachable == {("lifecycle_phase", "submitted"), ("public_state", "resumable")}


# ---- the other half, in Lua --------------------------------------------------------------------------

LUA = Path(__file__).parents[3] / "lua"


def test_the_lua_table_knows_the_same_states_and_outcomes() -> None:
    text = (LUA / "shared" / "state.lua").read_text()
    table = text[text.index("state.TABLE = {") :]
    table = table[: table.index("\n}")]
    theirs = dict(re.findall(r"^  (\w+)\s*= \{(.*?)\}", table, re.M))
    assert set(theirs) == set(STATES)
    for state, row in STATES.items():
        outcome = re.search(r'outcome = "(\w+)"', theirs[state])
        assert (outcome[1] if outcome else "none") == row.outcome.value, state


def test_the_lua_moves_name_only_known_states() -> None:
    text = (LUA / "shared" / "state.lua").read_text()
    moves = text[text.index("local FROM_QUEUE") : text.index("local legal")]
    assert set(re.findall(r'"(\w+)"', moves)) <= set(STATES)


def test_lua_blocks_for_the_same_reasons() -> None:
    text = (LUA / "block.lua").read_text()
    words = re.findall(r"(\w+) = true", text[text.index("local REASONS") : text.index("local function block")])
    assert set(words) == REASONS["blocked"]
