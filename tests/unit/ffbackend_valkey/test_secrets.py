"""Where secrets come from: in this order, with these rights, and never shown."""

from __future__ import annotations

import asyncio
import importlib
import os
import pkgutil
import re
import stat
import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ffbackend_valkey import secrets
from ffbackend_valkey.secrets import OwnFile, secrets_for
from ffcore import contracts
from ffcore.contracts.secret import SeedWaitpointHmacSecretArgs
from ffcore.errors import EngineError, InvalidArgument, SecretMissing
from ffcore.ids import PartitionKey

ONE, TWO = "11" * 32, "22" * 32
SERVER = "valkey://127.0.0.1:1"


async def no_command(*words: Any) -> Any:
    raise AssertionError(f"{words} was sent")


class Hashes:
    """What a store answers to the commands of a provider."""

    def __init__(self) -> None:
        self.held: dict[str, str] = {}

    async def command(self, *words: Any) -> Any:
        verb, _, *rest = words
        if verb == "HSETNX":
            self.held.setdefault(*rest)
        elif verb == "HSET":
            self.held |= dict(zip(rest[::2], rest[1::2], strict=True))
        else:
            assert verb == "HGETALL"
            return [text.encode() for pair in self.held.items() for text in pair]


def secret_file(at: Path, text: str, mode: int = 0o600) -> dict[str, str]:
    at.write_text(text)
    at.chmod(mode)
    return {"FF_SECRET_FILE": str(at)}


# ---- a file ------------------------------------------------------------------------------------------


async def test_a_file_has_a_kid_and_its_secret_on_each_line(tmp_path: Path) -> None:
    env = secret_file(tmp_path / "ring", f"# of the payouts team\n\nk1 {ONE}\n k2\t{TWO} \n")
    ring = await secrets_for(SERVER, no_command, env).ring()
    assert (ring.kids, ring.current, ring.secret("k1").hex()) == (["k1", "k2"], "k2", ONE)


async def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    at = tmp_path / "ring"
    source = secrets_for(SERVER, no_command, secret_file(at, f"k1 {ONE}\n"))
    assert (await source.ring()).current == "k1"
    secret_file(at, f"k1 {ONE}\nk2 {TWO}\n")
    assert (await source.ring()).current == "k2"
    assert not await source.add("k3", bytes(32)), "its owner changes it"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o666])
async def test_a_file_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    env = secret_file(tmp_path / "ring", f"k1 {ONE}\n", mode)
    with pytest.raises(InvalidArgument, match="chmod 600"):
        await secrets_for(SERVER, no_command, env).ring()


@pytest.mark.parametrize("text", [
    "k1", f"k1 {ONE} x", f"k:1 {ONE}", "k1 zz" + ONE, f"k1 {ONE[:30]}", f"k1 {ONE}\nk1 {TWO}", f"k1 {ONE}1",
])  # fmt: skip
async def test_a_line_that_cannot_be_read_is_named_and_not_shown(tmp_path: Path, text: str) -> None:
    with pytest.raises(InvalidArgument, match=r"^line [12] of the secret file") as caught:
        await secrets_for(SERVER, no_command, secret_file(tmp_path / "ring", text)).ring()
    assert ONE[:16] not in str(caught.value) and TWO[:16] not in str(caught.value)


async def test_a_missing_or_empty_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(SecretMissing, match="No such file"):
        await secrets_for(SERVER, no_command, {"FF_SECRET_FILE": str(tmp_path / "gone")}).ring()
    with pytest.raises(SecretMissing, match="add a line `kid hex`"):
        await secrets_for(SERVER, no_command, secret_file(tmp_path / "ring", "# nothing yet\n")).ring()


# ---- the environment, the store ----------------------------------------------------------------------


async def test_the_environment_may_have_the_ring() -> None:
    ring = await secrets_for(SERVER, no_command, {"FF_SECRET": f"k1:{ONE},k2:{TWO}"}).ring()
    assert (ring.kids, ring.current) == (["k1", "k2"], "k2")
    with pytest.raises(InvalidArgument, match="line 1 of FF_SECRET") as caught:
        secrets_for(SERVER, no_command, {"FF_SECRET": ONE})
    assert ONE not in str(caught.value)


async def test_the_store_keeps_secrets_where_it_is_told_to() -> None:
    store = Hashes()
    source = secrets_for(SERVER, store.command, {"FF_SECRETS": "store"})
    ring = await source.ring()
    assert ring.kids == ["k1"] and len(ring.secret("k1")) == 32
    other = secrets_for(SERVER, store.command, {"FF_SECRETS": "store"})
    assert (await other.ring()).secret("k1") == ring.secret("k1"), "all programs have the same"
    assert await source.add("k2", bytes(32)) and (await source.ring()).current == "k2"
    assert (await other.ring()).current == "k1" and (await other.ring(fresh=True)).current == "k2"


