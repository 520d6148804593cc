"""The programs of docs/admission.md run as they stand there, in their order, on one store."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path
from typing import Any

from ffsdk.testing import Engine

GUIDE = Path(__file__).parents[2] / "docs/admission.md"


def blocks() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", GUIDE.read_text(), re.DOTALL | re.MULTILINE)


async def run(block: str, names: dict[str, Any]) -> None:
    """One program, which may await at its top level."""
    made = eval(compile(block, str(GUIDE), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT), names)
    if inspect.isawaitable(made):
        await made


async def test_the_programs_of_the_guide_run() -> None:
    declares, *programs = blocks()
    assert len(programs) >= 8
    names: dict[str, Any] = {"__name__": "guide"}
    await run(declares, names)
    async with Engine(names["app"]) as eng:
        names["client"] = eng.client
        for program in programs:
            await run(program, names)
        last = names["last"]
        assert await last.result(timeout=30)
        assert names["first"] == names["again"] and not names["again"].created
        assert [reason.code for reason in names["explanation"].reasons if reason.code == "held"] == []
