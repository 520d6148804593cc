"""Edges made one by one: a flow that grows, the calls that stage, apply and resolve an edge."""

from __future__ import annotations

from typing import Any

import ffcore.contracts as c
from tests.lua.engine import Engine
from tests.lua.graphs import info


async def grown(engine: Engine, n: int, **options: Any) -> tuple[Any, list[Any]]:
    """A flow of n executions without edges, made one by one."""
    flow = engine.new_id()
    await engine.call(c.CreateFlowArgs(flow_id=flow, flow_kind="graph", namespace="default"))  # type: ignore[arg-type]
    ids = [await engine.submit(**options) for _ in range(n)]
    for id in ids:
        await engine.call(c.AddExecutionToFlowArgs(flow_id=flow, execution_id=id))
    return flow, ids


def edge_name(n: int) -> Any:
    return f"{n:08x}-1111-4222-8333-444455556666"


async def revision(engine: Engine, flow: Any) -> int:
    return (await info(engine, flow)).graph_revision


async def staging(
    engine: Engine, flow: Any, up: Any, down: Any, n: int = 1, **options: Any
) -> c.StageDependencyEdgeArgs:
    given: dict[str, Any] = {"expected_graph_revision": await revision(engine, flow)} | options
    return c.StageDependencyEdgeArgs(
        flow_id=flow, edge_id=edge_name(n), upstream_execution_id=up, downstream_execution_id=down, **given
    )


async def applying(
    engine: Engine, flow: Any, up: Any, down: Any, n: int = 1, **options: Any
) -> c.ApplyDependencyToChildArgs:
    given: dict[str, Any] = {"graph_revision": await revision(engine, flow)} | options
    return c.ApplyDependencyToChildArgs(
        flow_id=flow, edge_id=edge_name(n), upstream_execution_id=up, downstream_execution_id=down, **given
    )


async def join(engine: Engine, flow: Any, up: Any, down: Any, n: int = 1, **options: Any) -> Any:
    """Stage an edge and apply it."""
    await engine.call(await staging(engine, flow, up, down, n, **options))
    return await engine.call(await applying(engine, flow, up, down, n, **options))


def resolving(at: Any, n: int, outcome: str) -> c.ResolveDependencyArgs:
    return c.ResolveDependencyArgs(edge_id=edge_name(n), upstream_outcome=outcome, at=at)


async def status(engine: Engine, id: Any) -> str:
    return (await engine.call(c.EvaluateFlowEligibilityArgs(execution_id=id))).status
