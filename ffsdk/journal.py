"""What a handler has recorded, as one run of it sees that: which entry answers which call, and which nobody asked for.

The rule: an entry belongs to a name, a digest of arguments, and how many such calls came before. So calls may come in
any order, as in a gather, and two equal ones are told apart.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from ffcore.steps import JournalEntry, step_key

Entries = list[JournalEntry]
OURS: Final = ("budget {b:", "quota {q:")
"""What the names of entries begin with that a job's waits for a higher limit leave (`ffsdk.approval`). No handler asks
for them."""


class _Name:
    """What is known of all calls of one name."""

    __slots__ = ("asked", "claimed_n", "flying_n", "recorded")

    def __init__(self) -> None:
        self.asked: dict[str, int] = {}
        """Calls so far, by digest."""
        self.recorded: Entries = []
        """Entries of earlier runs that say something must not be done again."""
        self.claimed_n = 0
        """How many of these this run has asked for."""
        self.flying_n = 0
        """Calls under way."""


class Journal:
    """The entries of one execution. Not shared between runs: a handler that runs again gets a new one."""

    def __init__(self, entries: Iterable[JournalEntry] = ()) -> None:
        self._entries: dict[str, JournalEntry] = {}
        self._names: dict[str, _Name] = {}
        self._claimed: set[str] = set()
        self.read_n = 0
        """Entries read so far."""
        self.add(entries)

    def add(self, entries: Iterable[JournalEntry]) -> None:
        """Take in more of what earlier runs recorded."""
        for entry in entries:
            self.read_n += 1
            self._entries[entry.key] = entry
            if entry.status != "error":
                # A failed try is nothing to go on from: it stands against no other arguments.
                self._of(entry.name).recorded.append(entry)

    def key(self, name: str, digest: str) -> str:
        """The key of the next call of this name and digest; in the order in which the handler makes them."""
        asked = self._of(name).asked
        occurrence = asked.get(digest, 0)
        asked[digest] = occurrence + 1
        return step_key(name, digest, occurrence)

    def claim(self, name: str, key: str) -> JournalEntry | None:
        """The entry that answers a call, if there is one."""
        entry = self._entries.get(key)
        if entry is not None and key not in self._claimed:
            self._claimed.add(key)
            if entry.status != "error":
                self._of(name).claimed_n += 1
        return entry

    def find(self, key: str) -> JournalEntry | None:
        """The entry of a key, for who asks beside the handler."""
        return self._entries.get(key)

    def stands_against(self, name: str) -> Entries:
        """Entries of earlier runs under this name, none of which this run has asked for: with another call of the name
        and nothing under way that could still ask, code and journal disagree."""
        known = self._of(name)
        return [] if known.claimed_n else known.recorded

    def unclaimed(self) -> Entries:
        """Entries of earlier runs that this run did not ask for, in the order they were recorded."""
        return [entry for entry in self._entries.values() if entry.key not in self._claimed and entry.status != "error"]

    # ---- what is under way

    def begin(self, name: str) -> None:
        self._of(name).flying_n += 1

    def end(self, name: str) -> None:
        self._of(name).flying_n -= 1

    def others_fly(self, name: str) -> bool:
        """Whether another call of this name is under way beside the one that asks."""
        return self._of(name).flying_n > 1

    def _of(self, name: str) -> _Name:
        known = self._names.get(name)
        if known is None:
            known = self._names[name] = _Name()
        return known
