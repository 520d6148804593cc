"""`ff dev`: a local store with its engine, for as long as this runs."""

from __future__ import annotations

import click

from ..options import Command, Settings, pass_settings


@click.command(cls=Command)
@click.option(
    "--dir", "directory", metavar="DIR", help="Where the data lives; default ./.flowfabric. It stays when this ends."
)
@pass_settings
def dev(settings: Settings, directory: str | None) -> None:
    """Run a local store and its engine until Ctrl-C, and print its URL.

    A real Valkey with its data on disk. Programs started in the same directory find it without FF_URL.
    """
    import asyncio
    import dataclasses
    from pathlib import Path

    from ffsdk.connect import DEFAULT_DIR

    from ..store import opened
    from .engine import tick_until_told

    if directory is not None and settings.url:
        raise click.UsageError("--dir and --url both name the store: give one")
    # Not FF_URL: a shell that is set up for a shared store must not make this tick there.
    url = settings.url or f"embedded://{Path(directory or DEFAULT_DIR).absolute()}"
    out = settings.out()

    async def serve() -> None:
        async with opened(dataclasses.replace(settings, url=url), verb="dev") as backend:
            if out.json:
                out.line({"url": backend.url, "partitions": backend.config.fp})
            else:
                out.say(f"Ready at {backend.url} ({backend.config.fp} partitions).")
                out.say(f"  export FF_URL={backend.url}")
                out.say("Ctrl-C stops it.")
                out.stream.flush()
            await tick_until_told(backend)

    asyncio.run(serve())
    out.say("Stopped. The data stays where it is.")
