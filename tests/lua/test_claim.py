"""ff_claim_batch, ff_complete_many, ff_pass_bell: what a worker gets, in which order, and never twice."""

from __future__ import annotations

from typing import Any

import pytest

import ffcore.contracts as c
from ffcore import limits
from ffcore.policy import RoutingRequirements
from tests.lua import invariants
from tests.lua.engine import P0, P1, START_MS, TTL, Engine, cancel, progress, revoke, unclaim, wire

NEEDS_GPU = {"routing_requirements": RoutingRequirements(required_capabilities=frozenset({"gpu"}))}


def needs(*tokens: str) -> dict[str, Any]:
    return {"routing_requirements": RoutingRequirements(required_capabilities=frozenset(tokens))}


async def sets_of(engine: Engine, *lanes: str) -> dict[str, str]:
    """Digest of each capability set, by its tokens."""
    got = await engine.call(c.ListCapabilitySetsArgs(partition=P0, lanes=list(lanes) or ["mail"]))
    return {row.tokens: row.digest for row in got.sets}


def finishing(jobs: list[c.ClaimedJob], claim: c.ClaimBatchArgs, **options: Any) -> c.CompleteManyArgs:
    given = {name: getattr(claim, name) for name in claim.__struct_fields__ if name != "partitions"}
    items = [c.Completion(job.execution_id, wire(job), b"r") for job in jobs]
    return c.CompleteManyArgs(partition=P0, **(given | {"items": items} | options))


# ---- the answer --------------------------------------------------------------------------------------


async def test_a_claimed_job_carries_all_a_worker_needs(engine: Engine) -> None:
    id = await engine.submit(tags={"a.b": "c"}, priority=5, namespace="n", version=2, payload_encoding="json")
    await engine.advance(10)
    (job,) = await engine.claim(n=4)
    assert (job.execution_id, job.lease_id, job.attempt_id, job.attempt_index) == (id, "w1.s0.4.0", "w1.s0.4.0", 0)
    assert (job.attempt_type, job.lease_expires_at, job.task, job.version) == (
        "initial",
        START_MS + 10 + TTL,
        "send",
        2,
    )
    assert (job.payload, job.payload_encoding, job.lane_id, job.namespace, job.priority) == (
        b"hello",
        "json",
        "mail",
        "n",
        5,
    )
    assert (job.created_at, job.deadline_at, job.retries, job.crashes, job.run) == (START_MS, 0, 0, 0, 0)
    assert (job.cancel_requested, job.tags, job.lease_epoch) == (False, ["a.b", "c"], START_MS + 10)


async def test_an_epoch_rises_even_when_time_does_not(engine: Engine) -> None:
    job = await engine.running()
    epochs = [job.lease_epoch]
    for _ in range(3):
        await engine.call(unclaim(job))
        (job,) = await engine.claim()
        epochs.append(job.lease_epoch)
    assert epochs == [START_MS, START_MS + 1, START_MS + 2, START_MS + 3]


async def test_a_policy_may_set_the_length_of_its_leases(engine: Engine) -> None:
    job = await engine.running(policy={"lease_ms": 500})
    assert job.lease_expires_at == START_MS + 500


async def test_a_claim_leases_no_more_than_it_was_asked_for_over_all_partitions(engine: Engine) -> None:
    await engine.submit_many(3, P0)
    await engine.submit_many(3, P1)
    jobs = await engine.claim(4, partitions=[P1, P0])
    assert [job.execution_id[:6] for job in jobs] == ["{fp:1}"] * 3 + ["{fp:0}"]
    assert len({job.lease_id for job in jobs}) == 4
    assert len(await engine.claim(4, partitions=[P1, P0])) == 2


async def test_a_claim_of_nothing_reads_nothing_and_parks_nobody(engine: Engine) -> None:
    await engine.submit()
    answer = await engine.call(engine.claiming(0, park="w1"))
    assert (answer.jobs, answer.parked, answer.again) == ([], False, False)


