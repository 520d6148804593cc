"""Runs after all others of this directory: each outcome and each refusal of each function was produced by one."""

from __future__ import annotations

from ffbackend_valkey.binding import Binding


def test_every_outcome_and_refusal_was_seen(signatures: dict[str, tuple[set[str], set[str]]]) -> None:
    """Outcome coverage, not line coverage, is how complete this directory is. A pair that no input can produce
    does not belong in the signature."""
    declared = {(name, word) for name, (returns, errors) in signatures.items() for word in returns | errors}
    missing = sorted(declared - Binding.seen)
    assert not missing, f"{len(missing)} of {len(declared)} never seen: " + ", ".join(
        " ".join(pair) for pair in missing
    )