async def test_the_first_that_is_given_counts(tmp_path: Path) -> None:
    env = secret_file(tmp_path / "ring", f"file {ONE}\n") | {"FF_SECRET": f"env:{TWO}", "FF_SECRETS": "store"}
    assert (await secrets_for(SERVER, no_command, env).ring()).current == "file"
    del env["FF_SECRET_FILE"]
    assert (await secrets_for(SERVER, no_command, env).ring()).current == "env"
    with pytest.raises(InvalidArgument, match="FF_SECRETS takes 'store'"):
        secrets_for(SERVER, no_command, {"FF_SECRETS": "vault"})


async def test_without_any_the_error_names_the_remedies_and_no_password() -> None:
    source = secrets_for("valkey://me:C4naryHorse@127.0.0.1:1", no_command, {})
    with pytest.raises(SecretMissing) as caught:
        await source.ring()
    said = str(caught.value)
    assert all(word in said for word in ("FF_SECRET_FILE", "FF_SECRET=", "FF_SECRETS=store", "0600"))
    assert "C4nary" not in said and isinstance(caught.value, EngineError) and not await source.add("k", bytes(32))


# ---- what looks after itself -------------------------------------------------------------------------


async def test_an_embedded_store_has_a_file_of_its_own(tmp_path: Path) -> None:
    url = f"embedded://{tmp_path}/state"
    ring = await secrets_for(url, no_command, {}).ring()
    at = tmp_path / "state" / "secrets"
    assert stat.S_IMODE(at.stat().st_mode) == 0o600 and ring.kids == ["k1"]
    again = secrets_for(url, no_command, {})
    assert (await again.ring()).secret("k1") == ring.secret("k1")
    assert await again.add("k2", bytes(32))
    assert (await secrets_for(url, no_command, {}).ring()).current == "k2"
    assert stat.S_IMODE(at.stat().st_mode) == 0o600 and os.listdir(at.parent) == ["secrets"]


async def test_of_two_who_make_the_first_secret_one_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"embedded://{tmp_path}"
    first, second = secrets_for(url, no_command, {}), secrets_for(url, no_command, {})
    exists = Path.exists
    monkeypatch.setattr(Path, "exists", lambda self: False if self.name == "secrets" else exists(self))
    rings = [await first.ring(), await second.ring()]
    assert rings[0].secret("k1") == rings[1].secret("k1")


def test_of_many_who_add_a_secret_each_one_is_kept(tmp_path: Path) -> None:
    """Each reads the ring and replaces it; nobody may replace what somebody else has put in meanwhile."""
    path, kids = tmp_path / "secrets", [f"n{i}" for i in range(8)]
    asyncio.run(OwnFile(path).ring())
    together = threading.Barrier(len(kids))

    def add(kid: str) -> None:
        together.wait()
        for again in range(5):
            asyncio.run(OwnFile(path).add(f"{kid}-{again}", b"s" * 32))

    threads = [threading.Thread(target=add, args=(kid,)) for kid in kids]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ring = asyncio.run(OwnFile(path).ring())
    assert set(ring.kids) == {"k1", *(f"{kid}-{again}" for kid in kids for again in range(5))}
    assert path.stat().st_mode & 0o777 == 0o600 and [p.name for p in tmp_path.iterdir()] == ["secrets"]


async def test_a_memory_store_has_one_ring_per_name() -> None:
    one, same, other = (secrets_for(f"memory://secrets-{name}", no_command, {}) for name in ("a", "a", "b"))
    rings = await asyncio.gather(one.ring(), same.ring(), other.ring())
    assert rings[0].secret("k1") == rings[1].secret("k1") != rings[2].secret("k1")
    assert await one.add("k2", bytes(32)) and (await same.ring()).current == "k2"


def test_nothing_shows_a_secret() -> None:
    given = secrets_for(SERVER, no_command, {"FF_SECRET": f"k1:{ONE}"})
    assert ONE not in repr(given) and ONE not in repr(secrets.parse_lines(f"k1 {ONE}", "x"))


def test_no_struct_of_the_contracts_shows_a_secret_or_a_token() -> None:
    """A repr gets into logs and tracebacks. Fields are found by their names, so that a new one is not forgotten."""
    hiding: set[str] = set()
    for module in pkgutil.iter_modules(contracts.__path__, contracts.__name__ + "."):
        for struct in vars(importlib.import_module(module.name)).values():
            if isinstance(struct, type) and issubclass(struct, msgspec.Struct):
                names = [field.name for field in msgspec.structs.fields(struct) if field.type is not bool]
                if any(re.fullmatch(r"(.*_)?(token|secret|secret_hex)", name) for name in names):
                    assert struct.__repr__ is not msgspec.Struct.__repr__, f"{struct} wants @veiled"
                    hiding.add(struct.__name__)
    assert len(hiding) >= 12
    shown = repr(SeedWaitpointHmacSecretArgs(kid="k1", secret_hex=ONE, at=PartitionKey("{fp:0}")))
    assert shown == "SeedWaitpointHmacSecretArgs(kid='k1', secret_hex=<hidden>, at='{fp:0}')"
