"""`ff signal`: the gates jobs wait at, and a person's answer to one of them.

A token is as good as a password: it is read from a file, standard input or FF_TOKEN, never from the command line.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ffcore.errors import NotFound

from ..options import Group, Settings, pass_settings
from ..render import Column, ago, moment
from ..store import client_of, executions, opened, run
from ..store import execution_id as checked
from .submit import read_payload

if TYPE_CHECKING:
    from ffcore.backend import Backend
    from ffcore.ids import ExecutionId
    from ffsdk.signals import SignalAnswer
    from ffsdk.views import Waitpoint

SAID = {
    "resume_condition_satisfied": "the job goes on",
    "appended_to_waitpoint": "it is kept: the job waits for more, or does not wait there yet",
    "signal_ignored_matcher_failed": "it is kept, but this gate accepts other names",
    "signal_ignored_not_in_condition": "it is kept, but the job waits for something else",
    "appended_to_waitpoint_duplicate": "it is kept, but the job has that answer already",
}
"""What an effect means to a person."""


AT_ONCE_N = 50
"""Jobs asked for their gates at a time."""


@click.group(cls=Group)
def signal() -> None:
    """List what jobs wait for; answer."""


# ---- looking ---------------------------------------------------------------------------------------------


def waitpoint_record(execution_id: str, one: Waitpoint) -> dict[str, Any]:
    """A gate's record."""
    return {
        "execution_id": execution_id,
        "waitpoint_id": one.waitpoint_id,
        "gate": one.gate,
        "state": one.state,
        "names": one.names,
        "created_at": moment(one.created_at),
        "activated_at": moment(one.activated_at),
        "expires_at": moment(one.expires_at),
        "kid": one.kid,
        "fingerprint": one.fingerprint,
    }


async def gates_of(backend: Backend, execution_id: ExecutionId) -> list[dict[str, Any]]:
    """Records of a job's open gates."""
    from ffcore.contracts.reads import ReadExecutionArgs
    from ffsdk.recorded import waitpoints_of

    stored = await backend.call(ReadExecutionArgs(execution_id=execution_id))
    return [waitpoint_record(execution_id, one) for one in await waitpoints_of(backend, stored)]


def accepts(names: list[str]) -> str:
    """The names a gate accepts, for people."""
    return ", ".join(names) or "any"


@signal.command()
@click.argument("execution_id", metavar="[ID]", required=False)
@click.option("--lane")
@click.option("--limit", type=click.IntRange(1, 100_000), default=1_000, show_default=True, help="Jobs looked at.")
@pass_settings
def pending(settings: Settings, execution_id: str | None, lane: str | None, limit: int) -> None:
    """List the open gates of a job, or of all suspended jobs. Tokens are not shown: nobody can read them again."""

    async def read() -> list[dict[str, Any]]:
        async with opened(settings) as backend:
            if execution_id is not None:
                return await gates_of(backend, checked(execution_id, backend))
            rows = executions(backend, states=["suspended"], lane=lane, namespace=settings.namespace, limit=limit)
            ids = [row.execution_id async for row in rows][:limit]
            found: list[dict[str, Any]] = []
            for at in range(0, len(ids), AT_ONCE_N):
                batch = await asyncio.gather(*(listed(backend, id_) for id_ in ids[at : at + AT_ONCE_N]))
                found += [row for records in batch for row in records]
            return found

    async def listed(backend: Backend, id_: ExecutionId) -> list[dict[str, Any]]:
        try:
            return await gates_of(backend, id_)
        except NotFound:
            return []  # purged since it was listed

    columns = [
        Column("execution_id", "id"),
        Column("gate", "gate"),
        Column("state", "state"),
        Column("names", "accepts", accepts),
        Column("created_at", "opened", ago(time.time_ns() // 1_000_000)),
        Column("fingerprint", "token"),
    ]
    settings.out().rows(run(read()), columns, empty="No gate is open.")


# ---- answering -------------------------------------------------------------------------------------------


def read_token(settings: Settings, text: str | None) -> str:
    """The token from @file, - for standard input, or FF_TOKEN. UsageError for one on the command line."""
    if text is None:
        token = settings.token()
        if not token:
            raise click.UsageError(
                "which gate? Name a file with its token (@FILE, or - for standard input), or set FF_TOKEN"
            )
    elif text == "-":
        token = sys.stdin.read()
    elif text.startswith("@"):
        try:
            token = Path(text[1:]).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as unreadable:
            raise click.UsageError(f"{text} cannot be read: {unreadable}") from unreadable
    else:
        # Not repeated: it may be the token itself.
        raise click.UsageError(
            "a token on the command line is visible to everybody on this machine: use @FILE, - or FF_TOKEN"
        )
    return token.strip()


@signal.command()
@click.argument("token", metavar="@FILE|-", required=False)
@click.option("--value", default="null", metavar="JSON", help="Of the gate's type: JSON, or @file.")
@click.option("--name", help="What the signal is; a gate may accept some names only.")
@click.option("--key", help="Makes a repeated send one signal.")
@click.option("--source", default="cli", show_default=True, help="Who sends it, as web:dana.")
@pass_settings
def send(settings: Settings, token: str | None, value: str, name: str | None, key: str | None, source: str) -> None:
    """Send a signal to the gate whose token is in @FILE, on standard input (-), or in FF_TOKEN."""
    if value == token == "-":
        raise click.UsageError("standard input holds the token or the value, not both")
    opens, given = read_token(settings, token), read_payload(value)

    async def change() -> SignalAnswer:
        async with client_of(settings) as client:
            return await client.signal(opens, given, name=name, key=key, source=source)

    _tell(settings, run(change()), {})


@signal.command()
@click.argument("execution_id", metavar="ID")
@click.option("--gate", help="Which of the job's open gates; needed if there are several.")
@click.option("--value", default="null", metavar="JSON", help="Of the gate's type: JSON, @file, - (standard input).")
@click.option("--name", help="What the signal is, where the gate accepts some names only.")
@click.option("--key", help="Makes a repeated approval one signal.")
@pass_settings
def approve(
    settings: Settings, execution_id: str, gate: str | None, value: str, name: str | None, key: str | None
) -> None:
    """Answer a job's gate as an operator, without its token; the job's history says that you did."""
    from ffsdk.signals import approve as approve_gate

    given = read_payload(value)

    async def change() -> tuple[SignalAnswer, str]:
        async with client_of(settings) as client:
            id_ = checked(execution_id, client.backend)
            return await approve_gate(client.backend, id_, gate, given, name=name, key=key, who=operator())

    answer, answered = run(change())
    _tell(settings, answer, {"execution_id": execution_id, "gate": answered})


def operator() -> str:
    """Who runs this program, for the history."""
    import getpass

    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a user id without a name, in a container
        return f"uid-{os.getuid()}" if hasattr(os, "getuid") else "unknown"


def _tell(settings: Settings, answer: SignalAnswer, where: dict[str, Any]) -> None:
    out = settings.out()
    if out.json:
        record = {"signal_id": answer.signal_id, "effect": answer.effect, "duplicate": answer.duplicate}
        return out.line({**where, **record})
    again = " (it had been sent before)" if answer.duplicate else ""
    out.say(f"{answer.effect}: {SAID.get(answer.effect, 'it is taken')}{again}.")
