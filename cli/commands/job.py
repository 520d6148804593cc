"""`ff job`: one execution, or a page of them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from ffsdk.listing import public_state

from ..options import Group, Settings, pass_settings, replay_mode
from ..render import Column, Record, ago, instant, moment, plain
from ..store import client_of, executions, opened, run, transitions
from ..store import execution_id as checked
from . import bulk
from .signal import waitpoint_record
from .tail import tail

if TYPE_CHECKING:
    from ffcore.contracts.dependency import Upstream
    from ffcore.contracts.reads import HistoryEntry, ListedExecution, StoredExecution
    from ffcore.steps import JournalEntry
    from ffsdk.job import Job
    from ffsdk.views import Step

STATES = (
    "waiting",
    "delayed",
    "rate_limited",
    "waiting_children",
    "active",
    "suspended",
    "completed",
    "failed",
    "cancelled",
    "expired",
    "skipped",
)
"""Public states that a listing can ask for."""
SHOWN_TABLES = {
    "steps": ("seq", "kind", "name", "status", "child", "at", "attempt", "tries", "reason", "recovery"),
    "waitpoints": ("gate", "state", "names", "created_at", "activated_at", "expires_at", "kid", "fingerprint"),
    "upstreams": ("execution_id", "label", "task", "kind", "state"),
    "closed_attempts": ("attempt", "worker", "started_at", "ended_at", "ended", "category"),
}
"""Lists in the record of one job, and the columns people see of them."""
HISTORY_FIELDS = ("execution", "from", "to", "epoch", "attempt", "lane_number", "lease_id", "reason")


@click.group(cls=Group)
def job() -> None:
    """List, show, cancel, pause, resume, replay and explain jobs."""


for command in (bulk.cancel_many, bulk.replay_many, bulk.purge_many, tail):
    job.add_command(command)


# ---- records -------------------------------------------------------------------------------------------


def listed(row: ListedExecution) -> dict[str, Any]:
    """A listing's record."""
    return {
        "execution_id": row.execution_id,
        "task": row.task,
        "lane": row.lane_id,
        "state": public_state(row).value,
        "reason": row.reason or None,
        "priority": row.priority,
        "attempts": row.attempts,
        "namespace": row.namespace,
        "worker": row.worker_instance_id or None,
        "created_at": instant(row.created_at),
        "ended_at": instant(row.ended_at),
    }


def shown(stored: StoredExecution) -> dict[str, Any]:
    """The record of one job, without payload and result."""
    from ffcore import ids, views

    f, state = stored.fields, views.state_of(stored)
    active = state.lifecycle_phase.value == "active"
    reason = state.blocking_reason.value
    return {
        "execution_id": stored.execution_id,
        "task": f["task"],
        "version": views.number(stored, "version") or 1,
        "lane": stored.lane_id,
        "namespace": f.get("namespace", "default"),
        "state": state.public_state.value,
        "blocking_reason": None if reason == "none" else reason,
        "blocking_detail": views.blocking_detail(stored) or None,
        "priority": views.number(stored, "priority"),
        "attempts": views.attempts_n(stored),
        "retries": views.number(stored, "retries"),
        "crashes": views.number(stored, "crashes"),
        "run": views.number(stored, "run"),
        "worker": stored.worker_instance_id if active else None,
        "lease_epoch": views.number(stored, "lease_epoch"),
        "lease_expires_at": instant(views.lease_expires_at(stored)),
        "due_at": instant(views.due_at(stored)),
        "deadline_at": instant(f.get("deadline_at")),
        "created_at": instant(f.get("created_at")),
        "started_at": instant(f.get("started_at")),
        "ended_at": instant(f.get("ended_at")),
        "cancel_requested": "cancel_until" in f,
        "suspended_until": instant(f.get("suspend_until")),
        "paused": "paused" in f,
        "progress": views.number(stored, "progress") if "progress" in f else None,
        "progress_message": stored.texts.get("progress"),
        "failure_reason": stored.texts.get("reason"),
        "failure_category": stored.texts.get("category"),
        "cancel_reason": stored.texts.get("cancel_reason"),
        "tags": stored.tags,
        "flow_id": f"{ids.partition_of(stored.execution_id)}:{f['flow']}" if "flow" in f else None,
        "flow_number": views.number(stored, "node") or None,
        "closed_attempts": [attempt_record(text) for text in stored.attempts],
    }


