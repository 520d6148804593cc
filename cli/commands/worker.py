"""`ff worker`: run the tasks of an app; see who else does."""

from __future__ import annotations

import importlib
import os
import sys
import time
from typing import TYPE_CHECKING, Any

import click

from ..options import Group, Settings, pass_settings
from ..render import Column, ago, instant

if TYPE_CHECKING:
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
@pass_settings
def list_(settings: Settings) -> None:
    """List workers that are alive. One that died is listed for at most half a minute."""
    from ..store import opened, run

    async def read() -> list[dict[str, Any]]:
        async with opened(settings) as backend:
            return await worker_records(backend)

    columns = [
        Column("worker", "worker"),
        Column("host", "host"),
        Column("pid", "pid", right=True),
        Column("lanes", "lanes"),
        Column("concurrency", "slots", right=True),
        Column("capabilities", "has"),
        Column("tasks", "tasks"),
        Column("alive_until", "listed until", ago(time.time_ns() // 1_000_000)),
    ]
    settings.out().rows(run(read()), columns, empty="No worker is alive.")


async def worker_records(backend: Any) -> list[dict[str, Any]]:
    """Every registered worker, with what it says of itself."""
    import msgspec

    from ffcore.contracts.roster import ListWorkersArgs

    found: list[dict[str, Any]] = []
    for partition in backend.config.keys("w"):
        after: str | None = None
        while True:
            page = await backend.call(ListWorkersArgs(partition=partition, after=after, limit=100))
            for row in page.items:
                try:
                    info = msgspec.json.decode(row.info, type=dict[str, Any]) if row.info else {}
                except msgspec.DecodeError:
                    info = {}  # cut off at the store's limit; that it is alive is still worth a line
                found.append(
                    {
                        "worker": row.worker_instance_id,
                        "name": info.get("name"),
                        "host": info.get("host"),
                        "pid": info.get("pid"),
                        "lanes": info.get("lanes") or [],
                        "concurrency": info.get("concurrency"),
                        "capabilities": info.get("capabilities") or [],
                        "tasks": info.get("tasks") or [],
                        "alive_until": instant(row.alive_until),
                    }
                )
            after = page.cursor
            if not after:
                break
    return sorted(found, key=lambda record: str(record["worker"]))
