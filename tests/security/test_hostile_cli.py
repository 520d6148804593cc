"""Hostile words on the command line: a message and an exit code, no traceback, nothing half-written, nothing that
steers the terminal of whoever lists it."""

from __future__ import annotations

import asyncio
import io
import re
import sys
from collections.abc import Callable

import pytest

import ffsdk as ff
from ffcli.main import main
from tests.security import hostile

VERBS: dict[str, Callable[[str], list[str]]] = {
    "task": lambda v: ["submit", v, "{}", "--lane", "mail"],
    "payload": lambda v: ["submit", "t", v, "--lane", "mail"],
    "lane": lambda v: ["submit", "t", "{}", "--lane", v],
    "key": lambda v: ["submit", "t", "{}", "--lane", "mail", "--key", v],
    "tag": lambda v: ["submit", "t", "{}", "--lane", "mail", "--tag", v],
    "delay": lambda v: ["submit", "t", "{}", "--lane", "mail", "--delay", v],
    "priority": lambda v: ["submit", "t", "{}", "--lane", "mail", "--priority", v],
    "id": lambda v: ["job", "show", v],
    "id to cancel": lambda v: ["job", "cancel", v],
    "list tag": lambda v: ["job", "list", "--tag", v],
    "list lane": lambda v: ["job", "list", "--lane", v],
    "list state": lambda v: ["job", "list", "--state", v],
    "namespace": lambda v: ["job", "list", "--namespace", v],
    "hold": lambda v: ["hold", "--task", v],
    "lane to pause": lambda v: ["lane", "pause", v],
    "revoke": lambda v: ["lease", "revoke", v],
    "url": lambda v: ["job", "list", "--url", v],
    "verb": lambda v: [v],
    "option": lambda v: ["job", "list", v],
}


@pytest.mark.parametrize("name", VERBS)
def test_a_hostile_word_gets_a_message_and_an_exit_code(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FF_URL", "memory://hostile-cli")
    monkeypatch.setenv("FF_QUIET", "1")
    monkeypatch.delenv("FF_DEV", raising=False)
    # What a shell cannot pass is left out: no argv holds a NUL or half a surrogate pair. The rest takes turns, verb by
    # verb: each command opens a store of its own.
    words = [text for text in hostile.TEXTS if "\0" not in text and not re.search("[\ud800-\udfff]", text)]
    words = words[list(VERBS).index(name) % 4 :: 4]
    for value in words:
        if name == "url" and value.lower().startswith(("embedded:", "valkey:")):
            continue
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
        with pytest.raises(SystemExit) as ended:
            main(VERBS[name](value))
        said = capsys.readouterr()
        assert ended.value.code in (0, 1, 2, 3), (value, said.err)
        assert ended.value.code == 0 or said.err.strip(), "a refusal says why"
        assert "Traceback" not in said.err


def test_what_a_job_is_called_does_not_steer_the_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tag values and reasons are free text: tables show them without their control characters."""
    monkeypatch.setenv("FF_QUIET", "1")
    monkeypatch.setenv("FF_URL", "memory://steering")

    async def submit() -> str:
        async with ff.connect("memory://steering") as client:
            job = await client.submit("t", "\x1b[2Jpayload", lane="mail", tags={"a.b": "x\x1b[2Jy\r\nff: all is well"})
            await job.cancel("\x1b]0;title\x07 because")
            return job.id

    id = asyncio.run(submit())
    shown = (["job", "show", id], ["job", "list"], ["job", "explain", id], ["job", "result", id], ["top", "--once"])
    for words in shown:
        with pytest.raises(SystemExit):
            main(words)
        said = capsys.readouterr()
        assert "\x1b" not in said.out + said.err and "\x07" not in said.out + said.err, words
