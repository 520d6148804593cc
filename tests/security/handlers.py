"""A task in a module, where a child process can import it."""

from __future__ import annotations

import time

import ffsdk as ff

app = ff.App()


@app.task(isolation="process")
def wait(seconds: float) -> None:
    time.sleep(seconds)
