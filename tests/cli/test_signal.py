"""`ff signal`, and what `ff job` says of steps, gates and pauses: jobs that a worker has left waiting."""

from __future__ import annotations

import asyncio
import secrets
from pathlib import Path

import pytest

import ffsdk
from tests.cli.conftest import FF, work

app = ffsdk.App()
SHOWN = ["execution_id", "waitpoint_id", "gate", "state", "names", "created_at", "activated_at", "expires_at", "kid",
         "fingerprint"]  # fmt: skip
STEP = ["seq", "name", "kind", "status", "at", "attempt", "tries", "reason", "recovery", "child"]
mail: dict[str, str] = {}


class Verdict(ffsdk.Payload):
    approved: bool


@app.task(name="cli.place", lane="orders")
async def place(_: int, ctx: ffsdk.Context) -> str:
    gate = await ctx.gate("manager", Verdict, names=["approved"])
    mail[ctx.execution_id] = gate.token
    await ctx.step("ask", str.upper, "please")
    [signal] = await ctx.wait(gate)
    return f"{signal.value.approved} {signal.source}"


@app.task(name="cli.two", lane="orders")
async def two(_: int, ctx: ffsdk.Context) -> list[str]:
    one, other = await ctx.gate("one"), await ctx.gate("other")
    return [signal.name for signal in await ctx.wait(one, other)]


