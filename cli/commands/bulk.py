"""`ff job cancel-many | replay-many | purge-many`: look first, say what would happen, ask, then do it.

The rule: nothing changes before the person has seen a count, or has said --yes. What a preview found is what is
changed: a job that appears between the two is not touched.
"""

from __future__ import annotations

import functools
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from ffsdk.listing import public_state

from ..options import Command, Settings, pass_settings, replay_mode
from ..render import Column, Out
from ..store import executions, in_chunks, lane_names, opened, run

if TYPE_CHECKING:
    from ffcore.args import Args
    from ffcore.backend import Backend
    from ffcore.contracts.reads import ListedExecution

ENDED = ("completed", "failed", "cancelled", "expired", "skipped")
OPEN = ("waiting", "delayed", "rate_limited", "waiting_children", "active", "suspended")
PREVIEW_N = 5
"""Ids shown with a count."""


class Chosen(NamedTuple):
    """Which jobs, and how sure the person is."""

    states: tuple[str, ...]
    lanes: tuple[str, ...]
    tag: str | None
    task: str | None
    every: bool
    dry_run: bool
    yes: bool


def _chosen(states: Sequence[str], *, narrow: bool = True) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """The options the bulk verbs share, handed over as one `Chosen`. `narrow`: by tag and task too, one lane only."""
    options = [
        click.option("--state", "states", multiple=True, type=click.Choice(states), help="May be given several times."),
        click.option("--lane", "lanes", multiple=not narrow, help="" if narrow else "May be given several times."),
        *((click.option("--tag", metavar="KEY=VALUE"), click.option("--task")) if narrow else ()),
        click.option("--all", "every", is_flag=True, help="Needed where no filter is given."),
        click.option("--dry-run", is_flag=True, help="Show what would happen, and stop."),
        click.option("--yes", is_flag=True, help="Do not ask."),
    ]

    def add(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def collected(
            *rest: Any, states: tuple[str, ...], lanes: Any, every: bool, dry_run: bool, yes: bool,
            tag: str | None = None, task: str | None = None, **own: Any,
        ) -> None:  # fmt: skip
            named = (lanes,) if isinstance(lanes, str) else tuple(lanes or ())
            command(*rest, chosen=Chosen(states, named, tag, task, every, dry_run, yes), **own)

        wrapped: Callable[..., None] = collected
        for option in reversed(options):
            wrapped = option(wrapped)
        return wrapped

    return add


def _check_filter(settings: Settings, chosen: Chosen) -> None:
    if not chosen.every and not settings.namespace and not any(chosen[:4]):
        raise click.UsageError("name a filter (--state, --lane, --tag, --task, --namespace), or say --all")


def agreed(out: Out, what: str, count: int, yes: bool) -> bool:
    """Whether to go on. A program that is asked cannot answer, so it must have said --yes."""
    if yes:
        return True
    if out.json or not sys.stdin.isatty():
        # A runner of tests gives an answer without a terminal; an empty stdin is no answer.
        answer = "" if out.json else sys.stdin.readline().strip().lower()
        if not answer:
            raise click.UsageError(f"{what} {count} jobs needs --yes where nobody can be asked")
        return answer in ("y", "yes")
    return click.confirm(f"{what} {count} jobs?", err=True)


def _preview(out: Out, what: str, groups: Counter[tuple[str, str, str]], ids: Sequence[str], dry_run: bool) -> None:
    if out.json:
        if dry_run:
            out.line({"dry_run": True, "matched": sum(groups.values()), "ids": list(ids)})
        return
    rows = [
        {"lane": lane, "task": task, "state": state, "jobs": n} for (lane, task, state), n in sorted(groups.items())
    ]
    columns = [
        Column("lane", "lane"),
        Column("task", "task"),
        Column("state", "state"),
        Column("jobs", "jobs", right=True),
    ]
    out.rows(rows, columns, empty="No job matches.")
    if ids:
        out.say("such as " + ", ".join(ids[:PREVIEW_N]))
    if rows and dry_run:
        out.say(f"Would {what} {sum(groups.values())} jobs.")


def _report(out: Out, word: str, matched: int, done: int, refused: Counter[str]) -> None:
    if out.json:
        out.line({"dry_run": False, "matched": matched, "done": done, "refused": dict(sorted(refused.items()))})
    else:
        out.say(f"{done} of {matched} jobs {word}.")
        if refused:
            out.say("Not changed: " + ", ".join(f"{n} {code}" for code, n in sorted(refused.items())))
    if refused:
        click.get_current_context().exit(1)


async def _each(
    settings: Settings,
    what: str,
    chosen: Chosen,
    default: Sequence[str],
    change: Callable[[ListedExecution], Args[Any]],
) -> tuple[int, int, Counter[str]] | None:
    """Find, preview, ask, change one by one. None: nothing was to be done, or it was refused."""
    from ffcore.errors import EngineError

    out = settings.out()
    async with opened(settings) as backend:
        found = executions(
            backend, states=chosen.states or default, lane=chosen.lanes[0] if chosen.lanes else None, tag=chosen.tag,
            namespace=settings.namespace, task=chosen.task,
        )  # fmt: skip
        rows = [row async for row in found]
        groups: Counter[tuple[str, str, str]] = Counter((r.lane_id, r.task, public_state(r).value) for r in rows)
        _preview(out, what, groups, [row.execution_id for row in rows], chosen.dry_run)
        if chosen.dry_run or (not rows and not out.json):
            return None
        if rows and not agreed(out, what, len(rows), chosen.yes):
            raise click.Abort
        with out.progress(what, len(rows)) as advance:
            answers = await in_chunks(backend, [change(row) for row in rows], advance)
    refused = Counter(a.code for a in answers if isinstance(a, EngineError))
    return len(rows), len(rows) - sum(refused.values()), refused


@click.command("cancel-many", cls=Command)
@_chosen(OPEN)
@click.option("--reason", default="", help="Kept with each job.")
@pass_settings
def cancel_many(settings: Settings, chosen: Chosen, reason: str) -> None:
    """Cancel every job that matches and has not ended."""
    from ffcore.contracts.execution import CancelExecutionArgs
    from ffcore.contracts.lease import CancelSource

    _check_filter(settings, chosen)
    source = CancelSource.custom("ff")

    def change(row: ListedExecution) -> CancelExecutionArgs:
        return CancelExecutionArgs(execution_id=row.execution_id, reason=reason, source=source)

    done = run(_each(settings, "cancel", chosen, OPEN, change))
    if done:
        _report(settings.out(), "cancelled or told to stop", *done)


@click.command("replay-many", cls=Command)
@_chosen(ENDED)
@replay_mode
@pass_settings
def replay_many(settings: Settings, chosen: Chosen, mode: Any) -> None:
    """Run every job that matches and has ended again; without --state, those that failed."""
    from ffcore.contracts.execution import ReplayExecutionArgs

    _check_filter(settings, chosen)

    def change(row: ListedExecution) -> ReplayExecutionArgs:
        return ReplayExecutionArgs(execution_id=row.execution_id, mode=mode)

    done = run(_each(settings, "replay", chosen, ("failed",), change))
    if done:
        _report(settings.out(), "wait to run again", *done)


@click.command("purge-many", cls=Command)
@_chosen(ENDED, narrow=False)
@click.option(
    "--older-than", type=click.FloatRange(min=0), default=0.0, metavar="SECONDS", help="Ended at least so long ago."
)
@pass_settings
def purge_many(settings: Settings, chosen: Chosen, older_than: float) -> None:
    """Forget jobs that have ended, with their payloads and results; without --state, all of them.

    There is no way back."""
    if settings.namespace:
        raise click.UsageError("purge-many forgets by lane and state; --namespace cannot narrow it")
    if not chosen.every and not chosen.lanes and not chosen.states:
        raise click.UsageError("name --lane or --state, or say --all")
    run(_purge(settings, chosen, older_than))


async def _purge(settings: Settings, chosen: Chosen, older_than: float) -> None:
    from ffcore.contracts.upkeep import PurgeArgs, ReadHeaderArgs
    from ffcore.ids import TimestampMs

    out = settings.out()
    async with opened(settings) as backend:
        # The store's own clock, read once: what ends while the question is open is not part of the answer.
        now = {p: (await backend.call(ReadHeaderArgs(partition=p))).now_ms for p in backend.config.keys("fp")}
        before = {p: TimestampMs(max(0, at - round(older_than * 1000))) for p, at in now.items()}
        names = list(chosen.lanes) or list(await lane_names(backend))

        def ask(partition: Any, lane: str, state: str, dry: bool) -> PurgeArgs:
            return PurgeArgs(partition=partition, lane_id=lane, outcome=state, before_ms=before[partition], dry_run=dry)

        groups: Counter[tuple[str, str, str]] = Counter()
        ids: list[str] = []
        for lane in names:
            for state in chosen.states or ENDED:
                for partition in before:
                    found = await backend.call(ask(partition, lane, state, True))
                    if found.remaining:
                        groups[lane, "*", state] += found.remaining
                        ids += found.execution_ids[:PREVIEW_N]
        _preview(out, "purge", groups, ids, chosen.dry_run)
        matched = sum(groups.values())
        if chosen.dry_run or (not matched and not out.json):
            return
        if matched and not agreed(out, "purge", matched, chosen.yes):
            raise click.Abort
        done = 0
        with out.progress("purge", matched) as advance:
            for lane, _, state in sorted(groups):
                for partition in before:
                    done += await _purge_all(backend, ask(partition, lane, state, False), advance)
    _report(out, "purged", matched, done, Counter())


async def _purge_all(backend: Backend, args: Any, advance: Callable[[int], None]) -> int:
    """One call after the other until nothing is left of what matched."""
    done = 0
    while True:
        gone = await backend.call(args)
        done += len(gone.execution_ids)
        advance(len(gone.execution_ids))
        if not gone.remaining or not gone.execution_ids:
            return done
