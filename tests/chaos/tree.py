"""A copy of the code, to run processes from: fixed while the tree is edited, or changed on purpose."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
ROOMS: Final = {
    "ffcore": "ffcore", "ffbackend_valkey": "ffbackend_valkey", "ffengine": "ffengine", "ffsdk": "ffsdk",
    "cli": "ffcli", "lua": "lua", "tests/chaos": "tests/chaos",
}  # fmt: skip
"""What is copied, and under which name it is imported."""


def copy_tree(to: Path, *files: str) -> Path:
    """The rooms, and single files by their paths. Put the answer on PYTHONPATH."""
    for source, target in ROOMS.items():
        shutil.copytree(ROOT / source, to / target, ignore=shutil.ignore_patterns("__pycache__"))
    for file in files:
        (to / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, to / file)
    return to


def change(file: Path, find: str, put: str) -> None:
    """Replace a text that must be there exactly once."""
    text = file.read_text()
    if text.count(find) != 1:
        raise ValueError(f"{file} has {find[:60]!r} {text.count(find)} times, expected once: adapt the change")
    file.write_text(text.replace(find, put))
