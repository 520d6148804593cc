"""`ff hold` and `ff release`: stop jobs of a task, or with a tag, from starting; let them go again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from ..options import Command, Settings, pass_settings
from ..render import Column
from ..store import everywhere, opened, run


def _what(task: str | None, tag: str | None) -> str:
    if (task is None) == (tag is None):
        raise click.UsageError("name --task NAME or --tag KEY=VALUE, one of them")
    if tag is not None and "=" not in tag:
        raise click.UsageError(f"--tag {tag}: write key=value, as in shop.tenant=t1")
    return f"task:{task}" if task is not None else f"tag:{tag}"


def _change(settings: Settings, ask: Callable[[Any], Any]) -> bool:
    """Tell every partition; True if any of them changed."""
    from ffcore.contracts.operator import Held, ReleasedHold

    async def change() -> bool:
        async with opened(settings) as backend:
            answers = await everywhere(backend, ask)
            return any(isinstance(answer, Held | ReleasedHold) for answer in answers.values())

    return run(change())


@click.command(cls=Command)
@click.option("--task", help="Jobs of this task.")
@click.option("--tag", metavar="KEY=VALUE", help="Jobs with this tag.")
@click.option("--reason", default="", help="Shown to whoever asks why a job does not run.")
@pass_settings
def hold(settings: Settings, task: str | None, tag: str | None, reason: str) -> None:
    """Stop jobs of a task or with a tag from starting; without either, list what is held."""
    from ffcore.contracts.operator import HoldArgs

    out = settings.out()
    if task is None and tag is None:
        out.rows(run(_held(settings)), [Column("what", "held"), Column("reason", "reason")], empty="Nothing is held.")
        return
    what = _what(task, tag)
    changed = _change(settings, lambda p: HoldArgs(partition=p, what=what, reason=reason))
    if out.json:
        return out.line({"what": what, "changed": changed})
    out.say(f"{what} is held." if changed else f"{what} was held before.")


async def _held(settings: Settings) -> list[dict[str, Any]]:
    from ffcore.contracts.operator import ListHoldsArgs

    async with opened(settings) as backend:
        answers = await everywhere(backend, lambda p: ListHoldsArgs(partition=p))
    found = {item.what: item.reason for answer in answers.values() for item in answer.items}
    return [{"what": what, "reason": reason or None} for what, reason in sorted(found.items())]


@click.command(cls=Command)
@click.option("--task", help="Jobs of this task.")
@click.option("--tag", metavar="KEY=VALUE", help="Jobs with this tag.")
@pass_settings
def release(settings: Settings, task: str | None, tag: str | None) -> None:
    """Let held jobs go."""
    from ffcore.contracts.operator import ReleaseArgs

    what = _what(task, tag)
    changed = _change(settings, lambda p: ReleaseArgs(partition=p, what=what))
    out = settings.out()
    if out.json:
        return out.line({"what": what, "changed": changed})
    out.say(f"{what} is released." if changed else f"{what} was not held.")