@pytest.fixture(autouse=True)
def ring(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FF_SECRET_FILE", raising=False)
    monkeypatch.delenv("FF_SECRETS", raising=False)
    monkeypatch.setenv("FF_SECRET", "k1:" + "ab" * 32)


def waiting(url: str, task: ffsdk.Task[int, object]) -> str:
    """A job that waits at its gates; the worker that brought it there has gone."""

    async def bring() -> str:
        app.url = url
        async with app.client() as client:
            worker = app.worker(lanes=["orders"], concurrency=2)
            running = asyncio.ensure_future(worker.run())
            job = await client.submit(task, 0)
            try:
                async with asyncio.timeout(30):
                    while (await job.status()).state != "suspended":
                        await asyncio.sleep(0.005)
            finally:
                await worker.stop()
                await running
        return job.id

    return asyncio.run(bring())


def run(url: str, *execution_ids: str) -> None:
    """Let a worker of this module's app finish them."""
    work(url, *execution_ids, app=app)


# ---- pending ---------------------------------------------------------------------------------------------


def test_open_gates_are_listed_without_anything_that_opens_them(ff: FF, store: str) -> None:
    job, other = waiting(store, place), waiting(store, two)
    [gate] = ff("signal", "pending", job, "--json").records
    assert list(gate) == SHOWN
    assert (gate["gate"], gate["state"], gate["names"], gate["kid"]) == ("manager", "active", ["approved"], "k1")
    assert mail[job] not in str(gate) and mail[job].rpartition(".")[2] not in str(gate)
    everything = ff("signal", "pending", "--lane", "orders", "--json").records
    assert {(row["execution_id"], row["gate"]) for row in everything} >= {
        (job, "manager"), (other, "one"), (other, "other"),
    }  # fmt: skip
    head, row = ff("signal", "pending", job).out.splitlines()
    assert head.split() == ["id", "gate", "state", "accepts", "opened", "token"] and "approved" in row
    assert ff("signal", "pending", "--lane", "nothing-here").out == "No gate is open.\n"
    assert ff("signal", "pending", job[:-12] + "0" * 12).code == 3


# ---- send ------------------------------------------------------------------------------------------------


def test_a_token_is_read_from_a_file_standard_input_or_the_environment(
    ff: FF, store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = waiting(store, place)
    token, value = mail[job], '{"approved": true}'
    (tmp_path / "token").write_text(token + "\n")
    options = ("--value", value, "--key", "click-1", "--json")
    ignored = ff("signal", "send", f"@{tmp_path}/token", "--value", value, "--name", "seen", "--json").record
    assert ignored["effect"] == "signal_ignored_matcher_failed"
    first = ff("signal", "send", "-", *options, "--name", "approved", "--source", "web:dana", given=token).record
    assert list(first) == ["signal_id", "effect", "duplicate"]
    assert (first["effect"], first["duplicate"]) == ("resume_condition_satisfied", False)
    monkeypatch.setenv("FF_TOKEN", token)
    again = ff("signal", "send", *options, "--name", "approved")
    assert again.record == {**first, "duplicate": True}
    told = ff("signal", "send", "--value", value, "--key", "click-1", "--name", "approved")
    assert told.out == "resume_condition_satisfied: the job goes on (it had been sent before).\n"
    late = ff("signal", "send", "--value", value, "--name", "approved")
    assert late.code == 1 and "waitpoint_closed" in late.err
    run(store, job)
    assert ff("job", "result", job, "--json").record["result"] == "True web:dana"


def test_a_token_on_the_command_line_is_refused_and_not_repeated(ff: FF) -> None:
    secret = f"ff1.0.{secrets.token_hex(20)}"
    ran = ff("signal", "send", secret)
    assert ran.code == 2 and "@FILE" in ran.err and secret not in ran.err
    assert ff("signal", "send").code == 2
    assert ff("signal", "send", "@/nowhere/at/all").code == 2
    assert ff("signal", "send", "-", "--value", "-", given="x").code == 2
    wrong = ff("signal", "send", "-", given=secret)
    assert wrong.code == 1 and "invalid_token" in wrong.err and secret not in wrong.err


# ---- approve ---------------------------------------------------------------------------------------------


def test_an_operator_approves_without_a_token_and_the_history_says_who(ff: FF, store: str) -> None:
    job = waiting(store, place)
    ran = ff("signal", "approve", job, "--value", '{"approved": true}', "--json").record
    assert (ran["execution_id"], ran["gate"], ran["effect"]) == (job, "manager", "resume_condition_satisfied")
    run(store, job)
    assert ff("job", "result", job, "--json").record["result"].startswith("True operator:")
    reasons = [entry["reason"] for entry in ff("job", "history", job, "--json").records]
    assert any((reason or "").startswith("signal_by_operator ") for reason in reasons), reasons


def test_of_several_gates_the_operator_names_one(ff: FF, store: str) -> None:
    job = waiting(store, two)
    vague = ff("signal", "approve", job)
    assert vague.code == 2 and "one, other" in vague.err
    assert ff("signal", "approve", job, "--gate", "third").code == 2
    assert ff("signal", "approve", job, "--gate", "other").out.startswith("appended_to_waitpoint: it is kept")
    assert ff("signal", "approve", job, "--gate", "one", "--name", "yes").code == 0
    assert ff("signal", "approve", job, "--gate", "one").code == 2, "nothing is open any more"
    run(store, job)
    assert ff("job", "result", job, "--json").record["result"] == ["approved", "yes"]


# ---- job -------------------------------------------------------------------------------------------------


def test_a_job_is_shown_with_its_steps_gates_and_recovery(ff: FF, store: str) -> None:
    job = waiting(store, place)
    shown = ff("job", "show", job, "--json").record
    assert [list(step) for step in shown["steps"]] == [STEP] * 2
    assert [(s["kind"], s["name"], s["status"]) for s in shown["steps"]] == [
        ("gate", "manager", "ok"), ("step", "ask", "ok"),
    ]  # fmt: skip
    assert {s["recovery"] for s in shown["steps"]} == {shown["recovery"]} == {"resume_from_evidence_boundary"}
    assert [list(gate) for gate in shown["waitpoints"]] == [SHOWN]
    assert (shown["state"], shown["suspended_until"], shown["paused"]) == ("suspended", None, False)
    people = ff("job", "show", job).out
    assert "resume_from_evidence_boundary" in people and "manager" in people and "PLEASE" not in people
    assert len(ff("job", "show", job, "--steps", "1", "--json").record["steps"]) == 1
    [reason] = ff("job", "explain", job, "--json").records[:1]
    assert (reason["code"], reason["detail"]) == ("waiting_for_signal", "gates: manager (approved)")
    kept = ff("job", "export", job, "--json").record
    assert {name: kept[name] for name in ("recovery", "waitpoints")} == {
        name: shown[name] for name in ("recovery", "waitpoints")
    }
    assert [{**step, "value": kept["steps"][at]["value"]} for at, step in enumerate(shown["steps"])] == kept["steps"]
    assert [step["value"] for step in kept["steps"]] == [None, "PLEASE"], "an export has what steps returned"
    ff("signal", "approve", job, "--value", '{"approved": false}')
    run(store, job)
    after = ff("job", "show", job, "--json").record
    assert [s["kind"] for s in after["steps"]] == ["gate", "step", "wait"]
    assert (after["waitpoints"], after["recovery"]) == ([], "reuse_finalized")


def test_a_job_is_paused_and_resumed(ff: FF, lane: str, store: str) -> None:
    job = ff("submit", "cli.double", "21", "--lane", lane).out.strip()
    assert ff("job", "pause", job, "--reason", "audit", "--json").record == {"execution_id": job, "answer": "paused"}
    assert ff("job", "pause", job).out == f"{job} was paused before.\n"
    shown = ff("job", "show", job, "--json").record
    assert shown["paused"] is True
    assert (shown["blocking_reason"], shown["blocking_detail"]) == ("paused_by_operator", "audit")
    later = ff("job", "resume", job, "--delay", "600", "--json").record
    assert later == {"execution_id": job, "answer": "resumed", "state": "delayed"}
    nothing = ff("job", "resume", job)
    assert nothing.code == 1 and "execution_not_suspended" in nothing.err
    ff("job", "pause", job)
    assert ff("job", "resume", job).code == 0
    assert ff("job", "pause", job[:-12] + "0" * 12).code == 3


def test_a_waiting_job_goes_on_with_nothing_when_an_operator_resumes_it(ff: FF, store: str) -> None:
    job = waiting(store, two)
    assert ff("job", "resume", job).out == f"{job} goes on; it is waiting.\n"
    run(store, job)
    assert ff("job", "result", job, "--json").record["result"] == []


# ---- rotation ----------------------------------------------------------------------------------------------


def test_a_rotation_says_how_many_open_gates_its_grace_cuts_off(
    bare_ff: FF, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a store of its own: the others share one, where every ring must stay the same."""
    url = "memory://rotation-" + key.replace(":", "-")
    assert bare_ff("init", "--url", url).code == 0
    monkeypatch.setenv("FF_URL", url)
    first, second = waiting(url, place), waiting(url, two)
    one, next_, last = "k1:" + "ab" * 32, "k2:" + "cd" * 32, "k3:" + "ef" * 32
    monkeypatch.setenv("FF_SECRET", f"{one},{next_}")
    said = bare_ff("secret", "rotate", "--grace", "3600")
    assert said.out == (
        "k2 signs in 4 of 4 partitions; what was signed before opens for another 60m. "
        "3 open gates were opened with earlier secrets; their tokens end then.\n"
    )
    opened = ("--value", '{"approved": true}', "--name", "approved", "--json")
    assert bare_ff("signal", "send", "-", *opened, given=mail[first]).record["effect"] == "resume_condition_satisfied"
    run(url, first)
    third = waiting(url, place)
    monkeypatch.setenv("FF_SECRET", f"{next_},{last}")
    rows = bare_ff("secret", "rotate", "--grace", "0", "--json").records
    assert sum(row["open_waitpoints"] for row in rows) == 3, "the two that k1 has signed, and the one of k2"
    refused = bare_ff("signal", "send", "-", *opened, given=mail[third])
    assert refused.code == 1 and "invalid_token" in refused.err
    assert bare_ff("signal", "approve", third, "--value", '{"approved": true}').code == 0, "an operator needs none"
    run(url, third)
    assert bare_ff("job", "result", third, "--json").record["state"] == "completed"
    assert [row["gate"] for row in bare_ff("signal", "pending", second, "--json").records] == ["one", "other"]
