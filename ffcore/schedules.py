"""When a schedule is due: cron expressions, intervals and single instants, computed from the schedule alone.

The rule: instants follow from the spec and nothing else, so whoever computes them comes to the same ones. An interval
is anchored and never drifts. A cron expression is read in its time zone: what falls into the hour that is left out when
clocks go forward is due right after it, and what falls into the hour that comes twice is due the first time;
expressions with a star for the minute or the hour go by real time.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import lru_cache
from itertools import islice
from typing import Final, Literal, NamedTuple
from zoneinfo import ZoneInfo

import msgspec
from cronsim import CronSim, CronSimError

from ffcore import checks, ids, limits
from ffcore.contracts.schedule import Firing
from ffcore.errors import InvalidArgument
from ffcore.ids import ExecutionId, Namespace, ScheduleId

CatchUp = Literal["none", "one", "all"]
CATCH_UP: Final = ("none", "one", "all")
MISSED_MS: Final = 60_000
"""A run that is later than this was missed; the same for one after which another is due already."""
JITTER_MAX_MS: Final = 24 * 3600 * 1000
EVERY_MIN_MS: Final = 100
CRON_BYTES: Final = 256
BROKEN_MS: Final = 60_000
"""How often a schedule is looked at that this program cannot read: another one may."""
_WAITING_N: Final = 50
"""Instants whose jitter is not over that are passed on the way back from now."""
_LOOK_BACK_MS: Final = (60_000, 3_600_000, 86_400_000, 32 * 86_400_000, 400 * 86_400_000)
_NAMES: Final = {
    "@hourly": "0 * * * *", "@daily": "0 0 * * *", "@midnight": "0 0 * * *", "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *", "@yearly": "0 0 1 1 *", "@annually": "0 0 1 1 *",
}  # fmt: skip


class Spec(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """When a schedule is due: exactly one of `cron`, `every_ms` and `at_ms`."""

    cron: str | None = None
    every_ms: int | None = None
    at_ms: int | None = None
    tz: str = "UTC"
    catch_up: CatchUp = "one"
    jitter_ms: int = 0
    start_ms: int | None = None
    """No instant before; an interval counts from it."""
    end_ms: int | None = None
    """No instant after."""
    anchor_ms: int | None = None
    """What an interval without a start counts from: when it was made."""

    def pack(self) -> str:
        return msgspec.json.encode(self).decode()

    @property
    def identity(self) -> Spec:
        """Without what is of the moment it was made."""
        return msgspec.structs.replace(self, anchor_ms=None)

    @property
    def timing(self) -> Spec:
        """What its instants follow from."""
        return msgspec.structs.replace(self, anchor_ms=None, catch_up="one")


def unpack(text: str) -> Spec:
    """A stored spec. InvalidArgument for one this program cannot read, as of a newer one or in an unknown zone."""
    try:
        spec = msgspec.json.decode(text, type=Spec)
    except msgspec.DecodeError as unreadable:
        raise InvalidArgument(f"this schedule cannot be read here ({unreadable}): upgrade this program") from unreadable
    return check(spec)


def check(spec: Spec) -> Spec:
    """The spec. InvalidArgument, which says what to do, for one that means nothing."""
    ways = {"cron": spec.cron, "every": spec.every_ms, "at": spec.at_ms}
    given = [name for name, value in ways.items() if value is not None]
    if len(given) != 1:
        said = " and ".join(given) or "none"
        raise InvalidArgument(f"a schedule is due by cron=, every= or at=, exactly one of them: {said} given")
    if spec.catch_up not in CATCH_UP:
        raise InvalidArgument(f"catch_up is {spec.catch_up!r:.40}: use none, one or all")
    _zone(spec.tz)
    if spec.cron is not None:
        _crontab(spec.cron, spec.tz)
    if spec.every_ms is not None:
        checks.whole(spec.every_ms, "every, in milliseconds,", EVERY_MIN_MS, limits.SPAN_MAX_MS)
        if spec.jitter_ms >= spec.every_ms:
            raise InvalidArgument(f"jitter of {spec.jitter_ms} in an interval of {spec.every_ms} ms: use less jitter")
    checks.whole(spec.jitter_ms, "jitter, in milliseconds,", 0, JITTER_MAX_MS)
    if spec.at_ms is not None and (spec.start_ms is not None or spec.end_ms is not None):
        raise InvalidArgument("at= is one instant: leave start= and end= out")
    if spec.start_ms is not None and spec.end_ms is not None and spec.end_ms < spec.start_ms:
        raise InvalidArgument("the schedule ends before it starts: give an end after its start")
    return spec


@lru_cache(256)
def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except Exception as unknown:  # a name of a file that is none raises half a dozen kinds of errors
        raise InvalidArgument(
            f"there is no time zone {name!r:.60} here: use a name such as Europe/Prague, or install the package tzdata"
        ) from unknown


@lru_cache(1024)
def _crontab(expression: str, tz: str) -> str:
    """The fields of an expression; refused if they are none, or name no day that ever comes."""
    text = _NAMES.get(expression.strip().lower(), expression)
    if not isinstance(expression, str) or len(text) > CRON_BYTES:
        raise InvalidArgument(f"cron is {expression!r:.60}: use five fields, as in 0 3 * * *")
    try:
        next(CronSim(text, datetime(2024, 1, 1, tzinfo=_zone(tz))))
    except (CronSimError, StopIteration, AssertionError, ValueError, TypeError, OverflowError) as wrong:
        said = str(wrong) or "no such day ever comes"
        raise InvalidArgument(
            f"cron {expression!r:.80} cannot be read ({said}): use minute, hour, day of the month, month and day of "
            "the week, as in 0 3 * * mon-fri"
        ) from wrong
    return text


# ---- instants -----------------------------------------------------------------------------------------


def instants(spec: Spec, after_ms: int) -> Iterator[int]:
    """All instants later than a time, in order."""
    low = after_ms if spec.start_ms is None else max(after_ms, spec.start_ms - 1)
    for at in _unbounded(spec, low):
        if spec.end_ms is not None and at > spec.end_ms:
            return
        yield at


def _unbounded(spec: Spec, after_ms: int) -> Iterator[int]:
    if spec.at_ms is not None:
        if spec.at_ms > after_ms:
            yield spec.at_ms
    elif spec.every_ms is not None:
        anchor = spec.start_ms if spec.start_ms is not None else spec.anchor_ms or 0
        n = (after_ms - anchor) // spec.every_ms + 1
        while True:
            yield anchor + n * spec.every_ms
            n += 1
    else:
        yield from _cron(spec.cron or "", spec.tz, after_ms)


def _cron(expression: str, tz: str, after_ms: int) -> Iterator[int]:
    zone, last = _zone(tz), after_ms
    try:
        # UTC needs none of the care that a zone does, and only its own object is known to.
        clock = UTC if tz == "UTC" else zone
        for local in CronSim(_crontab(expression, tz), datetime.fromtimestamp(math.floor(after_ms / 1000), clock)):
            at = round(local.timestamp()) * 1000
            # Two readings of the clock may be one instant, and in an hour that comes twice an earlier one.
            if at > last:
                yield at
                last = at
    except OverflowError:  # the end of the calendar
        return


def after(spec: Spec, after_ms: int) -> int | None:
    """The first instant later than a time; None: there is none."""
    return next(instants(spec, after_ms), None)


def latest(spec: Spec, low_ms: int, until_ms: int) -> int:
    """The last instant not later than `until_ms`, where `low_ms` is one."""
    if spec.end_ms is not None:
        until_ms = max(low_ms, min(until_ms, spec.end_ms))
    if spec.every_ms is not None:
        return max(low_ms, low_ms + (until_ms - low_ms) // spec.every_ms * spec.every_ms)
    for span in (*_LOOK_BACK_MS, until_ms - low_ms):
        since = max(low_ms, until_ms - span)
        found = low_ms if since == low_ms else None
        for at in instants(spec, since):
            if at > until_ms:
                break
            found = at
        if found is not None:
            return found
    return low_ms


def between(spec: Spec, first_ms: int, last_ms: int, most: int) -> list[int]:
    """Instants from one time to another, both included, at most so many and one more."""
    found: list[int] = []
    for at in islice(instants(spec, first_ms - 1), most + 1):
        if at > last_ms:
            break
        found.append(at)
    return found


def jitter_ms(spec: Spec, schedule_id: str, due_ms: int) -> int:
    """How much later than its instant a run is made: the same whoever computes it."""
    if not spec.jitter_ms:
        return 0
    seed = f"{ids.uuid_of(schedule_id)} {due_ms}".encode()
    return int.from_bytes(hashlib.sha256(seed).digest()[:8], "big") % (spec.jitter_ms + 1)


def acted_at(spec: Spec, schedule_id: str, due_ms: int) -> int:
    """When an instant is acted on."""
    return due_ms + jitter_ms(spec, schedule_id, due_ms)


# ---- ids ----------------------------------------------------------------------------------------------


def schedule_id(namespace: Namespace | str, name: str, partitions: int) -> ScheduleId:
    """The id of a name."""
    return ScheduleId(ids.keyed_id("schedule", namespace, name, partitions))


def run_id(schedule: str, due_ms: int) -> ExecutionId:
    """The id of the run of one instant."""
    seed = b"\0".join((b"schedule run", ids.uuid_of(schedule).encode(), b"%d" % due_ms))
    return ExecutionId(f"{ids.partition_of(schedule)}:{ids.derived_uuid(seed, '5')}")


def label(instant_ms: int) -> str:
    """An instant as a run's tag has it."""
    seconds, ms = divmod(instant_ms, 1000)
    text = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{text}.{ms:03d}Z" if ms else f"{text}Z"


