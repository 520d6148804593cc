"""`ff secret`: a ring put in place, changed while gates are open, finished where it did not reach all partitions."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tests.cli.conftest import FF

FIELDS = ["partition", "kid", "answer", "previous_kid", "forgotten", "open_waitpoints", "error", "message"]
HEX = re.compile(r"[0-9a-f]{32}")


@pytest.fixture
def fresh(bare_ff: FF, key: str, monkeypatch: pytest.MonkeyPatch) -> FF:
    """`ff` on a store where nothing signs yet."""
    for name in ("FF_SECRET_FILE", "FF_SECRET", "FF_SECRETS"):
        monkeypatch.delenv(name, raising=False)
    url = "memory://secret-" + key.replace(":", "-")
    assert bare_ff("init", "--url", url).code == 0
    monkeypatch.setenv("FF_URL", url)
    return bare_ff


@pytest.fixture
def file(fresh: FF, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where FF_SECRET_FILE points; nothing is there yet."""
    path = tmp_path / "ring"
    monkeypatch.setenv("FF_SECRET_FILE", str(path))
    return path


def signs(ff: FF) -> set[str | None]:
    return {row["kid"] for row in ff("secret", "list", "--json").records}


def test_seeding_makes_the_file_and_is_harmless_when_repeated(fresh: FF, file: Path) -> None:
    first = fresh("secret", "seed", "--kid", "k1", "--json")
    assert [list(row) for row in first.records] == [FIELDS] * 4
    assert {(row["kid"], row["answer"]) for row in first.records} == {("k1", "seeded")}
    assert file.stat().st_mode & 0o777 == 0o600 and re.fullmatch(r"k1 [0-9a-f]{64}\n", file.read_text())
    again = fresh("secret", "seed", "--json")
    assert {row["answer"] for row in again.records} == {"already_seeded"}
    said = fresh("secret", "seed")
    assert (said.code, said.out) == (0, "k1 signs in 4 of 4 partitions.\n")
    refused = fresh("secret", "seed", "--kid", "k2")
    assert refused.code == 2 and "ff secret rotate" in refused.err


def test_a_rotation_keeps_the_files_owner_and_the_link_to_it(fresh: FF, file: Path, tmp_path: Path) -> None:
    """The workers run as another user than the operator, mostly, and find the file by a link."""
    fresh("secret", "seed", "--kid", "k1")
    real = tmp_path / "mounted"
    file.rename(real)
    file.symlink_to(real)
    if os.geteuid() == 0:
        os.chown(real, 1234, 1235)
    before = real.stat()
    assert fresh("secret", "rotate", "--kid", "k2").code == 0
    after = real.stat()
    assert file.is_symlink() and [line.split()[0] for line in real.read_text().splitlines()] == ["k1", "k2"]
    assert (after.st_uid, after.st_gid, after.st_mode & 0o777) == (before.st_uid, before.st_gid, 0o600)


def test_a_secret_is_read_from_a_file_or_standard_input_and_never_printed(
    fresh: FF, file: Path, tmp_path: Path
) -> None:
    mine, next_ = "ab" * 32, "cd" * 32
    (tmp_path / "hex").write_text(mine.upper() + "\n")
    ran = [
        fresh("secret", "seed", "--kid", "k1", "--from", str(tmp_path / "hex")),
        fresh("secret", "rotate", "--kid", "k2", "--from", "-", given=next_ + "\n"),
        fresh("secret", "list"),
    ]
    assert file.read_text() == f"k1 {mine}\nk2 {next_}\n"
    assert all(one.code == 0 and not HEX.search(one.out + one.err) for one in ran)
    for wrong in ("xyz", "ab", "hex " + mine):
        refused = fresh("secret", "rotate", "--from", "-", given=wrong)
        assert refused.code == 2 and mine not in refused.err
    assert fresh("secret", "rotate", "--from", str(tmp_path / "nothing")).code == 2


