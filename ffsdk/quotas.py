"""A quota: how many jobs may start in a window of time, and how many may run at once; for all of them, or for each key.

    await client.quota("api", rate=(100, 60), concurrency=10)

The rule: a quota is declared, by whoever starts first and by everybody after him; what is given holds from then on.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, NoReturn

from ffcore import admission, checks, ids, limits
from ffcore.errors import InvalidArgument, NotFound, rejection
from ffcore.ids import QuotaPolicyId
from ffsdk.admit import pair_of, quota_id
from ffsdk.times import Duration, span_ms

if TYPE_CHECKING:
    from ffcore.contracts.quota import ListedQuota, QuotaStatus
    from ffsdk.client import Client

Rate = tuple[int, Duration]
"""So many starts in so long a time: any window of that length, not only those on the clock."""


class QuotaHandle:
    """One quota. Attach it to tasks and jobs by its name, as in ``quota="api"``; see `ffsdk.Quota`."""

    def __init__(
        self, client: Client, name: str, quota_id: QuotaPolicyId, *, info: ListedQuota | None = None
    ) -> None:  # fmt: skip
        self._client, self.name, self.id = client, name, quota_id
        self.info = info
        """What the listing said that this handle came from; None otherwise."""

    def __repr__(self) -> str:
        return f"<QuotaHandle {self.name}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, QuotaHandle) and other.id == self.id

    def __hash__(self) -> int:
        return hash(self.id)

    async def status(self, key: str | None = None) -> QuotaStatus:
        """Its limits, and what is used of them: `in_window` starts, `active` jobs, `next_free_ms` until the next may
        start. Raises NotFound.

        key   as jobs have it; None: what jobs without a key share
        """
        from ffcore.contracts.quota import ReadQuotaArgs

        if key is not None:
            checks.text(key, "key", limits.KEY_BYTES)
        word = None if key is None else admission.key_word(key)
        try:
            return await self._client.backend.call(ReadQuotaArgs(quota_policy_id=self.id, key=word))
        except NotFound as missing:
            self._missing(missing)

    async def delete(self) -> None:
        """Forget it. What runs goes on; jobs that name it are held until there is one of that name again. Raises
        NotFound."""
        from ffcore.contracts.quota import DeleteQuotaArgs

        try:
            await self._client.backend.call(DeleteQuotaArgs(quota_policy_id=self.id))
        except NotFound as missing:
            self._missing(missing)

    def _missing(self, missing: NotFound) -> NoReturn:
        raise rejection(missing.code, asked="quota", about=self.name or self.id) from missing


async def declare(client: Client, name: str, rate: Rate | None, concurrency: int | None) -> QuotaHandle:
    """See `ffsdk.client.Client.quota`."""
    from ffcore.contracts.quota import ChangeQuotaArgs, CreateQuotaPolicyArgs, QuotaPolicyCreated

    backend = client.backend
    ids.check_name(name, "quota")
    handle = QuotaHandle(client, name, quota_id(client.namespace, name, backend.config))
    starts_n, window_s = rate_of(rate)
    checks.whole(concurrency, "concurrency", 0, limits.QUOTA_N)
    if rate is None and concurrency is None:
        await handle.status()
        return handle
    made = await backend.call(CreateQuotaPolicyArgs(
        quota_policy_id=handle.id, name=name, namespace=client.namespace, window_seconds=window_s or 0,
        max_requests_per_window=starts_n or 0, max_concurrent=concurrency or 0,
    ))  # fmt: skip
    if not isinstance(made, QuotaPolicyCreated):
        await backend.call(ChangeQuotaArgs(
            quota_policy_id=handle.id, window_seconds=window_s, max_requests_per_window=starts_n,
            max_concurrent=concurrency,
        ))  # fmt: skip
    return handle


def rate_of(rate: Any) -> tuple[int | None, int | None]:
    """Starts, and whole seconds of their window."""
    if rate is None:
        return None, None
    found = pair_of(rate)
    if found is None:
        raise InvalidArgument(f"rate is {checks.shown(rate)}: use starts and seconds, as in rate=(100, 60)")
    starts_n, window = found
    checks.whole(starts_n, "rate", 0, limits.QUOTA_N)
    window_ms = span_ms(window, "rate's window", low_ms=1_000)
    if window_ms % 1_000 or window_ms // 1_000 > limits.QUOTA_WINDOW_S:
        raise InvalidArgument(
            f"rate's window is {checks.shown(window)}: use whole seconds, at most {limits.QUOTA_WINDOW_S}"
        )
    return starts_n, window_ms // 1_000


async def walk(client: Client) -> AsyncIterator[QuotaHandle]:
    """See `ffsdk.client.Client.quotas`."""
    from ffcore.contracts.quota import ListQuotasArgs

    backend = client.backend
    for partition in backend.config.keys("q"):
        cursor: str | None = None
        while True:
            asked = ListQuotasArgs(partition=partition, cursor=cursor, limit=limits.PAGE_MAX_N)
            page = await backend.call(asked)
            for row in page.quotas:
                if row.namespace == client.namespace:
                    yield QuotaHandle(client, row.name, row.quota_policy_id, info=row)
            cursor = page.cursor
            if not cursor:
                break
