"""What `ff job` shows of a job's children, and of a job that belongs to a flow."""

from __future__ import annotations

import pytest

import ffsdk
from ffcore import flows
from ffcore.ids import ExecutionId
from tests.cli.conftest import FF, work
from tests.cli.test_job import submit

app = ffsdk.App()


@app.task(name="cli.leaf", lane="family")
async def leaf(number: int) -> int:
    return number * 2


@app.task(name="cli.parent", lane="family")
async def parent(number: int, ctx: ffsdk.Context) -> int:
    child = await ctx.spawn(leaf, number, key="only")
    return 1 + await child.result()


@pytest.fixture
def family(ff: FF, store: str) -> tuple[str, str]:
    """A parent that has ended, and its child."""
    submitted = submit(ff, "cli.parent", "20", "--lane", "family")
    work(store, submitted, app=app)
    return submitted, flows.member_id(flows.implicit_flow(ExecutionId(submitted)), "only")


def test_the_children_of_a_job_are_steps_with_their_ids(ff: FF, family: tuple[str, str]) -> None:
    parent, child = family
    assert ff("job", "result", parent).out == "41\n"
    [spawned] = ff("job", "show", parent, "--json").record["steps"]
    assert (spawned["kind"], spawned["name"], spawned["child"]) == ("spawn", "cli.leaf", child)
    assert spawned["recovery"] == "resume_from_evidence_boundary"
    [exported] = ff("job", "export", parent, "--json").record["steps"]
    assert (exported["child"], exported["value"]) == (child, None)


def test_the_history_of_a_member_tells_why_it_ended_and_no_more(ff: FF, family: tuple[str, str]) -> None:
    for execution_id in family:
        last = ff("job", "history", execution_id, "--json").records[-1]
        assert (last["to"], last["reason"]) == ("completed", None)
