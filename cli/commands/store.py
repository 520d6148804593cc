"""`ff store`: what holds for the whole store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ..options import Group, Settings, pass_settings
from ..store import client_of, report, run

if TYPE_CHECKING:
    from ffsdk.views import FanOut


@click.group(cls=Group)
def store() -> None:
    """Show and set what holds for the whole store."""


@store.command()
@pass_settings
def show(settings: Settings) -> None:
    """Show the submit gate's marks, at which revision, and who has not heard of them yet."""

    async def read() -> dict[str, Any]:
        async with client_of(settings) as client:
            told = await client.settings()
            return {
                "gate_pct": told.gate_pct,
                "gate_bytes": told.gate_bytes,
                "revision": told.revision,
                "changed_at": told.changed_at.isoformat(timespec="milliseconds") if told.changed_at else None,
                "behind": told.behind,
            }

    settings.out().record(run(read()), "setting")


@store.command()
@click.option("--pct", type=click.IntRange(0, 100), help="Of the server's maxmemory; 0: not for that reason.")
@click.option("--bytes", "bytes_", type=click.IntRange(min=0), help="Used bytes; 0: not for that reason.")
@pass_settings
def gate(settings: Settings, pct: int | None, bytes_: int | None) -> None:
    """Refuse submits while the server uses so much of its memory; what is there is worked on all the same.

    What is left out stays as it is. Whoever ticks looks once a second.
    """

    async def change() -> FanOut:
        async with client_of(settings) as client:
            return await client.gate(pct=pct, bytes=bytes_)

    report(settings, run(change()), {"gate_pct": pct, "gate_bytes": bytes_}, "The gate is set")
