"""What a job must be admitted by: budgets it spends from, quotas it takes a place of, a key it holds alone.

    @app.task(budget=ff.Budget("team-a", estimate={"tokens": 500}), quota=ff.Quota("api", key="payload.tenant"))

The rule: everything is checked where it is written, and becomes lines of text (`ffcore.admission`) once per task and
set of options; only a key that is read from the payload is filled in job by job.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, cast

import msgspec

from ffcore import admission, checks, ids, limits
from ffcore.admission import Amount, BudgetLine, OnExceed, QuotaLine, Scope
from ffcore.errors import EngineError, InvalidArgument, NotFound, rejection
from ffcore.ids import BudgetId, QuotaPolicyId
from ffsdk.fields import is_path
from ffsdk.times import Duration, span_ms

if TYPE_CHECKING:
    from ffcore.args import Args
    from ffcore.backend import Backend, StoreConfig

Action = Literal["reject", "existing", "replace", "debounce"]
ACTIONS: Final = ("reject", "existing", "replace", "debounce")
SCOPES: Final = ("queued", "active", "window", "forever")


class Budget(msgspec.Struct, frozen=True):
    """``budget=ff.Budget("team-a", estimate={"tokens": 500})``: the job spends from this budget (`client.budget`).

    name        of the budget
    estimate    amounts by dimension that are reserved before the job starts, and settled when it has; without one
                nothing is reserved, and the job starts unless the budget is used up
    on_exceed   when it may not start, or has spent more than there was: "hold" waits until there is room; "fail" ends
                it, category `budget_exceeded`; "cancel"; "suspend" waits at a gate named `budget`, whose signal raises
                the limits and lets it go on

    Raises InvalidArgument for what cannot be.
    """

    name: str
    estimate: Mapping[str, Amount] | None = None
    on_exceed: OnExceed = "hold"

    def __post_init__(self) -> None:
        ids.check_name(self.name, "budget")
        _check_exceed(self.on_exceed)
        if self.estimate is not None:
            if not isinstance(self.estimate, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise InvalidArgument(f"estimate is {checks.shown(self.estimate)}: use amounts by dimension")
            admission.amounts(self.estimate, "estimate")
            msgspec.structs.force_setattr(self, "estimate", dict(self.estimate))

    def line(self, budget_id: str) -> str:
        return BudgetLine(budget_id, self.on_exceed, admission.amounts(self.estimate or {}, "estimate")).text()


class Quota(msgspec.Struct, frozen=True):
    """``quota=ff.Quota("api", key="payload.tenant")``: the job takes a place of this quota (`client.quota`).

    name        of the quota
    key         each key has the quota for itself: a field of the payload (``payload.tenant``), or any other text as it
                stands; None: all jobs share it, as do those whose payload has no such field
    on_exceed   when there is no place: "hold" waits for one; "fail" ends it, category `quota_exceeded`; "cancel";
                "suspend" waits at a gate for somebody to let it go on
    literal     take `key` as it stands, also if it looks like a field

    Raises InvalidArgument for what cannot be.
    """

    name: str
    key: str | None = None
    on_exceed: OnExceed = "hold"
    literal: bool = False

    def __post_init__(self) -> None:
        ids.check_name(self.name, "quota")
        _check_exceed(self.on_exceed)
        if self.key is not None:
            checks.text(self.key, "key", limits.KEY_BYTES)

    @property
    def path(self) -> str | None:
        """The field the key is read from; None: it is the same for all jobs."""
        return None if self.key is None or self.literal or not is_path(self.key) else self.key

    def line(self, quota_id: str, key: str | None) -> str:
        return QuotaLine(quota_id, self.on_exceed, key).text()


class Unique(msgspec.Struct, frozen=True):
    """``unique=ff.Unique("payload.order")``: one job at a time, of any task, holds this key in its namespace.

    key       a field of the payload (``payload.order``), or any other text as it stands
    scope     how long it is held: "queued" until the job starts to run, "active" until it has ended, "window" for so
              long from the submit, "forever"
    window    seconds or timedelta, for scope "window" and for action "debounce"
    action    what a submit does while another job holds the key:
              "reject"     raises Conflict, code `unique_held`, which names the holder; nothing is submitted
              "existing"   answers the holder's job (`job.created` is False)
              "replace"    takes the key over: a holder that has not begun is cancelled; one that runs is asked to
                           cancel, as `job.cancel` asks, and this job does not wait until it has
              "debounce"   the same, and this job starts `window` from now at the earliest: of many submits in a row
                           the last one runs, once it has been quiet for so long
    literal   take `key` as it stands, also if it looks like a field

    A client that dies between taking the key and creating its job leaves it taken for about a minute.
    Raises InvalidArgument for what cannot be.
    """

    key: str
    scope: Scope = "queued"
    window: Duration | None = None
    action: Action = "reject"
    literal: bool = False

    def __post_init__(self) -> None:
        checks.text(self.key, "key", limits.KEY_BYTES)
        if self.scope not in SCOPES:
            raise InvalidArgument(f"scope is {checks.shown(self.scope)}: use one of {', '.join(SCOPES)}")
        if self.action not in ACTIONS:
            raise InvalidArgument(f"action is {checks.shown(self.action)}: use one of {', '.join(ACTIONS)}")
        debounces = self.action == "debounce"
        if debounces and self.scope not in ("queued", "active"):
            raise InvalidArgument("debounce waits for quiet: use scope 'queued' or 'active'")
        if (self.scope == "window" or debounces) != (self.window is not None):
            raise InvalidArgument("window= says how long: give it with scope='window' or action='debounce', not else")
        if self.window is not None:
            span_ms(self.window, "window", low_ms=1)

    @property
    def path(self) -> str | None:
        """The field the key is read from; None: it is the text itself."""
        return None if self.literal or not is_path(self.key) else self.key

    @property
    def delay_ms(self) -> int:
        """How much later a debounced job starts."""
        return span_ms(self.window, "window") if self.action == "debounce" and self.window is not None else 0

    @property
    def window_ms(self) -> int:
        """How long the key is held, where that is said beforehand."""
        return span_ms(self.window, "window") if self.scope == "window" and self.window is not None else 0


Budgets = Budget | str | Iterable[Budget | str]
"""What `budget=` takes: one, or several, each by name or as `ff.Budget`."""
Quotas = Quota | str | Iterable[Quota | str]


def _check_exceed(word: Any) -> None:
    if word not in admission.ON_EXCEED:
        raise InvalidArgument(f"on_exceed is {checks.shown(word)}: use one of {', '.join(admission.ON_EXCEED)}")


def budgets_of(given: Budgets) -> tuple[Budget, ...]:
    """`budget=` as given, checked: each budget once."""
    found = tuple(one if isinstance(one, Budget) else Budget(_name(one, "budget", "Budget")) for one in _several(given))
    _once([one.name for one in found], "budget")
    return found


def quotas_of(given: Quotas) -> tuple[Quota, ...]:
    """`quota=` as given, checked: each quota and key once."""
    found = tuple(one if isinstance(one, Quota) else Quota(_name(one, "quota", "Quota")) for one in _several(given))
    _once([f"{one.name} {one.key}" if one.key is not None else one.name for one in found], "quota")
    return found


def unique_of(given: Any) -> Unique:
    if not isinstance(given, Unique):
        raise InvalidArgument(f"unique is {checks.shown(given)}: use ff.Unique(key, ...)")
    return given


def _several(given: Any) -> Iterable[Any]:
    return (given,) if isinstance(given, str | Budget | Quota) or not hasattr(given, "__iter__") else given


def _name(given: Any, what: str, called: str) -> str:
    if not isinstance(given, str):
        raise InvalidArgument(f"{what} is {checks.shown(given)}: use a {what}'s name, or ff.{called}(name, ...)")
    return given


def pair_of(given: Any) -> tuple[Any, Any] | None:
    """Two values given as one; None for anything else."""
    found = list(cast("Iterable[Any]", given)) if isinstance(given, tuple | list) else []
    return (found[0], found[1]) if len(found) == 2 else None


def _once(names: list[str], what: str) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InvalidArgument(f"{what} {', '.join(twice):.100} is named twice: name each once")


# ---- all of it together ----------------------------------------------------------------------------------


class Terms(NamedTuple):
    """Budgets and quotas of a task, of a submit, or of both."""

    budgets: tuple[Budget, ...] = ()
    quotas: tuple[Quota, ...] = ()

    @classmethod
    def of(cls, budget: Budgets | None, quota: Quotas | None) -> Terms:
        """As given; `NO_TERMS` where nothing was."""
        found = cls(() if budget is None else budgets_of(budget), () if quota is None else quotas_of(quota))
        return found if found.any else NO_TERMS

    def instead(self, budget: Budgets | None, quota: Quotas | None) -> Terms:
        """With what was given in the place of what was there; None leaves it, an empty list is none."""
        return Terms(
            self.budgets if budget is None else budgets_of(budget), self.quotas if quota is None else quotas_of(quota)
        )

    def beside(self, others: Terms) -> Terms:
        """These, and what others have besides them: the same budget, or quota and key, counts once, as it is here."""
        if not self.any:
            return others
        names, keys = {one.name for one in self.budgets}, {(one.name, one.key) for one in self.quotas}
        return Terms(
            (*self.budgets, *(one for one in others.budgets if one.name not in names)),
            (*self.quotas, *(one for one in others.quotas if (one.name, one.key) not in keys)),
        )

    @property
    def any(self) -> bool:
        return bool(self.budgets or self.quotas)

    @property
    def paths(self) -> tuple[str, ...]:
        """Fields its keys are read from."""
        return tuple(one.path for one in self.quotas if one.path is not None)

    def ids(self, namespace: str, config: StoreConfig) -> list[tuple[str, str, str]]:
        """What is named: budget or quota, its name, its id."""
        return [
            *(("budget", one.name, budget_id(namespace, one.name, config)) for one in self.budgets),
            *(("quota", one.name, quota_id(namespace, one.name, config)) for one in self.quotas),
        ]

    def lines(self, namespace: str, config: StoreConfig) -> Lines:
        """As text, in the order they are asked. InvalidArgument for too many."""
        parts: list[str | tuple[Quota, str]] = [
            one.line(budget_id(namespace, one.name, config)) for one in self.budgets
        ]
        for quota in self.quotas:
            found = quota_id(namespace, quota.name, config)
            parts.append(quota.line(found, quota.key) if quota.path is None else (quota, found))
        # One place is kept for a key that a submit holds alone.
        size_n = sum(len(part) if isinstance(part, str) else _KEYED_BYTES for part in parts) + len(parts) + _KEYED_BYTES
        if len(parts) >= limits.ADMISSIONS_N or size_n > limits.ADMISSION_BYTES:
            raise InvalidArgument(
                f"{len(parts)} budgets and quotas, {size_n} bytes of them: use at most {limits.ADMISSIONS_N - 1} and "
                f"{limits.ADMISSION_BYTES} bytes; shorter names of dimensions help"
            )
        return Lines(tuple(parts))


NO_TERMS: Final = Terms()
_KEYED_BYTES: Final = 72 + admission.KEY_TEXT_BYTES
"""A line whose key is not known yet, at most."""


class Lines(NamedTuple):
    """The text in the making: what is known, and quotas whose key the payload has."""

    parts: tuple[str | tuple[Quota, str], ...]

    @property
    def fixed(self) -> str | None:
        """The text, if it is the same for all jobs and there is any."""
        known = [part for part in self.parts if isinstance(part, str)]
        return "\n".join(known) if known and len(known) == len(self.parts) else None

    @property
    def keyed(self) -> bool:
        return any(not isinstance(part, str) for part in self.parts)

    def text(self, at: Callable[[str], str | None]) -> str:
        """The text of one job; `at` reads a field of its payload."""
        return "\n".join(
            part if isinstance(part, str) else part[0].line(part[1], at(part[0].path or "")) for part in self.parts
        )


def budget_id(namespace: str, name: str, config: StoreConfig) -> BudgetId:
    return BudgetId(ids.keyed_id("budget", namespace, name, config.b, "b"))


def quota_id(namespace: str, name: str, config: StoreConfig) -> QuotaPolicyId:
    return QuotaPolicyId(ids.keyed_id("quota", namespace, name, config.q, "q"))


def unique_id(namespace: str, key: str, config: StoreConfig) -> str:
    return ids.keyed_id("unique", namespace, key, config.q, "q")


async def look_for(backend: Backend, named: Sequence[tuple[str, str, str]]) -> None:
    """NotFound, which names it, for the first budget or quota that nobody has made."""
    from ffcore.contracts.budget import ReadBudgetArgs
    from ffcore.contracts.quota import ReadQuotaArgs

    asked: list[Args[Any]] = [
        ReadBudgetArgs(budget_id=BudgetId(one))
        if what == "budget"
        else ReadQuotaArgs(quota_policy_id=QuotaPolicyId(one))
        for what, _, one in named
    ]
    for (what, name, _), answer in zip(named, await backend.call_all(asked), strict=True):
        if isinstance(answer, NotFound):
            code = "budget_not_found" if what == "budget" else "quota_policy_not_found"
            raise rejection(code, asked="submit", about=name)
        if isinstance(answer, EngineError):
            raise answer
