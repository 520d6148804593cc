"""`ff secret`: the secret that signs gate tokens, put in place and changed; never printed, never taken as an argument.

The rule: the ring first, the store second. A program that mints must have a secret before a partition signs with it.
"""

from __future__ import annotations

import secrets
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from ..options import Group, Settings, pass_settings
from ..render import Column, instant, span
from ..store import everywhere, opened, run

if TYPE_CHECKING:
    from ffcore.backend import Backend
    from ffcore.contracts.secret import RotateWaitpointHmacSecretAllEntry
    from ffcore.errors import EngineError

SECRET_BYTES = 32
GRACE_S = 24 * 3600.0


@click.group(cls=Group)
def secret() -> None:
    """Put the secret behind gate tokens in place; change it; see which signs.

    Programs that mint tokens read FF_SECRET_FILE (mode 0600, lines `kid hex`, the last signs), else FF_SECRET. Without
    either, embedded and memory stores, and FF_SECRETS=store, keep the ring themselves.
    """


# ---- where secrets are -----------------------------------------------------------------------------------


class Key(NamedTuple):
    """A secret under its name."""

    kid: str
    secret_hex: str

    def __repr__(self) -> str:
        return f"<Key {self.kid}>"


def parse(lines: Iterable[str], what: str) -> list[Key]:
    """Lines `kid hex`. UsageError that names the line and repeats nothing of it."""
    from ffcore.contracts.secret import check_kid, check_secret_hex

    found: list[Key] = []
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        try:
            kid, secret_hex = words
            check_kid(kid)
            check_secret_hex(secret_hex)
        except ValueError:
            raise click.UsageError(f"{what}, line {number}: write `kid hex`, 16 to 128 bytes as hex digits") from None
        found.append(Key(kid, secret_hex.lower()))
    return found


class Ring:
    """The secrets of the programs that mint, as far as this one can see them."""

    def __init__(self, settings: Settings) -> None:
        file, given = settings.secrets()
        self.path = Path(file).expanduser() if file else None
        self.given = given
        """FF_SECRET, where there is no file."""

    @property
    def visible(self) -> bool:
        """False: the store's own side keeps it."""
        return self.path is not None or self.given is not None

    def keys(self) -> list[Key]:
        if self.path is not None:
            try:
                text = self.path.read_text(encoding="utf-8")
            except FileNotFoundError:
                return []
            except (OSError, UnicodeDecodeError) as unreadable:
                raise click.UsageError(f"FF_SECRET_FILE={self.path} cannot be read: {unreadable}") from unreadable
            return parse(text.splitlines(), str(self.path))
        return parse([one.replace(":", " ", 1) for one in (self.given or "").split(",")], "FF_SECRET")

    def add(self, key: Key) -> None:
        """Make it the last one, which signs. UsageError where only the owner can."""
        if self.path is None:
            raise click.UsageError(
                "FF_SECRET has no new secret: add kid:hex at its end wherever programs mint, then run this again"
            )
        from ffbackend_valkey.secrets import one_writer, write_whole

        path = self.path.resolve()  # behind a link stands the file that the workers' links lead to as well
        try:
            with one_writer(path):
                if any(one.kid == key.kid for one in self.keys()):
                    raise click.UsageError(f"{self.path} has a kid {key.kid} already: choose another name with --kid")
                before = path.read_text(encoding="utf-8") if path.exists() else ""
                if before and not before.endswith("\n"):
                    before += "\n"
                write_whole(path, f"{before}{key.kid} {key.secret_hex}\n")
        except OSError as refused:
            raise click.UsageError(f"FF_SECRET_FILE={self.path} cannot be written: {refused}") from refused


def new_key(kid: str | None, source: str | None) -> Key:
    """A secret from a file or standard input, or a random one; under a name of its own."""
    from ffcore.contracts.secret import check_kid, check_secret_hex

    if source is None:
        secret_hex = secrets.token_hex(SECRET_BYTES)
    elif source == "-":
        secret_hex = sys.stdin.read().strip()
    else:
        try:
            secret_hex = Path(source).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as unreadable:
            raise click.UsageError(f"--from {source} cannot be read: {unreadable}") from unreadable
    name = kid or f"k{datetime.now(UTC):%Y%m%d-%H%M%S}"
    check_kid(name)
    check_secret_hex(secret_hex)
    return Key(name, secret_hex.lower())


