"""The options every verb takes, before and after it, and the click classes that carry them.

The rule: a command reads `Settings` and nothing else of the surroundings; this module is where the CLI looks
at the environment (FF_URL, FF_PASSWORD_FILE, FF_SECRET_FILE, FF_SECRET, FF_TOKEN, NO_COLOR), and no text it makes
holds a password or a secret.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from .render import Out


@dataclasses.dataclass
class Settings:
    """What the global options said. An option given twice: the one nearest to the end holds."""

    url: str | None = None
    json: bool = False
    namespace: str | None = None
    """None: `default` where something is created, all of them where something is listed."""

    def store_url(self) -> str | None:
        """The URL to open, with the password of FF_PASSWORD_FILE where the URL itself has none; None: the default."""
        url = self.url or os.environ.get("FF_URL")
        name = os.environ.get("FF_PASSWORD_FILE")
        return with_password(url, name) if url and name else url

    def token(self) -> str:
        """A gate's token from FF_TOKEN; empty: none."""
        return os.environ.get("FF_TOKEN", "")

    def secrets(self) -> tuple[str | None, str | None]:
        """FF_SECRET_FILE and FF_SECRET: where programs that mint tokens get their secrets, if not from the store."""
        return os.environ.get("FF_SECRET_FILE") or None, os.environ.get("FF_SECRET") or None

    def out(self) -> Out:
        """Where results go: tables for people on a terminal, plain columns for a pipe, lines of JSON if asked."""
        from .render import Out

        return Out(json=self.json, stream=sys.stdout, color=not os.environ.get("NO_COLOR"))


def with_password(url: str, file: str) -> str:
    """The URL with the first line of the file as its password; as it is if it has one or takes none."""
    from urllib.parse import quote, urlsplit

    scheme, rest = url.partition("://")[::2]
    if scheme.lower() in ("memory", "embedded", ""):
        return url
    try:
        given = urlsplit(url).password
    except ValueError:
        return url  # the store's own parser says what is wrong with it
    if given is not None:
        return url
    try:
        with open(file, encoding="utf-8") as lines:
            password = lines.readline().rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as unreadable:
        raise click.UsageError(f"FF_PASSWORD_FILE={file} cannot be read: {unreadable}") from unreadable
    login, at, where = rest.rpartition("@")
    return f"{scheme}://{login if at else ''}:{quote(password, safe='')}@{where}"


replay_mode = click.option(
    "--mode",
    type=click.Choice(["resume", "fresh"]),
    default="resume",
    show_default=True,
    help="resume keeps finished steps, fresh clears them.",
)
"""Of every command that runs something again."""


def _remember(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    if value and param.name:
        setattr(ctx.ensure_object(Settings), param.name, value)


def global_options() -> list[click.Parameter]:
    """Fresh parameters for one command; what they are given lands in `Settings`."""
    shared: dict[str, Any] = {"expose_value": False, "callback": _remember}
    return [
        click.Option(["--url"], metavar="URL", help="The store; without it FF_URL.", **shared),
        click.Option(["--json"], is_flag=True, help="One JSON object per line.", **shared),
        click.Option(["--namespace"], metavar="NAME", help="Namespace of the jobs.", **shared),
    ]


class Command(click.Command):
    """A command that also takes the global options."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params += global_options()


class Group(click.Group):
    """A group whose members, and itself, take the global options."""

    command_class = Command
    group_class = type

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params += global_options()


class LazyGroup(Group):
    """Members by name, imported when they are run: listing them imports nothing, so that help is instant."""

    def __init__(self, *args: Any, lazy: dict[str, tuple[str, str]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._lazy = lazy

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self._lazy)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self._lazy:
            return None
        module, _, name = self._lazy[cmd_name][0].partition(":")
        found = getattr(importlib.import_module(f".commands.{module}", __package__), name)
        assert isinstance(found, click.Command)
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in self._lazy.items()])


pass_settings: Callable[[Callable[..., Any]], Callable[..., Any]] = click.make_pass_decorator(Settings, ensure=True)
