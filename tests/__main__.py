"""`python -m tests [pytest arguments]`: the suite, in two processes side by side unless arguments narrow it.

One half keeps a processor busy with Lua, the other mostly waits for real time to pass; after each other they would take
half as long again. What the second prints is shown when it has ended.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from typing import Final

ELSEWHERE: Final = ("tests/packaging", "tests/chaos", "tests/cluster")
"""Targets of their own."""
LUA: Final = ("tests/lua", "tests/conformance", "tests/security")


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "pytest", "-q", *words]


def apart(paths: tuple[str, ...]) -> list[str]:
    return [f"--ignore={path}" for path in paths]


def main(arguments: list[str]) -> int:
    if arguments:
        return subprocess.run(command(*apart(ELSEWHERE), *arguments), check=False).returncode
    with tempfile.TemporaryFile() as said:
        # Caches apart: each would take the other's for its own last run.
        other = subprocess.Popen(
            command("-o", "cache_dir=.pytest_cache/rest", *apart(ELSEWHERE + LUA)),
            stdout=said, stderr=subprocess.STDOUT,
        )
        try:
            one = subprocess.run(command("-o", "cache_dir=.pytest_cache/lua", *LUA), check=False).returncode
            two = other.wait()
        finally:
            other.kill()
        said.seek(0)
        sys.stdout.flush()
        sys.stdout.buffer.write(said.read())
    return one or two


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
