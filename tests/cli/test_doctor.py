"""`ff doctor` over records: what it finds, what it plans, what it does when told to."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from ffbackend_valkey.stores import connect
from ffcore.ids import uuid_of
from tests.cli.conftest import FF, own_database


@pytest.fixture
def url(bare_ff: FF, valkey_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A database that nobody else uses: what is wrong in it is ours."""
    url = own_database(valkey_url).removesuffix("9") + "13"
    do(url, "FLUSHDB")
    assert bare_ff("init", "--partitions", "2", "--url", url).code == 0
    monkeypatch.setenv("FF_URL", url)
    return url


def do(url: str, *words: Any) -> Any:
    async def one() -> Any:
        backend = await connect(url, init=False, check=False)
        try:
            return await backend.command(*words)
        finally:
            await backend.close()

    return asyncio.run(one())


def submitted(ff: FF) -> tuple[str, str]:
    """An id, and the start of its partition's keys."""
    execution_id = ff("submit", "t", "--lane", "sick").out.strip()
    return execution_id, f"ff:{execution_id[: execution_id.index('}') + 1]}"


def test_a_sound_store_is_called_so(bare_ff: FF, url: str) -> None:
    submitted(bare_ff)
    ran = bare_ff("doctor")
    assert ran.code == 0 and "No violations." in ran.out and "invariants" in ran.out
    assert bare_ff("doctor", "--json").records == []


def test_a_repair_is_shown_and_done_only_when_told(bare_ff: FF, url: str) -> None:
    execution_id, head = submitted(bare_ff)
    do(url, "ZREM", f"{head}:q:1:-", uuid_of(execution_id))
    [line] = bare_ff("doctor", "--json").records
    assert line == {"invariant": "I2", "id": execution_id, "detail": "ready and not in :q:1:-"}

    shown = bare_ff("doctor", "--repair")
    assert shown.code == 1 and "put it where its record says" in shown.out
    [line] = bare_ff("doctor", "--repair", "--json").records
    assert line["repair"] == "put it where its record says"
    assert do(url, "ZSCORE", f"{head}:q:1:-", uuid_of(execution_id)) is None, "nobody has said yes"

    assert bare_ff("doctor", "--repair", "--yes").code == 0
    assert do(url, "ZSCORE", f"{head}:q:1:-", uuid_of(execution_id)) is not None
    assert bare_ff("doctor").code == 0


def test_what_no_repair_mends_is_said_with_what_a_person_can_do(bare_ff: FF, url: str) -> None:
    execution_id, head = submitted(bare_ff)
    do(url, "DEL", f"{head}:p:{uuid_of(execution_id)}")
    do(url, "HINCRBY", head, "a1", 2)
    ran = bare_ff("doctor", "--repair", "--yes")
    assert ran.code == 1
    assert "has no payload" in ran.out and "submit a job without a payload again" in ran.out
    [line] = bare_ff("doctor", "--json").records
    assert (line["invariant"], line["id"]) == ("I18", execution_id), "the count is right again"


def test_a_lost_record_leaves_nothing_behind_after_a_repair(bare_ff: FF, url: str) -> None:
    execution_id, head = submitted(bare_ff)
    do(url, "DEL", f"{head}:x:{uuid_of(execution_id)}")
    found = {line["invariant"] for line in bare_ff("doctor", "--json").records}
    assert found == {"I3", "I10", "I18"}
    assert bare_ff("doctor", "--repair", "--yes").code == 1
    [line] = bare_ff("doctor", "--json").records
    assert line["invariant"] == "I10", "the feed still tells of it"
    keys = do(url, "KEYS", f"{head}*{uuid_of(execution_id)}*")
    assert keys == []


def test_yes_alone_is_a_slip(bare_ff: FF, url: str) -> None:
    assert bare_ff("doctor", "--yes").code == 2
