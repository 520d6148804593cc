"""`ff worker`: run the tasks of an app; see who else does."""

from __future__ import annotations

import importlib
import os
import sys
import time
from typing import TYPE_CHECKING, Any

import click

from ..options import Group, Settings, pass_settings
from ..render import Column, ago, moment

if TYPE_CHECKING:
    from ffcore.backend import Backend
    from ffsdk.app import App


@click.group(cls=Group)
def worker() -> None:
    """Run a worker; list those that are alive."""


def load_app(where: str) -> App:
    """The App that MODULE:APP names; the current directory is searched first, as for `python -m`."""
    from ffsdk.app import App

    module_name, colon, attribute = where.partition(":")
    if not colon or not module_name or not attribute:
        raise click.UsageError(f"{where}: write MODULE:APP, as in shop.jobs:app")
    if (here := os.getcwd()) not in sys.path:
        sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as missing:
        # A module that the user's own code misses is his error to see, with its traceback.
        if missing.name is None or not f"{module_name}.".startswith(f"{missing.name}."):
            raise
        raise click.UsageError(f"there is no module {missing.name}, seen from {here}") from missing
    for name in attribute.split("."):
        found = getattr(found, name, None)
    if not isinstance(found, App):
        raise click.UsageError(f"{where} is not an ff.App: it is {type(found).__name__}")
    return found


def log_to_stderr() -> None:
    """What a long-running process tells its supervisor."""
    import logging

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)


@worker.command("run")
@click.argument("where", metavar="MODULE:APP")
@click.option(
    "--lane",
    "lanes",
    multiple=True,
    help="Whose jobs to take; may be given several times. Default: those of the app's tasks.",
)
@click.option(
    "--concurrency", type=click.IntRange(1, 10_000), default=16, show_default=True, help="Handlers at a time."
)
@click.option("--capability", "capabilities", multiple=True, help='What this machine has, as in gpu or "torch==2.4".')
@click.option(
    "--prefetch",
    type=click.IntRange(0, 10_000),
    help="Jobs held beyond those that run. Default: by how short they are.",
)
@click.option(
    "--lease",
    type=click.FloatRange(min=0.1),
    metavar="SECONDS",
    help="A crashed worker's jobs come back after it. Default 30.",
)
@click.option(
    "--grace", type=click.FloatRange(min=0), metavar="SECONDS", help="For handlers to finish when stopped. Default 25."
)
@click.option("--no-tick", is_flag=True, help="Leave timers and recovery to others; somebody has to.")
@pass_settings
def run_(
    settings: Settings,
    where: str,
    lanes: tuple[str, ...],
    concurrency: int,
    capabilities: tuple[str, ...],
    prefetch: int | None,
    lease: float | None,
    grace: float | None,
    no_tick: bool,
) -> None:
    """Run the tasks of an app until SIGTERM or Ctrl-C; running handlers finish, a second signal does not wait."""
    import asyncio

    log_to_stderr()
    app = load_app(where)
    # What is said here and now wins over what the module says.
    if url := settings.store_url():
        app.url = url
    if settings.namespace:
        app.namespace = settings.namespace
    given = {"prefetch": prefetch, "lease": lease, "grace": grace}
    made = app.worker(
        lanes=list(lanes) or None,
        concurrency=concurrency,
        capabilities=set(capabilities),
        tick=not no_tick,
        **{name: value for name, value in given.items() if value is not None},
    )
    asyncio.run(made.run(signals=True))


@worker.command("list")
@click.option("--dead", is_flag=True, help="Those that died within the last hour, instead.")
@pass_settings
def list_(settings: Settings, dead: bool) -> None:
    """List workers that are alive; one that died is found out about within half a minute.

    A worker that was stopped says so and is in neither list.
    """
    from ..store import opened, run

    async def read() -> list[dict[str, Any]]:
        async with opened(settings) as backend:
            return await worker_records(backend, dead)

    now = ago(time.time_ns() // 1_000_000)
    columns = [
        Column("worker", "worker"),
        Column("host", "host"),
        Column("pid", "pid", right=True),
        Column("lanes", "lanes"),
        Column("concurrency", "slots", right=True),
        Column("capabilities", "has"),
        Column("tasks", "tasks"),
        Column("seen_at", "last seen", now),
        Column("alive_until", "until" if not dead else "missed", now),
    ]
    empty = "No worker has died within the last hour." if dead else "No worker is alive."
    settings.out().rows(run(read()), columns, empty=empty)


async def worker_records(backend: Backend, dead: bool = False) -> list[dict[str, Any]]:
    """Every registered worker, with what it says of itself."""
    from ffsdk.workers import workers

    return [
        {
            "worker": one.worker,
            "name": one.name or None,
            "host": one.host or None,
            "pid": one.pid,
            "lanes": one.lanes,
            "concurrency": one.concurrency,
            "capabilities": one.capabilities,
            "tasks": one.tasks,
            "alive_until": moment(one.alive_until),
            "dead": one.dead,
            "seen_at": moment(one.seen_at),
        }
        for one in await workers(backend, dead)
    ]