# ---- firing -------------------------------------------------------------------------------------------


class Missed(NamedTuple):
    """What became of the instants that were due: which one has a run, and which is next."""

    instant_ms: int
    runs: bool
    next_ms: int | None


def passing(spec: Spec, schedule: str, due_ms: int, now_ms: int, most: int) -> list[Missed]:
    """What to do about a schedule whose stored instant is due, oldest first; with `all`, at most so many."""
    if spec.catch_up == "all":
        found: list[Missed] = []
        at = due_ms
        for following in instants(spec, due_ms):
            found.append(Missed(at, True, following))
            at = following
            if len(found) == most or acted_at(spec, schedule, at) > now_ms:
                return found
        return [*found, Missed(at, True, None)]
    following_ms = after(spec, due_ms)
    if following_ms is not None and acted_at(spec, schedule, following_ms) > now_ms:
        last = due_ms
    else:
        last, following_ms = _last_due(spec, schedule, due_ms, now_ms)
    late = now_ms - acted_at(spec, schedule, last)
    return [Missed(last, spec.catch_up == "one" or late <= MISSED_MS, following_ms)]


def _last_due(spec: Spec, schedule: str, due_ms: int, now_ms: int) -> tuple[int, int | None]:
    """The last of several instants that are due, and the one after it."""
    last = latest(spec, due_ms, max(due_ms, now_ms))
    for _ in range(_WAITING_N):
        if last == due_ms or acted_at(spec, schedule, last) <= now_ms:
            return last, after(spec, last)
        last = latest(spec, due_ms, last - 1)
    # So much jitter for so short steps: one that has certainly had its own.
    last = latest(spec, due_ms, max(due_ms, now_ms - spec.jitter_ms))
    return last, after(spec, last)


def firings(schedule: ScheduleId, packed: str, due_ms: int, now_ms: int, most: int) -> list[Firing]:
    """The rows by which a due schedule is fired. One that cannot be read is looked at again later."""
    try:
        spec = unpack(packed)
    except InvalidArgument:
        return [Firing(schedule, due_ms, due_ms, now_ms + BROKEN_MS, due_ms, "-")]
    rows: list[Firing] = []
    stored = due_ms
    for step in passing(spec, schedule, due_ms, now_ms, most):
        next_ms = step.next_ms or 0
        at = acted_at(spec, schedule, next_ms) if next_ms else 0
        run = run_id(schedule, step.instant_ms) if step.runs else None
        rows.append(Firing(schedule, stored, next_ms, at, step.instant_ms, label(step.instant_ms), run))
        stored = next_ms
    return rows
