"""What jobs of a flow get from those before them: along edges, through joins, on both kinds of store."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import ffsdk as ff
from ffcore.contracts.dependency import EdgeQuorum
from tests.integration.flow_run import ONCE, STORES, Page, Run

process_app = ff.App()


@pytest.fixture(params=STORES)
def run(request: pytest.FixtureRequest) -> Run:
    return Run.of(request)


@process_app.task(isolation="process")
def sizes(pages: list[Page]) -> int:
    return sum(page.size for page in pages)


@process_app.task
async def page_of(url: str) -> Page:
    return Page(url, len(url))


# ---- data along edges ------------------------------------------------------------------------------------


async def test_results_arrive_as_payloads_in_order_and_typed(run: Run) -> None:
    @run.task
    async def fetch(url: str) -> Page:
        return Page(url, len(url))

    @run.task
    async def total(pages: list[Page], ctx: ff.Context) -> dict[str, int]:
        return {page.url: page.size for page in pages}

    @run.task
    async def publish(sizes: dict[str, int]) -> str:
        return ",".join(sizes)

    async with run.engine() as eng:
        async with eng.client.flow("map-reduce") as flow:
            pages = [flow.add(fetch, url, key=url) for url in ("ccc", "a", "bb")]
            sums = flow.add(total, after=pages)
            last = flow.add(publish, after=sums)
        assert await last.result(10) == "ccc,a,bb"
        assert await pages[0].result() == Page("ccc", 3)
        outcome = await flow.outcome(10)
        assert (outcome.state, outcome.counts["completed"]) == ("completed", 5)
        found = await flow.job("bb", fetch).result()
        assert found.size == 2


async def test_upstreams_can_be_asked_for_with_how_they_ended(run: Run) -> None:
    @run.task
    async def good(_: int) -> dict[str, int]:
        return {"n": 1}

    @run.task(retry=ONCE)
    async def bad() -> None:
        raise ff.Fatal("broken")

    @run.task
    async def report(given: list[Any], ctx: ff.Context) -> list[Any]:
        found = await ctx.upstreams()
        assert [one.value for one in found] == given
        return [[one.task, one.key, one.state.value, one.value] for one in found]

    @run.task
    def threaded(_: Any, ctx: ff.Context) -> int:
        return len(ctx.sync.upstreams())

    @run.task
    async def outside(_: None, ctx: ff.Context) -> int:
        return len(await ctx.upstreams())

    async with run.engine() as eng:
        async with eng.client.flow("upstreams") as flow:
            before = [flow.add(good, 1, key="g"), flow.add(bad)]
            told = flow.add(report, after=before, on="always")
            counted = flow.add(threaded, "own payload", after=before, on="always")
        assert await told.result(10) == [["good", "g", "completed", {"n": 1}], ["bad", None, "failed", None]]
        assert await counted.result(10) == 2
        assert await (await eng.client.submit(outside)).result(10) == 0


async def test_an_upstream_that_did_not_complete_leaves_its_place_empty(run: Run) -> None:
    @run.task(retry=ONCE)
    async def load(n: int) -> int:
        if n == 2:
            raise ff.Fatal("no")
        return n

    @run.task
    async def clean(found: list[int | None]) -> list[int | None]:
        return found

    @run.task
    async def alarm(found: int | None) -> str:
        return f"alarm {found}"

    async with run.engine() as eng:
        async with eng.client.flow("cleanup") as flow:
            loads = [flow.add(load, n) for n in (1, 2, 3)]
            cleaned = flow.add(clean, after=loads, on="always")
            alarmed = flow.add(alarm, after=loads[1], on="failure")
            quiet = flow.add(alarm, after=loads[0], on="failure")
        assert await cleaned.result(10) == [1, None, 3]
        assert await alarmed.result(10) == "alarm None"
        with pytest.raises(ff.JobSkipped):
            await quiet.result(10)
        outcome = await flow.outcome(10)
        assert outcome.state == "completed", "the failure was provided for"
        assert outcome.counts == {"completed": 4, "failed": 1, "cancelled": 0, "expired": 0, "skipped": 1}


async def test_more_inputs_than_a_claim_carries(run: Run) -> None:
    """By number and by size; in order, and beside jobs without any."""

    @run.task
    async def blob(n: int) -> str:
        return f"{n}:" + "x" * 3_000

    @run.task
    async def numbers(found: list[str]) -> list[int]:
        return [int(one.split(":")[0]) for one in found]

    async with run.engine() as eng:
        async with eng.client.flow("wide") as flow:
            many = [flow.add(blob, n) for n in range(230)]
            joined = flow.add(numbers, after=many)
            few = flow.add(numbers, after=many[:3])
        assert await few.result(20) == [0, 1, 2]
        assert await joined.result(20) == list(range(230))


async def test_what_does_not_fit_the_annotation_fails_at_once(run: Run) -> None:
    tried = 0

    @run.task
    async def word() -> str:
        return "word"

    @run.task
    async def number(n: int) -> int:
        nonlocal tried
        tried += 1
        return n

    async with run.engine() as eng:
        async with eng.client.flow("unfit") as flow:
            last = flow.add(number, after=flow.add(word))
        with pytest.raises(ff.JobFailed) as failed:
            await last.result(10)
        assert (failed.value.category, failed.value.attempts, tried) == ("invalid_payload", 1, 0)
        assert (await flow.outcome(10)).state == "failed"


async def test_a_handler_in_a_child_process_gets_its_inputs(run: Run) -> None:
    run.app = process_app
    process_app.namespace = run.lane
    async with run.engine() as eng:
        async with eng.client.flow("process") as flow:
            total = flow.add(sizes, after=[flow.add(page_of, url) for url in ("a", "bb")])
        assert await total.result(30) == 3


async def test_a_run_that_begins_again_has_the_payload_it_was_given(run: Run) -> None:
    @run.task
    async def start() -> int:
        return 3

    @run.task
    async def down(n: int) -> str:
        if n:
            raise ff.ContinueAs(n - 1)
        return "landed"

    async with run.engine() as eng:
        async with eng.client.flow("countdown") as flow:
            last = flow.add(down, after=flow.add(start))
        assert await last.result(10) == "landed"


async def test_a_list_of_one_fits_a_handler_that_takes_a_list(run: Run) -> None:
    """Lists of nodes are made by loops, which may go round once."""

    @run.task
    async def fetch(url: str) -> Page:
        return Page(url, 1)

    @run.task
    async def total(pages: list[Page]) -> int:
        return len(pages)

    @run.task
    async def first(page: Page) -> str:
        return page.url

    async with run.engine() as eng:
        async with eng.client.flow("one") as flow:
            pages = [flow.add(fetch, url) for url in ["only"]]
            summed, chosen = flow.add(total, after=pages), flow.add(first, after=ff.any_of(pages))
        assert (await summed.result(10), await chosen.result(10)) == (1, "only")


# ---- joins -----------------------------------------------------------------------------------------------


async def test_the_first_of_several_wins_and_the_others_are_cancelled(run: Run) -> None:
    stopped: list[str] = []

    @run.task
    async def ask(name: str) -> str:
        try:
            await asyncio.sleep(0 if name == "fast" else 3_600)
        except asyncio.CancelledError:
            stopped.append(name)
            raise
        return name

    @run.task
    async def use(answer: str) -> str:
        return f"used {answer}"

    @run.task
    async def listed(answers: list[str]) -> list[str]:
        return answers

    async with run.engine() as eng:
        async with eng.client.flow("race") as flow:
            providers = [flow.add(ask, name) for name in ("slow", "fast", "slower")]
            used = flow.add(use, after=ff.any_of(providers))
            also = flow.add(listed, after=ff.any_of(providers, on_satisfied="cancel_remaining"))
        assert await used.result(10) == "used fast"
        assert await also.result(10) == ["fast"]
        outcome = await flow.outcome(30)
        assert (outcome.state, outcome.counts["completed"], outcome.counts["cancelled"]) == ("completed", 3, 2)
        assert sorted(stopped) == ["slow", "slower"]
        with pytest.raises(ff.JobCancelled):
            await providers[0].result()


async def test_a_quorum_gets_the_results_that_made_it_true(run: Run) -> None:
    @run.task(retry=ONCE)
    async def vote(n: int) -> int:
        if n == 1:
            raise ff.Fatal("abstains")
        return n

    @run.task
    async def count(votes: list[int]) -> list[int]:
        return votes

    async with run.engine() as eng:
        async with eng.client.flow("committee") as flow:
            votes = [flow.add(vote, n) for n in range(4)]
            counted = flow.add(count, after=ff.quorum(3, votes, on_satisfied="let_run"))
            never = flow.add(count, after=ff.quorum(4, votes, on_satisfied="let_run"))
        assert await counted.result(10) == [0, 2, 3]
        with pytest.raises(ff.JobSkipped):
            await never.result(10)
        outcome = await flow.outcome(10)
        assert outcome.state == "failed", "one quorum could not be had because one failed"
        groups = {group.downstream_execution_id: group for group in (await flow.describe()).edge_groups}
        group = groups[never.id]
        assert isinstance(group.policy, EdgeQuorum) and group.policy.k == 4
        assert (group.group_state, group.failed_count, group.total_deps) == ("impossible", 1, 4)
