"""An external callback: a provider takes its time and posts to our web hook, more than once, as providers do.

python -m examples.callback
"""

from __future__ import annotations

import asyncio
import json
import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer

import ffsdk as ff

app = ff.App()


class Payment(ff.Payload):
    order_id: str
    cents: int


class Settled(ff.Payload):
    reference: str


class Hook(BaseHTTPRequestHandler):
    """The web hook: the token in the path finds the job; the event's id makes repeats harmless."""

    def do_POST(self) -> None:
        event = json.loads(self.rfile.read(int(self.headers["content-length"])))
        try:
            with ff.sync.Client(app.url) as client:
                client.signal(
                    self.path.removeprefix("/hook/"), Settled(event["reference"]), name="settled", key=event["id"],
                    source="provider",
                )  # fmt: skip
            self.send_response(204)
        except ff.Rejected as refused:
            self.send_response(403 if isinstance(refused, ff.InvalidToken) else 409)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


def provider(callback_url: str, order_id: str) -> None:
    """Somebody else's system: answers later, twice."""
    body = json.dumps({"id": f"evt-{order_id}", "reference": f"ref-{order_id}"}).encode()
    for _ in range(2):
        with urllib.request.urlopen(urllib.request.Request(callback_url, body, method="POST")) as answer:
            print(f"provider: {answer.status}")


@app.task(lane="payments")
async def charge(payment: Payment, ctx: ff.Context) -> str:
    gate = await ctx.gate("settled", Settled)

    def begin() -> str:
        threading.Timer(0.2, provider, (f"http://127.0.0.1:{port}/hook/{gate.token}", payment.order_id)).start()
        return "begun"

    await ctx.step("begin", begin)
    settled = await gate.wait(timeout=600)
    assert settled is not None
    return f"{payment.order_id} settled as {settled.reference}"


server = HTTPServer(("127.0.0.1", 0), Hook)
port = server.server_port


async def main() -> None:
    threading.Thread(target=server.serve_forever, daemon=True).start()
    worker = app.worker()
    running = asyncio.create_task(worker.run())
    async with app.client() as client:
        job = await client.submit(charge, Payment("81", 4200))
        print(await job.result(timeout=30))
        await asyncio.sleep(0.5)  # the provider's second post
    await worker.stop()
    await running
    server.shutdown()


if __name__ == "__main__":
    asyncio.run(main())
