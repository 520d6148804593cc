"""`ff flow`: many jobs as one thing, looked at and steered from a shell; and what `ff job` says of a member."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

import ffsdk
from ffbackend_valkey.stores import connect
from ffcore.contracts.batch import ClaimBatchArgs
from ffcore.ids import ExecutionId, partition_of
from ffsdk.flow import Flow
from tests.cli.conftest import FF, work

app = ffsdk.App()
LISTED = ["flow_id", "name", "kind", "namespace", "state", "outcome", "nodes", "edges", "counts", "created_at",
          "ended_at"]  # fmt: skip
SHOWN = [*LISTED, "graph_revision", "resolving", "payload_bytes", "changed_at", "cancelled_at", "cancel_reason",
         "cancellation_policy", "tags"]  # fmt: skip
NODE = ["flow_id", "number", "execution_id", "label", "task", "lane", "state", "reason", "group", "upstreams"]
GROUP = ["policy", "k", "on_satisfied", "edges", "satisfied", "impossible", "state"]
COUNTS = [
    "ready",
    "delayed",
    "blocked",
    "active",
    "suspended",
    "completed",
    "failed",
    "cancelled",
    "expired",
    "skipped",
]
source = {"down": True}
"""What `pull` asks, for numbers below zero."""


@app.task(name="cli.pull", lane="night", retry=ffsdk.Retry(max_attempts=1))
async def pull(number: int) -> int:
    if number < 0 and source["down"]:
        raise ffsdk.Fatal("the source is down")
    return number


@app.task(name="cli.sum", lane="night")
async def add_up(numbers: list[int]) -> int:
    return sum(numbers)


@app.task(name="cli.tidy", lane="night")
async def tidy(_: int) -> str:
    return "tidy"


@app.task(name="cli.split", lane="night")
async def split(number: int, ctx: ffsdk.Context) -> int:
    jobs = [await ctx.spawn(pull, n) for n in range(number)]
    return sum([await job.result() for job in jobs])


def good(flow: Flow) -> None:
    flow.add(add_up, after=ffsdk.any_of([flow.add(pull, n, key=f"pull-{n}") for n in (1, 2)]), key="sum")


def bad(flow: Flow) -> None:
    one, two = flow.add(pull, -1, key="one"), flow.add(pull, 2, key="two")
    total = flow.add(add_up, after=[one, two], key="sum")
    flow.add(tidy, 0, after=total, on="always", key="tidy")


def submitted(url: str, made: Callable[[Flow], None], namespace: str = "default") -> tuple[str, dict[str, str]]:
    """A flow's id, and those of its jobs by key."""

    async def submit() -> tuple[str, dict[str, str]]:
        app.url, app.namespace = url, namespace
        try:
            async with app.client() as client:
                async with client.flow("nightly") as flow:
                    made(flow)
                return flow.id, {str(member.key): member.id async for member in flow.nodes()}
        finally:
            app.namespace = "default"

    return asyncio.run(submit())


def ran(url: str, made: Callable[[Flow], None]) -> tuple[str, dict[str, str]]:
    """The same, and each of its jobs has ended."""
    flow_id, jobs = submitted(url, made)
    work(url, *jobs.values(), app=app)
    return flow_id, jobs


# ---- looking ---------------------------------------------------------------------------------------------


def test_flows_are_listed_newest_first_by_state_and_namespace(ff: FF, store: str) -> None:
    first, _ = ran(store, good)
    second, _ = submitted(store, bad)
    other, _ = submitted(store, good, namespace="elsewhere")
    rows = ff("flow", "list", "--json").records
    mine = [row for row in rows if row["flow_id"] in (first, second, other)]
    assert [row["flow_id"] for row in mine] == [other, second, first]
    assert [list(row) for row in mine] == [LISTED] * 3
    assert list(mine[0]["counts"]) == COUNTS
    assert (mine[1]["state"], mine[1]["outcome"], mine[1]["nodes"], mine[1]["edges"]) == ("open", None, 4, 3)
    assert (mine[1]["counts"]["ready"], mine[1]["counts"]["blocked"]) == (2, 2)
    assert (mine[2]["state"], mine[2]["outcome"]) == ("completed", "completed")

    def found(*args: str) -> list[str]:
        return [row["flow_id"] for row in ff("flow", "list", "--json", *args).records]

    assert other in found("--namespace", "elsewhere") and second not in found("--namespace", "elsewhere")
    assert first in found("--state", "completed") and second not in found("--state", "completed")
    assert second in found("--state", "active") and first not in found("--state", "active")
    assert found("--limit", "1") == [other]


def test_a_listing_for_people_has_a_table(ff: FF, store: str) -> None:
    assert ff("flow", "list", "--namespace", "nobody-is-here").out == "No flows.\n"
    flow_id, _ = submitted(store, good)
    head, row = ff("flow", "list", "--limit", "1").out.splitlines()
    assert head.split() == ["id", "name", "state", "nodes", "members", "created"]
    assert row.split()[:6] == [flow_id, "nightly", "open", "3", "ready=2", "blocked=1"]


