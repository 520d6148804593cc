"""What a simulation raises when something is not as it must be."""

from __future__ import annotations


class Violation(Exception):
    """`kind` tells failures of one cause from others while a trace is shrunk; `text` says what was found."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(f"{kind}: {text}")
        self.kind, self.text = kind, text

    def __reduce__(self) -> tuple[type[Violation], tuple[str, str]]:
        """It travels from the process that found it."""
        return Violation, (self.kind, self.text)
