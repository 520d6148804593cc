"""FlowFabric for users: declare tasks, run workers, submit jobs, wait for them. ``import ffsdk as ff``.

Names are loaded when first used, so that a script that only submits pays for nothing else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

# Before the function of the same name is defined below: a submodule that is imported later would cover it.
from ffsdk.connect import Durability

if TYPE_CHECKING:
    from ffsdk import sync
    from ffsdk.admit import Budget, Quota, Unique
    from ffsdk.app import App
    from ffsdk.children import Child
    from ffsdk.client import Client
    from ffsdk.conditions import operator
    from ffsdk.context import Context
    from ffsdk.errors import (
        AdmissionDenied,
        BudgetExceeded,
        Conflict,
        ContinueAs,
        EngineBug,
        EngineError,
        Failure,
        Fatal,
        GateTimeout,
        IdempotencyConflict,
        Incompatible,
        InvalidArgument,
        InvalidSignal,
        InvalidToken,
        JobCancelled,
        JobEnded,
        JobExpired,
        JobFailed,
        JobSkipped,
        JournalFull,
        NotAccepted,
        NotFound,
        NotInitialised,
        Rejected,
        RetryAfter,
        SecretMissing,
        StaleLease,
        StepConflict,
        StepInterrupted,
        StoreFull,
        SubmitErrors,
        Suspended,
        Unavailable,
        WrongState,
    )
    from ffsdk.flow import Flow
    from ffsdk.flows import FlowMember, FlowOutcome
    from ffsdk.gates import Gate
    from ffsdk.inputs import Upstream
    from ffsdk.job import Job
    from ffsdk.joins import Join, all_of, any_of, count, quorum
    from ffsdk.node import Node
    from ffsdk.outcomes import Cancelled, Completed, Expired, Failed, Outcome, Skipped
    from ffsdk.payload import Payload
    from ffsdk.retry import Retry
    from ffsdk.schedules import Schedule, ScheduleInfo
    from ffsdk.settings import LaneSettings, StoreSettings
    from ffsdk.signals import Signal, SignalAnswer
    from ffsdk.spending import Spent
    from ffsdk.steps import StepInfo, step_info
    from ffsdk.streams import Frame
    from ffsdk.task import Task
    from ffsdk.views import (
        Bulk,
        Event,
        Explanation,
        FanOut,
        JobInfo,
        JobStatus,
        LaneHalt,
        LaneStats,
        Progress,
        Reason,
        Step,
        Waitpoint,
    )
    from ffsdk.worker import Worker
    from ffsdk.workers import WorkerInfo

_WHERE = {
    "admit": ("Budget", "Quota", "Unique"),
    "app": ("App",),
    "children": ("Child",),
    "client": ("Client",),
    "conditions": ("operator",),
    "context": ("Context",),
    "errors": (
        "AdmissionDenied", "BudgetExceeded", "Conflict", "ContinueAs", "EngineBug", "EngineError", "Failure", "Fatal",
        "GateTimeout", "IdempotencyConflict", "Incompatible", "InvalidArgument", "InvalidSignal", "InvalidToken",
        "JobCancelled", "JobEnded", "JobExpired", "JobFailed", "JobSkipped", "JournalFull", "NotAccepted", "NotFound",
        "NotInitialised", "Rejected", "RetryAfter", "SecretMissing", "StaleLease", "StepConflict", "StepInterrupted",
        "StoreFull", "SubmitErrors", "Suspended", "Unavailable", "WrongState",
    ),
    "flow": ("Flow",),
    "flows": ("FlowMember", "FlowOutcome"),
    "gates": ("Gate",),
    "inputs": ("Upstream",),
    "job": ("Job",),
    "joins": ("Join", "all_of", "any_of", "count", "quorum"),
    "node": ("Node",),
    "outcomes": ("Cancelled", "Completed", "Expired", "Failed", "Outcome", "Skipped"),
    "payload": ("Payload",),
    "retry": ("Retry",),
    "schedules": ("Schedule", "ScheduleInfo"),
    "settings": ("LaneSettings", "StoreSettings"),
    "signals": ("Signal", "SignalAnswer"),
    "spending": ("Spent",),
    "steps": ("StepInfo", "step_info"),
    "streams": ("Frame",),
    "task": ("Task",),
    "views": (
        "Bulk", "Event", "Explanation", "FanOut", "JobInfo", "JobStatus", "LaneHalt", "LaneStats", "Progress", "Reason",
        "Step", "Waitpoint",
    ),
    "worker": ("Worker",),
    "workers": ("WorkerInfo",),
}  # fmt: skip
_MODULE_OF = {name: module for module, names in _WHERE.items() for name in names}

__all__ = [
    "App", "Task", "Retry", "Payload", "Context", "Worker", "Budget", "Quota", "Unique",
    "Client", "connect", "sync", "Job", "Outcome", "Completed", "Failed", "Cancelled", "Expired", "Skipped",
    "JobStatus", "JobInfo", "Progress", "Explanation", "Reason", "Event", "LaneStats", "FanOut", "Bulk", "Frame",
    "Step", "Waitpoint", "Gate", "Signal", "SignalAnswer", "all_of", "any_of", "count", "operator", "quorum",
    "Flow", "Node", "Join", "Child", "FlowOutcome", "FlowMember", "Upstream",
    "LaneSettings", "StoreSettings", "LaneHalt", "WorkerInfo", "Schedule", "ScheduleInfo",
    "Failure", "Fatal", "RetryAfter", "ContinueAs", "StepConflict", "StepInterrupted", "JournalFull", "GateTimeout",
    "InvalidSignal", "StepInfo", "step_info", "Spent",
    "JobEnded", "JobFailed", "JobCancelled", "JobExpired", "JobSkipped",
    "EngineError", "Rejected", "Unavailable", "EngineBug", "InvalidArgument", "NotInitialised", "Incompatible",
    "NotFound", "StaleLease", "WrongState", "IdempotencyConflict", "InvalidToken", "BudgetExceeded", "AdmissionDenied",
    "StoreFull", "Conflict", "SecretMissing", "NotAccepted", "SubmitErrors", "Suspended",
]  # fmt: skip


def connect(url: str | None = None, *, namespace: str = "default", durability: Durability = "accepted") -> Client:
    """A client without an app: ``async with ff.connect(url) as client`` or ``client = await ff.connect(url)``.

    `url=None` means FF_URL. Opening raises InvalidArgument (a wrong URL), Unavailable (refused, bad password),
    Incompatible (a server that cannot serve us), NotInitialised (run `ff init`); each names the remedy.
    """
    from ffsdk.client import Client

    return Client(url, namespace=namespace, durability=durability)


def __getattr__(name: str) -> Any:
    import importlib

    if name in ("sync", "testing"):
        return importlib.import_module(f"ffsdk.{name}")
    module = _MODULE_OF.get(name)
    if module is None:
        raise AttributeError(f"ffsdk has no {name!r}")
    value = getattr(importlib.import_module(f"ffsdk.{module}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