def upstream_record(one: Upstream) -> dict[str, Any]:
    """What a job waits for: another one of its flow, or one that it has spawned."""
    from ffsdk.flows import EDGE_KINDS

    return {
        "execution_id": one.execution_id,
        "label": one.label or None,
        "task": one.task,
        "kind": EDGE_KINDS.get(one.kind, one.kind),
        "state": one.state,
    }


def step_record(step: Step) -> dict[str, Any]:
    """One entry of the journal; gates, waits and spawned children are entries too."""
    return {
        "seq": step.seq,
        "name": step.name,
        "kind": step.kind,
        "status": step.status,
        "at": moment(step.at),
        "attempt": step.attempt,
        "tries": step.tries,
        "reason": step.reason or None,
        "recovery": step.recovery,
        "child": step.child,
    }


def returned(entry: JournalEntry) -> Any:
    """What a finished step returned. Of gates, sleeps and waits the entry keeps nothing that a person reads."""
    return plain(entry.value) if (entry.kind, entry.status) == ("step", "ok") else None


def attempt_record(text: str) -> dict[str, Any]:
    """A closed attempt as the store writes it: index, id, worker, times, how it ended, category."""
    index, attempt_id, worker, started, ended, how, category = (text.split(" ", 6) + [""] * 7)[:7]
    return {
        "attempt": int(index),
        "attempt_id": attempt_id,
        "worker": worker,
        "started_at": instant(started if started.isdigit() else 0),
        "ended_at": instant(ended if ended.isdigit() else 0),
        "ended": how,
        "category": category or None,
    }


def history_record(entry: HistoryEntry) -> dict[str, Any]:
    """A transition. The event's id begins with its time."""
    from ffsdk.events import without_flow

    parts = dict(zip(HISTORY_FIELDS, entry.text.split(" ", 7), strict=False))
    if parts.get("to") in STATES and parts["from"] != parts["to"]:
        parts["reason"] = without_flow(parts.get("reason", "-"))[0]
    dashes = {name: None if value == "-" else value for name, value in parts.items()}
    return {
        "at": instant(entry.event_id.partition("-")[0]),
        "event_id": entry.event_id,
        "from": dashes.get("from"),
        "to": dashes.get("to"),
        "attempt": int(attempt) if (attempt := dashes.get("attempt")) else None,
        "epoch": int(dashes.get("epoch") or 0),
        "lease_id": dashes.get("lease_id"),
        "reason": dashes.get("reason"),
    }


def print_outcome(settings: Settings, execution_id: str, outcome: Any) -> None:
    """A result on stdout; any other end as the exception that stands for it."""
    import msgspec

    from ffsdk.outcomes import Completed, error_of

    if not isinstance(outcome, Completed):
        raise error_of(execution_id, outcome)
    value: Any = outcome.value  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    if settings.json:
        settings.out().line({"execution_id": execution_id, "state": "completed", "result": value})
    else:
        click.echo(msgspec.json.format(msgspec.json.encode(value)).decode())


# ---- reading -------------------------------------------------------------------------------------------

LIST_COLUMNS = (
    Column("execution_id", "id"),
    Column("task", "task"),
    Column("lane", "lane"),
    Column("state", "state"),
    Column("attempts", "tries", right=True),
    Column("priority", "prio", right=True),
    Column("worker", "worker"),
)


