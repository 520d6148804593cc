"""Failures and what follows them: a retry with growing pauses, a failure that is final, a pause the handler asks for.

python -m examples.retries
"""

from __future__ import annotations

import asyncio

import ffsdk as ff

app = ff.App()


class Request(ff.Payload):
    url: str
    good_from: int
    """The attempt that gets an answer, counted from 0."""


@app.task(lane="fetch", retry=ff.Retry(max_attempts=4, backoff=0.05, factor=2.0, on=("upstream",)))
async def fetch(request: Request, ctx: ff.Context) -> str:
    print(f"  {request.url}: attempt {ctx.attempt}")
    if request.url.endswith("/gone"):
        raise ff.Fatal("410, and it will not come back")
    if request.url.endswith("/busy") and ctx.attempt == 0:
        raise ff.RetryAfter(0.1, "429", category="upstream")
    if ctx.attempt < request.good_from:
        raise ff.Failure("502", category="upstream")
    return f"the page, on attempt {ctx.attempt}"


async def main() -> None:
    worker = app.worker()
    running = asyncio.create_task(worker.run())
    async with app.client() as client:
        for request in (Request("/slow", 2), Request("/busy", 0), Request("/gone", 0), Request("/down", 99)):
            job = await client.submit(fetch, request)
            match await job.outcome(timeout=30):
                case ff.Completed(value=page):
                    print(f"{request.url}: {page}")
                case ff.Failed(reason=reason, category=category, attempts=n):
                    print(f"{request.url}: failed after {n}, {category}: {reason}")
                case other:
                    print(f"{request.url}: {other}")
    await worker.stop()
    await running


if __name__ == "__main__":
    asyncio.run(main())
