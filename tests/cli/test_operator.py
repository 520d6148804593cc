"""What operators use: lanes, holds, leases, the engine, the library, the doctor."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ffbackend_valkey.stores import connect
from ffcli import store
from ffcli.commands.top import Rates
from ffcore.backend import Backend
from ffcore.contracts.batch import ClaimBatchArgs, ClaimedJob
from ffcore.ids import uuid7
from tests.cli.conftest import FF, own_database


def claim(url: str, lane: str) -> list[ClaimedJob]:
    """Take one job of a lane, as a worker that then falls silent."""

    async def take() -> list[ClaimedJob]:
        backend = await connect(url)
        try:
            name = f"w-{uuid7()[-12:]}"
            answer = await backend.call(
                ClaimBatchArgs(
                    partitions=backend.config.keys("fp"),
                    lanes=[lane],
                    capability_sets=[],
                    limit=1,
                    claim_id=f"{name}.a.0",
                    worker_id="w",
                    worker_instance_id=name,
                    lease_ttl_ms=60_000,
                )
            )
            return answer.jobs
        finally:
            await backend.close()

    return asyncio.run(take())


def test_a_lane_is_paused_resumed_and_drained(ff: FF, lane: str) -> None:
    ff("submit", "t", "--lane", lane)
    for verb, state in (("pause", "paused"), ("resume", "active"), ("drain", "draining")):
        ran = ff("lane", verb, lane, "--json").record
        assert (ran["state"], ran["not_reached"]) == (state, {})
        assert ff("lane", "stats", lane, "--json").record["state"] == state
    refused = ff("submit", "t", "--lane", lane)
    assert refused.code == 1
    assert "lane_closed" in refused.err


def test_lanes_are_listed_with_their_numbers(ff: FF, lane: str) -> None:
    ff("submit", "t", "--lane", lane, "--count", "3")
    [row] = [row for row in ff("lane", "list", "--json").records if row["lane"] == lane]
    assert (row["waiting"], row["active"], row["state"]) == (3, 0, "active")
    assert list(row) == [
        "lane",
        "state",
        "waiting",
        "delayed",
        "active",
        "suspended",
        "completed",
        "failed",
        "cancelled",
        "expired",
        "skipped",
        "held",
        "oldest_age_s",
        "idle_workers",
    ]
    assert any(line.split()[:3] == [lane, "active", "3"] for line in ff("lane", "list").out.splitlines())


def test_retention_is_set_for_all_partitions(ff: FF, lane: str) -> None:
    ran = ff("lane", "retention", lane, "--age", "3600", "--count", "10", "--json").record
    assert (ran["age_s"], ran["count"], ran["bytes"], ran["reached"]) == (3600.0, 10, None, 4)
    assert ff("lane", "retention", lane, "--bytes", "5000").code == 0
    shown = ff("lane", "show", lane, "--json").record
    assert (shown["keep_age_s"], shown["keep_count"], shown["keep_bytes"]) == (3600.0, 10, 5000)
    assert ff("lane", "retention", "bad lane", "--age", "1").code == 2
    assert ff("lane", "retention", lane).code == 2


def test_a_lane_is_aged_and_strict_again(ff: FF, lane: str) -> None:
    fresh = ff("lane", "show", lane, "--json").record
    assert (fresh["order"], fresh["revision"], fresh["changed_at"]) == ("strict", 0, None)
    told = ff("lane", "aged", lane, "60", "--json").record
    assert (told["aged_s"], told["reached"]) == (60, 4)
    shown = ff("lane", "show", lane, "--json").record
    assert (shown["order"], shown["revision"], shown["behind"]) == ("aged by 60 s", told["revision"], [])
    assert "strict" in ff("lane", "strict", lane).out
    assert ff("lane", "show", lane, "--json").record["aged_s"] == 0
    assert ff("lane", "aged", lane, "0").code == 2


def test_the_gate_is_shown_and_set(ff: FF) -> None:
    before = ff("store", "show", "--json").record
    set_ = ff("store", "gate", "--pct", "70", "--json").record
    assert (set_["gate_pct"], set_["gate_bytes"], set_["reached"]) == (70, None, 4)
    after = ff("store", "show", "--json").record
    assert (after["gate_pct"], after["gate_bytes"], after["behind"]) == (70, before["gate_bytes"], [])
    assert after["revision"] == set_["revision"] > before["revision"]
    assert ff("store", "gate").code == 2
    ff("store", "gate", "--pct", "80")


def test_a_hold_is_listed_and_released(ff: FF, key: str) -> None:
    task = key.replace(":", "-")
    assert ff("hold", "--task", task, "--reason", "provider down", "--json").record == {
        "what": f"task:{task}",
        "changed": True,
    }
    assert {"what": f"task:{task}", "reason": "provider down"} in ff("hold", "--json").records
    assert ff("hold", "--task", task, "--json").record["changed"] is False
    assert ff("release", "--task", task, "--json").record["changed"] is True
    assert ff("release", "--task", task, "--json").record["changed"] is False
    assert ff("release").code == 2
    assert ff("hold", "--task", "a", "--tag", "b.c=d").code == 2


def test_a_lease_is_listed_and_taken_away(ff: FF, store: str, lane: str) -> None:
    ff("submit", "t", "--lane", lane)
    [job] = claim(store, lane)
    [row] = ff("lease", "list", "--lane", lane, "--json").records
    assert (row["execution_id"], row["expired"], row["epoch"]) == (job.execution_id, False, job.lease_epoch)
    assert ff("lease", "list", "--lane", lane, "--expired", "--json").records == []
    assert ff("lease", "revoke", job.execution_id, "--json").record["answer"] == "revoked"
    assert ff("lease", "revoke", job.execution_id, "--json").record["answer"] == "already_revoked"
    assert ff("lease", "list", "--lane", lane, "--json").records == []
    attempts = ff("job", "show", job.execution_id, "--json").record["closed_attempts"]
    assert [a["ended"] for a in attempts] == ["interrupted_reclaimed"]


def test_a_lane_that_is_forgotten_meanwhile_does_not_hide_the_others(
    ff: FF, lane: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ff("submit", "t", "--lane", lane)
    known = store.lane_names

    async def before(backend: Backend) -> dict[str, set[str]]:
        return {"a-forgotten-one": {"active"}, **await known(backend)}

    monkeypatch.setattr(store, "lane_names", before)
    assert lane in [row["lane"] for row in ff("lane", "list", "--json").records]


def test_a_tick_does_what_is_due(ff: FF, lane: str) -> None:
    execution_id = ff("submit", "t", "--lane", lane, "--delay", "0.001").out.strip()
    ff("engine", "tick")
    assert ff("job", "show", execution_id, "--json").record["state"] == "waiting"
    assert set(ff("engine", "tick", "--json").record) == {"partitions", "done", "reaped", "fired"}


def test_init_repeats_and_refuses_another_count(ff: FF) -> None:
    assert ff("init", "--json").record == {"partitions": 4, "created": False}
    ran = ff("init", "--partitions", "8")
    assert ran.code == 5
    assert "partition counts never change" in ran.err


def test_a_fresh_server_is_unknown_to_all_until_init(bare_ff: FF, valkey_url: str) -> None:
    url = own_database(valkey_url).removesuffix("9") + "11"
    sick = bare_ff("doctor", "--json", "--url", url)
    assert sick.code == 1
    assert [row["invariant"] for row in sick.records] == ["partitions_present"]
    assert "ff init" in sick.record["detail"]
    assert bare_ff("init", "--partitions", "2", "--url", url, "--json").record == {"partitions": 2, "created": True}
    assert bare_ff("doctor", "--url", url).code == 0


def test_the_doctor_finds_a_partition_that_is_gone_and_repairs_it(bare_ff: FF, valkey_url: str) -> None:
    url = own_database(valkey_url).removesuffix("9") + "12"
    assert bare_ff("init", "--url", url).code == 0

    async def lose() -> None:
        backend = await connect(url)
        try:
            await backend.command("DEL", "ff:{fp:2}")
        finally:
            await backend.close()

    asyncio.run(lose())
    sick = bare_ff("doctor", "--json", "--url", url)
    assert sick.code == 1
    assert [(row["invariant"], row["id"]) for row in sick.records] == [("partitions_present", "{fp:2}")]
    assert set(sick.records[0]) == {"invariant", "id", "detail"}
    assert bare_ff("doctor", "--repair", "--yes", "--url", url).code == 0
    assert bare_ff("doctor", "--json", "--url", url).records == []


def test_the_doctor_does_not_vouch_for_settings_it_may_not_see(bare_ff: FF, valkey_url: str) -> None:
    url = own_database(valkey_url).removesuffix("9") + "13"
    assert bare_ff("init", "--url", url).code == 0

    async def user(*words: str) -> None:
        backend = await connect(url)
        try:
            await backend.command("ACL", *words)
        finally:
            await backend.close()

    asyncio.run(user("SETUSER", "shy", "on", ">x", "~*", "&*", "+@all", "-config"))
    try:
        ran = bare_ff("doctor", "--url", url.replace("://", "://shy:x@"))
    finally:
        asyncio.run(user("DELUSER", "shy"))
    assert ran.code == 0 and "nothing is evicted" not in ran.out
    assert "does not show its CONFIG" in ran.out
    assert "nothing is evicted" in bare_ff("doctor", "--url", url).out


def test_the_doctor_says_when_the_store_does_not_answer(bare_ff: FF) -> None:
    ran = bare_ff("doctor", "--json", "--url", "valkey://127.0.0.1:1")
    assert (ran.code, ran.record["invariant"]) == (1, "connection")


def test_the_doctor_finds_nothing_wrong_with_a_store_that_initialises_itself(bare_ff: FF, key: str) -> None:
    assert bare_ff("doctor", "--url", "memory://" + key.replace(":", "-")).code == 0


def test_the_library_is_shown_and_loaded(ff: FF) -> None:
    status = ff("library", "status", "--json").record
    assert (status["verdict"], status["store_sha"]) == ("ok", status["sha"])
    assert ff("library", "load", "--json").record["changed"] is False
    assert ff("library", "upgrade", "--json").record["changed"] is False


def test_versions_are_told(bare_ff: FF) -> None:
    told = bare_ff("version", "--json").record
    assert told["version"] in bare_ff("version").out
    assert set(told) == {"version", "library", "library_sha", "python"}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script(bare_ff: FF, shell: str) -> None:
    assert "_FF_COMPLETE" in bare_ff("completion", shell).out


def test_top_shows_lanes_once(ff: FF, lane: str) -> None:
    ff("submit", "t", "--lane", lane, "--count", "2")
    assert any(lane in line for line in ff("top", "--once").out.splitlines())
    [row] = [row for row in ff("top", "--once", "--json").record["lanes"] if row["lane"] == lane]
    assert (row["waiting"], row["in_per_s"]) == (2, None)
    assert ff("top").code == 2  # a pipe: nothing to draw on


def test_rates_are_what_changed_per_second() -> None:
    def picture(waiting: int, completed: int) -> dict[str, list[dict[str, object]]]:
        zero = dict.fromkeys(("delayed", "active", "suspended", "failed", "cancelled", "expired", "skipped"), 0)
        return {"lanes": [{"lane": "a", "waiting": waiting, "completed": completed, **zero}]}

    rates = Rates()
    assert rates.add(picture(10, 0), 1.0)["lanes"][0]["out_per_s"] is None
    [after] = rates.add(picture(20, 30), 3.0)["lanes"]
    assert (after["in_per_s"], after["out_per_s"]) == (20.0, 15.0)


def test_an_app_that_is_none_is_a_usage_error(bare_ff: FF) -> None:
    for where in ("nocolon", "no.such.module:app", "os:path"):
        ran = bare_ff("worker", "run", where, "--url", "memory://x")
        assert ran.code == 2, where


def test_dev_serves_until_it_is_interrupted(tmp_path: Path) -> None:
    """It prints a URL that works, and Ctrl-C is an ordinary end."""
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
        "FF_EMBEDDED_LINGER": "0.1",
        "FF_QUIET": "1",
    }
    command = [sys.executable, "-m", "ffcli.main", "dev", "--dir", str(tmp_path / "store"), "--json"]
    with subprocess.Popen(command, env=env, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as dev:
        try:
            assert dev.stdout is not None
            assert f'"url":"embedded://{tmp_path}/store"' in dev.stdout.readline()
            listed = subprocess.run(
                [*command[:3], "engine", "tick", "--url", f"embedded://{tmp_path}/store"],
                env=env,
                check=True,
                capture_output=True,
            )
            assert b"partitions" in listed.stdout
            dev.send_signal(signal.SIGINT)
            assert dev.wait(20) == 0
        finally:
            dev.kill()
