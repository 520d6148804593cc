"""What a job has recorded, for people to look at: its steps, and its gates. Reads only, and never the values.

A journal is read page by page while the handler may go on writing: what is answered was true when its page was read.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Final

from ffcore import limits
from ffcore.ids import ExecutionId
from ffsdk.times import from_ms
from ffsdk.views import Step, Waitpoint

if TYPE_CHECKING:
    from ffcore.backend import Backend
    from ffcore.contracts.reads import StoredExecution
    from ffcore.ids import WaitpointId
    from ffcore.steps import JournalEntry

LOOKED_AT_N: Final = 100
"""Entries read to tell whether a job has a finished step; only steps under way at once can stand before the first."""


async def entries_of(backend: Backend, execution_id: ExecutionId, limit: int | None = None) -> list[JournalEntry]:
    """The journal from its beginning, or its first so many entries."""
    from ffcore import steps
    from ffcore.contracts.journal import ReadJournalArgs

    found: list[JournalEntry] = []
    while limit is None or len(found) < limit:
        most = limits.PAGE_MAX_N if limit is None else min(limits.PAGE_MAX_N, limit - len(found))
        page = await backend.call(ReadJournalArgs(execution_id=execution_id, from_seq=len(found) + 1, limit=most))
        found += steps.entries_of(page.entries, len(found) + 1)
        if not page.entries or len(found) >= page.total:
            break
    return found


async def steps_of(backend: Backend, stored: StoredExecution, limit: int | None = None) -> list[Step]:
    """The steps of a job's journal, in the order they were recorded."""
    if "journal" not in stored.fields:
        return []
    return [step_of(entry) for entry in await entries_of(backend, stored.execution_id, limit)]


def step_of(entry: JournalEntry) -> Step:
    """An entry as people see it."""
    from ffcore import recovery

    return Step(
        seq=entry.seq, name=entry.name, kind=entry.kind, status=entry.status, at=from_ms(entry.at_ms),
        attempt=entry.attempt, tries=entry.tries, reason=entry.reason, recovery=recovery.of_step(entry).value,
        child=entry.value.decode() if entry.kind == "spawn" else None,
    )  # fmt: skip


async def recovery_of(backend: Backend, stored: StoredExecution) -> str:
    """What a crash at this moment would lead to, for the job as a whole (`ffcore.recovery`)."""
    from ffcore import recovery, views

    state = views.state_of(stored).public_state
    entries: list[JournalEntry] = []
    if "journal" in stored.fields and not state.is_terminal:
        entries = await entries_of(backend, stored.execution_id, LOOKED_AT_N)
    return recovery.of_execution(state.value, entries, stored.texts.get("category", "")).value


async def waitpoints_of(backend: Backend, stored: StoredExecution) -> list[Waitpoint]:
    """A job's open gates, in the order they were opened."""
    from ffcore.contracts.waitpoint import ListPendingWaitpointsArgs

    found: list[Waitpoint] = []
    after: WaitpointId | None = None
    while "waitpoints" in stored.fields:
        page = await backend.call(
            ListPendingWaitpointsArgs(execution_id=stored.execution_id, after=after, limit=limits.PAGE_MAX_N)
        )
        found += [
            Waitpoint(
                waitpoint_id=row.waitpoint_id, gate=row.waitpoint_key, state=row.state,
                names=row.required_signal_names, created_at=from_ms(row.created_at),
                activated_at=from_ms(row.activated_at), expires_at=_limit(row.created_at, row.expires_at),
                kid=row.token_kid, fingerprint=row.token_fingerprint,
            )
            for row in page.entries
        ]  # fmt: skip
        after = page.next_cursor
        if after is None:
            break
    return found


def _limit(created_at: int, expires_at: int | None) -> datetime | None:
    """When it closes by itself; None for as good as never, which is how handlers open gates."""
    never = expires_at is None or expires_at - created_at >= limits.SPAN_MAX_MS
    return None if never else from_ms(expires_at)
