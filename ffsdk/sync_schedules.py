"""The blocking twins of schedules; a part of `ffsdk.sync`."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Any, Generic, TypeVar, Unpack, cast, overload

from ffsdk import schedules as aio
from ffsdk.facade import Facade, Loop, blocking

if TYPE_CHECKING:
    from zoneinfo import ZoneInfo

    from ffcore.ids import ScheduleId
    from ffcore.schedules import CatchUp
    from ffsdk import times
    from ffsdk.client import Client
    from ffsdk.schedules import ScheduleInfo, ScheduleOptions
    from ffsdk.sync import Job
    from ffsdk.task import Task

P = TypeVar("P")
R = TypeVar("R")


class Schedule(Facade[aio.Schedule[R]], Generic[R]):
    """A blocking handle on one schedule; see `ffsdk.schedules.Schedule`."""

    @property
    def id(self) -> ScheduleId:
        return self.async_.id

    @property
    def name(self) -> str:
        return self.async_.name

    @property
    def created(self) -> bool:
        return self.async_.created

    @property
    def changed(self) -> bool:
        return self.async_.changed

    @property
    def info(self) -> ScheduleInfo | None:
        return self.async_.info

    describe = blocking(aio.Schedule[Any].describe)
    next = blocking(aio.Schedule[Any].next)
    pause = blocking(aio.Schedule[Any].pause)
    resume = blocking(aio.Schedule[Any].resume)
    remove = blocking(aio.Schedule[Any].remove)

    def trigger(self) -> Job[R]:
        """Make a run now; see `ffsdk.schedules.Schedule.trigger`."""
        from ffsdk.sync import Job

        return Job(self._loop.run(self.async_.trigger()), self._loop)

    def backfill(self, start: datetime, end: datetime) -> list[Job[R]]:
        """Make the runs of a span; see `ffsdk.schedules.Schedule.backfill`."""
        from ffsdk.sync import Job

        return [Job(job, self._loop) for job in self._loop.run(self.async_.backfill(start, end))]

    def __repr__(self) -> str:
        return repr(self.async_)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Schedule) and other.id == self.id

    def __hash__(self) -> int:
        return hash(self.id)


class Scheduling:
    """The part of `ffsdk.sync.Client` that makes schedules."""

    if TYPE_CHECKING:
        async_: Client
        _loop: Loop

        def _iterate(self, made: Any) -> Iterator[Any]: ...

    @overload
    def schedule(
        self, name: str, task: Task[None, R], payload: None = None, *, cron: str | None = None,
        every: times.Duration | None = None, at: datetime | None = None, tz: str | ZoneInfo = "UTC",
        catch_up: CatchUp = "one", jitter: times.Duration | None = None, start: datetime | None = None,
        end: datetime | None = None, paused: bool = False, **options: Unpack[ScheduleOptions],
    ) -> Schedule[R]: ...  # fmt: skip
    @overload
    def schedule(
        self, name: str, task: Task[P, R], payload: P, *, cron: str | None = None,
        every: times.Duration | None = None, at: datetime | None = None, tz: str | ZoneInfo = "UTC",
        catch_up: CatchUp = "one", jitter: times.Duration | None = None, start: datetime | None = None,
        end: datetime | None = None, paused: bool = False, **options: Unpack[ScheduleOptions],
    ) -> Schedule[R]: ...  # fmt: skip
    @overload
    def schedule(
        self, name: str, task: str, payload: Any = None, *, cron: str | None = None,
        every: times.Duration | None = None, at: datetime | None = None, tz: str | ZoneInfo = "UTC",
        catch_up: CatchUp = "one", jitter: times.Duration | None = None, start: datetime | None = None,
        end: datetime | None = None, paused: bool = False, **options: Unpack[ScheduleOptions],
    ) -> Schedule[Any]: ...  # fmt: skip

    def schedule(
        self, name: str, task: Task[Any, Any] | str, payload: Any = None, *, cron: str | None = None,
        every: times.Duration | None = None, at: datetime | None = None, tz: str | ZoneInfo = "UTC",
        catch_up: CatchUp = "one", jitter: times.Duration | None = None, start: datetime | None = None,
        end: datetime | None = None, paused: bool = False, **options: Unpack[ScheduleOptions],
    ) -> Schedule[Any]:  # fmt: skip
        """Let the engine submit a job whenever it is due; see `ffsdk.schedules.Scheduling.schedule`."""
        made = self.async_.schedule(
            name, cast("str", task), payload, cron=cron, every=every, at=at, tz=tz, catch_up=catch_up, jitter=jitter,
            start=start, end=end, paused=paused, **options,
        )  # fmt: skip
        return Schedule(self._loop.run(made), self._loop)

    def schedule_by_name(self, name: str, task: Task[Any, R] | None = None) -> Schedule[R]:
        """A handle on an existing schedule of this namespace."""
        return Schedule(self.async_.schedule_by_name(name, task), self._loop)

    def schedules(self, state: str | None = None, limit: int | None = None) -> Iterator[Schedule[Any]]:
        """Schedules of this namespace; see `ffsdk.schedules.Scheduling.schedules`."""
        for schedule in self._iterate(self.async_.schedules(state, limit)):
            yield Schedule(schedule, self._loop)
