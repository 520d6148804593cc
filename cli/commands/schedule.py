"""`ff schedule`: jobs the engine submits by itself; made, seen and steered by name."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import click

from ..options import Group, Settings, pass_settings
from ..render import Column, ago, moment, span
from ..store import client_of, run
from .submit import read_payload, read_tags

if TYPE_CHECKING:
    from ffsdk.schedules import Schedule, ScheduleInfo

COLUMNS = [
    Column("schedule", "schedule"),
    Column("state", "state"),
    Column("task", "task"),
    Column("when", "when"),
    Column("tz", "zone"),
    Column("fires", "fires", right=True),
]


@click.group(cls=Group)
def schedule() -> None:
    """Make schedules; list, pause, resume, trigger, backfill and remove them."""


def when_of(info: ScheduleInfo) -> str:
    """In one word or two: the expression, the interval, or the instant."""
    if info.cron is not None:
        return info.cron
    if info.every is not None:
        return f"every {span(info.every)}"
    return f"at {moment(info.at)}"


def record_of(info: ScheduleInfo) -> dict[str, Any]:
    return {
        "schedule": info.name,
        "schedule_id": info.id,
        "namespace": info.namespace,
        "state": info.state,
        "task": info.task,
        "lane": info.lane,
        "when": when_of(info),
        "cron": info.cron,
        "every_s": info.every,
        "at": moment(info.at),
        "tz": info.tz,
        "catch_up": info.catch_up,
        "jitter_s": info.jitter,
        "start": moment(info.start),
        "end": moment(info.end),
        "next_at": moment(info.next_at),
        "fires": info.fires,
        "last_due": moment(info.last_due),
        "last_at": moment(info.last_at),
        "last_job": info.last_job,
        "refused": info.refused,
        "refusal": info.refusal,
        "created_at": moment(info.created_at),
        "changed_at": moment(info.changed_at),
        "revision": info.revision,
    }


def read_instant(text: str, tz: str = "UTC") -> datetime:
    """An instant as typed: ISO 8601, in that zone where it names none."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError as unreadable:
        raise click.UsageError(f"{text}: write an instant as 2026-03-01T03:00 or 2026-03-01T03:00:00Z") from unreadable
    if found.tzinfo is not None:
        return found
    try:
        return found.replace(tzinfo=ZoneInfo(tz))
    except Exception as unknown:
        raise click.UsageError(f"there is no time zone {tz}: use a name such as Europe/Prague") from unknown


def steer(settings: Settings, name: str, change: Callable[[Schedule[Any]], Awaitable[Any]]) -> Any:
    """One thing done to one schedule."""

    async def work() -> Any:
        async with client_of(settings) as client:
            return await change(client.schedule_by_name(name))

    return run(work())


# ---- make and look -------------------------------------------------------------------------------------


@schedule.command()
@click.argument("name")
@click.argument("task")
@click.argument("payload", default="null")
@click.option("--cron", metavar="EXPRESSION", help="Minute, hour, day of the month, month, day of the week.")
@click.option("--every", type=click.FloatRange(min=0.1), metavar="SECONDS", help="An interval, from now or --start on.")
@click.option("--at", metavar="INSTANT", help="Once.")
@click.option("--tz", default="UTC", show_default=True, help="Zone of --cron, and of instants that name none.")
@click.option("--catch-up", type=click.Choice(["none", "one", "all"]), default="one", show_default=True,
              help="Runs for what was missed while nobody ticked.")  # fmt: skip
@click.option("--jitter", type=click.FloatRange(min=0), metavar="SECONDS", help="Each run is later by up to so much.")
@click.option("--start", metavar="INSTANT", help="Nothing before; an interval counts from it.")
@click.option("--end", metavar="INSTANT", help="Nothing after.")
@click.option("--paused", is_flag=True, help="Begin paused.")
@click.option("--lane", help="Default: the task's own. Needed for a task that no worker has published.")
@click.option("--priority", type=click.IntRange(-100, 100), help="Higher first.")
@click.option("--deadline", type=click.FloatRange(min=0.001), metavar="SECONDS", help="A run expires after that.")
@click.option("--tag", "tags", multiple=True, metavar="KEY=VALUE")
@click.option("--budget", "budgets", multiple=True, metavar="NAME")
@click.option("--quota", "quotas", multiple=True, metavar="NAME")
@pass_settings
def add(
    settings: Settings, name: str, task: str, payload: str, cron: str | None, every: float | None, at: str | None,
    tz: str, catch_up: Any, jitter: float | None, start: str | None, end: str | None, paused: bool, lane: str | None,
    priority: int | None, deadline: float | None, tags: tuple[str, ...], budgets: tuple[str, ...],
    quotas: tuple[str, ...],
) -> None:  # fmt: skip
    """Make schedule NAME submit TASK, or change it to this. PAYLOAD is JSON, @file, or - for standard input.

    The same command again changes nothing.
    """
    options = {
        "lane": lane,
        "priority": priority,
        "deadline": deadline,
        "tags": read_tags(tags) or None,
        "budget": list(budgets) or None,
        "quota": list(quotas) or None,
    }
    given: Any = {word: value for word, value in options.items() if value is not None}
    value = read_payload(payload)

    async def make() -> tuple[Schedule[Any], ScheduleInfo]:
        async with client_of(settings) as client:
            made = await client.schedule(
                name, task, value, cron=cron, every=every, at=None if at is None else read_instant(at, tz), tz=tz,
                catch_up=catch_up, jitter=jitter, start=None if start is None else read_instant(start, tz),
                end=None if end is None else read_instant(end, tz), paused=paused, **given,
            )  # fmt: skip
            return made, await made.describe()

    made, info = run(make())
    out = settings.out()
    if out.json:
        return out.line({**record_of(info), "created": made.created, "changed": made.changed})
    what = "made" if made.created else "changed" if made.changed else "as it was"
    out.say(f"Schedule {name} is {what}, {info.state}; its next run is at {moment(info.next_at) or '-'}.")