async def test_one_answer_carries_a_bounded_number_of_bytes(engine: Engine) -> None:
    big = b"x" * limits.PAYLOAD_BYTES
    for _ in range(4):
        await engine.submit(input_payload=big)
    answer = await engine.call(engine.claiming(4))
    assert (len(answer.jobs), answer.again) == (limits.CLAIM_BYTES // limits.PAYLOAD_BYTES, True)
    assert await engine.violations() == [], "what did not fit is back at its place"
    assert len(await engine.claim(4)) == 2


# ---- capability sets ---------------------------------------------------------------------------------


async def test_a_job_goes_only_to_a_worker_that_names_its_set(engine: Engine) -> None:
    id = await engine.submit(policy=needs("gpu", "eu"))
    sets = await sets_of(engine)
    assert list(sets) == ["eu,gpu"]
    assert await engine.claim() == []
    assert await engine.claim(capability_sets=["0" * 12]) == []
    assert [job.execution_id for job in await engine.claim(capability_sets=list(sets.values()))] == [id]


async def test_the_order_of_tokens_makes_no_other_set(engine: Engine) -> None:
    import msgspec

    for tokens in (["b", "a"], ["a", "b"]):
        row = ["default", "mail", "send", 1, "", 0, "", b"=" + msgspec.json.encode({"routing_requirements": {
            "required_capabilities": tokens}}), "", "", 1, engine.new_id(), b"d" * 16, b"", "", "", ""]  # fmt: skip
        await engine.raw("ff_create_many", P0, *row)
    assert list(await sets_of(engine)) == ["a,b"]


async def test_order_holds_across_the_sets_a_worker_serves(engine: Engine) -> None:
    order = [
        await engine.submit(priority=5, policy=needs("gpu")),
        await engine.submit(),
        await engine.submit(policy=needs("tpu")),
        await engine.submit(policy=needs("gpu")),
        await engine.submit(),
    ]
    sets = await sets_of(engine)
    assert [job.execution_id for job in await engine.claim(5, capability_sets=list(sets.values()))] == order


async def test_no_capability_set_stands_behind_the_others_for_good(engine: Engine) -> None:
    """A worker may serve more sets than one claim compares; what stands first in its list need not run dry first."""
    names = [f"c{n:02}" for n in range(2 * limits.HEADS_N)]
    first = {name: await engine.submit(policy=needs(name)) for name in names}
    digests = await sets_of(engine)
    for name in names:
        await engine.submit(policy=needs(name))
        await engine.submit(policy=needs(name))
    last = max(names, key=lambda name: digests[name])
    claims = [await engine.claim(capability_sets=sorted(digests.values())) for _ in range(2 * len(names))]
    assert first[last] in {job.execution_id for jobs in claims for job in jobs}


async def test_sets_of_other_lanes_do_not_hide_a_job(engine: Engine) -> None:
    """A worker names the sets of all its lanes in one list."""
    id = await engine.submit(policy=needs("gpu"))
    strangers = [f"{n:012x}" for n in range(3 * limits.HEADS_N)]
    sets = [*strangers, *(await sets_of(engine)).values()]
    assert [job.execution_id for job in await engine.claim(capability_sets=sets)] == [id]


async def test_a_claim_says_how_new_the_table_of_sets_is(engine: Engine) -> None:
    async def revision() -> int:
        return (await engine.call(engine.claiming(1))).sets_revision

    await engine.submit()
    assert await revision() == 0
    await engine.submit(policy=needs("gpu"))
    first = await revision()
    await engine.submit(policy=needs("tpu"))
    second = await revision()
    await engine.submit(policy=needs("gpu"))
    assert 0 < first < second == await revision()
    assert (await engine.call(c.ListCapabilitySetsArgs(partition=P0, lanes=["mail", "none"]))).revision == second


@pytest.mark.parametrize(("lane", "partition"), [("rare", P0), ("mail", P1)])
async def test_a_set_of_a_lane_or_partition_that_rarely_changes_is_told_too(
    engine: Engine, lane: str, partition: Any
) -> None:
    """One number stands for all that a claim looked at."""
    for n in range(5):
        await engine.submit(policy=needs(f"c{n}"))
    everywhere = {"partitions": [P0, P1], "lanes": ["mail", "rare"]}
    known = (await engine.call(engine.claiming(1, **everywhere))).sets_revision
    await engine.advance(1_000)
    await engine.submit(id=engine.new_id(partition), lane_id=lane, policy=needs("gpu"))
    assert (await engine.call(engine.claiming(1, **everywhere))).sets_revision > known


async def test_the_table_of_sets_is_bounded_and_gives_up_one_without_waiting_jobs(engine: Engine) -> None:
    flat = [part for n in range(limits.CAP_SETS_N - 1) for part in (f"{n:012x}", f"t{n}")]
    await engine.submit(policy=needs("gpu"))
    gpu = (await sets_of(engine))["gpu"]
    await engine.command("HSET", f"ff:{P0}:caps:1", *flat)
    await engine.submit(policy=needs("tpu"))
    assert len(await sets_of(engine)) == limits.CAP_SETS_N
    assert gpu in (await sets_of(engine)).values(), "a set that a job waits under stays"


async def test_a_full_table_of_live_sets_refuses_another(engine: Engine) -> None:
    (id,) = await engine.submit_many(1)
    await engine.claim()
    for n in range(limits.CAP_SETS_N):
        await engine.command("HSET", f"ff:{P0}:caps:1", f"{n:012x}", f"t{n}")
        await engine.command("ZADD", f"ff:{P0}:q:1:{n:012x}", 1, id.partition(":")[2].partition(":")[2])
    detail = await engine.refused("too_many_names", engine.creation(policy=needs("gpu")))
    assert detail == "capability sets of lane mail"
    await engine.command("DEL", *[f"ff:{P0}:q:1:{n:012x}" for n in range(limits.CAP_SETS_N)])


async def test_a_job_that_comes_back_under_a_set_given_up_meanwhile_is_found(engine: Engine) -> None:
    """Its set looked unused while the job was running; without a row no worker would ever look for it again."""
    id = await engine.submit(policy=needs("gpu"))
    gpu = (await sets_of(engine))["gpu"]
    (job,) = await engine.claim(capability_sets=[gpu])
    flat = [part for n in range(limits.CAP_SETS_N - 1) for part in (f"f{n:011x}", f"t{n}")]
    await engine.command("HSET", f"ff:{P0}:caps:1", *flat)
    await engine.submit(policy=needs("tpu"))
    assert "gpu" not in await sets_of(engine)
    before = (await engine.call(c.ListCapabilitySetsArgs(partition=P0, lanes=["mail"]))).revision
    await engine.call(unclaim(job))
    after = await engine.call(c.ListCapabilitySetsArgs(partition=P0, lanes=["mail"]))
    assert after.revision > before
    assert (await sets_of(engine))["gpu"] == gpu
    assert [job.execution_id for job in await engine.claim(capability_sets=[gpu])] == [id]


# ---- a lost reply ------------------------------------------------------------------------------------


async def test_the_same_claim_again_answers_the_same_leases(engine: Engine) -> None:
    """The reply of a claim may be lost; without this the jobs would be leased to nobody until they expire."""
    await engine.submit_many(3)
    await engine.submit_many(3, P1)
    claim = engine.claiming(4, partitions=[P0, P1])
    first = await engine.call(claim)
    await engine.advance(100)
    again = await engine.call(claim)
    assert again.jobs == first.jobs and len(first.jobs) == 4
    assert await engine.claim(9, partitions=[P0, P1]) != []


async def test_a_repeated_claim_does_not_answer_what_has_been_taken_away(engine: Engine) -> None:
    await engine.submit_many(3)
    claim = engine.claiming(3)
    first = (await engine.call(claim)).jobs
    await engine.call(revoke(first[0].execution_id))
    await engine.complete(first[1])
    (other,) = await engine.claim(worker_instance_id="w2")
    assert other.execution_id == first[0].execution_id
    assert (await engine.call(claim)).jobs == [first[2]]


async def test_a_repeated_claim_that_lost_everything_leases_nothing_new(engine: Engine) -> None:
    await engine.submit_many(2)
    claim = engine.claiming(1)
    (job,) = (await engine.call(claim)).jobs
    await engine.complete(job)
    assert (await engine.call(claim)).jobs == []


async def test_a_repeated_claim_that_found_nothing_looks_again(engine: Engine) -> None:
    claim = engine.claiming(1)
    assert (await engine.call(claim)).jobs == []
    id = await engine.submit()
    assert [job.execution_id for job in (await engine.call(claim)).jobs] == [id]


async def test_each_slot_remembers_its_own_last_claim(engine: Engine) -> None:
    await engine.submit_many(2)
    one, two = engine.claiming(1, slot="a", n=1), engine.claiming(1, slot="b", n=1)
    first, second = (await engine.call(one)).jobs, (await engine.call(two)).jobs
    assert first != second
    assert ((await engine.call(one)).jobs, (await engine.call(two)).jobs) == (first, second)


async def test_the_memory_of_a_slot_is_forgotten_in_time(engine: Engine) -> None:
    job = await engine.running()
    await engine.complete(job)
    await engine.pass_time(2 * TTL + 2_000)
    assert await engine.command("EXISTS", f"ff:{P0}:claims") == 0


async def test_the_memory_of_a_slot_in_use_is_kept(engine: Engine) -> None:
    await engine.running(policy={"lease_ms": 10**6})
    await engine.pass_time(TTL)
    await engine.submit()
    claim = engine.claiming(1)
    first = await engine.call(claim)
    await engine.pass_time(TTL - 1_000)
    await engine.tick()
    await engine.advance(1_100)
    await engine.tick()
    assert await engine.command("HLEN", f"ff:{P0}:claims") == 1
    assert (await engine.call(claim)).jobs == [] != first.jobs


# ---- complete many -----------------------------------------------------------------------------------


async def test_completions_and_a_claim_travel_together_each_answered_on_its_own(engine: Engine) -> None:
    await engine.submit_many(5)
    jobs = await engine.claim(4)
    await engine.complete(jobs[1])
    await engine.call(revoke(jobs[2].execution_id))
    await engine.call(cancel(jobs[3].execution_id, "operator_override"))
    bad = c.Completion("{fp:1}:00000000-0000-7000-8000-000000000000", "a 1 b")  # type: ignore[arg-type]
    big = c.Completion(jobs[0].execution_id, wire(jobs[0]), b"x" * (limits.RESULT_BYTES + 1))
    order = finishing(jobs, engine.claiming(5))
    order = finishing(jobs, engine.claiming(5), items=[big, *order.items, bad])
    answer = await engine.call(order)
    assert [(i.state, i.detail) for i in answer.items] == [
        ("error", "payload_too_large"), ("completed", "completed"), ("replayed", "completed"), ("error",
        "lease_revoked"),
        ("error", "terminal"), ("error", "invalid_input"),
    ]  # fmt: skip
    assert len(answer.claimed.jobs) == 2
    assert [(i.state, i.detail) for i in (await engine.call(order)).items][1] == ("replayed", "completed")
    assert (await engine.call(order)).claimed.jobs == answer.claimed.jobs


async def test_a_completion_without_a_result_is_read_back_as_none(engine: Engine) -> None:
    job = await engine.running()
    items = [c.Completion(job.execution_id, wire(job), None)]
    await engine.call(finishing([job], engine.claiming(0), items=items, result_encoding="json"))
    (outcome,) = (await engine.call(c.ReadOutcomesArgs(partition=P0, items=[c.ExecutionRef(job.execution_id)]))).items
    assert (outcome.state, outcome.has_result, outcome.result_encoding) == ("completed", False, "json")


async def test_one_call_writes_one_event_entry_however_many_jobs_it_moves(engine: Engine) -> None:
    await engine.submit_many(8)
    jobs = await engine.claim(8)
    before = await engine.command("XLEN", f"ff:{P0}:ev")
    await engine.call(finishing(jobs, engine.claiming(0)))
    assert await engine.command("XLEN", f"ff:{P0}:ev") == before + 1


# ---- timers of a claim -------------------------------------------------------------------------------


async def test_a_claim_does_a_few_due_timers_itself(engine: Engine) -> None:
    ids = [await engine.submit(delay_until=START_MS + n) for n in range(1, 13)]
    await engine.advance(100)
    got = [job.execution_id for job in await engine.claim(50)]
    assert got == ids[: limits.CLAIM_TICK_N]
    assert [job.execution_id for job in await engine.claim(50)] == ids[limits.CLAIM_TICK_N :]


async def test_a_job_past_its_deadline_is_not_started(engine: Engine) -> None:
    ids = [await engine.submit(execution_deadline_at=START_MS + 5) for _ in range(12)]
    await engine.advance(5)
    assert await engine.claim(1) == []
    assert {await engine.state(id) for id in ids} <= {"expired", "ready"}
    while await engine.claim(1, park=None) or (await engine.call(engine.claiming(1))).again:
        pass
    assert {await engine.state(id) for id in ids} == {"expired"}


# ---- bad input ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("limit", -1), ("limit", limits.ROWS_N + 1), ("lease_ttl_ms", limits.LEASE_TTL_MIN_MS - 1),
        ("lease_ttl_ms", limits.LEASE_TTL_MAX_MS + 1), ("worker_instance_id", ""), ("worker_instance_id", "a b"),
        ("worker_instance_id", "x" * 41), ("claim_id", "w2.s0.1"), ("claim_id", "w1.1"), ("claim_id", "w1.s0.x"),
        ("claim_id", "w1.s0." + "1" * 60), ("lanes", []), ("lanes", {}), ("lanes", ["x"] * 65), ("lanes", [7]),
        ("lanes", ["a b"]),
        ("lanes", ["#1"]), ("lanes", [""]), ("lanes", [None]), ("capability_sets", 7), ("capability_sets", ["-"]),
        ("capability_sets", ["x:timers"]), ("capability_sets", [["a"]]), ("capability_sets", [None]), ("park", "a b"),
        ("park", "x" * 41),
    ],
)  # fmt: skip
async def test_a_claim_with_bad_input_is_refused_and_writes_nothing(engine: Engine, field: str, value: Any) -> None:
    await engine.submit()
    for call in (engine.claiming(1, park="w1"), finishing([], engine.claiming(1, park="w1"))):
        before = await invariants.read_store(engine.command)
        assert await engine.refused("invalid_input", call, **{field: value}) == field
        assert await invariants.read_store(engine.command) == before


async def test_the_longest_claim_id_makes_lease_ids_within_their_bound(engine: Engine) -> None:
    await engine.submit_many(limits.ROWS_N)
    instance, slot = "w" * limits.WORKER_INSTANCE_BYTES, "s" * 10
    room = limits.LEASE_ID_BYTES - 4 - len(instance) - len(slot) - 2
    jobs = await engine.claim(limits.ROWS_N, worker_instance_id=instance, slot=slot, n=int("9" * room))
    assert len(jobs) == limits.ROWS_N
    assert max(len(job.lease_id) for job in jobs) == limits.LEASE_ID_BYTES
    assert {(await engine.read(job.execution_id)).worker_instance_id for job in jobs[:2]} == {instance}
    await engine.call(progress(jobs[-1], progress_pct=1))


async def test_a_member_without_a_record_is_popped_and_forgotten(engine: Engine) -> None:
    id = await engine.submit()
    await engine.command("ZADD", f"ff:{P0}:q:1:-", -5, "ffffffff-0000-7000-8000-000000000000")
    got = [job.execution_id for job in await engine.claim(1)] + [job.execution_id for job in await engine.claim(1)]
    assert got == [id]