def test_a_flow_is_shown_with_how_it_stands(ff: FF, store: str) -> None:
    flow_id, _ = ran(store, bad)
    shown = ff("flow", "show", flow_id, "--json").record
    assert list(shown) == SHOWN
    assert (shown["state"], shown["outcome"], shown["kind"]) == ("failed", "failed", "nightly")
    assert {word: n for word, n in shown["counts"].items() if n} == {"completed": 2, "failed": 1, "skipped": 1}
    assert shown["ended_at"] >= shown["created_at"]
    people = ff("flow", "show", flow_id).out
    assert "completed=2 failed=1 skipped=1" in people and "cancel reason" not in people


def test_a_flow_that_is_not_there_is_not_found(ff: FF, store: str) -> None:
    flow_id, _ = submitted(store, good)
    nobody = flow_id[:-12] + "0" * 12
    for verb in ("show", "graph", "cancel", "replay"):
        ended = ff("flow", verb, nobody, "--json")
        assert ended.code == 3 and "flow_not_found" in ended.err, verb
        assert ff("flow", verb, "nightly").code == 2, verb


# ---- the graph -------------------------------------------------------------------------------------------


def test_a_graph_is_a_tree_for_people_and_a_line_a_node_for_programs(ff: FF, store: str) -> None:
    flow_id, jobs = ran(store, bad)
    assert ff("flow", "graph", flow_id).out.splitlines() == [
        "nightly (failed): 4 nodes, 3 edges",
        "1 failed one (cli.pull)",
        "v 3 skipped sum (cli.sum) [all of 2]",
        "v 4 completed tidy (cli.tidy) [always]",
        "2 completed two (cli.pull) -> 3",
    ]
    nodes = ff("flow", "graph", flow_id, "--json").records
    assert [list(node) for node in nodes] == [NODE] * 4
    assert [node["label"] for node in nodes] == ["one", "two", "sum", "tidy"]
    assert nodes[0]["group"] is None and list(nodes[2]["group"]) == GROUP
    assert (nodes[2]["group"]["policy"], nodes[2]["group"]["state"]) == ("all_of", "impossible")
    assert [edge["execution_id"] for edge in nodes[2]["upstreams"]] == [jobs["one"], jobs["two"]]
    assert nodes[3]["upstreams"] == [{"execution_id": jobs["sum"], "kind": "always", "state": "satisfied"}]


def test_a_graph_says_how_many_of_a_group_suffice_and_what_is_left_out(ff: FF, store: str) -> None:
    flow_id, _ = submitted(store, good)
    assert ff("flow", "graph", flow_id).out.splitlines()[1:] == [
        "1 waiting pull-1 (cli.pull)",
        "v 3 waiting_children sum (cli.sum) [any of 2]",
        "2 waiting pull-2 (cli.pull) -> 3",
    ]
    assert ff("flow", "graph", flow_id, "--limit", "1").out.splitlines()[1:] == [
        "1 waiting pull-1 (cli.pull)", "... 2 more not shown: raise --limit",
    ]  # fmt: skip
    [last] = [node for node in ff("flow", "graph", flow_id, "--json").records if node["group"]]
    assert (last["group"]["policy"], last["group"]["k"], last["group"]["on_satisfied"]) == (
        "any_of", 1, "cancel_remaining",
    )  # fmt: skip


def test_a_graph_for_graphviz_is_a_digraph(ff: FF, store: str) -> None:
    flow_id, _ = ran(store, bad)
    told = ff("flow", "graph", flow_id, "--dot").out.splitlines()
    assert (told[0], told[-1]) == ("digraph flow {", "}")
    assert [line for line in told if "->" in line] == [
        '  n1 -> n3 [color="#bdbdbd"];', "  n2 -> n3;", '  n3 -> n4 [style=dashed, label="always"];',
    ]  # fmt: skip
    assert ff("flow", "graph", flow_id, "--dot", "--json").code == 2


# ---- changing its course ---------------------------------------------------------------------------------


def test_a_cancel_asks_with_a_count_and_can_be_looked_at_first(ff: FF, store: str) -> None:
    flow_id, jobs = submitted(store, bad)
    preview = ff("flow", "cancel", flow_id, "--dry-run", "--json").record
    assert list(preview) == ["flow_id", "dry_run", "policy", "members", "counts"]
    assert (preview["members"], preview["counts"]["blocked"]) == (4, 2)
    assert ff("flow", "cancel", flow_id, "--dry-run").out == "Would cancel 4 jobs: ready=2 blocked=2\n"
    assert ff("flow", "cancel", flow_id, "--json").code == 2, "nobody can be asked"
    assert ff("flow", "cancel", flow_id, given="no\n").code == 1
    assert ff("flow", "show", flow_id, "--json").record["state"] == "open"
    done = ff("flow", "cancel", flow_id, "--reason", "a mistake", "--wait", "10", given="y\n")
    assert done.code == 0 and done.out == f"{flow_id} is cancelled.\n"
    shown = ff("flow", "show", flow_id, "--json").record
    assert (shown["state"], shown["cancel_reason"], shown["cancellation_policy"]) == (
        "cancelled", "a mistake", "cancel_all",
    )  # fmt: skip
    assert shown["counts"]["cancelled"] == 4
    assert ff("job", "show", jobs["sum"], "--json").record["state"] == "cancelled"
    again = ff("flow", "cancel", flow_id, "--yes", "--json").record
    assert list(again) == ["flow_id", "dry_run", "answer", "policy", "members", "not_ended"]
    assert (again["answer"], again["policy"]) == ("cancelled", "cancel_all")


