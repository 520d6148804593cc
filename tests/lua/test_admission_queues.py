"""What a refused job does to the queue it waits in: halts, releases, and what is owed when a lease ends."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

import ffcore.contracts as c
from ffcore import limits
from tests.lua.engine import P0, P1, Engine, cancel, lane_told, told, wire

B0, Q0 = "{b:0}", "{q:0}"
BUDGET = f"{B0}:018f0000-0000-7000-8000-00000000000b"
OTHER = f"{B0}:018f0000-0000-7000-8000-00000000000c"
QUOTA = f"{Q0}:018f0000-0000-7000-8000-00000000000d"
UNIQUE = f"{Q0}:018f0000-0000-7000-8000-00000000000e"
PAYS = f"b {BUDGET} hold tokens=5"
SLOW = f"q {QUOTA} hold tenant%201"


def uuid(id: str) -> str:
    return id.rpartition(":")[2]


def set_of(*parts: str) -> str:
    return hashlib.sha1("\n".join(sorted(parts)).encode()).hexdigest()[:12]


PAYING = set_of(f"b {BUDGET}")


def refusal(job: c.ClaimedJob, resource: str = BUDGET, kind: Any = "b", **options: Any) -> c.Refusal:
    given = {"gen": 1, "until_ms": 2**53 - 1, "detail": "tokens: 5 wanted, 0 left"} | options
    return c.Refusal(job.execution_id, wire(job), resource, kind, **given)


async def refuse(engine: Engine, *rows: c.Refusal) -> list[tuple[str, str]]:
    answer = await engine.call(c.RefuseManyArgs(partition=P0, items=list(rows)))
    return [(item.state, item.detail) for item in answer.items]


async def owed(engine: Engine, kind: str = "") -> list[tuple[str, str, str]]:
    """Target, kind and body of what the partition owes; taken as delivered."""
    rows = (await engine.call(c.ReadOutboxArgs(partition=P0))).rows
    await engine.call(c.AckOutboxArgs(partition=P0, items=[c.OutboxRef(row.row) for row in rows]))
    return [(str(row.target), row.kind, row.body) for row in rows if kind in ("", row.kind)]


async def tell(engine: Engine, kind: str, body: str, source: str = B0) -> Any:
    """A word of another partition, such as may come twice or not at all."""
    answer = await engine.call(c.DeliverArgs(partition=P0, source=source, items=[c.Letter("", kind, body)]))
    assert not answer.left
    return answer.wakes


async def free(engine: Engine, allow: int, adm: str = PAYING, resource: str = BUDGET, gen: int = 1) -> None:
    await tell(engine, "unhalt", f"{adm} {uuid(resource)} {gen} {allow}")


# ---- what is given -------------------------------------------------------------------------------------


async def test_a_claim_answers_what_the_job_must_be_admitted_by(engine: Engine) -> None:
    text = f"{PAYS}\n{SLOW}\nu {UNIQUE} window"
    job = await engine.running(admission=text)
    assert job.admission == text
    assert (await engine.read(job.execution_id)).fields["adm"] == set_of(f"b {BUDGET}", f"q {QUOTA} tenant%201")
    plain = await engine.running()
    assert plain.admission is None and "adm" not in (await engine.read(plain.execution_id)).fields


async def test_estimates_and_what_follows_a_refusal_make_no_other_queue(engine: Engine) -> None:
    texts = [
        PAYS,
        f"b {BUDGET} fail -",
        f"b {BUDGET} cancel usd=0.25,tokens=1",
        f"b {BUDGET} suspend -\nu {UNIQUE} queued",
    ]
    ids = [await engine.submit(admission=text) for text in texts]
    assert {(await engine.read(id)).fields["adm"] for id in ids} == {PAYING}


async def test_a_policys_budgets_are_asked_too_and_none_twice(engine: Engine) -> None:
    policy = {"budget_ids": [BUDGET, OTHER, OTHER]}
    assert (await engine.running(policy=policy)).admission == f"b {BUDGET} hold -\nb {OTHER} hold -"
    assert (await engine.running(policy=policy, admission=PAYS)).admission == f"{PAYS}\nb {OTHER} hold -"
    await engine.refused("invalid_policy_json", engine.creation(policy={"budget_ids": [QUOTA]}))


@pytest.mark.parametrize("text", [
    "", "x", PAYS + "\n", "\n" + PAYS, f"{PAYS}\n\n{SLOW}", f"{PAYS}\n{PAYS}", f"b {BUDGET} hold", f"b {QUOTA} hold -",
    f"b {BUDGET} never -", f"b {BUDGET} hold tokens", f"b {BUDGET} hold tokens=-1", f"b {BUDGET} hold tokens=1.1234567",
    f"b {BUDGET} hold tokens=1,tokens=2", f"b {BUDGET} hold tokens=1,", f"b {BUDGET} hold tokens=9007199254740992",
    f"b {BUDGET} hold tokens=1.", f"q {QUOTA} hold", f"q {QUOTA} hold a b", f"q {QUOTA} hold {'x' * 129}",
    f"q {BUDGET} hold -",
    f"u {UNIQUE} always", f"u {UNIQUE} queued\nu {QUOTA} active", f"u {UNIQUE} forever\nu {QUOTA} window",
    f"b {BUDGET.replace(B0, '{b:99}')} hold -", f"{PAYS}\nu {UNIQUE.replace(Q0, '{q:99}')} active",
    "\n".join(f"b {B0}:018f0000-0000-7000-8000-0000000000{n:02x} hold -" for n in range(17)),
])  # fmt: skip
async def test_lines_that_cannot_be_read_are_refused_everywhere(engine: Engine, text: str) -> None:
    assert "admission" in await engine.refused("invalid_input", engine.creation(), admission=text)
    row = c.NewExecution(engine.new_id(), b"d" * 16, b"", None, None, text)
    many = c.CreateManyArgs(partition=P0, namespace="default", lane_id="mail", execution_kind="send", items=[row])
    assert (await engine.call(many)).items == [c.ItemCreated("error", "invalid_input")]
    assert (await engine.claim()) == []


# ---- refusals and halts --------------------------------------------------------------------------------


async def test_a_refused_job_keeps_its_place_and_its_attempt_and_its_like_wait_with_it(engine: Engine) -> None:
    first, second = [await engine.submit(admission=PAYS) for _ in range(2)]
    plain = await engine.submit()
    (job,) = await engine.claim()
    assert await refuse(engine, refusal(job)) == [("refused", "ready")]
    (other,) = await engine.claim(limit=10)
    assert other.execution_id == plain
    await engine.complete(other)
    await engine.at(engine.now + 86_400_001)  # no halt is longer than a day
    await engine.tick()
    again = await engine.claim(limit=10)
    assert [(each.execution_id, each.attempt_index, each.attempt_type) for each in again] == [
        (first, 0, "initial"), (second, 0, "initial")
    ]  # fmt: skip


async def test_a_refusal_that_is_sent_again_is_the_same_refusal(engine: Engine) -> None:
    job = await engine.running(admission=PAYS)
    assert await refuse(engine, refusal(job)) == [("refused", "ready")]
    assert await refuse(engine, refusal(job)) == [("replayed", "ready")]
    assert len(await owed(engine)) == 1


async def test_each_refusal_stands_for_itself(engine: Engine) -> None:
    lost = await engine.running(admission=PAYS)
    await engine.pass_time(31_000)
    (job,) = await engine.claim()
    assert job.execution_id == lost.execution_id
    other = await engine.running()
    rows = [
        refusal(lost), refusal(job, "nothing"), refusal(job, kind="x"), refusal(other, halt=False), refusal(job)
    ]  # fmt: skip
    assert await refuse(engine, *rows) == [
        ("error", "stale_lease"), ("error", "invalid_input"), ("error", "invalid_input"), ("refused", "ready"),
        ("refused", "ready"),
    ]  # fmt: skip


async def test_a_cancel_that_was_asked_for_ends_what_is_refused(engine: Engine) -> None:
    job = await engine.running(admission=PAYS)
    await engine.call(cancel(job.execution_id))
    assert await refuse(engine, refusal(job)) == [("refused", "cancelled")]


async def test_a_paused_job_that_is_refused_stays_out_of_its_queue(engine: Engine) -> None:
    job = await engine.running(admission=PAYS)
    await engine.call(c.PauseExecutionArgs(execution_id=job.execution_id, reason="r"))
    assert await refuse(engine, refusal(job)) == [("refused", "blocked")]


async def test_without_a_halt_the_next_of_the_same_set_may_ask(engine: Engine) -> None:
    job = await engine.running(admission=PAYS)
    await refuse(engine, refusal(job, halt=False))
    assert [each.execution_id for each in await engine.claim()] == [job.execution_id]


async def test_a_halt_ends_by_itself_a_few_first_and_then_all(engine: Engine) -> None:
    job = await engine.running(admission=PAYS)
    await engine.submit_many(40)
    rows = [c.NewExecution(engine.new_id(), b"d" * 16, b"", None, None, PAYS) for _ in range(40)]
    await engine.call(
        c.CreateManyArgs(partition=P0, namespace="default", lane_id="mail", execution_kind="send", items=rows)
    )
    await refuse(engine, refusal(job, until_ms=engine.now + 5_000))
    assert len(await engine.claim(limit=200)) == 40
    await engine.pass_time(5_001)
    assert len(await engine.claim(limit=200)) == 16
    await engine.advance(200)
    await engine.tick()
    assert len(await engine.claim(limit=200)) == 25


async def test_a_release_lets_as_many_start_as_it_has_room_for_and_one_more_to_ask(engine: Engine) -> None:
    job = await engine.running(admission=PAYS)
    for _ in range(10):
        await engine.submit(admission=PAYS)
    await refuse(engine, refusal(job))
    await free(engine, 3)
    started = await engine.claim(limit=10)
    assert len(started) == 4
    await refuse(engine, refusal(started[3], gen=2))
    assert await engine.claim(limit=10) == []


async def test_a_refusal_on_its_way_when_the_release_came_halts_nothing(engine: Engine) -> None:
    job = await engine.running(admission=PAYS)
    await free(engine, 1, gen=7)
    await refuse(engine, refusal(job, gen=7))
    (job,) = await engine.claim()
    await refuse(engine, refusal(job, gen=8))
    assert await engine.claim() == []


async def test_a_release_of_something_else_opens_nothing(engine: Engine) -> None:
    job = await engine.running(admission=PAYS)
    await refuse(engine, refusal(job))
    await free(engine, 5, resource=OTHER)
    await free(engine, 5, adm="0123456789ab")
    await tell(engine, "unhalt", "nonsense")
    assert await engine.claim() == []


async def test_a_set_that_comes_to_another_lane_while_it_is_halted_waits_there_too(engine: Engine) -> None:
    job = await engine.running(admission=PAYS)
    await refuse(engine, refusal(job))
    other = await engine.submit(admission=PAYS, lane_id="web")
    plain = await engine.submit(lane_id="web")
    assert [each.execution_id for each in await engine.claim(limit=5, lanes=["web"])] == [plain]
    await free(engine, 2)
    found = await engine.claim(limit=5, lanes=["mail", "web"])
    assert {each.execution_id for each in found} == {job.execution_id, other}


async def test_nobody_is_rung_for_what_is_halted_and_everybody_who_is_needed_when_it_opens(engine: Engine) -> None:
    job = await engine.running(admission=PAYS)
    await refuse(engine, refusal(job))
    await engine.claim(park="w1")
    ear = await engine.listen(f"ff:{P0}:w:w1")
    await engine.submit(admission=PAYS)
    assert await ear.heard() == []
    await free(engine, 1)
    assert await ear.heard() == [("w1", "work")]


async def test_releases_heard_of_are_forgotten(engine: Engine) -> None:
    await free(engine, 1)
    assert await engine.command("HLEN", f"ff:{P0}:halts") == 1
    await engine.pass_time(3 * limits.HALT_MS)
    assert await engine.command("HLEN", f"ff:{P0}:halts") == 0


async def test_a_longer_halt_of_another_reason_stays(engine: Engine) -> None:
    both = f"{PAYS}\n{SLOW}"
    jobs = [await engine.running(admission=both) for _ in range(2)]
    adm = set_of(f"b {BUDGET}", f"q {QUOTA} tenant%201")
    await refuse(engine, refusal(jobs[0], QUOTA, "q", until_ms=engine.now + 60_000))
    await refuse(engine, refusal(jobs[1], until_ms=engine.now + 5_000))
    await free(engine, 5, adm)
    await engine.pass_time(6_000)
    assert await engine.claim() == []
    await free(engine, 5, adm, QUOTA)
    assert len(await engine.claim(limit=5)) == 2


# ---- capability sets, grants, bells --------------------------------------------------------------------


async def test_sets_wait_under_capability_sets_and_the_best_of_all_comes_first(engine: Engine) -> None:
    gpu = {"routing_requirements": {"required_capabilities": ["gpu"]}}
    ids = [
        await engine.submit(priority=1, admission=PAYS, policy=gpu), await engine.submit(priority=3, admission=SLOW),
        await engine.submit(priority=2, policy=gpu), await engine.submit(priority=4),
    ]  # fmt: skip
    digest = hashlib.sha1(b"gpu").hexdigest()[:12]
    got = await engine.claim(limit=10, capability_sets=[digest])
    assert [job.execution_id for job in got] == [ids[3], ids[1], ids[2], ids[0]]


async def test_a_grant_goes_round_what_is_halted(engine: Engine) -> None:
    job = await engine.running(admission=PAYS)
    await refuse(engine, refusal(job))
    args = c.ClaimForWorkerArgs(
        lane_id="mail", worker_id="w", worker_instance_id="w1", worker_capabilities=[], grant_ttl_ms=5_000, at=P0
    )
    assert isinstance(await engine.call(args), c.NoWork)
    await free(engine, 1)
    assert isinstance(await engine.call(args), c.WorkerGranted)
    eligible = await engine.call(c.ScanEligibleArgs(partition=P0, lane_id="mail", limit=10))
    assert eligible.execution_ids == []


# ---- what is owed --------------------------------------------------------------------------------------


async def test_every_end_of_a_lease_settles_with_whatever_admitted_it(engine: Engine) -> None:
    text = f"{PAYS}\n{SLOW}"
    ends: list[Any] = [
        engine.complete, engine.fail,
        lambda job: engine.call(c.UnclaimArgs(execution_id=job.execution_id, fence=wire(job), reason="hand_back")),
        lambda job: refuse(engine, refusal(job, halt=False)),
    ]  # fmt: skip
    for n, end in enumerate(ends):
        job = await engine.running(admission=text)
        await end(job)
        undo = "1" if n == 3 else "0"
        tail = f"{job.execution_id} {job.lease_epoch} {undo}"
        assert await owed(engine) == [
            (B0, "settle", f"b {uuid(BUDGET)} - {tail}"), (Q0, "settle", f"q {uuid(QUOTA)} tenant%201 {tail}")
        ]  # fmt: skip
        for left in await engine.claim(limit=5):
            await engine.complete(left)
        await owed(engine)


async def test_a_lease_that_runs_out_settles_too(engine: Engine) -> None:
    job = await engine.running(admission=PAYS)
    await engine.pass_time(31_000)
    assert (B0, "settle", f"b {uuid(BUDGET)} - {job.execution_id} {job.lease_epoch} 0") in await owed(engine)


@pytest.mark.parametrize(
    ("scope", "started", "ended"), [("queued", 1, 0), ("active", 0, 1), ("window", 0, 0), ("forever", 0, 0)]
)
async def test_a_key_is_free_when_its_scope_is_over(engine: Engine, scope: str, started: int, ended: int) -> None:
    id = await engine.submit(admission=f"u {UNIQUE} {scope}")
    assert await owed(engine) == []
    (job,) = await engine.claim()
    freed = [(Q0, "free", f"{uuid(UNIQUE)} {id}")]
    assert job.admission is None
    assert await owed(engine) == freed * started
    await engine.complete(job)
    assert await owed(engine) == freed * ended


@pytest.mark.parametrize("scope", ["queued", "active"])
async def test_a_key_is_free_when_its_holder_ends_without_having_started(engine: Engine, scope: str) -> None:
    id = await engine.submit(admission=f"u {UNIQUE} {scope}\n{PAYS}")
    await engine.call(cancel(id))
    assert await owed(engine) == [(Q0, "free", f"{uuid(UNIQUE)} {id}")]


async def test_whoever_holds_something_for_an_execution_can_ask_whether_it_still_runs(engine: Engine) -> None:
    job = await engine.running(admission=PAYS)
    asked = f"b {uuid(BUDGET)} - {job.execution_id}"
    wake = c.Wake(B0, "verified", f"{asked} {job.lease_epoch} 1")
    assert await tell(engine, "verify", f"{B0} {asked} {job.lease_epoch}") == [wake]
    assert (await tell(engine, "verify", f"{B0} {asked} {job.lease_epoch - 1}"))[0].body.endswith(" 0")
    await engine.complete(job)
    assert (await tell(engine, "verify", f"{B0} {asked} {job.lease_epoch}"))[0].body.endswith(" 0")
    key = f"{Q0} u {uuid(UNIQUE)} -"
    assert (await tell(engine, "verify", f"{key} {job.execution_id} 0"))[0].body.endswith(" 1")
    assert (await tell(engine, "verify", f"{key} {engine.new_id()} 0"))[0].body.endswith(" 0")
    for body in ("nonsense", f"{key} {engine.new_id(P1)} 0", f"{key} {P0}:zz 0"):
        assert await tell(engine, "verify", body) == []


# ---- a lane's own quota --------------------------------------------------------------------------------


async def limited(engine: Engine) -> None:
    await engine.call(lane_told(quota=QUOTA))


async def test_every_job_of_a_lane_with_a_quota_takes_a_place_of_it(engine: Engine) -> None:
    await limited(engine)
    line = f"q {QUOTA} hold - lane"
    plain = await engine.running()
    paying = await engine.running(admission=PAYS)
    assert (plain.admission, paying.admission) == (line, f"{PAYS}\n{line}")
    elsewhere = await engine.running(lane_id="web")
    assert elsewhere.admission is None
    await engine.complete(plain)
    assert await owed(engine) == [(Q0, "settle", f"q {uuid(QUOTA)} - {plain.execution_id} {plain.lease_epoch} 0")]


async def test_a_lanes_quota_halts_the_lane_and_its_release_lets_some_through(engine: Engine) -> None:
    await limited(engine)
    job = await engine.running()
    for _ in range(5):
        await engine.submit()
    assert await refuse(engine, refusal(job, QUOTA, "l")) == [("refused", "ready")]
    assert await engine.claim(limit=5) == []
    await free(engine, 2, f"lane:{uuid(QUOTA)}", QUOTA)
    started = await engine.claim(limit=10)
    assert len(started) == 3
    assert await engine.claim(limit=10) == []
    await engine.advance(200)
    await engine.tick()
    assert len(await engine.claim(limit=10)) == 3
    assert {job.admission for job in started} == {f"q {QUOTA} hold - lane"}


async def test_a_lanes_halt_ends_by_itself(engine: Engine) -> None:
    await limited(engine)
    job = await engine.running()
    await refuse(engine, refusal(job, QUOTA, "q", until_ms=engine.now + 5_000))
    await engine.pass_time(6_000)
    assert len(await engine.claim(limit=5)) == 1
    await engine.call(lane_told(quota=""))
    assert (await engine.running()).admission is None


# ---- what stays behind ---------------------------------------------------------------------------------


async def test_an_idle_lane_leaves_nothing_of_its_queues(engine: Engine) -> None:
    job = await engine.running(admission=PAYS)
    await refuse(engine, refusal(job, until_ms=engine.now + 1))
    await engine.pass_time(1_000)
    (job,) = await engine.claim()
    await engine.complete(job)
    await owed(engine)
    await engine.call(told("lane:mail", {"age_ms": 60_000}))
    await engine.pass_time(120_000)
    await engine.call(told("lane:mail", {}))
    await engine.pass_time(limits.LANE_IDLE_MS + 700_000)
    assert await engine.command("KEYS", f"ff:{P0}:[qoirs]*:1*") == []
