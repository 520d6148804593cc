"""Generated mutants that nobody can tell from the library as it is, each with the reason. Reviewed by hand; small."""

from __future__ import annotations

EQUIVALENT: dict[str, str] = {
    "drop_conjunct:grant.lua:ff_issue_reclaim_grant:0e5b":
        "only what failed as poisoned has more crashes than its policy allows, and a replay clears them",
    "drop_refusal:submission.lua:submission.plan:6e96":
        "check_names has bounded the caller's priority and policy.decode the policy's: the third look finds nothing",
    "negate:condition.lua:condition.read:016e":
        "a cache that is emptied each time is slow, and answers the same",
    "drop_conjunct:signal.lua:deliver:0060":
        "what an answered key keeps is written by this function alone, and can be read",
    "drop_conjunct:suspension.lua:recorded:062c":
        "an entry of kind wait is written when the wait is over, with status ok and no other",
}  # fmt: skip
"""By id. An entry whose mutant is gone, or dies after all, fails `test_mutants.py` or the run."""
