"""The options every verb takes, where the password may stand, and what starting costs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click
import pytest

from ffcli.main import TREE, cli
from ffcli.options import Settings, with_password
from tests.cli.conftest import FF


def test_global_options_work_before_and_after_the_verb(bare_ff: FF) -> None:
    url = "memory://options"
    before = bare_ff("--json", "--url", url, "--namespace", "n", "config", "show")
    between = bare_ff("config", "--json", "--url", url, "--namespace", "n", "show")
    after = bare_ff("config", "show", "--json", "--url", url, "--namespace", "n")
    assert before.record == between.record == after.record
    assert (after.record["url"], after.record["namespace"], after.record["url_from"]) == (url, "n", "--url")


def test_the_option_nearest_to_the_end_holds(bare_ff: FF) -> None:
    ran = bare_ff("--url", "memory://first", "--json", "config", "show", "--url", "memory://second")
    assert ran.record["url"] == "memory://second"


def walk(command: click.Command, context: click.Context, path: str = "ff") -> list[tuple[str, click.Command]]:
    found = [(path, command)]
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            member = command.get_command(context, name)
            assert member is not None, name
            found += walk(member, context, f"{path} {name}")
    return found


def test_every_verb_takes_the_global_options_and_says_what_it_does() -> None:
    for path, command in walk(cli, click.Context(cli)):
        names = {option for parameter in command.params for option in parameter.opts}
        assert {"--url", "--json", "--namespace"} <= names, path
        assert command.help, path


def test_help_lists_every_verb_and_imports_none(bare_ff: FF) -> None:
    """What `ff --help` costs is what it imports."""
    script = (
        "import sys; from ffcli.main import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'ffsdk', 'ffcore', 'ffengine', 'ffbackend_valkey', 'redis', 'rich', 'msgspec', 'asyncio'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    paths = [str(Path(p)) for p in sys.path if p]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {paths!r}\n{script}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "[]"
    assert all(f"\n  {name} " in done.stdout for name in TREE)


def test_a_password_file_completes_a_url_that_has_none(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("p@ss/word\n")
    assert with_password("valkey://host:6379/1", str(file)) == "valkey://:p%40ss%2Fword@host:6379/1"
    assert with_password("valkey://ann@host", str(file)) == "valkey://ann:p%40ss%2Fword@host"
    assert with_password("valkey://ann:other@host", str(file)) == "valkey://ann:other@host"
    assert with_password("memory://x", str(file)) == "memory://x"


def test_a_password_file_is_read_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "password").write_text("secret")
    monkeypatch.setenv("FF_URL", "valkey://host")
    monkeypatch.setenv("FF_PASSWORD_FILE", str(tmp_path / "password"))
    assert Settings().store_url() == "valkey://:secret@host"


def test_a_password_file_that_cannot_be_read_is_a_usage_error(bare_ff: FF, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FF_PASSWORD_FILE", "/nonexistent/password")
    ran = bare_ff("config", "show", "--url", "valkey://127.0.0.1:1")
    assert ran.code == 2
    assert "FF_PASSWORD_FILE" in ran.err


def test_no_message_shows_a_password(bare_ff: FF, monkeypatch: pytest.MonkeyPatch) -> None:
    for args in (["config", "show"], ["doctor"], ["doctor", "--json"], ["lane", "list", "--json"]):
        ran = bare_ff(*args, "--url", "valkey://ann:hunter2@127.0.0.1:1")
        assert ran.code != 0
        assert "hunter2" not in ran.out + ran.err
        assert "127.0.0.1:1" in ran.out + ran.err
