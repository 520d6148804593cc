"""The `ff` command: its tree, and the one mapping from exceptions to exit codes.

    0 done    1 rejected or failed    2 usage    3 not found    4 timeout    5 unavailable    130 interrupted

The rule: nothing heavy is imported here. A verb's module is imported when that verb runs.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any, Final, cast

import click

from .options import LazyGroup

DONE: Final = 0
REJECTED: Final = 1
USAGE: Final = 2
NOT_FOUND: Final = 3
TIMEOUT: Final = 4
UNAVAILABLE: Final = 5
INTERRUPTED: Final = 130

TREE: Final[dict[str, tuple[str, str]]] = {
    "demo": ("demo:demo", "Watch jobs survive a killed worker, on a store of their own."),
    "dev": ("dev:dev", "Run a local store and its engine until Ctrl-C."),
    "init": ("setup:init", "Create the partitions of a fresh store."),
    "doctor": ("doctor:doctor", "Check store, settings, versions and clocks."),
    "submit": ("submit:submit", "Submit a job, or many."),
    "job": ("job:job", "List, show, cancel, pause, resume, replay and explain jobs."),
    "flow": ("flow:flow", "List, show, draw, cancel and replay flows."),
    "schedule": ("schedule:schedule", "Make schedules; list, pause, trigger, backfill and remove them."),
    "signal": ("signal:signal", "List what jobs wait for; answer."),
    "secret": ("secret:secret", "Put the secret behind gate tokens in place; change it."),
    "worker": ("worker:worker", "Run a worker; list those that are alive, or dead."),
    "engine": ("engine:engine", "Look after timers and recovery without a worker."),
    "lane": ("lane:lane", "List lanes; pause, resume, drain, order, limit and weigh them."),
    "budget": ("budget:budget", "Limit what jobs spend; see what is spent, reset, raise."),
    "quota": ("quota:quota", "Limit how many jobs start in a while, and how many run at once."),
    "lease": ("lease:lease", "List leases; take one away."),
    "hold": ("hold:hold", "Stop jobs of a task or with a tag from starting."),
    "release": ("hold:release", "Let held jobs go."),
    "store": ("store:store", "Show and set what holds for the whole store."),
    "top": ("top:top", "Watch lanes, workers and rates."),
    "library": ("library:library", "Show, load or upgrade the store's function library."),
    "config": ("setup:config", "Show what this program is connected to and how."),
    "bench": ("bench:bench", "Measure; prints numbers and the machine."),
    "completion": ("setup:completion", "Print a shell's completion script."),
    "version": ("setup:version", "Print versions."),
}
"""Verb -> where it is, and its line in the help."""


@click.group(
    cls=LazyGroup,
    lazy=TREE,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Exit codes: 0 done, 1 rejected or failed, 2 usage, 3 not found, 4 timeout, 5 unavailable.",
)
def cli() -> None:
    """Durable jobs on Valkey.

    The store is named by FF_URL or --url. A password belongs into FF_URL or the file FF_PASSWORD_FILE names, not onto
    the command line, where others can read it.
    """


def exit_code(error: BaseException) -> int:
    """What the command ends with after this error."""
    if isinstance(error, click.ClickException):
        return error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    if isinstance(error, TimeoutError):
        return TIMEOUT
    from ffcore import errors

    # Most special first: a refusal of input by the store is both Rejected and InvalidArgument.
    families: tuple[tuple[type[BaseException], int], ...] = (
        (errors.NotFound, NOT_FOUND),
        (errors.Rejected, REJECTED),
        (errors.InvalidArgument, USAGE),
        (errors.Unavailable, UNAVAILABLE),
        (errors.NotInitialised, UNAVAILABLE),
        (errors.Incompatible, UNAVAILABLE),
    )
    return next((code for family, code in families if isinstance(error, family)), REJECTED)


def expected(error: BaseException) -> bool:
    """Whether the message alone tells a person what to do; anything else keeps its traceback."""
    if isinstance(error, TimeoutError):
        return True
    from ffcore.errors import EngineBug, EngineError

    if isinstance(error, EngineError):
        return not isinstance(error, EngineBug)
    if parts := parts_of(error):
        return all(expected(part) for part in parts)
    from ffsdk.errors import JobEnded

    return isinstance(error, JobEnded)


def parts_of(error: BaseException) -> tuple[BaseException, ...]:
    """The errors of a group; of any other error none."""
    return cast("BaseExceptionGroup[BaseException]", error).exceptions if isinstance(error, BaseExceptionGroup) else ()


def tell(error: BaseException, as_json: bool) -> None:
    """Say what went wrong on stderr, as one JSON object where lines of JSON were asked for."""
    lines = [str(part) for part in parts_of(error)]
    message = str(error) or type(error).__name__
    if as_json:
        told: dict[str, Any] = {
            "error": getattr(error, "code", None)
            or ("timeout" if isinstance(error, TimeoutError) else type(error).__name__),
            "message": message,
            "exit_code": exit_code(error),
        }
        click.echo(json.dumps({**told, "errors": lines} if lines else told), err=True)
    else:
        from .render import printable

        # What a handler or another user wrote may be part of it, and must not steer the terminal.
        click.echo("\n".join(printable(part) for part in f"ff: {message}".split("\n")), err=True)
        for line in lines[:20]:
            click.echo(f"  {printable(line)}", err=True)


def main(args: list[str] | None = None) -> None:
    """Run `ff`. Ends the process."""
    words = sys.argv[1:] if args is None else args
    try:
        # Exit codes of `ctx.exit` come back as the value when click is not in charge of the process.
        code = cli.main(args=words, prog_name="ff", standalone_mode=False)
        sys.stdout.flush()
        sys.exit(code if isinstance(code, int) else DONE)
    except click.ClickException as refused:
        refused.show()
        sys.exit(refused.exit_code)
    except click.Abort:
        click.echo("ff: not done", err=True)
        sys.exit(REJECTED)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        # The reader went away, as in `ff job list | head`. Python would complain again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(DONE)
    except Exception as error:
        if not expected(error):
            raise
        tell(error, "--json" in words)
        sys.exit(exit_code(error))


if __name__ == "__main__":
    main()
