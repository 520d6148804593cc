"""What a refusal means and what to do next, by its code: the second half of every message a person reads.

The first half says what was asked and of which record; the store's own detail stands between them. A code without a row
of its own is explained by its family (`ffcore.errors`).
"""

from __future__ import annotations

from typing import Final

SAID: Final[dict[str, tuple[str, str]]] = {
    # ---- nothing there
    "execution_not_found": (
        "there is no such job here", "check the id and the store's URL; a purged one is gone, submit it again"),
    "budget_not_found": ("there is no such budget", "check its name and namespace (`ff budget list`), or create it"),
    "lane_not_found": ("no such lane", "check its name: a lane exists from its first job or setting on"),
    "quota_policy_not_found": (
        "there is no such quota", "check its name and namespace (`ff quota list`), or create it"),
    "worker_not_found": ("no such worker", "see `ff worker list`"),
    "schedule_not_found": ("no such schedule", "check its name and namespace (`ff schedule list`)"),
    "task_not_found": ("no worker has published this task", "check its name, or start a worker that has it"),
    # ---- whose job it is
    "stale_lease": ("the lease has passed to somebody else", "stop the handler and report nothing"),
    "lease_expired": ("the lease has run out", "stop the handler and report nothing; renew earlier, or lease longer"),
    "lease_revoked": ("an operator took the lease away", "stop the handler and report nothing"),
    "lease_conflict": ("another worker holds it", "wait until its lease ends, or revoke that (`ff lease revoke`)"),
    "no_active_lease": ("it is not running", "look at its state (`ff job show`); there is no lease to act on"),
    "fence_required": ("this needs the lease's fence", "pass lease_id, lease_epoch and attempt_id, or act as operator"),
    "partial_fence_triple": ("the fence is incomplete", "pass lease_id, lease_epoch and attempt_id, all three"),
    # ---- what state it is in
    "terminal": ("the job has ended", "read its outcome; to run it again, replay it (`ff job replay`)"),
    "execution_not_terminal": ("the job has not ended", "wait for it, or cancel it first"),
    "execution_not_eligible": ("it cannot be claimed now", "see why with `ff job explain`"),
    "execution_not_eligible_for_attempt": ("no attempt of it can begin now", "see why with `ff job explain`"),
    "execution_not_leaseable": ("it is not ready to run", "see why with `ff job explain`"),
    "not_a_resumed_execution": ("its attempt does not continue an earlier one", "claim it with claim_execution"),
    "use_claim_resumed_execution": ("its attempt was interrupted", "claim it with claim_resumed_execution"),
    "not_blocked": ("nothing blocks it", "leave it: it runs as soon as a worker is free"),
    "max_replays_exhausted": ("it was replayed as often as its policy allows", "submit it anew"),
    "lane_closed": ("the lane takes no new work", "resume it (`ff lane resume`), or use another lane"),
    "purging": ("it is being removed", "try again in a moment"),
    "version_pinned": ("another version of its task began it", "hand it back; a worker with that version runs it"),
    "journal_full": (
        "this run has recorded as much as it may", "begin a new run with ContinueAs, or keep large results elsewhere"),
    # ---- waitpoints and signals
    "invalid_token": ("the token opens nothing here", "send the whole token, as it was given, to where it leads"),
    "missing_token": ("a signal needs its waitpoint's token", "send the token, or act as operator"),
    "already_suspended": ("it waits already", "wait for that to end, or resume it (`ff job resume`)"),
    "execution_not_suspended": ("it is neither paused nor waiting", "see what it does with `ff job explain`"),
    "invalid_lease_for_suspend": ("another attempt of it runs", "suspend with the attempt index of the lease you hold"),
    "waitpoint_not_found": ("it has no such waitpoint", "see which are open with `ff signal pending`"),
    "waitpoint_not_pending": ("the waitpoint was waited at before, or is closed", "open another one"),
    "pending_waitpoint_expired": ("the waitpoint closed before anything waited there", "open another one, for longer"),
    "waitpoint_limit_exceeded": ("it has as many waitpoints open as it may", "close some, or wait at fewer"),
    "invalid_waitpoint_for_execution": (
        "the condition names a waitpoint this execution does not have", "name the waitpoints the call binds"),
    "invalid_waitpoint_key": ("this waitpoint key cannot be used", "use 1 to 512 bytes of printable text, each once"),
    "waitpoint_closed": ("the waitpoint takes no more signals", "nothing: what it waited for is settled"),
    "waitpoint_already_exists": ("another waitpoint has this id", "take a fresh id"),
    "signal_limit_exceeded": (
        "the execution takes no more signals", "raise max_signals_per_execution of its policy, or send fewer"),
    # ---- flows
    "flow_not_found": ("there is no such flow here", "check the id and the store's URL; a purged one is gone"),
    "flow_already_terminal": ("the flow has ended", "look at it (`ff flow show`); to do more, submit another one"),
    "execution_already_in_flow": (
        "it is a member of another flow", "leave it there, and create another execution for this flow"),
    "execution_not_in_flow": ("it is no member of this flow", "add it first, or check both ids"),
    "stale_graph_revision": ("the graph has changed since it was read", "read the flow again and use its revision"),
    "cycle_detected": ("the graph would go in a circle", "take out an edge that leads back"),
    "dependency_already_exists": (
        "there is an edge between these two already", "leave it: one edge joins a pair, and its kind does not change"),
    "self_referencing_edge": ("a node cannot depend on itself", "name another execution as upstream or downstream"),
    "invalid_dependency": (
        "there is no such edge, or none is possible here", "check both ends, the kind, and how many the group needs"),
    "deps_not_satisfied": (
        "its upstreams do not let it run", "replay or finish the upstream that is named, and it follows by itself"),
    "not_blocked_by_deps": ("it does not wait for upstreams", "see what holds it with `ff job explain`"),
    "flow_too_large": ("it is more than one flow may hold", "make several flows, or put nodes between that join some"),
    # ---- grants and claims
    "invalid_claim_grant": ("there is no such grant for this worker", "ask for a new grant"),
    "claim_grant_expired": ("the grant has run out", "ask for a new one, and claim before it ends"),
    "grant_already_exists": ("it is reserved for another worker", "wait until that grant ends, or claim another job"),
    "capability_mismatch": ("the worker lacks what it requires", "start a worker with these capabilities"),
    # ---- somebody came first
    "idempotency_conflict": (
        "the key stands for another request", "use another key, or send the first task, payload and lane again"),
    "unique_held": (
        "another job holds this unique key", "leave it to that one, or say what to do then: action= of ff.Unique"),
    "revision_conflict": ("somebody else changed it first", "read it again and decide"),
    # ---- what was sent
    "invalid_budget_scope": ("a budget cannot be of this", "use a name for scope_type and short text for scope_id"),
    "invalid_input": ("the store cannot take this value", "correct the argument that is named"),
    "invalid_frame_type": ("a frame's type must be a short word", "use 1 to 128 bytes of printable text, as in token"),
    "invalid_offset": ("there is no such place", "begin at the start, or at a cursor that was answered"),
    "invalid_blocking_reason": ("no such reason to block", "use one that blocks by capability, worker or route"),
    "invalid_capabilities": ("the capabilities cannot be read", "use tokens without commas and spaces"),
    "invalid_grace_ms": ("the grace is out of bounds", "use milliseconds: a day at most for a cancel, years for a kid"),
    "rotation_conflict": ("this rotation contradicts an earlier one", "choose a new kid for a new secret"),
    "invalid_kid": (
        "this kid does not sign here", "use the one that does, or rotate to this one (`ff secret rotate`)"),
    "invalid_quota_spec": (
        "a quota cannot have these limits", "use whole numbers from 0, and a window for a number of requests"),
    "invalid_policy_json": ("the policy cannot be read", "send a JSON object with the fields of ExecutionPolicy"),
    "unsupported_policy": ("this release does not honour a part of the policy", "leave that field out"),
    "invalid_tag_key": ("a tag's key has no namespace", "use lower case, a dot and a name, as in shop.tenant"),
    "payload_too_large": ("it is over the size limit", "keep large data elsewhere and pass its name"),
    "too_many_names": ("the partition holds as many names as it may", "use fewer lanes, policies or capability sets"),
    "unknown_task": ("nobody has published this task", "pass lane=, or start a worker that has it"),
    "cursor_expired": (
        "the feed no longer holds what follows this cursor", 'begin anew: after="-" for all that is kept, or None'),
    "lane_full": (
        "the lane's line is as long as it may be", "try again later, give `submit` patience, or see `ff lane backlog`"),
    "store_full": ("the store takes no new work", "finish or purge work, raise maxmemory, or try again later"),
}  # fmt: skip


def text_of(code: str, detail: str, family: str, asked: str = "", about: str = "") -> str:
    """One line: the code, what was asked of what, why not, what the store said, what to do.

    family: the docstring of the error's class, for a code without a row.
    """
    what, remedy = SAID.get(code) or _of(family)
    head = " of ".join(part for part in (asked, about if about not in detail else "") if part)
    said = f" ({detail})" if detail else ""
    return f"{code}: {head + ': ' if head else ''}{what}{said}; {remedy}"


def _of(family: str) -> tuple[str, str]:
    what, _, remedy = " ".join(family.split()).partition(". ")
    what = what.rstrip(".")
    return what[:1].lower() + what[1:], remedy.rstrip(".") or "see the documentation of this call"