def test_members_that_have_not_ended_in_time_are_named(ff: FF, store: str) -> None:
    """A worker has one of them, and does not hear of it."""
    flow_id, _ = submitted(store, bad)

    async def claim() -> ExecutionId:
        backend = await connect(store)
        claimed = await backend.call(ClaimBatchArgs(
            partitions=[partition_of(flow_id)], lanes=["night"], limit=1, capability_sets=[], worker_id="w",
            worker_instance_id="w", lease_ttl_ms=30_000, claim_id="w.s1.1",
        ))  # fmt: skip
        await backend.close()
        return claimed.jobs[0].execution_id

    mine = asyncio.run(claim())
    late = ff("flow", "cancel", flow_id, "--wait", "0.05", "--yes", "--json")
    assert (late.code, late.record["answer"], late.record["not_ended"]) == (4, "partly", [mine])
    assert (
        f"1 of its jobs have not ended yet, such as {mine}."
        in ff("flow", "cancel", flow_id, "--wait", "0.05", "--yes").out
    )
    scheduled = ff("flow", "cancel", flow_id, "--yes", "--json").record
    assert (scheduled["answer"], scheduled["members"], scheduled["not_ended"]) == ("scheduled", 4, [])


def test_a_flow_that_has_ended_is_not_cancelled(ff: FF, store: str) -> None:
    flow_id, _ = ran(store, good)
    refused = ff("flow", "cancel", flow_id, "--yes", "--json")
    assert refused.code == 1 and "flow_already_terminal" in refused.err


def test_a_replay_runs_what_failed_and_what_was_skipped_for_it(
    ff: FF, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    flow_id, jobs = ran(store, bad)
    monkeypatch.setitem(source, "down", False)
    again = ff("flow", "replay", flow_id, "--json").record
    assert again == {"flow_id": flow_id, "replayed": [jobs["one"]], "refused": {}}
    work(store, jobs["one"], jobs["sum"], app=app)
    assert ff("job", "result", jobs["sum"], "--json").record["result"] == 1
    assert ff("flow", "show", flow_id, "--json").record["state"] == "completed"
    assert ff("flow", "replay", flow_id).out == f"0 jobs of {flow_id} wait to run again.\n"


# ---- a member --------------------------------------------------------------------------------------------


def test_a_job_says_which_flow_it_belongs_to_and_what_it_waits_for(ff: FF, store: str) -> None:
    flow_id, jobs = submitted(store, bad)
    shown = ff("job", "show", jobs["sum"], "--json").record
    assert (shown["flow_id"], shown["flow_number"], shown["blocking_reason"]) == (flow_id, 3, "waiting_for_children")
    assert shown["upstreams"] == [
        {"execution_id": jobs[key], "label": key, "task": "cli.pull", "kind": "success_only", "state": "ready"}
        for key in ("one", "two")
    ]
    people = ff("job", "show", jobs["sum"]).out
    assert flow_id in people and jobs["two"] in people
    [why] = [row for row in ff("job", "explain", jobs["sum"], "--json").records
             if row["code"] == "waiting_for_children"]  # fmt: skip
    assert why["detail"] == "one (ready), two (ready)"
    assert ff("job", "show", jobs["one"], "--json").record["upstreams"] == []


def test_a_job_outside_of_flows_says_so(ff: FF, lane: str) -> None:
    execution_id = ff("submit", "t", "--lane", lane).out.strip()
    shown = ff("job", "show", execution_id, "--json").record
    assert (shown["flow_id"], shown["flow_number"], shown["upstreams"]) == (None, None, [])


def test_what_a_handler_has_spawned_stands_under_it(ff: FF, store: str) -> None:
    execution_id = ff("submit", "cli.split", "2", "--lane", "night").out.strip()
    work(store, execution_id, app=app)
    flow_id = ff("job", "show", execution_id, "--json").record["flow_id"]
    _, parent, *children = ff("flow", "graph", flow_id).out.splitlines()
    assert parent == f"1 completed {execution_id} (cli.split)"
    assert [line.rpartition(" ")[2] for line in children] == ["[spawned]"] * 2
    assert [line[:14] for line in children] == ["|- 2 completed", "`- 3 completed"]
