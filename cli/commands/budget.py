"""`ff budget`: how much jobs may spend between two resets, in several dimensions."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

import click

from ..options import Group, Settings, pass_settings
from ..render import Column, instant
from ..store import client_of, run
from .quota import confirm

if TYPE_CHECKING:
    from ffcore.contracts.budget import BudgetStatus
    from ffsdk.budgets import BudgetHandle

COLUMNS = [
    Column("name", "budget"),
    Column("usage", "used"),
    Column("reserved", "reserved"),
    Column("hard_limits", "of"),
    Column("waiting", "waiting", right=True),
    Column("next_reset_at", "resets"),
]


@click.group(cls=Group)
def budget() -> None:
    """Create, list, show, reset, report to, raise and remove budgets."""


def status_record(status: BudgetStatus) -> dict[str, Any]:
    """Every field of the status; instants as text."""
    return {
        "budget_id": status.budget_id,
        "name": status.name,
        "namespace": status.namespace,
        "scope_type": status.scope_type,
        "scope_id": status.scope_id,
        "enforcement_mode": status.enforcement_mode,
        "usage": dict(status.usage),
        "reserved": dict(status.reserved),
        "hard_limits": dict(status.hard_limits),
        "soft_limits": dict(status.soft_limits),
        "reservations": status.reservations,
        "waiting": status.waiting,
        "breach_count": status.breach_count,
        "soft_breach_count": status.soft_breach_count,
        "last_breach_at": instant(status.last_breach_at),
        "last_breach_dim": status.last_breach_dim,
        "reset_interval_s": status.reset_interval_ms / 1000,
        "period": status.period,
        "next_reset_at": instant(status.next_reset_at),
        "created_at": instant(status.created_at),
    }


def amount_of(pair: str) -> tuple[str, int | float]:
    """`tokens=500`: a dimension and its amount."""
    name, equals, text = pair.partition("=")
    try:
        value: int | float = int(text) if text.isdigit() else float(text)
    except ValueError:
        equals, value = "", 0
    if not equals or not name or not 0 <= value < 2**53:
        raise click.UsageError(f"{pair}: write DIMENSION=AMOUNT, as in tokens=500 or usd=0.25")
    return name, value


def amounts_of(pairs: tuple[str, ...]) -> dict[str, int | float]:
    return dict(amount_of(pair) for pair in pairs)


def _on(settings: Settings, name: str, work: Callable[[BudgetHandle], Coroutine[Any, Any, Any]]) -> Any:
    """Do something with the budget of a name."""

    async def do() -> Any:
        async with client_of(settings) as client:
            return await work(await client.budget(name))

    return run(do())


@budget.command()
@click.argument("name")
@click.option("--hard", multiple=True, metavar="DIM=AMOUNT", help="What may be spent; may be given several times.")
@click.option("--soft", multiple=True, metavar="DIM=AMOUNT", help="What only warns.")
@click.option("--reset", type=click.FloatRange(min=0), metavar="SECONDS", help="From one reset to the next; 0: never.")
@click.option("--on-breach", type=click.Choice(["record", "refuse"]), help="A report beyond a limit. Default: record.")
@click.option("--scope", metavar="KIND=ID", help="What it is for, for people, as in tenant=t1.")
@pass_settings
def create(
    settings: Settings,
    name: str,
    hard: tuple[str, ...],
    soft: tuple[str, ...],
    reset: float | None,
    on_breach: Any,
    scope: str | None,
) -> None:
    """Create a budget, or bring it to what is given; what is left out stays as it is."""
    if not (hard or soft or reset is not None or on_breach or scope):
        raise click.UsageError("give --hard, --soft, --reset, --on-breach or --scope")
    kind, equals, whose = (scope or "").partition("=")
    if scope and not (kind and equals and whose):
        raise click.UsageError(f"--scope {scope}: write KIND=ID, as in tenant=t1")

    async def make() -> dict[str, Any]:
        async with client_of(settings) as client:
            made = await client.budget(
                name,
                hard=amounts_of(hard) if hard else None,
                soft=amounts_of(soft) if soft else None,
                reset=reset,
                on_breach=on_breach,
                scope=(kind, whose) if scope else None,
            )
            return status_record(await made.status())

    settings.out().record(run(make()), "budget")


@budget.command("list")
@pass_settings
def list_(settings: Settings) -> None:
    """List budgets of a namespace, with what is used and reserved of them."""

    async def read() -> list[dict[str, Any]]:
        async with client_of(settings) as client:
            found = [status_record(one.info) async for one in client.budgets() if one.info is not None]
        return sorted(found, key=lambda record: str(record["name"]))

    settings.out().rows(run(read()), COLUMNS, empty="No budgets.")


@budget.command()
@click.argument("name")
@click.option("--spenders", type=click.IntRange(0, 1_000), default=10, show_default=True, help="Jobs that spent most.")
@pass_settings
def show(settings: Settings, name: str, spenders: int) -> None:
    """Show a budget: limits, what is used and reserved, breaches, the next reset, and who spent most."""

    async def read(found: BudgetHandle) -> dict[str, Any]:
        top = await found.spenders(spenders) if spenders else []
        told = [{"execution_id": one.execution_id, "amounts": dict(one.amounts)} for one in top]
        return {**status_record(await found.status()), "spenders": told}

    record = _on(settings, name, read)
    out = settings.out()
    if out.json:
        return out.line(record)
    top = record.pop("spenders")
    out.record(record, "budget")
    if top:
        out.say("")
        out.rows(top, [Column("execution_id", "spent by"), Column("amounts", "amounts")])


@budget.command()
@click.argument("name")
@pass_settings
def reset(settings: Settings, name: str) -> None:
    """Begin anew, now: nothing is used. The resets to come stay when they were."""

    async def clear(found: BudgetHandle) -> BudgetStatus:
        await found.reset()
        return await found.status()

    status = _on(settings, name, clear)
    out = settings.out()
    if out.json:
        return out.line({"name": name, "answer": "reset", "period": status.period,
                         "next_reset_at": instant(status.next_reset_at)})  # fmt: skip
    out.say(f"Budget {name} is reset.")


@budget.command()
@click.argument("name")
@click.argument("pairs", nargs=-1, required=True, metavar="DIM=AMOUNT...")
@click.option("--key", help="The same report counts once, for a day.")
@pass_settings
def report(settings: Settings, name: str, pairs: tuple[str, ...], key: str | None) -> None:
    """Report what was spent outside of any job. A report that a budget refuses is exit code 1."""
    amounts = amounts_of(pairs)

    async def tell(found: BudgetHandle) -> Any:
        return await found.report(amounts, key=key)

    record = report_record(name, _on(settings, name, tell))
    out = settings.out()
    if out.json:
        out.line(record)
    else:
        said = {
            "ok": "is recorded",
            "already_applied": "was recorded before",
            "soft_breach": f"is recorded; soft limit {record['dimension']} is passed: "
            f"{record['usage']} of {record['limit']}",
            "hard_breach": ("is recorded" if record["applied"] else "is refused")
            + f"; hard limit {record['dimension']} is passed: {record['usage']} of {record['limit']}",
        }
        out.say(f"The report to budget {name} {said[record['answer']]}.")
    if not record["applied"] and record["answer"] == "hard_breach":
        click.get_current_context().exit(1)


def report_record(name: str, answer: Any) -> dict[str, Any]:
    """What became of a report."""
    from ffcore.contracts.budget import HardBreach, SoftBreach, UsageOk

    record: dict[str, Any] = {
        "name": name, "answer": "already_applied", "applied": False, "dimension": None, "usage": None, "limit": None,
    }  # fmt: skip
    match answer:
        case UsageOk():
            record |= {"answer": "ok", "applied": True}
        case SoftBreach(dimension=dimension, current_usage=usage, soft_limit=limit):
            record |= {"answer": "soft_breach", "applied": True, "dimension": dimension, "usage": usage, "limit": limit}
        case HardBreach(dimension=dimension, current_usage=usage, hard_limit=limit, applied=applied):
            record |= {"answer": "hard_breach", "applied": applied, "dimension": dimension, "usage": usage,
                       "limit": limit}  # fmt: skip
        case _:
            pass
    return record


@budget.command("raise")
@click.argument("name")
@click.argument("pairs", nargs=-1, required=True, metavar="DIM=AMOUNT...")
@click.option("--key", help="One raise however often it is sent, for a year.")
@pass_settings
def raise_(settings: Settings, name: str, pairs: tuple[str, ...], key: str | None) -> None:
    """Add to a budget's hard limits, for good. Jobs that wait for it go on if it is enough."""
    amounts = amounts_of(pairs)

    async def add(found: BudgetHandle) -> Any:
        return await found.raise_(amounts, key=key)

    hard = _on(settings, name, add)
    out = settings.out()
    if out.json:
        return out.line({"name": name, "answer": "raised", "hard_limits": hard})
    out.say(f"Budget {name} now has {', '.join(f'{dim}={amount}' for dim, amount in sorted(hard.items()))}.")


@budget.command()
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
@pass_settings
def rm(settings: Settings, name: str, yes: bool) -> None:
    """Remove a budget. Jobs that name it are held until there is one of that name again."""
    confirm(settings, f"Remove budget {name}? Jobs that name it wait until there is one again.", yes)
    _on(settings, name, lambda found: found.delete())
    out = settings.out()
    if out.json:
        return out.line({"name": name, "answer": "removed"})
    out.say(f"Budget {name} is removed.")
