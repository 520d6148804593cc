"""Where the secrets come from that sign gate tokens. The store has none, unless it is told to (`FF_SECRETS=store`).

    FF_SECRET_FILE=PATH     lines `kid hex`, the last one signs; mode 0600, and the right choice for a server
    FF_SECRET=kid:hex,...   the same in the environment
    FF_SECRETS=store        kept in the store, for small installations: whoever can read the store can make tokens
    embedded://DIR          DIR/secrets, made when it is first needed
    memory://NAME           one ring per name and process

The first that is given counts. Only minting needs a ring; signals are checked by digest. No text here shows a secret.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets as randomness
from collections.abc import Awaitable, Callable, Generator, Mapping
from pathlib import Path
from typing import Any, Final, Protocol

from ffbackend_valkey.url import parse_url
from ffcore.contracts.secret import check_kid, check_secret_hex
from ffcore.errors import InvalidArgument, SecretMissing
from ffcore.tokens import Ring

SECRET_BYTES: Final = 32
FIRST_KID: Final = "k1"
STORE_KEY: Final = "ff:secrets"
"""Hash: kid to hex, and which one signs. Only where FF_SECRETS=store asks for it."""
CURRENT: Final = "current secret"
"""A field that is no kid: it has a space."""

Command = Callable[..., Awaitable[Any]]


class Secrets(Protocol):
    """A source of secrets."""

    async def ring(self, *, fresh: bool = False) -> Ring:
        """What may mint now; `fresh`: look again, somebody may have changed it. Raises SecretMissing."""
        ...

    async def add(self, kid: str, secret: bytes) -> bool:
        """Put a secret into the ring and make it the one that signs. False: its owner changes this source by hand."""
        ...


def parse_lines(text: str, what: str) -> Ring:
    """A ring from lines `kid hex`. Errors name the line, and nothing that stands in it."""
    found: dict[str, bytes] = {}
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        try:
            kid, secret_hex = words
            check_kid(kid)
            check_secret_hex(secret_hex)
        except ValueError:
            raise InvalidArgument(
                f"line {number} of {what}: write `kid hex`, the kid of 1 to 32 of A-Z a-z 0-9 _ -, the secret of 16 to "
                "128 bytes as hex digits"
            ) from None
        if kid in found:
            raise InvalidArgument(f"line {number} of {what} names a kid a second time")
        found[kid] = bytes.fromhex(secret_hex)
    if not found:
        raise SecretMissing(f"{what} holds no secret yet: add a line `kid hex`, with 32 random bytes for the hex")
    return Ring(found)


@contextlib.contextmanager
def one_writer(path: Path) -> Generator[None]:
    """Who changes a ring reads it and replaces it: one at a time on this machine, or a secret would be lost."""
    fd = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def write_whole(path: Path, text: str, *, over: bool = True) -> None:
    """A ring's file, whole or not at all, for its owner alone. over: replace one that is there, which keeps its owner:
    a worker that could read it before still can."""
    draft = path.with_name(f"{path.name}.{os.getpid()}.{randomness.token_hex(4)}")
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(fd, "w", encoding="utf-8") as out:
            if over and path.exists():
                before = path.stat()
                if (before.st_uid, before.st_gid) != (os.geteuid(), os.getegid()):
                    os.fchown(out.fileno(), before.st_uid, before.st_gid)
            out.write(text)
            out.flush()
            os.fsync(out.fileno())
        if over:
            draft.replace(path)
        else:
            with contextlib.suppress(FileExistsError):  # of two who make the first one, one wins
                os.link(draft, path)
    finally:
        draft.unlink(missing_ok=True)


class FileSecrets:
    """A file that its owner keeps."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read: tuple[tuple[int, int, int], Ring] | None = None

    async def ring(self, *, fresh: bool = False) -> Ring:
        # A small local file: reading it costs less than handing it to a thread.
        try:
            info = self._path.stat()
        except OSError as gone:
            raise SecretMissing(f"the secret file {self._path} cannot be read: {gone.strerror}") from None
        mark = (info.st_mtime_ns, info.st_size, info.st_ino)
        if self._read is None or self._read[0] != mark or fresh:
            if info.st_mode & 0o077:
                raise InvalidArgument(f"others may read the secret file {self._path}: chmod 600 it, and rotate")
            try:
                text = self._path.read_text()
            except (OSError, UnicodeDecodeError):
                raise SecretMissing(f"the secret file {self._path} cannot be read as text") from None
            self._read = mark, parse_lines(text, f"the secret file {self._path}")
        return self._read[1]

    async def add(self, kid: str, secret: bytes) -> bool:
        return False