@job.command("list")
@click.option("--state", "states", multiple=True, type=click.Choice(STATES), help="May be given several times.")
@click.option("--lane")
@click.option("--tag", metavar="KEY=VALUE")
@click.option("--task")
@click.option("--limit", type=click.IntRange(1, 1_000_000), default=50, show_default=True)
@pass_settings
def list_(
    settings: Settings, states: tuple[str, ...], lane: str | None, tag: str | None, task: str | None, limit: int
) -> None:
    """List jobs, newest first."""

    async def read() -> list[Record]:
        async with opened(settings) as backend:
            found = [
                row
                async for row in executions(
                    backend, states=states, lane=lane, tag=tag, namespace=settings.namespace, task=task, limit=limit
                )
            ]
        found.sort(key=lambda row: (row.created_at, row.execution_id), reverse=True)
        return [listed(row) for row in found[:limit]]

    created = Column("created_at", "created", ago(time.time_ns() // 1_000_000))
    settings.out().rows(run(read()), [*LIST_COLUMNS, created], empty="No jobs.")


@job.command()
@click.argument("execution_id", metavar="ID")
@click.option("--steps", "steps_n", type=click.IntRange(1, 10_000), default=1_000, show_default=True, help="At most.")
@pass_settings
def show(settings: Settings, execution_id: str, steps_n: int) -> None:
    """Show everything about a job except its payload, its result, and what its steps returned."""
    from ffcore.contracts.reads import ReadExecutionArgs
    from ffsdk.explain import awaited_by, name_hold
    from ffsdk.recorded import recovery_of, steps_of, waitpoints_of

    async def read() -> dict[str, Any]:
        async with opened(settings) as backend:
            asked = ReadExecutionArgs(execution_id=checked(execution_id, backend), parts="attempts")
            stored = await name_hold(backend, await backend.call(asked))
            return {
                **shown(stored),
                "recovery": await recovery_of(backend, stored),
                "steps": [step_record(step) for step in await steps_of(backend, stored, steps_n)],
                "waitpoints": [waitpoint_record(execution_id, one) for one in await waitpoints_of(backend, stored)],
                "upstreams": [upstream_record(one) for one in await awaited_by(backend, stored)],
            }

    record = run(read())
    out = settings.out()
    if out.json:
        return out.line(record)
    tables = {name: record.pop(name) for name in SHOWN_TABLES}
    out.record({name: value for name, value in record.items() if value not in (None, {}, "")}, "job")
    for name, rows in tables.items():
        if rows:
            out.say("")
            # Most jobs have no children: no column for them, then.
            names = [key for key in SHOWN_TABLES[name] if key != "child" or any(row[key] for row in rows)]
            out.rows(rows, [Column(key, key.replace("_", " ")) for key in names])


@job.command()
@click.argument("execution_id", metavar="ID")
@click.option("--wait", is_flag=True, help="Wait for the end; without it a job that has not ended is exit code 4.")
@click.option("--timeout", type=click.FloatRange(min=0), metavar="SECONDS", help="With --wait: no longer than this.")
@pass_settings
def result(settings: Settings, execution_id: str, wait: bool, timeout: float | None) -> None:
    """Print a job's result. A job that failed, was cancelled or expired is exit code 1."""
    from ffcore.contracts.reads import ReadExecutionArgs
    from ffcore.views import state_of

    async def read() -> Any:
        async with client_of(settings) as client:
            found: Job[Any] = client.job(execution_id)
            if not wait:
                # Asked first: waiting registers with the store, which a glance need not.
                stored = await client.backend.call(ReadExecutionArgs(execution_id=found.id))
                if not (state := state_of(stored).public_state).is_terminal:
                    raise TimeoutError(f"{execution_id} is {state.value}: wait for it with --wait")
            try:
                return await found.outcome(timeout)
            except TimeoutError:
                raise TimeoutError(f"{execution_id} has not ended after {timeout:g} s; it goes on") from None

    print_outcome(settings, execution_id, run(read()))


@job.command()
@click.argument("execution_id", metavar="ID")
@click.option("--limit", type=click.IntRange(1, 1_000), default=100, show_default=True)
@pass_settings
def history(settings: Settings, execution_id: str, limit: int) -> None:
    """Show a job's transitions, oldest first, as far as the feed still holds them."""
    from ffcore.contracts.reads import ReadExecutionArgs

    async def read() -> list[Record]:
        async with opened(settings) as backend:
            id_ = checked(execution_id, backend)
            # The feed does not say whether an execution exists; its record does.
            await backend.call(ReadExecutionArgs(execution_id=id_))
            return [history_record(entry) for entry in await transitions(backend, id_, limit)]

    names = ("at", "from", "to", "attempt", "epoch", "reason")
    settings.out().rows(
        run(read()), [Column(name, name) for name in names], empty="The feed no longer holds its history."
    )


@job.command()
@click.argument("execution_id", metavar="ID")
@pass_settings
def explain(settings: Settings, execution_id: str) -> None:
    """Say why a job does not run."""

    async def read() -> Any:
        async with client_of(settings) as client:
            return await client.job(execution_id).explain()

    found = run(read())
    reasons = [
        {
            "execution_id": execution_id,
            "runnable": found.runnable,
            "code": r.code,
            "detail": r.detail or None,
            "until": instant(round(r.until.timestamp() * 1000)) if r.until else None,
        }
        for r in found.reasons
    ]
    settings.out().rows(reasons, [Column("code", "reason"), Column("detail", "detail"), Column("until", "until")])


@job.command()
@click.argument("execution_id", metavar="ID")
@pass_settings
def export(settings: Settings, execution_id: str) -> None:
    """Print everything about one job as one JSON object: record, policy, payload, result, attempts, steps with what
    they returned, open gates, recovery decision, history."""
    import msgspec

    from ffcore.contracts.reads import ReadExecutionArgs
    from ffsdk.explain import awaited_by
    from ffsdk.recorded import entries_of, recovery_of, step_of, waitpoints_of

    async def read() -> dict[str, Any]:
        async with opened(settings) as backend:
            id_ = checked(execution_id, backend)
            stored = await backend.call(ReadExecutionArgs(execution_id=id_, parts="payload,result,attempts"))
            entries = await entries_of(backend, id_) if "journal" in stored.fields else []
            return {
                **shown(stored),
                "recovery": await recovery_of(backend, stored),
                "steps": [step_record(step_of(entry)) | {"value": returned(entry)} for entry in entries],
                "waitpoints": [waitpoint_record(execution_id, one) for one in await waitpoints_of(backend, stored)],
                "upstreams": [upstream_record(one) for one in await awaited_by(backend, stored)],
                "policy": plain(stored.policy),
                "payload": plain(stored.payload),
                "result": plain(stored.result),
                "fields": plain(stored.fields),
                "texts": plain(stored.texts),
                "history": [history_record(entry) for entry in await transitions(backend, id_, 1_000)],
                "exported_at": instant(stored.now_ms),
            }

    record = run(read())
    if settings.json:
        settings.out().line(record)
    else:
        click.echo(msgspec.json.format(msgspec.json.encode(record)).decode())


# ---- changing its course -------------------------------------------------------------------------------


@job.command()
@click.argument("execution_id", metavar="ID")
@click.option("--reason", default="", help="Kept with the job.")
@click.option("--force", is_flag=True, help="Do not wait for a running handler to end itself.")
@pass_settings
def cancel(settings: Settings, execution_id: str, reason: str, force: bool) -> None:
    """Cancel a job: at once if it does not run, else its worker is told."""

    async def change() -> str:
        async with client_of(settings) as client:
            return await client.job(execution_id).cancel(reason, force=force)

    said = {
        "cancelled": "is cancelled.",
        "requested": "is running: its worker is told, and fenced off after a grace.",
        "already_ended": "had ended before.",
    }
    _tell(settings, execution_id, run(change()), said)


@job.command()
@click.argument("execution_id", metavar="ID")
@replay_mode
@pass_settings
def replay(settings: Settings, execution_id: str, mode: Any) -> None:
    """Run a job that has ended again, under the same id."""

    async def change() -> str:
        async with client_of(settings) as client:
            await client.job(execution_id).replay(mode)
        return "replayed"

    _tell(settings, execution_id, run(change()), {"replayed": "waits to run again."})


@job.command()
@click.argument("execution_id", metavar="ID")
@click.option("--reason", default="", help="Shown to whoever asks why it does not run.")
@pass_settings
def pause(settings: Settings, execution_id: str, reason: str) -> None:
    """Let a job not run until it is resumed; one that runs is paused when its lease ends without an end."""

    async def change() -> str:
        async with client_of(settings) as client:
            return await client.job(execution_id).pause(reason)

    said = {
        "paused": "is paused.",
        "pause_pending": "is running: it is paused when its handler waits, fails or loses its lease.",
        "already_paused": "was paused before.",
    }
    _tell(settings, execution_id, run(change()), said)


@job.command()
@click.argument("execution_id", metavar="ID")
@click.option("--delay", type=click.FloatRange(min=0), default=0, metavar="SECONDS", help="Not before so much later.")
@click.option("--force", is_flag=True, help="End its wait as it stands, whoever else is waited for.")
@pass_settings
def resume(settings: Settings, execution_id: str, delay: float, force: bool) -> None:
    """Let a job go on: takes back a pause; without one, it is an operator's word in what it waits for."""

    async def change() -> str:
        async with client_of(settings) as client:
            return (await client.job(execution_id).resume(delay, force=force)).value

    state = run(change())
    out = settings.out()
    if out.json:
        return out.line({"execution_id": execution_id, "answer": "resumed", "state": state})
    out.say(f"{execution_id} goes on; it is {state}.")


def _tell(settings: Settings, execution_id: str, answer: str, said: dict[str, str]) -> None:
    out = settings.out()
    if out.json:
        out.line({"execution_id": execution_id, "answer": answer})
    else:
        out.say(f"{execution_id} {said[answer]}")
