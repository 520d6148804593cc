"""The model as a whole: which rule answers which call, and when a call's effects are written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ffcore.args import Args
from tests.simulation.model import Expected
from tests.simulation.records import Partition
from tests.simulation.rules_admission import AdmissionRules
from tests.simulation.rules_edges import EdgeRules
from tests.simulation.rules_flows import FlowRules
from tests.simulation.rules_graph import GraphRules
from tests.simulation.rules_members import MemberRules
from tests.simulation.rules_operator import OperatorRules
from tests.simulation.rules_queue import QueueRules
from tests.simulation.rules_quotas import QuotaRules
from tests.simulation.rules_schedules import ScheduleRules
from tests.simulation.rules_settings import SettingsRules
from tests.simulation.rules_signals import SignalRules
from tests.simulation.rules_steps import StepRules
from tests.simulation.rules_streams import StreamRules
from tests.simulation.rules_suspension import SuspensionRules
from tests.simulation.rules_worker import WorkerRules

READS = frozenset({
    "scan_eligible", "list_holds", "list_lanes", "lane_stats", "list_capability_sets", "list_workers", "list_tasks",
    "noop", "read_header", "read_execution", "read_outcomes", "list_executions", "list_leases", "execution_history",
    "read_events", "list_settings", "read_journal", "observe_signals", "list_suspended", "list_pending_waitpoints",
    "list_waitpoint_hmac_kids", "read_attempt_stream", "read_stream", "read_summary", "read_flow", "read_members",
    "list_flows", "describe_edge", "list_edges", "read_upstreams", "evaluate_flow_eligibility", "read_outbox",
    "read_budget", "list_budgets", "top_spenders", "read_quota", "list_quotas", "read_unique", "read_schedule",
    "list_schedules", "explain",
})  # fmt: skip
"""Calls that change nothing."""


class Model(
    WorkerRules, QueueRules, StreamRules, StepRules, SignalRules, SuspensionRules, OperatorRules, SettingsRules,
    FlowRules, GraphRules, EdgeRules, MemberRules, AdmissionRules, QuotaRules, ScheduleRules,
):  # fmt: skip
    def __init__(self, counts: str, partitions: list[str], now: int, bounds: Mapping[str, int]) -> None:
        super().__init__(list(map(str, partitions)), now)
        self.counts, self.bounds = counts, bounds

    def predict(self, args: Args[Any], partitions: list[str], server_ms: int) -> Expected:
        """What the engine must answer; the model's state is afterwards as the store's must be."""
        self.server_ms = server_ms
        name = args.function().removeprefix("ff_")
        ps = [self.open(key, server_ms) for key in partitions]
        if name == "claim_batch":
            expected = self.claims(ps, args)
        elif name == "tick":
            expected = self.ticks(ps, args)
        else:
            rule: Callable[[Partition, Any], Expected] = getattr(self, f"call_{name}")
            expected = rule(ps[0], args)
        if name not in READS:
            for p in ps:
                self.close(p)
        return expected
