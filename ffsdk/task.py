"""Tasks: a user's function with the types of its payload and result, and how its jobs want to be treated.

Everything is compiled once, when the task is declared: types, policy, the path of its fairness key. A bad
declaration fails at import of the user's module, not in a worker at night.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import inspect
import types
import typing
from collections.abc import Callable, Iterable
from typing import Any, Generic, Literal, TypeVar

import msgspec

from ffcore import checks, ids, limits
from ffcore.errors import InvalidArgument
from ffcore.policy import ExecutionPolicy, RoutingRequirements, TimeoutPolicy, check_policy
from ffsdk import payload as payloads
from ffsdk.admit import Budget, Budgets, Quota, Quotas, Terms
from ffsdk.fields import check_path, text_at
from ffsdk.retry import Retry
from ffsdk.times import Duration, optional_ms

P_contra = TypeVar("P_contra", contravariant=True)
R_co = TypeVar("R_co", covariant=True)

MAX_RECLAIM_COUNT = 3
"""Crashes of workers a job survives: a job that was there at each of four crashes is their likely cause."""
DESCRIPTOR_BYTES = 16 << 10
Isolation = Literal["auto", "thread", "process"]


class TaskOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What `@app.task(...)` was given, with the defaults filled in."""

    name: str
    lane: str = "default"
    priority: int = 0
    retry: Retry = Retry()
    timeout: Duration | None = None
    """Of one attempt."""
    deadline: Duration | None = None
    """Of the job, from its creation, over all attempts."""
    lease: Duration | None = None
    """Between renewals; None: the worker's setting."""
    requires: frozenset[str] = frozenset()
    budget: Budgets | None = None
    quota: Quotas | None = None
    fairness: str | None = None
    isolation: Isolation = "auto"
    version: int = 1

    def __post_init__(self) -> None:
        ids.check_name(self.name, "task")
        ids.check_name(self.lane, "lane")
        checks.priority(self.priority)
        checks.whole(self.version, "version", 1, 1_000_000_000)
        checks.capabilities(self.requires)
        if not isinstance(self.retry, Retry):
            raise InvalidArgument(f"retry is {self.retry!r:.60}: use ff.Retry(...)")
        if self.isolation not in ("auto", "thread", "process"):
            raise InvalidArgument(f"isolation {self.isolation!r:.40}: use auto, thread or process")
        if self.fairness is not None:
            check_path(self.fairness, "fairness")


def required(tokens: Iterable[str] | None) -> frozenset[str]:
    """Capability tokens as given by a user; one string is a mistake, not a set of letters."""
    if isinstance(tokens, str):
        raise InvalidArgument(f"requires is {tokens!r:.60}: use a set, as in {{{tokens!r:.60}}}")
    found = frozenset(tokens or ())
    checks.capabilities(found)
    return found


def policy_json(options: TaskOptions, requires: frozenset[str]) -> bytes:
    """The options as the engine's policy: canonical JSON, only what is set, because it travels with each claim."""
    timeouts = TimeoutPolicy(
        attempt_timeout_ms=optional_ms(options.timeout, "timeout", low_ms=1),
        execution_deadline_ms=optional_ms(options.deadline, "deadline", low_ms=1), max_reclaim_count=MAX_RECLAIM_COUNT,
    )  # fmt: skip
    policy = ExecutionPolicy(
        retry_policy=options.retry.policy(), timeout_policy=timeouts, max_reclaim_count=MAX_RECLAIM_COUNT,
        routing_requirements=RoutingRequirements(required_capabilities=requires) if requires else None,
        lease_ms=optional_ms(options.lease, "lease", low_ms=limits.LEASE_TTL_MIN_MS),
    )  # fmt: skip
    check_policy(policy)
    kept = {"max_reclaim_count", "retry_policy", "timeout_policy", "routing_requirements", "lease_ms"}
    built: dict[str, Any] = {name: msgspec.to_builtins(getattr(policy, name)) for name in kept}
    if requires:
        built["routing_requirements"] = {"required_capabilities": sorted(requires)}
    return msgspec.json.encode(_without_none(built), order="sorted")


