"""What a client does to many jobs at once: cancel, replay, purge, hold. A part of `ffsdk.client.Client`.

The rule: nothing is taken without a filter, and `dry_run` says first what would be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Literal, cast

from ffcore import checks, ids, limits
from ffcore.errors import InvalidArgument
from ffsdk import times
from ffsdk.views import Bulk, FanOut

if TYPE_CHECKING:
    from ffcore.backend import Backend
    from ffsdk.client import Client
    from ffsdk.listing import States, Tag


class Many:
    """These methods need an open client."""

    if TYPE_CHECKING:
        namespace: str
        _now_ms: Callable[[], int]

        @property
        def backend(self) -> Backend: ...

    @property
    def _self(self) -> Client:
        return cast("Client", self)

    async def cancel_many(
        self, *, state: States = None, lane: str | None = None, tag: Tag = None, limit: int | None = None,
        reason: str = "", dry_run: bool = False,
    ) -> Bulk:  # fmt: skip
        """Cancel jobs of this namespace that match; `dry_run` only counts and lists them. One filter at least."""
        from ffcore.contracts.execution import CancelExecutionArgs
        from ffcore.contracts.lease import CancelSource
        from ffsdk.listing import LIVE, change, states_of, tag_text, walk

        _some_filter(state, lane, tag)
        source = CancelSource.custom("client")
        rows = walk(
            self.backend, states_of(state, LIVE), lane=lane, tag=tag_text(tag), namespace=self.namespace, limit=limit
        )
        return await change(
            self._self, rows, lambda i: CancelExecutionArgs(execution_id=i, reason=reason, source=source), dry_run
        )

    async def replay_many(
        self, *, state: States = "failed", lane: str | None = None, tag: Tag = None, limit: int | None = None,
        mode: Literal["resume", "fresh"] = "resume", dry_run: bool = False,
    ) -> Bulk:  # fmt: skip
        """Run ended jobs of this namespace again, by default the failed ones; `dry_run` only counts and lists them."""
        from ffcore.contracts.execution import ReplayExecutionArgs
        from ffsdk.listing import TERMINAL, change, states_of, tag_text, walk

        wanted = states_of(state, TERMINAL)
        _only_ended(wanted)
        rows = walk(self.backend, wanted, lane=lane, tag=tag_text(tag), namespace=self.namespace, limit=limit)
        return await change(self._self, rows, lambda i: ReplayExecutionArgs(execution_id=i, mode=mode), dry_run)

    async def purge_many(
        self,
        *,
        state: States = None,
        lane: str | None = None,
        older_than: times.Duration | None = None,
        dry_run: bool = False,
    ) -> Bulk:
        """Forget ended jobs, of every namespace, before their retention does; one filter at least. A keyed job's key
        stays taken for its dedup window. `ids` lists the first thousand."""
        from ffsdk.listing import TERMINAL, before, purge, states_of

        _some_filter(state, lane, older_than)
        wanted = states_of(state, TERMINAL)
        _only_ended(wanted)
        if lane is not None:
            ids.check_name(lane, "lane")
        return await purge(self._self, wanted, lane, before(older_than, self._now_ms()), dry_run)

    async def hold(self, *, task: str | None = None, tag: Tag = None, reason: str = "") -> FanOut:
        """Let no job of a task, or with a tag, start until `release`; what runs goes on. Check `.complete`."""
        from ffcore.contracts.operator import HoldArgs
        from ffsdk.fanout import change_all

        what = _what(task, tag)
        checks.size(reason, "reason", limits.HOLD_REASON_BYTES, code="invalid_input")
        return await change_all(self.backend, lambda p: HoldArgs(partition=p, what=what, reason=reason))

    async def release(self, *, task: str | None = None, tag: Tag = None) -> FanOut:
        """End a hold; held jobs go back to their places. Releasing what is not held changes nothing."""
        from ffcore.contracts.operator import ReleaseArgs
        from ffsdk.fanout import change_all

        what = _what(task, tag)
        return await change_all(self.backend, lambda p: ReleaseArgs(partition=p, what=what))


def _some_filter(*filters: object) -> None:
    if all(given is None for given in filters):
        raise InvalidArgument("this would take every job there is: name a state, a lane or another filter")


def _only_ended(states: Iterable[Any]) -> None:
    live = [state.value for state in states if not state.is_terminal]
    if live:
        raise InvalidArgument(f"only ended jobs can be taken: leave {', '.join(live)} out, or cancel them first")


def _what(task: str | None, tag: Tag) -> str:
    from ffsdk.listing import tag_text

    if (task is None) == (tag is None):
        raise InvalidArgument("give task= or tag=, one of them")
    return f"tag:{tag_text(tag)}" if task is None else f"task:{ids.check_name(task, 'task')}"
