"""`ff quota`: how many jobs may start in a window, and how many may run at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ..options import Group, Settings, pass_settings
from ..render import Column, instant, span
from ..store import client_of, run
from .lane import rate_of

if TYPE_CHECKING:
    from ffcore.contracts.quota import ListedQuota, QuotaStatus

COLUMNS = [
    Column("name", "quota"),
    Column("rate", "starts", right=True),
    Column("rate_window_s", "per", span, right=True),
    Column("concurrency", "at once", right=True),
    Column("keys", "keys in use", right=True),
]


@click.group(cls=Group)
def quota() -> None:
    """Create, list, show and remove quotas. A limit of 0 is none."""


def limits_record(quota_id: str, found: ListedQuota | QuotaStatus) -> dict[str, Any]:
    """What listing and showing have in common."""
    return {
        "quota_id": quota_id,
        "name": found.name,
        "namespace": found.namespace,
        "rate": found.max_requests_per_window,
        "rate_window_s": found.window_seconds,
        "concurrency": found.max_concurrent,
        "keys": found.subjects,
    }


@quota.command()
@click.argument("name")
@click.option("--rate", metavar="N/SECONDS", callback=rate_of, help="Starts in any window of that length, as 100/60.")
@click.option("--concurrency", type=click.IntRange(min=0), help="Jobs that run at once; 0: any number.")
@pass_settings
def create(settings: Settings, name: str, rate: tuple[int, int] | None, concurrency: int | None) -> None:
    """Create a quota, or bring it to what is given; what is left out stays as it is."""
    if rate is None and concurrency is None:
        raise click.UsageError("give --rate, --concurrency or both")

    async def make() -> dict[str, Any]:
        async with client_of(settings) as client:
            made = await client.quota(name, rate=rate, concurrency=concurrency)
            return limits_record(made.id, await made.status())

    settings.out().record(run(make()), "quota")


@quota.command("list")
@pass_settings
def list_(settings: Settings) -> None:
    """List quotas of a namespace, those of lanes among them (`ff lane limit`)."""

    async def read() -> list[dict[str, Any]]:
        async with client_of(settings) as client:
            found = [one async for one in client.quotas()]
        records = [limits_record(one.id, one.info) for one in found if one.info is not None]
        return sorted(records, key=lambda record: str(record["name"]))

    settings.out().rows(run(read()), COLUMNS, empty="No quotas.")


@quota.command()
@click.argument("name")
@click.option("--key", help="What jobs of this key use of it; without one, what jobs without a key share.")
@pass_settings
def show(settings: Settings, name: str, key: str | None) -> None:
    """Show a quota's limits, and what is used of them now."""

    async def read() -> dict[str, Any]:
        async with client_of(settings) as client:
            found = await client.quota(name)
            status = await found.status(key)
            return {
                **limits_record(found.id, status),
                "created_at": instant(status.created_at),
                "key": key,
                "in_window": status.in_window,
                "active": status.active,
                "next_free_s": status.next_free_ms / 1000,
                "waiting": status.waiting,
            }

    settings.out().record(run(read()), "quota")


@quota.command()
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
@pass_settings
def rm(settings: Settings, name: str, yes: bool) -> None:
    """Remove a quota. Jobs that name it are held until there is one of that name again."""
    confirm(settings, f"Remove quota {name}? Jobs that name it wait until there is one again.", yes)

    async def remove() -> None:
        async with client_of(settings) as client:
            await (await client.quota(name)).delete()

    run(remove())
    out = settings.out()
    if out.json:
        return out.line({"name": name, "answer": "removed"})
    out.say(f"Quota {name} is removed.")


def confirm(settings: Settings, question: str, yes: bool) -> None:
    """Ask whether to go on. A program that is asked cannot answer, so it must have said --yes."""
    import sys

    if yes:
        return
    if settings.json or not sys.stdin.isatty():
        # A runner of tests gives an answer without a terminal; an empty stdin is no answer.
        answer = "" if settings.json else sys.stdin.readline().strip().lower()
        if not answer:
            raise click.UsageError("this needs --yes where nobody can be asked")
        if answer not in ("y", "yes"):
            raise click.Abort
        return
    click.confirm(question, abort=True, err=True)