def test_another_secret_signs_after_a_rotation_and_the_last_one_verifies_for_a_while(fresh: FF, file: Path) -> None:
    fresh("secret", "seed", "--kid", "k1")
    rows = fresh("secret", "rotate", "--kid", "k2", "--grace", "600", "--json").records
    said = {(row["kid"], row["answer"], row["previous_kid"], row["open_waitpoints"]) for row in rows}
    assert said == {("k2", "rotated", "k1", 0)}
    assert [line.split()[0] for line in file.read_text().splitlines()] == ["k1", "k2"]
    listed = fresh("secret", "list", "--json").records
    assert list(listed[0]) == ["partition", "kid", "verifying"]
    assert {row["kid"] for row in listed} == {"k2"}
    assert all(one["kid"] == "k1" and one["until"].endswith("Z") for row in listed for one in row["verifying"])
    head, row = fresh("secret", "list").out.splitlines()[:2]
    assert head.split() == ["partition", "signs", "verifies"] and row.split()[1:4] == ["k2", "k1", "until"]
    taken = fresh("secret", "rotate", "--kid", "k1")
    assert taken.code == 2 and "another name" in taken.err


def test_a_secret_that_signs_nowhere_yet_is_put_in_place_first(fresh: FF, file: Path) -> None:
    """After a rotation that did not reach all partitions, or one that somebody prepared by hand: no third secret."""
    fresh("secret", "seed", "--kid", "k1")
    with file.open("a") as ring:
        ring.write("k2 " + "cd" * 32 + "\n")
    rows = fresh("secret", "rotate", "--json").records
    assert {(row["kid"], row["answer"]) for row in rows} == {("k2", "rotated")}
    assert len(file.read_text().splitlines()) == 2
    made = fresh("secret", "rotate", "--json").records
    assert signs(fresh) == {made[0]["kid"]} and re.fullmatch(r"k\d{8}-\d{6}", made[0]["kid"])
    assert len(file.read_text().splitlines()) == 3


def test_a_partition_where_another_secret_signs_is_named(fresh: FF, file: Path) -> None:
    fresh("secret", "seed", "--kid", "k1")
    file.write_text("k1 " + "cd" * 32 + "\n")
    ran = fresh("secret", "seed")
    assert ran.code == 1 and "0 of 4 partitions" in ran.out and "another secret signs (k1)" in ran.out
    clash = fresh("secret", "rotate", "--kid", "k1")
    assert clash.code == 2


def test_a_ring_in_the_environment_is_changed_by_its_owner(fresh: FF, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = "k1:" + "ab" * 32, "k2:" + "cd" * 32
    monkeypatch.setenv("FF_SECRET", one)
    assert {row["answer"] for row in fresh("secret", "seed", "--json").records} == {"seeded"}
    stuck = fresh("secret", "rotate")
    assert stuck.code == 2 and "at its end" in stuck.err
    monkeypatch.setenv("FF_SECRET", f"{one},{two}")
    assert {row["kid"] for row in fresh("secret", "rotate", "--json").records} == {"k2"}


def test_a_store_that_keeps_its_ring_itself_is_seeded_and_rotated_too(fresh: FF) -> None:
    assert signs(fresh) == {None}
    assert {row["answer"] for row in fresh("secret", "seed", "--json").records} == {"seeded"}
    assert {row["answer"] for row in fresh("secret", "seed", "--json").records} == {"already_seeded"}
    [before] = signs(fresh)
    assert {row["answer"] for row in fresh("secret", "rotate", "--kid", "mine", "--json").records} == {"rotated"}
    assert before != "mine" and signs(fresh) == {"mine"}


@pytest.mark.parametrize("text", ["k1", "k1 xyz", "k 1 2", "k1:" + "ab" * 32])
def test_a_ring_that_cannot_be_read_is_refused_without_repeating_it(fresh: FF, file: Path, text: str) -> None:
    file.write_text(f"# ours\n{text}\n")
    refused = fresh("secret", "seed")
    assert refused.code == 2 and "line 2" in refused.err and "ab" * 32 not in refused.err
