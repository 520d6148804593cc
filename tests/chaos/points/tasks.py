"""The handler whose workers die at every point: several steps, one of them begun at most once, one that fails for good,
one that fails first, one in a thread, two at once, frames, children, a gate, a wait, a sleep, and a second run.

Each function of a step says in the book that it begins and that it has ended.
"""

from __future__ import annotations

import asyncio

import msgspec

import ffsdk as ff
from ffcore.contracts.reads import ExecutionRef, ReadOutcomesArgs
from ffcore.flows import implicit_flow, member_id
from ffcore.ids import ExecutionId, partition_of
from tests.chaos.ledger import now_ms
from tests.chaos.points.hook import Points
from tests.chaos.points.plan import CHILDREN, LANE, ONCE, SHAKY, SLEEP_S, Kept, Order, Receipt
from tests.chaos.tasks import harden

app = ff.App(None)
_points: list[Points] = []


def use(points: Points) -> None:
    """What this process passes its points to."""
    _points[:] = [points]


class Hand:
    """The functions of the steps, for one run of the handler."""

    def __init__(self, order: Order, ctx: ff.Context) -> None:
        self.order, self.ctx, self.points = order, ctx, _points[0]
        self.leg = self.points.leg(ctx.execution_id)

    def place(self, name: str) -> None:
        """Between two steps."""
        self.points.reach(self.ctx.execution_id, f"place:{name}")

    def begin(self, step: str) -> None:
        epoch, key = self.ctx.fence.lease_epoch, ff.step_info().effect_key
        self.points.book.note("begin", self.order.n, self.order.run, step, epoch, key, now_ms())
        self.points.reach(self.ctx.execution_id, f"body:{step}/begin")

    def end(self, step: str) -> None:
        self.points.book.note("end", self.order.n, self.order.run, step, self.ctx.fence.lease_epoch, now_ms())
        self.points.reach(self.ctx.execution_id, f"body:{step}/end")

    async def emit(self, of: str) -> None:
        """A frame that says which lease it is from."""
        await self.ctx.emit([self.order.run, self.ctx.fence.lease_epoch], type=of)

    async def reserve(self, n: int) -> int:
        self.begin("reserve")
        await self.emit("reserve")
        self.end("reserve")
        return n

    async def charge(self, n: int) -> str:
        self.begin(ONCE)
        await asyncio.sleep(0)
        self.end(ONCE)
        return "paid"

    async def refuse(self, n: int) -> None:
        self.begin("refuse")
        self.end("refuse")
        raise ff.Fatal("out of stock")

    async def shaky(self, n: int) -> int:
        self.begin(SHAKY)
        self.end(SHAKY)
        if self.leg == "first":
            raise ValueError("the first try fails")
        return n + 1

    def count(self, n: int) -> int:
        """In a thread."""
        self.begin("count")
        self.end("count")
        return 2 * n

    async def part(self, n: int, side: str) -> int:
        self.begin(side)
        await asyncio.sleep(0.01)
        self.end(side)
        return n if side == "left" else -n

    async def tell(self, n: int, token: str) -> None:
        self.begin("tell")
        self.points.book.note("letter", n, token)
        self.end("tell")

    async def last(self, n: int) -> int:
        self.begin("last")
        self.end("last")
        return n + 2


@app.task(lane=LANE, retry=ff.Retry(max_attempts=4, backoff=0.05, max_backoff=0.2))
async def walk(order: Order, ctx: ff.Context) -> Receipt:
    hand, n = Hand(order, ctx), order.n
    hand.place("start")
    await ctx.step("reserve", hand.reserve, n)
    hand.place("reserve-charge")
    if order.run:
        return await _second(order, ctx, hand)
    try:
        charged = await ctx.step(ONCE, hand.charge, n, at_most_once=True)
    except ff.StepInterrupted:
        charged = "interrupted"
    hand.place("charge-refuse")
    refused = ""
    try:
        await ctx.step("refuse", hand.refuse, n)
    except ff.Fatal as no:
        refused = no.reason
    hand.place("refuse-shaky")
    shaky = await ctx.step(SHAKY, hand.shaky, n)
    hand.place("shaky-nap")
    await ctx.sleep(0.02)
    hand.place("nap-count")
    count = await ctx.step("count", hand.count, n)
    hand.place("count-parts")
    parts = await asyncio.gather(ctx.step("left", hand.part, n, "left"), ctx.step("right", hand.part, n, "right"))
    hand.place("parts-emit")
    await hand.emit("walked")
    hand.place("emit-spawn")
    mine = msgspec.structs.replace(order, parent=ctx.execution_id)
    first = await ctx.spawn(leaf, msgspec.structs.replace(mine, child="a"), key="a", priority=10)
    hand.place("spawn-spawn")
    second = await ctx.spawn(leaf, msgspec.structs.replace(mine, child="b"), priority=10)
    hand.place("spawn-join")
    children = await asyncio.gather(first.result(), second.result())
    hand.place("join-gate")
    gate = await ctx.gate("answer", int, names="yes")
    hand.place("gate-tell")
    await ctx.step("tell", hand.tell, n, gate.token)
    hand.place("tell-wait")
    signals = await ctx.wait(ff.count(2, gate, distinct="sources"))
    hand.place("wait-sleep")
    await ctx.sleep(SLEEP_S)
    hand.place("sleep-continue")
    kept = Kept(
        charged=charged, refused=refused, shaky=shaky, count=count, parts=list(parts),
        children=list(children),
        signals=[(signal.key or "", signal.value, signal.source) for signal in signals],
    )  # fmt: skip
    raise ff.ContinueAs(Order(n=n, run=1, die=order.die, kept=kept))


@app.task(lane=LANE, retry=ff.Retry(max_attempts=1_000, backoff=0.1, max_backoff=0.3))
async def leaf(order: Order, ctx: ff.Context) -> int:
    """A child. It does not end before its parent waits for it, and the last one after the others."""
    points, epoch = _points[0], ctx.fence.lease_epoch
    points.reach(ctx.execution_id, "body:leaf/begin")
    await _until_awaited(order)
    points.book.note("ran", order.n, order.child, epoch)
    points.reach(ctx.execution_id, "body:leaf/end")
    return order.n + CHILDREN[order.child]


async def _until_awaited(order: Order) -> None:
    """Return when it may end. A slot is not for waiting: if that takes long, the child is tried again."""
    backend, parent = await app.backend(), ExecutionId(order.parent)
    asked = [ExecutionRef(parent)]
    if order.child == "b":
        asked.append(ExecutionRef(member_id(implicit_flow(parent), "a")))
    for _ in range(10):
        found = await backend.call(ReadOutcomesArgs(partition=partition_of(parent), items=asked))
        if [item.state for item in found.items] in (["blocked"], ["blocked", "completed"]):
            return
        await asyncio.sleep(0.03)
    raise ff.Failure("its parent does not wait for it yet")


async def _second(order: Order, ctx: ff.Context, hand: Hand) -> Receipt:
    """The run that begins with an empty journal."""
    await hand.emit("again")
    hand.place("again-last")
    last = await ctx.step("last", hand.last, order.n)
    hand.place("last-end")
    return Receipt(n=order.n, kept=order.kept, last=last)


harden(walk)
harden(leaf)