def _without_none(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    found = typing.cast("dict[str, Any]", value)
    return {name: _without_none(inner) for name, inner in found.items() if inner is not None}


def digest(task: str, payload: bytes, lane: str, flow: str = "") -> bytes:
    """What tells a repeated submit from a conflicting one: task, payload, lane, flow; nothing else."""
    return hashlib.sha256(b"\0".join((task.encode(), payload, lane.encode(), flow.encode()))).digest()[:16]


class Task(Generic[P_contra, R_co]):
    """A declared task: pass it to `client.submit`; call the plain function as ``task.fn(payload, ctx)``."""

    def __init__(self, fn: Callable[..., Any], options: TaskOptions, localns: dict[str, Any] | None = None) -> None:
        self.fn: Callable[..., Any] = fn
        self.options = options
        self.name, self.version, self.lane = options.name, options.version, options.lane
        self.terms = Terms.of(options.budget, options.quota)
        """The budgets and quotas its jobs are admitted by."""
        target: Any = typing.cast("Any", fn).func if isinstance(fn, functools.partial) else fn
        if not callable(target) or inspect.isasyncgenfunction(target) or inspect.isgeneratorfunction(target):
            raise InvalidArgument(f"task {self.name}: use a function, def or async def, that returns its result")
        call: Callable[..., Any] = target if inspect.isroutine(target) else type(target).__call__
        self.is_async: bool = inspect.iscoroutinefunction(call)
        self.takes_payload, self.takes_ctx = _shape(self.fn, self.name)
        self._call, self._localns = call, localns or {}
        self.policy: bytes = policy_json(options, options.requires)
        self._policies: dict[frozenset[str], bytes] = {options.requires: self.policy}
        try:
            self._compile()
        except NameError:
            # An annotation names something the module defines further down: compiled at first use instead.
            pass
        functools.update_wrapper(typing.cast("Any", self), self.fn, updated=())

    def __repr__(self) -> str:
        return f"<Task {self.name} v{self.version} lane={self.lane}>"

    # ---- types

    def _compile(self) -> None:
        hints = _hints(self._call, self._localns)
        names = [p.name for p in _positional(self.fn)]
        self.payload_type: Any = hints.get(names[0], Any) if self.takes_payload else None
        self.result_type: Any = hints.get("return", Any)
        self._payload_decoder = payloads.decoder(self.payload_type, f"the payload of task {self.name}")
        self._result_decoder = payloads.decoder(self.result_type, f"the result of task {self.name}")

    def __getattr__(self, name: str) -> Any:
        if name in ("payload_type", "result_type", "_payload_decoder", "_result_decoder"):
            try:
                self._compile()
            except NameError as unknown:
                raise InvalidArgument(f"task {self.name}: an annotation cannot be resolved: {unknown}") from unknown
            return self.__dict__[name]
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    # ---- payload and result

    def encode_payload(self, value: Any) -> bytes:
        """The payload as JSON. What does not fit the task's type is refused here rather than in a worker."""
        what = f"the payload of task {self.name}"
        raw = payloads.encode(value, what, limits.PAYLOAD_BYTES)
        if self.payload_type is not Any:
            payloads.decode(self._payload_decoder, raw, what)
        return raw

    def decode(self, raw: bytes) -> Any:
        """The payload a handler gets; InvalidArgument, code `invalid_payload`, if it does not fit."""
        return payloads.decode(self._payload_decoder, raw, f"the payload of task {self.name}")

    def encode_result(self, value: Any) -> bytes | None:
        """The result as JSON; None, which is stored as nothing, for None."""
        return None if value is None else payloads.encode(value, f"the result of task {self.name}", limits.RESULT_BYTES)

    def decode_result(self, raw: bytes | None) -> Any:
        """What a waiting client gets; None where nothing was stored."""
        if not raw:
            return None
        return payloads.decode(self._result_decoder, raw, f"the result of task {self.name}")

    def arguments(self, payload: Any, ctx: Any) -> tuple[Any, ...]:
        """What to call `fn` with: payload and context, as far as the function takes them."""
        return (*((payload,) if self.takes_payload else ()), *((ctx,) if self.takes_ctx else ()))

    # ---- how its jobs want to be treated

    def policy_for(self, requires: frozenset[str] | None) -> bytes:
        """The policy with other requirements than the task's own."""
        if requires is None:
            return self.policy
        if requires not in self._policies:
            if len(self._policies) > 256:
                self._policies = {self.options.requires: self.policy}
            self._policies[requires] = policy_json(self.options, requires)
        return self._policies[requires]

    def fairness_of(self, payload: Any) -> str | None:
        """The fairness key of a payload."""
        return text_at(self.options.fairness, payload)

    def descriptor(self) -> bytes:
        """What workers publish, so that others submit by name: JSON of at most 16 KiB."""
        facts: dict[str, Any] = {
            "name": self.name, "version": self.version, "lane": self.lane, "priority": self.options.priority,
            "policy": msgspec.Raw(self.policy), "requires": sorted(self.options.requires),
            "fairness": self.options.fairness,
        }  # fmt: skip
        if self.terms.any:
            facts["budgets"], facts["quotas"] = self.terms.budgets, self.terms.quotas
        shape = payloads.schema(self.payload_type)
        if shape is not None:
            full = msgspec.json.encode({**facts, "payload": shape})
            if len(full) <= DESCRIPTOR_BYTES:
                return full
        return msgspec.json.encode(facts)


class Descriptor(msgspec.Struct, frozen=True, kw_only=True):
    """A published task, as a client that cannot import it sees it (`Task.descriptor`)."""

    name: str
    version: int
    lane: str
    priority: int = 0
    policy: msgspec.Raw = msgspec.Raw(b"")
    requires: list[str] = []
    fairness: str | None = None
    budgets: tuple[Budget, ...] = ()
    quotas: tuple[Quota, ...] = ()
    payload: dict[str, Any] | None = None


def _positional(fn: Callable[..., Any]) -> list[inspect.Parameter]:
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [p for p in inspect.signature(fn).parameters.values() if p.kind in kinds]


def _shape(fn: Callable[..., Any], name: str) -> tuple[bool, bool]:
    """Whether the function takes a payload, and a context after it."""
    given = _positional(fn)
    rest = [p for p in inspect.signature(fn).parameters.values() if p.kind is inspect.Parameter.KEYWORD_ONLY]
    needed = [p.name for p in (*given[2:], *rest) if p.default is inspect.Parameter.empty]
    if needed:
        raise InvalidArgument(
            f"task {name} takes {', '.join(needed)} besides: a task takes one payload (put several values in a Struct) "
            f"and, second, the context"
        )
    if given and (given[0].name == "ctx" or _is_context(given[0].annotation)):
        raise InvalidArgument(f"task {name}: the payload comes first and the context second: def {name}(payload, ctx)")
    return len(given) >= 1, len(given) >= 2


def _is_context(annotation: Any) -> bool:
    text = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", "")
    return text in ("Context", "ff.Context", "ffsdk.Context")


def _hints(call: Callable[..., Any], localns: dict[str, Any]) -> dict[str, Any]:
    """Resolved annotations. A context's need not resolve: it is often imported for type checkers only."""
    annotations = dict(getattr(call, "__annotations__", {}))
    for parameter, annotation in list(annotations.items()):
        if _is_context(annotation):
            del annotations[parameter]
    closure: dict[str, Any] = {}
    if isinstance(call, types.FunctionType):
        # A variable that is assigned after the handler was defined has no value yet, and names no type.
        with contextlib.suppress(ValueError):
            closure = dict(inspect.getclosurevars(call).nonlocals)
    known = getattr(inspect.unwrap(call), "__globals__", {})
    bare = types.SimpleNamespace(__annotations__=annotations)
    return typing.get_type_hints(bare, globalns=known, localns={**localns, **closure}, include_extras=True)
