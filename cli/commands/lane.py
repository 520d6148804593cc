"""`ff lane`: named queues, seen and steered over all partitions."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import click

from ffcore import limits

from ..options import Group, Settings, pass_settings
from ..render import Column, moment, span
from ..store import client_of, lane_record, lane_records, opened, report, run

if TYPE_CHECKING:
    from ffsdk.lanes import Lane
    from ffsdk.views import FanOut, LaneHalt


def rate_of(ctx: click.Context, param: click.Parameter, text: str | None) -> tuple[int, int] | None:
    """`100/60`: so many in so many seconds."""
    if text is None:
        return None
    count, slash, window = text.partition("/")
    if not slash or not count.isdigit() or not window.isdigit() or not int(count) or not int(window):
        raise click.BadParameter(f"{text}: write N/SECONDS, as in 100/60", ctx, param)
    return int(count), int(window)


def weight_of(pair: str) -> tuple[str, float]:
    """`t1=4`; the last = counts, so that a key may have one."""
    key, equals, weight = pair.rpartition("=")
    try:
        value = float(weight)
    except ValueError:
        value = -1.0
    if not equals or not key or value <= 0:
        raise click.UsageError(f"{pair}: write KEY=WEIGHT, as in t1=4")
    return key, value


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
    """List lanes; pause, resume, drain, order, limit and weigh them; bound what they take and keep."""


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
            stats = await client.lane(name).stats()
            return {
                **record,
                "in_per_s": stats.rate_in,
                "out_per_s": stats.rate_out,
                "halts": [halt_record(halt) for halt in stats.halts],
            }

    record = run(read())
    out = settings.out()
    if out.json:
        return out.line(record)
    halts = record.pop("halts")
    out.record(record, "lane")
    if halts:
        out.say("")
        names = ("kind", "detail", "until")
        out.rows(halts, [Column("jobs", "jobs", right=True), *(Column(name, name) for name in names)])


def halt_record(halt: LaneHalt) -> dict[str, Any]:
    """Jobs in line that wait for the same budget or quota."""
    return {"kind": halt.kind, "detail": halt.detail, "jobs": halt.jobs, "until": moment(halt.until)}


@lane.command()
@click.argument("name")
@pass_settings
def show(settings: Settings, name: str) -> None:
    """Show what a lane was told: state, order, limits, what it keeps, the revision, and who has not heard of it."""

    async def read() -> dict[str, Any]:
        async with client_of(settings) as client:
            told = await client.lane(name).settings()
            starts, window_s = told.rate or (0, 0)
            return {
                "lane": told.lane,
                "state": told.state,
                "order": f"aged by {told.aged} s" if told.aged else "strict",
                "aged_s": told.aged,
                "keep_age_s": told.keep_age,
                "keep_count": told.keep_count,
                "keep_bytes": told.keep_bytes,
                "max_count": told.max_count,
                "max_bytes": told.max_bytes,
                "concurrency": told.concurrency,
                "rate": starts,
                "rate_window_s": window_s,
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
@click.option("--concurrency", type=click.IntRange(min=1), help="Jobs that run at once, in the whole store.")
@click.option("--rate", metavar="N/SECONDS", callback=rate_of, help="Jobs that start in any window, as in 100/60.")
@click.option("--off", is_flag=True, help="No limit any more.")
@pass_settings
def limit(settings: Settings, name: str, concurrency: int | None, rate: tuple[int, int] | None, off: bool) -> None:
    """Run at most so many of a lane's jobs at once, or start at most so many in any window; the rest waits in line.

    What is left out is no limit: both are set together.
    """
    if off == (concurrency is not None or rate is not None):
        raise click.UsageError("give --concurrency, --rate or both; or --off")
    record = {
        "concurrency": concurrency or 0,
        "rate": rate[0] if rate else 0,
        "rate_window_s": rate[1] if rate else 0,
    }
    said = f"Lane {name} has no limit" if off else f"Lane {name} is limited"
    _change(settings, name, record, lambda lane: lane.limit(concurrency=concurrency, rate=rate), said)


@lane.command()
@click.argument("name")
@click.option("--count", type=click.IntRange(min=0), help="Jobs ready, delayed or blocked.")
@click.option("--bytes", "bytes_", type=click.IntRange(min=0), help="Payload bytes of jobs that have not ended.")
@pass_settings
def backlog(settings: Settings, name: str, count: int | None, bytes_: int | None) -> None:
    """Refuse submits while so much stands in line; 0 is no bound of that kind, and what is left out stays as it is."""
    if count is None and bytes_ is None:
        raise click.UsageError("give --count, --bytes or both")
    record = {"max_count": count, "max_bytes": bytes_}
    said = f"Lane {name} takes what these bounds allow"
    _change(settings, name, record, lambda lane: lane.backlog(count=count, bytes=bytes_), said)


@lane.command()
@click.argument("name")
@click.argument("pairs", nargs=-1, metavar="[KEY=WEIGHT]...")
@pass_settings
def weights(settings: Settings, name: str, pairs: tuple[str, ...]) -> None:
    """Give fairness keys more turns, or fewer, as in t1=4 t2=0.5; 1 takes a weight back. Without any: list them."""
    given = dict(weight_of(pair) for pair in pairs)
    if given:
        record = {"weights": given}
        return _change(settings, name, record, lambda lane: lane.weigh(given), f"Lane {name} weighs its keys so")

    async def read() -> list[dict[str, Any]]:
        async with client_of(settings) as client:
            found = await client.lane(name).weights()
        return [{"lane": name, "key": key, "weight": weight} for key, weight in found.items()]

    columns = [Column("key", "fairness key"), Column("weight", "weight", "{:g}".format, right=True)]
    settings.out().rows(run(read()), columns, empty=f"All fairness keys of lane {name} weigh the same.")


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
