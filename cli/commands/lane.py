"""`ff lane`: named queues, seen and steered over all partitions."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import click

from ffcore import limits

from ..options import Group, Settings, pass_settings
from ..render import Column, span
from ..store import client_of, lane_record, lane_records, opened, report, run

if TYPE_CHECKING:
    from ffsdk.lanes import Lane
    from ffsdk.views import FanOut

DEPTH_COLUMNS = [
    Column(name, title, right=True)
    for name, title in (
        ("waiting", "waiting"),
        ("held", "held"),
        ("delayed", "delayed"),
        ("active", "active"),
        ("suspended", "susp."),
        ("completed", "completed"),
        ("failed", "failed"),
        ("cancelled", "canc."),
    )
]
COLUMNS = [
    Column("lane", "lane"),
    Column("state", "state"),
    *DEPTH_COLUMNS,
    Column("oldest_age_s", "oldest", span, right=True),
    Column("idle_workers", "idle", right=True),
]


@click.group(cls=Group)
def lane() -> None:
    """List lanes; pause, resume, drain, order them; bound what they keep."""


@lane.command("list")
@pass_settings
def list_(settings: Settings) -> None:
    """List lanes with their numbers. A lane exists from its first job on."""

    async def read() -> list[dict[str, Any]]:
        async with opened(settings) as backend:
            return await lane_records(backend)

    settings.out().rows(run(read()), COLUMNS, empty="No lanes yet: one exists from its first job on.")


@lane.command()
@click.argument("name")
@pass_settings
def stats(settings: Settings, name: str) -> None:
    """Show one lane's numbers, with its rates over the last seconds."""

    async def read() -> dict[str, Any]:
        async with client_of(settings) as client:
            record = await lane_record(client.backend, name)
            rates = await client.lane(name).stats()
            return {**record, "in_per_s": rates.rate_in, "out_per_s": rates.rate_out}

    settings.out().record(run(read()), "lane")


@lane.command()
@click.argument("name")
@pass_settings
def show(settings: Settings, name: str) -> None:
    """Show what a lane was told: state, order, what it keeps, at which revision, and who has not heard of it yet."""

    async def read() -> dict[str, Any]:
        async with client_of(settings) as client:
            told = await client.lane(name).settings()
            return {
                "lane": told.lane,
                "state": told.state,
                "order": f"aged by {told.aged} s" if told.aged else "strict",
                "aged_s": told.aged,
                "keep_age_s": told.keep_age,
                "keep_count": told.keep_count,
                "keep_bytes": told.keep_bytes,
                "revision": told.revision,
                "changed_at": told.changed_at.isoformat(timespec="milliseconds") if told.changed_at else None,
                "behind": told.behind,
            }

    settings.out().record(run(read()), "lane")


def _change(
    settings: Settings, name: str, record: dict[str, Any], tell: Callable[[Lane], Awaitable[FanOut]], said: str
) -> None:
    """Change a lane's settings. Partitions that were not reached hear of it from whoever ticks them: exit code 5."""

    async def change() -> FanOut:
        async with client_of(settings) as client:
            return await tell(client.lane(name))

    report(settings, run(change()), {"lane": name, **record}, said)


def _set(settings: Settings, name: str, state: str, tell: Callable[[Lane], Awaitable[FanOut]]) -> None:
    _change(settings, name, {"state": state}, tell, f"Lane {name} is {state}")


@lane.command()
@click.argument("name")
@pass_settings
def pause(settings: Settings, name: str) -> None:
    """Start nothing more of a lane; it still takes jobs."""
    _set(settings, name, "paused", lambda lane: lane.pause())


@lane.command()
@click.argument("name")
@pass_settings
def resume(settings: Settings, name: str) -> None:
    """Let a lane take and start jobs again."""
    _set(settings, name, "active", lambda lane: lane.resume())


@lane.command()
@click.argument("name")
@pass_settings
def drain(settings: Settings, name: str) -> None:
    """Take no new jobs; finish those that are there."""
    _set(settings, name, "draining", lambda lane: lane.drain())


@lane.command()
@click.argument("name")
@click.argument("seconds", type=click.IntRange(1, limits.AGED_MAX_S))
@pass_settings
def aged(settings: Settings, name: str, seconds: int) -> None:
    """Order jobs by how long they have waited; a point of priority is worth SECONDS of it.

    Fairness keys come first. Jobs in line are moved into the new order by whoever ticks, within seconds.
    """
    _change(settings, name, {"aged_s": seconds}, lambda lane: lane.aged(seconds), f"Lane {name} is aged by {seconds} s")


@lane.command()
@click.argument("name")
@pass_settings
def strict(settings: Settings, name: str) -> None:
    """Let higher priorities always go first, whatever has waited; the way lanes begin."""
    _change(settings, name, {"aged_s": 0}, lambda lane: lane.strict(), f"Lane {name} is strict")


@lane.command()
@click.argument("name")
@click.option("--age", type=click.FloatRange(min=0), metavar="SECONDS", help="Forget what ended longer ago.")
@click.option("--count", type=click.IntRange(min=0), help="Keep at most so many ended jobs.")
@click.option("--bytes", "bytes_", type=click.IntRange(min=0), help="Keep at most so many bytes of them.")
@pass_settings
def retention(settings: Settings, name: str, age: float | None, count: int | None, bytes_: int | None) -> None:
    """Bound what a lane keeps of ended jobs; 0 is no bound of that kind, and what is left out stays as it is.

    Counts and bytes are shared out to the partitions.
    """
    record = {"age_s": age, "count": count, "bytes": bytes_}
    _change(
        settings,
        name,
        record,
        lambda lane: lane.keep(age=age, count=count, bytes=bytes_),
        f"Lane {name} keeps what these bounds allow",
    )