@schedule.command("list")
@click.option("--state", type=click.Choice(["active", "paused", "ended"]))
@click.option("--limit", type=click.IntRange(min=1))
@pass_settings
def list_(settings: Settings, state: str | None, limit: int | None) -> None:
    """List schedules; without --namespace those of all."""

    async def read() -> tuple[list[dict[str, Any]], int]:
        from ffsdk.schedules import walk

        async with client_of(settings) as client:
            found = [record_of(i) async for i in walk(client.backend, settings.namespace, state, limit)]
            return sorted(found, key=lambda one: (one["namespace"], one["schedule"])), client.submitter.now_ms

    records, now_ms = run(read())
    columns = [*COLUMNS, Column("next_at", "next", ago(now_ms)), Column("last_at", "last", ago(now_ms))]
    settings.out().rows(records, columns, empty="No schedules: make one with `ff schedule add`.")


@schedule.command()
@click.argument("name")
@pass_settings
def show(settings: Settings, name: str) -> None:
    """Show a schedule: when it is due, how it stands, its last run."""
    settings.out().record(record_of(steer(settings, name, lambda one: one.describe())), "schedule")


@schedule.command("next")
@click.argument("name")
@click.option("--count", "-n", type=click.IntRange(1, 1_000), default=5, show_default=True)
@pass_settings
def next_(settings: Settings, name: str, count: int) -> None:
    """Show the next instants of a schedule."""
    found: list[datetime] = steer(settings, name, lambda one: one.next(count))
    rows = [{"schedule": name, "due": moment(at)} for at in found]
    settings.out().rows(rows, [Column("due", "due")], empty="Nothing is to come.")


# ---- steer ---------------------------------------------------------------------------------------------


def _changed(settings: Settings, name: str, what: str, said: str) -> None:
    out = settings.out()
    if out.json:
        return out.line({"schedule": name, "changed": what != "unchanged"})
    out.say(f"Schedule {name} {said}." if what != "unchanged" else f"Nothing to change about schedule {name}.")


@schedule.command()
@click.argument("name")
@pass_settings
def pause(settings: Settings, name: str) -> None:
    """Fire nothing until it is resumed; what falls into the pause is passed over."""
    _changed(settings, name, steer(settings, name, lambda one: one.pause()), "is paused")


@schedule.command()
@click.argument("name")
@pass_settings
def resume(settings: Settings, name: str) -> None:
    """Go on with the first instant from now."""
    _changed(settings, name, steer(settings, name, lambda one: one.resume()), "goes on")


@schedule.command()
@click.argument("name")
@pass_settings
def trigger(settings: Settings, name: str) -> None:
    """Make a run now; the schedule's own instants stay as they are."""
    job = steer(settings, name, lambda one: one.trigger())
    out = settings.out()
    if out.json:
        return out.line({"schedule": name, "execution_id": job.id, "created": job.created})
    click.echo(job.id)


@schedule.command()
@click.argument("name")
@click.argument("start")
@click.argument("end")
@click.option("--tz", default="UTC", show_default=True, help="Zone of instants that name none.")
@pass_settings
def backfill(settings: Settings, name: str, start: str, end: str, tz: str) -> None:
    """Make the runs of all instants from START to END, both included. Those that have had theirs have no other."""
    first, last = read_instant(start, tz), read_instant(end, tz)
    jobs = steer(settings, name, lambda one: one.backfill(first, last))
    rows = [{"schedule": name, "execution_id": job.id, "created": job.created} for job in jobs]
    columns = [Column("execution_id", "job"), Column("created", "made")]
    settings.out().rows(rows, columns, empty="No instant lies between these.")


@schedule.command()
@click.argument("name")
@pass_settings
def rm(settings: Settings, name: str) -> None:
    """Forget a schedule. Its runs stay what they are."""
    from ffcore.errors import rejection

    if not steer(settings, name, lambda one: one.remove()):
        raise rejection("schedule_not_found", asked="remove", about=name)
    out = settings.out()
    if out.json:
        return out.line({"schedule": name, "removed": True})
    out.say(f"Schedule {name} is removed.")
