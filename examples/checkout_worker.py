"""A worker process. It runs until SIGTERM or Ctrl-C, finishes what it has begun, and leaves.

python -m examples.checkout_worker
"""

from __future__ import annotations

import ffsdk as ff

app = ff.App()


class Order(ff.Payload):
    order_id: str
    cents: int


@app.task(lane="checkout", retry=ff.Retry(max_attempts=5, backoff=2.0), timeout=60)
async def checkout(order: Order, ctx: ff.Context) -> str:
    if order.cents <= 0:
        raise ff.Fatal(f"order {order.order_id} costs nothing")  # no retry makes that better
    await ctx.progress(50, "charging the card")
    return f"charge-{order.order_id}"


if __name__ == "__main__":
    app.run_worker(lanes=["checkout"], concurrency=16)
