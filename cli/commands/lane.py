"""`ff lane`: named queues, seen and steered over all partitions."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from ..options import Group, Settings, pass_settings
from ..render import Column, Record, span
from ..store import client_of, lane_names, lane_record, opened, run

if TYPE_CHECKING:
    from ffcore.args import Args
    from ffcore.errors import EngineError
    from ffcore.ids import PartitionKey

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
    """List lanes, pause, resume, drain, bound what they keep."""


@lane.command("list")
@pass_settings
def list_(settings: Settings) -> None:
    """List lanes with their numbers. A lane exists from its first job on."""

    async def read() -> list[Record]:
        async with opened(settings) as backend:
            return [await lane_record(backend, name) for name in await lane_names(backend)]

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


def _set(settings: Settings, name: str, state: str) -> None:
    from ffcore.contracts.operator import SetLaneStateArgs
    from ffcore.ids import LaneId, check_name

    lane_id = LaneId(check_name(name, "lane"))
    _fan_out(
        settings,
        {"lane": name, "state": state},
        lambda p: SetLaneStateArgs(partition=p, lane_id=lane_id, state=state),
        f"Lane {name} is {state}",
    )


def _fan_out(settings: Settings, record: dict[str, Any], ask: Callable[[PartitionKey], Args[Any]], said: str) -> None:
    """Tell every partition. Partitions that were not reached keep what they had: exit code 5, call again."""
    from ffsdk.fanout import ask_all

    async def change() -> tuple[dict[PartitionKey, Any], dict[PartitionKey, EngineError]]:
        async with opened(settings) as backend:
            return await ask_all(backend, ask)

    reached, missed = run(change())
    out = settings.out()
    if not reached and missed:
        raise next(iter(missed.values()))
    if out.json:
        out.line({**record, "reached": len(reached), "not_reached": {p: str(e) for p, e in missed.items()}})
    else:
        out.say(
            f"{said} in all partitions."
            if not missed
            else f"{said} in {len(reached)} partitions, not in {', '.join(missed)}: repeat it."
        )
    if missed:
        click.get_current_context().exit(5)


@lane.command()
@click.argument("name")
@pass_settings
def pause(settings: Settings, name: str) -> None:
    """Start nothing more of a lane; it still takes jobs."""
    _set(settings, name, "paused")


@lane.command()
@click.argument("name")
@pass_settings
def resume(settings: Settings, name: str) -> None:
    """Let a lane take and start jobs again."""
    _set(settings, name, "active")


@lane.command()
@click.argument("name")
@pass_settings
def drain(settings: Settings, name: str) -> None:
    """Take no new jobs; finish those that are there."""
    _set(settings, name, "draining")


@lane.command()
@click.argument("name")
@click.option(
    "--age", type=click.FloatRange(min=0), default=0.0, metavar="SECONDS", help="Forget what ended longer ago."
)
@click.option("--count", type=click.IntRange(min=0), default=0, help="Keep at most so many ended jobs.")
@click.option("--bytes", "bytes_", type=click.IntRange(min=0), default=0, help="Keep at most so many bytes of them.")
@pass_settings
def retention(settings: Settings, name: str, age: float, count: int, bytes_: int) -> None:
    """Bound what a lane keeps of ended jobs; 0 is no bound of that kind.

    Counts and bytes are shared out to the partitions.
    """
    from ffcore.contracts.operator import SetLaneRetentionArgs
    from ffcore.ids import LaneId, check_name

    lane_id = LaneId(check_name(name, "lane"))

    async def partitions() -> int:
        async with opened(settings) as backend:
            return backend.config.fp

    n = run(partitions())
    _fan_out(
        settings,
        {"lane": name, "age_s": age, "count": count, "bytes": bytes_},
        # Rounded up: a bound of 1 must not become no bound.
        lambda p: SetLaneRetentionArgs(
            partition=p, lane_id=lane_id, age_ms=round(age * 1000), count=-(-count // n), bytes=-(-bytes_ // n)
        ),
        f"Lane {name} keeps what these bounds allow",
    )
