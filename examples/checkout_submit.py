"""A program that submits to the worker of `checkout_worker.py` and waits for how it ends.

python -m examples.checkout_submit 81 4200
"""

from __future__ import annotations

import asyncio
import sys

import ffsdk as ff
from examples.checkout_worker import Order, app, checkout


async def main(order_id: str, cents: int) -> None:
    async with app.client() as client:
        # The key makes this safe to repeat: run the program twice and the card is charged once.
        job = await client.submit(checkout, Order(order_id, cents), key=f"order-{order_id}")
        match await job.outcome(timeout=30):
            case ff.Completed(value=charge_id):
                print("charged", charge_id)
            case ff.Failed(reason=reason, attempts=n):
                print(f"gave up after {n}: {reason}")
            case ff.Cancelled(reason=why):
                print("cancelled:", why)
            case ff.Expired() | ff.Skipped():
                print("too late")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