from_option = click.option(
    "--from", "source", metavar="FILE|-", help="The secret as hex digits, from a file or standard input; else random."
)
kid_option = click.option("--kid", help="What to call it; else after the time.")


async def signing(backend: Backend) -> dict[str, str | None]:
    """The kid that signs, by partition."""
    from ffcore.contracts.secret import ListWaitpointHmacKidsArgs

    answers = await everywhere(backend, lambda p: ListWaitpointHmacKidsArgs(at=p))
    return {partition: kids.current_kid or None for partition, kids in answers.items()}


# ---- verbs -----------------------------------------------------------------------------------------------


@secret.command()
@from_option
@kid_option
@pass_settings
def seed(settings: Settings, source: str | None, kid: str | None) -> None:
    """Let the first secret sign in every partition; harmless when one does. A file that FF_SECRET_FILE names and that
    does not exist is made."""
    from ffcore.contracts.secret import AlreadySeeded, SeedWaitpointHmacSecretArgs
    from ffcore.errors import EngineError
    from ffsdk.fanout import ask_all

    ring = Ring(settings)
    keys = ring.keys() if ring.visible else []
    if keys and (source is not None or kid is not None):
        raise click.UsageError(f"there is a secret already, {keys[-1].kid}: to change it, use `ff secret rotate`")
    if ring.visible and not keys:
        keys = [new_key(kid, source)]
        ring.add(keys[-1])

    async def change() -> list[dict[str, Any]]:
        async with opened(settings) as backend:
            if not keys:
                signs = await signing(backend)
                if any(signs.values()):
                    # The others get theirs from the same ring with their first gate.
                    return [_seeded(p, now, "already_seeded" if now else "with_first_gate") for p, now in signs.items()]
                return [_rotated(row) for row in await _rotate_all(backend, new_key(kid, source), 0)]
            key = keys[-1]
            answers, failed = await ask_all(
                backend, lambda p: SeedWaitpointHmacSecretArgs(kid=key.kid, secret_hex=key.secret_hex, at=p)
            )
            rows: list[dict[str, Any]] = []
            for partition in backend.config.keys("fp"):
                answer: Any = answers.get(partition) or failed[partition]
                if isinstance(answer, EngineError):
                    rows.append(_failed(partition, answer))
                elif isinstance(answer, AlreadySeeded):
                    ours = answer.same_secret
                    rows.append(_seeded(partition, answer.kid, "already_seeded" if ours else "other_signs"))
                else:
                    rows.append(_seeded(partition, answer.kid, "seeded"))
            return rows

    _report(settings, run(change()), "{kids} signs in {done} of {all} partitions.")


@secret.command()
@from_option
@kid_option
@click.option("--grace", type=click.FloatRange(min=0), default=GRACE_S, show_default=True, metavar="SECONDS",
              help="How long tokens of the secret before still open their gates.")  # fmt: skip
@pass_settings
def rotate(settings: Settings, source: str | None, kid: str | None, grace: float) -> None:
    """Let another secret sign, in every partition. Says how many open gates the end of the grace cuts off.

    A new secret goes into FF_SECRET_FILE first. If its last one does not sign everywhere yet, as after a rotation that
    did not reach all partitions, that one is put in place and no other is made: run it again until it says done.
    """
    ring = Ring(settings)

    async def change() -> list[dict[str, Any]]:
        async with opened(settings) as backend:
            keys = ring.keys() if ring.visible else []
            signs = set((await signing(backend)).values())
            if keys and source is None and kid is None and signs != {keys[-1].kid}:
                key = keys[-1]
            else:
                key = new_key(kid, source)
                if ring.visible:
                    ring.add(key)
            return [_rotated(row) for row in await _rotate_all(backend, key, round(grace * 1000))]

    rows = run(change())
    open_n = sum(row["open_waitpoints"] or 0 for row in rows)
    cut = f" {open_n} open gates were opened with earlier secrets; their tokens end then." if open_n else ""
    said = "{kids} signs in {done} of {all} partitions; what was signed before opens for another " + span(grace) + "."
    _report(settings, rows, said + cut)


