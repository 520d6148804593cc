"""`ff engine`: look after a store's timers, expired leases and retention without running any jobs.

Every worker does this too; a store that only has clients, or whose workers run with --no-tick, needs one of these.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ..options import Group, Settings, pass_settings
from ..store import opened, run

if TYPE_CHECKING:
    from ffcore.backend import Backend

ROUNDS_MAX = 1_000
"""Of one `ff engine tick`: at 200 timers a partition and round, more than any backlog seen."""


@click.group(cls=Group)
def engine() -> None:
    """Look after timers and recovery without a worker."""


@engine.command()
@pass_settings
def tick(settings: Settings) -> None:
    """Do everything that is due now, once, whoever looks after the store otherwise."""

    async def once() -> dict[str, int]:
        async with opened(settings) as backend:
            return await sweep(backend, "ff-tick")

    record = run(once())
    out = settings.out()
    if out.json:
        return out.line(record)
    said = f"{record['done']} timers, {record['reaped']} clean-ups, {record['fired']} schedules"
    out.say(f"{said}, in {record['partitions']} partitions.")


async def sweep(backend: Backend, ticker: str) -> dict[str, int]:
    """Tick every partition until nothing is due any more, at most ROUNDS_MAX times."""
    from ffcore.contracts.upkeep import TickArgs
    from ffengine.post import Post
    from ffengine.schedules import fire

    done = reaped = fired = 0
    post = Post(backend)
    keys = [key for family in ("fp", "b", "q", "w") for key in backend.config.keys(family)]
    for _ in range(ROUNDS_MAX):
        answers: list[Any] = []
        # A partition of another family may not be in one group with these on every server: one call each.
        for key in keys:
            answers += (await backend.call(TickArgs(partitions=[key], ticker=ticker, force=True))).partitions
        round_done, round_reaped = sum(a.done for a in answers), sum(a.reaped for a in answers)
        done, reaped = done + round_done, reaped + round_reaped
        for answer in answers:
            await post.deliver(answer.partition, answer.owed)
        round_fired = sum([(await fire(backend, a)).done for a in answers if a.schedules])
        fired += round_fired
        if round_done == 0 and round_reaped == 0 and round_fired == 0:
            break
    return {"partitions": len(keys), "done": done, "reaped": reaped, "fired": fired}


@engine.command("run")
@pass_settings
def run_engine(settings: Settings) -> None:
    """Tick until SIGTERM or Ctrl-C. Run as many as you like; one at a time does the work."""
    import asyncio

    from .worker import log_to_stderr

    log_to_stderr()

    async def serve() -> None:
        async with opened(settings) as backend:
            click.echo(f"ff: ticking {backend.url}", err=True)
            await tick_until_told(backend)

    asyncio.run(serve())


async def tick_until_told(backend: Backend) -> None:
    """Run a ticker until SIGTERM or SIGINT."""
    import asyncio
    import os
    import secrets
    import signal

    from ffengine.tick import Ticker

    ticker, loop = Ticker(backend, f"ff-{os.getpid()}-{secrets.token_hex(4)}"), asyncio.get_running_loop()
    numbers = (signal.SIGTERM, signal.SIGINT)
    for number in numbers:
        loop.add_signal_handler(number, ticker.stop)
    try:
        await ticker.run()
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)
