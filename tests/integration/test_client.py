"""The client against a real server: what it sends, what it survives, what it refuses."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

import ffsdk as ff
from ffbackend_valkey.multiplexer import Multiplexer
from ffbackend_valkey.stores import connect
from ffbackend_valkey.url import parse_url
from ffcore import limits
from ffcore.args import Args
from ffcore.backend import Backend, StoreConfig, Subscription
from ffcore.contracts.batch import CreateManyArgs
from ffcore.errors import Unavailable
from ffsdk.pace import VirtualPace
from ffsdk.waiters import Waiters
from tests.integration.proxy import own_server, until

logging.getLogger("flowfabric.store").setLevel(logging.ERROR)  # a test server keeps nothing, and says so


@pytest.fixture(scope="module")
def server_url() -> Iterator[str]:
    with own_server() as server:
        yield f"valkey://127.0.0.1:{server.port}"


@pytest.fixture
async def url(server_url: str) -> str:
    """An initialised store with nothing in it."""
    direct = await Multiplexer.open(parse_url(server_url))
    await direct.call("FLUSHALL")
    await direct.close()
    await (await connect(server_url, init=StoreConfig(fp=4))).close()
    return server_url


@pytest.fixture
async def app(url: str) -> ff.App:
    app = ff.App(url)

    @app.task
    async def double(n: int) -> int:
        return 2 * n

    @app.task(retry=ff.Retry(max_attempts=1))
    async def fail(n: int) -> int:
        raise ValueError(f"no {n}")

    return app


@pytest.fixture
async def client(app: ff.App) -> AsyncIterator[ff.Client]:
    async with app.client() as client:
        yield client


@pytest.fixture
async def working(app: ff.App) -> AsyncIterator[None]:
    """A worker beside the test."""
    worker = app.worker(concurrency=100)
    task = asyncio.create_task(worker.run())
    await worker.started.wait()
    yield
    await worker.stop()
    await task


class Counting:
    """A backend that counts calls by type and may be told to stay silent."""

    def __init__(self, backend: Backend) -> None:
        self.backend, self.calls = backend, Counter[str]()
        self.deaf = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backend, name)

    async def call(self, args: Args[Any]) -> Any:
        self.calls[type(args).__name__] += 1
        return await self.backend.call(args)

    async def subscribe(
        self,
        channels: Sequence[str],
        on_message: Callable[[str, bytes], None],
        on_gap: Callable[[], None] | None = None,
    ) -> Subscription:
        self.calls["subscribe"] += 1
        return await self.backend.subscribe(channels, lambda c, d: None if self.deaf else on_message(c, d), on_gap)


# ---- submitting


async def test_a_job_submitted_by_one_client_is_seen_by_another(app: ff.App, client: ff.Client, working: None) -> None:
    job = await client.submit("double", 4, tags={"shop.tenant": "t1"})
    async with ff.connect(app.url) as other:
        assert await other.job(job.id).result(timeout=10) == 8
        assert (await other.job(job.id).status()).tags == {"shop.tenant": "t1"}


async def test_concurrent_submits_with_one_key_make_one_job(client: ff.Client) -> None:
    """Whoever retries after a timeout runs into his own first try."""
    jobs = await asyncio.gather(*(client.submit("double", 4, key="k") for _ in range(20)))
    assert len({job.id for job in jobs}) == 1 and [job.created for job in jobs].count(True) == 1


async def test_keys_belong_to_a_namespace(app: ff.App, client: ff.Client) -> None:
    async with ff.connect(app.url, namespace="other") as other:
        mine, theirs = (
            await client.submit("double", 4, key="k"),
            await other.submit("double", 5, key="k", lane="default"),
        )
        assert mine != theirs
        assert [job async for job in other.jobs()] == [theirs]


async def test_a_thousand_jobs_take_few_calls_and_keep_their_order(client: ff.Client) -> None:
    counting = Counting(client.backend)
    client._submitter._backend = counting  # type: ignore[union-attr, assignment]
    jobs = await client.submit_many("double", range(1_000), keys=[f"k{n}" for n in range(1_000)])
    # Full calls, and one that is not for each partition.
    assert counting.calls["CreateManyArgs"] <= 1_000 // limits.BULK_N + len(client.backend.config.keys())
    again = await client.submit_many("double", range(1_000), keys=[f"k{n}" for n in range(1_000)])
    assert jobs == again and not any(job.created for job in again)


async def test_a_batch_stays_within_the_bytes_of_a_call(client: ff.Client) -> None:
    counting = Counting(client.backend)
    client._submitter._backend = counting  # type: ignore[union-attr, assignment]
    await client.submit_many("large", ["x" * 400_000] * 12, lane="large")
    assert counting.calls["CreateManyArgs"] >= 6
    assert (await client.lane("large").stats()).depth["waiting"] == 12


async def test_what_was_not_accepted_is_listed_item_by_item(client: ff.Client) -> None:
    await client.submit("double", 1, key="taken")
    with pytest.raises(ff.SubmitErrors) as some:
        await client.submit_many("double", [7, 8, 9], keys=["a", "taken", "c"])
    [refused] = some.value.exceptions
    assert refused.index == 1 and refused.code == "idempotency_conflict"
    assert isinstance(refused.__cause__, ff.IdempotencyConflict)
    assert [job is not None for job in some.value.jobs] == [True, False, True]
    handled = []
    try:
        raise some.value
    except* ff.NotAccepted as group:
        handled += group.exceptions
    assert [error.index for error in handled] == [1]


async def test_a_store_that_goes_away_says_of_each_item_what_may_have_happened(client: ff.Client) -> None:
    class Gone(Counting):
        async def call(self, args: Args[Any]) -> Any:
            if isinstance(args, CreateManyArgs) and args.partition == "{fp:0}":
                raise Unavailable("cut", may_have_applied=True)
            return await super().call(args)

    client._submitter._backend = Gone(client.backend)  # type: ignore[union-attr, assignment]
    with pytest.raises(ff.SubmitErrors) as some:
        await client.submit_many("double", range(100))
    lost = {error.index for error in some.value.exceptions}
    assert lost == {n for n, job in enumerate(some.value.jobs) if job is None} and 0 < len(lost) < 100
    assert all(error.may_have_applied for error in some.value.exceptions)


async def test_priorities_decide_who_is_first(app: ff.App, client: ff.Client) -> None:
    for key, priority in (("a", -5), ("b", 90), ("c", 0)):
        await client.submit("double", 1, lane="one", priority=priority, tags={"t.key": key})
    listed = {job.info.priority async for job in client.jobs(lane="one") if job.info is not None}
    assert listed == {-5, 90, 0}


async def test_an_unknown_task_needs_a_lane(app: ff.App, client: ff.Client) -> None:
    async with ff.connect(app.url) as stranger:
        with pytest.raises(ff.InvalidArgument) as refused:
            await stranger.submit("nobody_has_this", 1)
        assert refused.value.code == "unknown_task"
        assert (await (await stranger.submit("nobody_has_this", 1, lane="x")).status()).lane == "x"


async def test_a_published_task_brings_its_lane_policy_and_requirements(app: ff.App, url: str) -> None:
    @app.task(lane="heavy", priority=7, requires={"gpu"}, timeout=5, fairness="payload.tenant")
    async def train(what: dict[str, str]) -> None: ...

    worker = app.worker(lanes=["default"])
    running = asyncio.create_task(worker.run())
    await worker.started.wait()
    async with ff.connect(url) as stranger:
        job = await stranger.submit("train", {"tenant": "t1"})
        status = await job.status()
        assert (status.lane, status.priority) == ("heavy", 7)
        [lacking] = (await job.explain()).reasons
        assert lacking.code == "no_worker", "the only worker serves another lane"
    await worker.stop()
    await running


BAD: list[dict[str, Any]] = [
    {"key": ""}, {"key": "x" * 600}, {"delay": -1}, {"at": datetime(2030, 1, 1)},
    {"delay": 1, "at": datetime(2030, 1, 1, tzinfo=UTC)},
    {"priority": 101}, {"lane": "two words"}, {"lane": "{x}"}, {"deadline": 0}, {"tags": {"tenant": "t"}},
    {"tags": {"shop.tenant": "x" * 300}}, {"tags": {"shop.tenant": 5}}, {"requires": "gpu"},
    {"budget": "two words"}, {"quota": 7}, {"quota": ["q", "q"]},
    {"unique": "u"}, {"durability": "maybe"}, {"nonsense": 1},
]  # fmt: skip


@pytest.mark.parametrize("options", BAD, ids=lambda options: ",".join(f"{k}" for k in options))
async def test_bad_options_are_refused_before_anything_is_sent(client: ff.Client, options: dict[str, Any]) -> None:
    counting = Counting(client.backend)
    client._submitter._backend = counting  # type: ignore[union-attr, assignment]
    with pytest.raises(ff.InvalidArgument):
        await client.submit("double", 4, **options)
    assert not counting.calls


async def test_one_bad_payload_of_many_stops_all_of_them(client: ff.Client) -> None:
    with pytest.raises(ff.InvalidArgument, match="item 2"):
        await client.submit_many("double", [1, 2, "three"])
    assert [job async for job in client.jobs()] == []


async def test_fsync_is_refused_by_a_store_that_does_not_do_it(app: ff.App, client: ff.Client) -> None:
    with pytest.raises(ff.Incompatible, match="appendfsync always"):
        await client.submit("double", 4, durability="fsync")
    with pytest.raises(ff.Incompatible, match="appendfsync always"):
        await ff.connect(app.url, durability="fsync")


async def test_a_store_without_a_replica_does_not_promise_one(app: ff.App, client: ff.Client) -> None:
    with pytest.raises(ff.Incompatible, match="needs a replica"):
        await client.submit("double", 4, durability="replicated")
    with pytest.raises(ff.Incompatible, match="needs a replica"):
        await ff.connect(app.url, durability="replicated")


# ---- waiting


async def test_a_thousand_waiters_cost_a_handful_of_calls(client: ff.Client) -> None:
    """One registration, one notice and one read carry many ids."""
    jobs = await client.submit_many("double", range(1_000))
    counting = Counting(client.backend)
    waiters = Waiters(counting, "crowd", VirtualPace())  # type: ignore[arg-type]  # it is one, as far as waiting goes
    waits = [asyncio.create_task(waiters.wait(job.id)) for job in jobs for _ in range(2)]
    await until(lambda: counting.calls["AwaitArgs"] >= 8, "registrations")
    bulk = await client.cancel_many(lane="default")
    assert bulk.done == 1_000
    ends = await asyncio.gather(*waits)
    assert {end.state for end in ends} == {"cancelled"}
    assert counting.calls["subscribe"] == 4
    assert counting.calls["AwaitArgs"] <= 8, "200 ids each, two per partition at most"
    assert counting.calls["ReadOutcomesArgs"] <= 60, "cancels come one by one, so notices come in small groups"
    await waiters.close()


async def test_a_lost_notice_costs_a_moment_and_nothing_else(client: ff.Client) -> None:
    """Messages are hints. The fallback asks for everything that is awaited, in one call per partition."""
    job = await client.submit("double", 4)
    counting = Counting(client.backend)
    counting.deaf = True
    pace = VirtualPace()
    waiters = Waiters(counting, "deaf", pace)  # type: ignore[arg-type]
    waiting = asyncio.create_task(waiters.wait(job.id))
    await until(lambda: counting.calls["AwaitArgs"] == 1, "the registration")
    await job.cancel("quietly")
    assert not waiting.done()
    for _ in range(100):
        pace.nudge()
        await asyncio.sleep(0.001)
        if waiting.done():
            break
    assert (await waiting).reason == "quietly"
    await waiters.close()


async def test_a_job_that_has_ended_is_answered_at_once(client: ff.Client) -> None:
    job = await client.submit("double", 4)
    await job.cancel("before anyone waited")
    assert await job.outcome(timeout=10) == ff.Cancelled(reason="before anyone waited")


async def test_one_waiter_that_gives_up_disturbs_no_other(client: ff.Client) -> None:
    job = await client.submit("double", 4)
    patient = asyncio.create_task(job.outcome())
    with pytest.raises(TimeoutError):
        await job.outcome(timeout=0.01)
    await job.cancel()
    assert await patient == ff.Cancelled()


async def test_a_job_that_does_not_exist_is_not_waited_for(client: ff.Client) -> None:
    with pytest.raises(ff.NotFound):
        await client.job("{fp:1}:01a1fde2-9924-7d8f-8927-3ae4b401c73e").outcome()
    for nonsense in ("", "81", "{fp:9}:01a1fde2-9924-7d8f-8927-3ae4b401c73e", "{fp:1}:x"):
        with pytest.raises(ff.InvalidArgument):
            client.job(nonsense)


async def test_closing_the_client_ends_its_waits(app: ff.App) -> None:
    client = await app.client()
    job = await client.submit("double", 4)
    waiting = asyncio.create_task(job.outcome())
    counted = client.waiters
    await until(lambda: job.id in counted._awaited, "the wait")
    await client.close()
    with pytest.raises(ff.Unavailable):
        await waiting
    with pytest.raises(ff.Unavailable, match="not open"):
        await client.submit("double", 4)
    await client.close()


async def test_a_result_of_the_wrong_type_is_refused_and_not_passed_on(
    app: ff.App, client: ff.Client, working: None
) -> None:
    other = ff.App(app.url)

    @other.task
    async def double(n: int) -> list[str]: ...

    job = await client.submit("double", 4)
    with pytest.raises(ff.InvalidArgument, match="does not fit"):
        await client.job(job.id, double).result(timeout=10)


async def test_a_failure_carries_its_category_attempts_and_traceback(client: ff.Client, working: None) -> None:
    job = await client.submit("fail", 7)
    with pytest.raises(ff.JobFailed) as failed:
        await job.result(timeout=10)
    assert (failed.value.category, failed.value.attempts) == ("error", 1)
    assert "no 7" in failed.value.reason and "ValueError" in failed.value.traceback


# ---- listing, bulk, lanes, holds


async def test_a_listing_walks_all_partitions_and_pages(client: ff.Client) -> None:
    jobs = await client.submit_many("double", range(950))
    listed = [job async for job in client.jobs(state="waiting")]
    assert len(listed) == 950 and set(listed) == set(jobs)
    info = listed[0].info
    assert info is not None and (info.task, info.state, info.lane) == ("double", "waiting", "default")


async def test_states_are_the_public_words(client: ff.Client) -> None:
    with pytest.raises(ff.InvalidArgument, match="use one of"):
        [job async for job in client.jobs(state="ready")]
    waiting, delayed = await client.submit("double", 1), await client.submit("double", 2, delay=60)
    assert {job async for job in client.jobs(state=["waiting", "delayed"])} == {waiting, delayed}
    assert [job async for job in client.jobs(state="resumable")] == []


async def test_a_replay_of_what_has_not_ended_is_refused(client: ff.Client) -> None:
    job = await client.submit("double", 1)
    with pytest.raises(ff.WrongState):
        await job.replay()
    with pytest.raises(ff.InvalidArgument, match="only ended"):
        await client.replay_many(state="waiting")


async def test_a_purge_takes_any_number_in_bounded_calls(client: ff.Client) -> None:
    await client.submit_many("double", range(900))
    await client.cancel_many(lane="default")
    assert (await client.purge_many(state="cancelled", older_than=3_600)).count == 0
    gone = await client.purge_many(state="cancelled")
    assert gone.done == 900 and len(gone.ids) == 900
    assert [job async for job in client.jobs()] == []


async def test_stats_sum_over_the_partitions(client: ff.Client) -> None:
    await client.submit_many("double", range(40))
    await client.submit("double", 1, delay=60)
    stats = await client.lane("default").stats()
    assert stats.state == "active" and (stats.depth["waiting"], stats.depth["delayed"]) == (40, 1)
    assert stats.oldest_age >= 0 and stats.rate_in > 0 and stats.rate_out == 0 and not stats.not_reached
    with pytest.raises(ff.NotFound):
        await client.lane("never").stats()


async def test_a_change_that_misses_a_partition_says_which(client: ff.Client) -> None:
    """The rest is done: calling again finishes it."""

    class Cut(Counting):
        async def call_all(self, batch: Sequence[Args[Any]]) -> list[Any]:
            answers = await self.backend.call_all(batch)
            answers[2] = Unavailable("the line is cut")
            return answers

    whole = client._backend
    client._backend = Cut(client.backend)  # type: ignore[assignment]
    lane = client.lane("default")
    fan_out = await lane.pause()
    assert (await lane.settings()).behind == ["{fp:2}"]
    assert list(fan_out.not_reached) == ["{fp:2}"] and not fan_out.complete and len(fan_out.reached) == 3
    client._backend = whole
    assert (await client.lane("default").pause()).complete


async def test_holds_take_a_task_or_a_tag(client: ff.Client) -> None:
    assert (await client.hold(tag=("shop.tenant", "t1"), reason="unpaid")).complete
    assert (await client.release(tag=("shop.tenant", "t1"))).complete
    for bad in ({}, {"task": "a", "tag": ("shop.tenant", "t1")}, {"task": "two words"}, {"tag": "shop.tenant=t1"}):
        with pytest.raises(ff.InvalidArgument):
            await client.hold(**bad)


async def test_the_status_of_a_held_job_names_what_holds_it(client: ff.Client, working: None) -> None:
    await client.hold(tag=("shop.tenant", "t1"), reason="unpaid")
    job = await client.submit("double", 1, tags={"shop.tenant": "t1"})
    while (status := await job.status()).blocking_reason != "paused_by_operator":
        await asyncio.sleep(0.01)
    assert status.blocking_detail == "held by tag:shop.tenant=t1: unpaid"
    await client.release(tag=("shop.tenant", "t1"))
    assert await job.result(timeout=10) == 2


async def test_a_status_counts_in_the_time_of_the_store(client: ff.Client) -> None:
    before = datetime.now(UTC) - timedelta(seconds=5)
    status = await (await client.submit("double", 4)).status()
    assert status.created_at is not None and before < status.created_at < before + timedelta(seconds=60)
    assert status.started_at is status.completed_at is None