@secret.command("list")
@pass_settings
def list_(settings: Settings) -> None:
    """Show which kid signs in each partition, and which still verify until when."""
    from ffcore.contracts.secret import ListWaitpointHmacKidsArgs

    async def read() -> list[dict[str, Any]]:
        async with opened(settings) as backend:
            answers = await everywhere(backend, lambda p: ListWaitpointHmacKidsArgs(at=p))
            return [
                {
                    "partition": partition,
                    "kid": kids.current_kid or None,
                    "verifying": [{"kid": one.kid, "until": instant(one.expires_at_ms)} for one in kids.verifying],
                }
                for partition, kids in answers.items()
            ]

    columns = [Column("partition", "partition"), Column("kid", "signs"), Column("verifying", "verifies", verifying)]
    settings.out().rows(run(read()), columns)


def verifying(kids: list[dict[str, str]]) -> str:
    """Kids in their grace, for people."""
    return ", ".join(f"{one['kid']} until {one['until']}" for one in kids) or "-"


# ---- records ---------------------------------------------------------------------------------------------


async def _rotate_all(backend: Backend, key: Key, grace_ms: int) -> list[RotateWaitpointHmacSecretAllEntry]:
    from ffcore.contracts.secret import RotateWaitpointHmacSecretAllArgs

    answer = await backend.call(
        RotateWaitpointHmacSecretAllArgs(new_kid=key.kid, new_secret_hex=key.secret_hex, grace_ms=grace_ms)
    )
    return answer.entries


def _row(partition: str, kid: str | None, answer: str, **more: Any) -> dict[str, Any]:
    rest = {"previous_kid": None, "forgotten": None, "open_waitpoints": None, "error": None, "message": None, **more}
    return {"partition": partition, "kid": kid, "answer": answer, **rest}


def _seeded(partition: str, kid: str | None, answer: str) -> dict[str, Any]:
    return _row(partition, kid, answer)


def _failed(partition: str, error: EngineError) -> dict[str, Any]:
    return _row(partition, None, "failed", error=error.code, message=str(error))


def _rotated(row: RotateWaitpointHmacSecretAllEntry) -> dict[str, Any]:
    from ffcore.contracts.secret import Noop, Rotated
    from ffcore.ids import partition_key

    partition = partition_key(row.partition)
    match row.result:
        case Rotated() as done:
            return _row(
                partition, done.new_kid, "rotated" if done.previous_kid else "seeded",
                previous_kid=done.previous_kid or None, forgotten=done.gc_count, open_waitpoints=done.open_waitpoints,
            )  # fmt: skip
        case Noop() as same:
            return _row(partition, same.kid, "noop", open_waitpoints=same.open_waitpoints)
        case failed:
            return _row(partition, None, "failed", error=failed.code, message=failed.detail)


def _report(settings: Settings, rows: list[dict[str, Any]], said: str) -> None:
    """What happened in each partition. Exit code 5 if some were not reached, 1 if another secret signs somewhere."""
    out = settings.out()
    done = [row for row in rows if row["answer"] not in ("failed", "other_signs")]
    if out.json:
        out.rows(rows, [])
    else:
        kids = sorted({row["kid"] for row in done if row["kid"]})
        out.say(said.format(kids=" and ".join(kids) or "No secret", done=len(done), all=len(rows)))
        for row in rows:
            if row["answer"] == "failed":
                out.say(f"{row['partition']} was not reached: {row['message']}")
            elif row["answer"] == "other_signs":
                out.say(f"{row['partition']}: another secret signs ({row['kid']}); `ff secret rotate` puts yours there")
    if any(row["answer"] == "failed" for row in rows):
        click.get_current_context().exit(5)
    if len(done) < len(rows):
        click.get_current_context().exit(1)
