"""`ff top`: lanes, workers and rates, redrawn while one looks."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import click

from ..options import Command, Settings, pass_settings
from ..render import Column, Out
from ..store import DEPTHS, lane_records, opened, run
from .lane import COLUMNS
from .worker import worker_records

if TYPE_CHECKING:
    from ffcore.backend import Backend

RATES = [Column("in_per_s", "in/s", right=True), Column("out_per_s", "out/s", right=True)]
ENDED = ("completed", "failed", "cancelled", "expired", "skipped")
HEIGHT = 20
"""Workers shown at most."""


@click.command(cls=Command)
@click.option("--once", is_flag=True, help="One picture, then end.")
@click.option("--every", type=click.FloatRange(min=0.1), default=1.0, show_default=True, metavar="SECONDS")
@pass_settings
def top(settings: Settings, once: bool, every: float) -> None:
    """Watch lanes, workers and rates. With --json one object per picture."""
    out = settings.out()
    if not out.json and not once and not out.tty:
        raise click.UsageError("ff top draws on a terminal: use --once or --json in a pipe")
    run(_watch(settings, out, once, every))


async def _watch(settings: Settings, out: Out, once: bool, every: float) -> None:
    async with opened(settings) as backend:
        rates = Rates()
        if once or out.json:
            while True:
                show(out, rates.add(await picture(backend)))
                if once:
                    return
                await asyncio.sleep(every)
        from rich.live import Live

        with Live(console=out.console(), auto_refresh=False, screen=True) as live:
            while True:
                live.update(tables(out, rates.add(await picture(backend))), refresh=True)
                await asyncio.sleep(every)


async def picture(backend: Backend) -> dict[str, Any]:
    """Everything once."""
    return {"url": backend.url, "lanes": await lane_records(backend), "workers": await worker_records(backend)}


class Rates:
    """Rates from one picture to the next. What retention forgot in between is missing from both."""

    def __init__(self) -> None:
        self._before: dict[str, tuple[float, int, int]] = {}

    def add(self, found: dict[str, Any], now: float | None = None) -> dict[str, Any]:
        now = time.monotonic() if now is None else now
        for lane in found["lanes"]:
            made, ended = sum(lane[state] for state in DEPTHS), sum(lane[state] for state in ENDED)
            at, made_before, ended_before = self._before.get(lane["lane"], (now, made, ended))
            self._before[lane["lane"]] = (now, made, ended)
            seconds = now - at
            lane["in_per_s"] = round(max(0, made - made_before) / seconds, 1) if seconds > 0 else None
            lane["out_per_s"] = round(max(0, ended - ended_before) / seconds, 1) if seconds > 0 else None
        return found


def show(out: Out, found: dict[str, Any]) -> None:
    if out.json:
        return out.line(found)
    out.console().print(tables(out, found))


def tables(out: Out, found: dict[str, Any]) -> Any:
    from rich.console import Group
    from rich.text import Text

    workers = found["workers"]
    columns = [
        Column("worker", "worker"),
        Column("host", "host"),
        Column("lanes", "lanes"),
        Column("concurrency", "slots", right=True),
        Column("capabilities", "has"),
    ]
    parts: list[Any] = [Text(f"{found['url']}   {len(found['lanes'])} lanes, {len(workers)} workers")]
    if found["lanes"]:
        parts += [Text(), out.table(found["lanes"], [*COLUMNS, *RATES])]
    if workers:
        parts += [Text(), out.table(workers[:HEIGHT], columns)]
    if len(workers) > HEIGHT:
        parts.append(Text(f"and {len(workers) - HEIGHT} more"))
    return Group(*parts)