class OwnFile(FileSecrets):
    """A file in the directory of an embedded store, made when it is first asked for."""

    async def ring(self, *, fresh: bool = False) -> Ring:
        if not self._path.exists():
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self._path, f"{FIRST_KID} {randomness.token_hex(SECRET_BYTES)}\n", over=False)
        return await super().ring(fresh=fresh)

    async def add(self, kid: str, secret: bytes) -> bool:
        await self.ring()
        with one_writer(self._path):
            ring = await super().ring(fresh=True)
            kids = [one for one in ring.kids if one != kid]
            lines = [f"{one} {ring.secret(one).hex()}\n" for one in kids] + [f"{kid} {secret.hex()}\n"]
            write_whole(self._path, "".join(lines))
        return True


class GivenSecrets:
    """A ring from the environment."""

    def __init__(self, text: str) -> None:
        self._ring = parse_lines("\n".join(one.replace(":", " ", 1) for one in text.split(",")), "FF_SECRET")

    async def ring(self, *, fresh: bool = False) -> Ring:
        return self._ring

    async def add(self, kid: str, secret: bytes) -> bool:
        return False


_in_memory: dict[str, Ring] = {}


class MemorySecrets:
    """One ring per name, for all backends of this process."""

    def __init__(self, name: str) -> None:
        self._name = name

    async def ring(self, *, fresh: bool = False) -> Ring:
        if self._name not in _in_memory:
            _in_memory[self._name] = Ring({FIRST_KID: randomness.token_bytes(SECRET_BYTES)})
        return _in_memory[self._name]

    async def add(self, kid: str, secret: bytes) -> bool:
        _in_memory[self._name] = _with(await self.ring(), kid, secret)
        return True


class StoreSecrets:
    """Secrets in the store itself: they stand in its memory, its file and its replicas, and may be seen in its slow log
    when they are written."""

    def __init__(self, command: Command) -> None:
        self._command = command
        self._ring: Ring | None = None

    async def ring(self, *, fresh: bool = False) -> Ring:
        if self._ring is None or fresh:
            found = await self._load()
            if found is None:
                await self._command("HSETNX", STORE_KEY, FIRST_KID, randomness.token_hex(SECRET_BYTES))
                await self._command("HSETNX", STORE_KEY, CURRENT, FIRST_KID)
                found = await self._load()
            if found is None:
                raise SecretMissing(f"the store does not keep secrets: {STORE_KEY} is empty after it was written")
            self._ring = found
        return self._ring

    async def _load(self) -> Ring | None:
        flat = [bytes(one) for one in await self._command("HGETALL", STORE_KEY)]
        rows = {flat[i].decode(): flat[i + 1].decode() for i in range(0, len(flat), 2)}
        current = rows.pop(CURRENT, None)
        if current is None or current not in rows:
            return None
        return Ring({kid: bytes.fromhex(text) for kid, text in rows.items()}, current)

    async def add(self, kid: str, secret: bytes) -> bool:
        await self._command("HSET", STORE_KEY, kid, secret.hex(), CURRENT, kid)
        self._ring = None
        return True


class NoSecrets:
    """Nothing was configured."""

    def __init__(self, url: str) -> None:
        self._url = url

    async def ring(self, *, fresh: bool = False) -> Ring:
        raise SecretMissing(
            f"there is no secret to sign gate tokens of {self._url} with: set FF_SECRET_FILE to a file of mode 0600 "
            "with a line `k1 <64 random hex digits>`, the same file for every worker; or FF_SECRET=k1:<hex>; or "
            "FF_SECRETS=store to keep it in the store, where whoever can read the store can make tokens"
        )

    async def add(self, kid: str, secret: bytes) -> bool:
        return False


def secrets_for(url: str, command: Command, environ: Mapping[str, str] | None = None) -> Secrets:
    """The source of secrets of a store. command: sends a plain command to it."""
    env = os.environ if environ is None else environ
    chosen = env.get("FF_SECRETS", "")
    if chosen not in ("", "store"):
        raise InvalidArgument("FF_SECRETS takes 'store' or nothing; a file goes into FF_SECRET_FILE, else FF_SECRET")
    if env.get("FF_SECRET_FILE"):
        return FileSecrets(Path(env["FF_SECRET_FILE"]).expanduser())
    if env.get("FF_SECRET"):
        return GivenSecrets(env["FF_SECRET"])
    if chosen == "store":
        return StoreSecrets(command)
    target = parse_url(url)
    if target.kind == "embedded":
        return OwnFile(Path(target.path) / "secrets")
    if target.kind == "memory":
        return MemorySecrets(target.name)
    return NoSecrets(target.display)


def _with(ring: Ring, kid: str, secret: bytes) -> Ring:
    return Ring({one: ring.secret(one) for one in ring.kids if one != kid} | {kid: secret}, kid)
