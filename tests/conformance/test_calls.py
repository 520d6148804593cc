"""What any Backend must do with a call: answer, refuse, isolate, say what it does not know, close."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import ffcore.contracts as c
from ffbackend_valkey.backend import ValkeyBackend
from ffcore.args import Args, Outcome
from ffcore.errors import (
    EngineBug,
    EngineError,
    IdempotencyConflict,
    InvalidArgument,
    NotFound,
    NotInitialised,
    Rejected,
    StaleLease,
    Unavailable,
)  # fmt: skip
from ffcore.ids import PartitionKey, new_execution_id, partition_key, partition_of
from tests.conformance.conftest import Opener
from tests.integration.proxy import until

P0 = partition_key(0)


def creation(id: Any = None, **options: Any) -> c.CreateExecutionArgs:
    given: dict[str, Any] = {
        "execution_id": id or new_execution_id(2), "namespace": "default", "lane_id": "mail", "execution_kind": "send",
        "input_payload": b"hello", "digest": b"d" * 16,
    } | options  # fmt: skip
    return c.CreateExecutionArgs(**given)


def claiming(n: int = 0, limit: int = 10) -> c.ClaimBatchArgs:
    return c.ClaimBatchArgs(
        partitions=[partition_key(0), partition_key(1)], lanes=["mail"], capability_sets=[], limit=limit,
        claim_id=f"w1.s.{n}",
        worker_id="w", worker_instance_id="w1", lease_ttl_ms=30_000,
    )  # fmt: skip


# ---- one call ----------------------------------------------------------------------------------------


async def test_a_job_goes_from_create_to_result(backend: ValkeyBackend) -> None:
    made = await backend.call(creation())
    assert isinstance(made, c.Created)
    (job,) = (await backend.call(claiming())).jobs
    fence = c.LeaseFence(job.lease_id, job.lease_epoch, job.attempt_id)
    done = c.CompleteExecutionArgs(
        execution_id=made.execution_id, fence=fence, attempt_index=0, result_payload=b"\x00r"
    )
    assert (await backend.call(done)).replayed is False
    stored = await backend.call(c.ReadExecutionArgs(execution_id=made.execution_id, parts="payload,result"))
    assert (stored.fields["state"], stored.payload, stored.result) == ("completed", b"hello", b"\x00r")


async def test_a_refusal_raises_its_class_with_code_and_detail(backend: ValkeyBackend) -> None:
    made = await backend.call(creation())
    with pytest.raises(IdempotencyConflict) as conflict:
        await backend.call(creation(made.execution_id, digest=b"e" * 16))
    assert (conflict.value.code, conflict.value.detail) == ("idempotency_conflict", made.execution_id)
    with pytest.raises(NotFound) as gone:
        await backend.call(c.ReadExecutionArgs(execution_id=new_execution_id(2)))
    assert gone.value.code == "execution_not_found"
    stale = c.LeaseFence("l", 1, "a")  # type: ignore[arg-type]
    with pytest.raises(StaleLease):
        await backend.call(c.CompleteExecutionArgs(execution_id=made.execution_id, fence=stale, attempt_index=0))
    assert all(isinstance(e.value, Rejected) for e in (conflict, gone))


async def test_bad_input_that_only_the_store_can_see_is_a_value_error_too(backend: ValkeyBackend) -> None:
    with pytest.raises(ValueError, match="invalid_input"):
        await backend.call(c.HoldArgs(partition=P0, what="nonsense", reason=""))


@pytest.mark.parametrize("partition", ["{fp:2}", "{fp:99999}", "{b:1}", "{w:7}", "{zz:0}"])
async def test_a_partition_the_store_does_not_have_is_refused_before_anything_is_sent(
    backend: ValkeyBackend, partition: str
) -> None:
    with pytest.raises(InvalidArgument, match="not a partition of this store"):
        await backend.call(c.ListHoldsArgs(partition=PartitionKey(partition)))
    with pytest.raises(InvalidArgument):
        await backend.call(c.TickArgs(partitions=[P0, PartitionKey(partition)], ticker="t"))
    assert "ticker" not in (await backend.call(c.ReadHeaderArgs(partition=P0))).fields


async def test_a_request_of_no_function_is_a_bug(backend: ValkeyBackend) -> None:
    class Nothing(Outcome, tag="nothing"):
        pass

    class InventedArgs(Args[Nothing]):
        partition: PartitionKey

    with pytest.raises(EngineBug, match="InventedArgs"):
        await backend.call(InventedArgs(partition=P0))


async def test_a_malformed_call_is_a_bug_and_names_the_function(backend: ValkeyBackend) -> None:
    with pytest.raises(EngineBug, match="FFBUG ff_list_holds"):
        await backend.command("FCALL", "ff_list_holds", 1, f"ff:{P0}")


# ---- many --------------------------------------------------------------------------------------------


async def test_many_calls_are_answered_in_order_and_each_fails_on_its_own(backend: ValkeyBackend) -> None:
    good = [creation() for _ in range(20)]
    batch: list[Args[Any]] = []
    for args in good:
        batch += [
            args,
            c.ReadExecutionArgs(execution_id=args.execution_id),
            c.ReadExecutionArgs(execution_id=new_execution_id(2)),
        ]
    batch.insert(7, c.ListHoldsArgs(partition=PartitionKey("{fp:44}")))
    answers = await backend.call_all(batch)
    odd = answers.pop(7)
    assert isinstance(odd, InvalidArgument)
    for args, (made, read, missing) in zip(good, zip(*[iter(answers)] * 3, strict=True), strict=True):
        assert isinstance(made, c.Created) and made.execution_id == args.execution_id
        assert isinstance(read, c.StoredExecution) and read.execution_id == args.execution_id
        assert isinstance(missing, NotFound)
    assert await backend.call_all([]) == []


async def test_calls_of_one_turn_do_not_overtake_each_other(backend: ValkeyBackend) -> None:
    async def one(n: int) -> int:
        await backend.call(
            creation(priority=0, creator_identity=str(n), execution_id=f"{P0}:{n:08x}-0000-7000-8000-000000000000")
        )
        return n

    assert await asyncio.gather(*(one(n) for n in range(50))) == list(range(50))
    jobs = (await backend.call(claiming(limit=50))).jobs
    assert [int(job.execution_id[7:15], 16) for job in jobs] == list(range(50))


async def test_a_caller_that_gives_up_disturbs_nobody(backend: ValkeyBackend) -> None:
    given_up = asyncio.ensure_future(backend.call(creation()))
    await asyncio.sleep(0)
    given_up.cancel()
    answers = await backend.call_all([creation() for _ in range(5)])
    assert all(isinstance(answer, c.Created) for answer in answers)
    with pytest.raises(asyncio.CancelledError):
        await given_up


# ---- a store that changes under us -------------------------------------------------------------------


async def test_a_wiped_store_is_told_apart_from_an_empty_queue(backend: ValkeyBackend) -> None:
    await backend.command("FLUSHALL")
    with pytest.raises(NotInitialised, match="ff init"):
        await backend.call(claiming())


async def test_a_library_that_is_gone_is_loaded_again(backend: ValkeyBackend) -> None:
    """A server was replaced, or somebody flushed its functions: nothing ran, so repeating is right."""
    await backend.call(creation())
    await backend.command("FUNCTION", "FLUSH")
    answers = await backend.call_all([creation() for _ in range(10)])
    assert all(isinstance(answer, c.Created) for answer in answers)
    assert len((await backend.call(claiming(limit=20))).jobs) == 11


async def test_two_backends_of_one_store_see_the_same_work(backend: ValkeyBackend, open_backend: Opener) -> None:
    other = await open_backend()
    made = await backend.call(creation())
    (job,) = (await other.call(claiming())).jobs
    assert job.execution_id == made.execution_id
    assert other.config == backend.config


# ---- messages ----------------------------------------------------------------------------------------


async def test_messages_reach_every_subscriber_of_their_channel_until_it_closes(backend: ValkeyBackend) -> None:
    one, two = backend.worker_channel(P0, "w1"), backend.client_channel(P0, "c1")
    got: list[tuple[str, bytes]] = []
    more: list[bytes] = []
    subscription = await backend.subscribe([one, two], lambda channel, data: got.append((channel, data)))
    other = await backend.subscribe([one], lambda _, data: more.append(data))
    await backend.command("SPUBLISH", one, "a")
    await backend.command("SPUBLISH", two, "b")
    await until(lambda: len(got) == 2 and more == [b"a"], "both messages")
    assert got == [(one, b"a"), (two, b"b")]
    await subscription.close()
    await backend.command("SPUBLISH", one, "c")
    await until(lambda: more == [b"a", b"c"], "the message of the other subscriber")
    assert len(got) == 2
    await other.close()


async def test_a_notice_of_the_library_arrives_on_the_channel_python_names(backend: ValkeyBackend) -> None:
    made = await backend.call(creation())
    partition = partition_of(made.execution_id)
    got: list[bytes] = []
    subscription = await backend.subscribe([backend.client_channel(partition, "c1")], lambda _, data: got.append(data))
    await backend.call(c.AwaitArgs(partition=partition, client="c1", items=[c.ExecutionRef(made.execution_id)]))
    await backend.call(
        c.CancelExecutionArgs(execution_id=made.execution_id, reason="", source=c.CancelSource.FLOW_CASCADE)
    )
    await until(lambda: bool(got), "the notice")
    assert got[0].endswith(b" cancelled")
    await subscription.close()


# ---- threads -----------------------------------------------------------------------------------------


async def test_a_thread_calls_through_a_connection_of_its_own(backend: ValkeyBackend) -> None:
    await backend.call(creation())
    (job,) = (await backend.call(claiming())).jobs
    rows = [c.Renewal(job.execution_id, f"{job.lease_id} {job.lease_epoch} {job.attempt_id}")]
    calls = backend.blocking()
    renew = c.RenewManyArgs(partition=partition_of(job.execution_id), lease_ttl_ms=30_000, items=rows)
    answer = await asyncio.to_thread(calls.call, renew)
    assert [item.state for item in answer.items] == ["renewed"]
    with pytest.raises(NotFound):
        await asyncio.to_thread(calls.call, c.ReadExecutionArgs(execution_id=new_execution_id(2)))
    calls.close()
    with pytest.raises(EngineError):
        await asyncio.to_thread(calls.call, renew)


# ---- close -------------------------------------------------------------------------------------------


async def test_a_closed_backend_refuses_calls_and_closing_twice_is_harmless(open_backend: Opener) -> None:
    backend = await open_backend()
    await backend.call(creation())
    await backend.close()
    await backend.close()
    with pytest.raises(Unavailable) as refused:
        await backend.call(creation())
    assert refused.value.may_have_applied is False
