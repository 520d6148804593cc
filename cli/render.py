"""Output: tables for people, plain columns for pipes, lines of JSON for programs; from the same records.

The rule: a record is a dict with the same keys whatever is in it, in the order that `docs/cli.md` lists, and
only JSON carries all of them; a table shows the columns that help. Text of users is never read as markup.
"""

from __future__ import annotations

import base64
import sys
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO, cast

if TYPE_CHECKING:
    from rich.console import Console

Record = Mapping[str, Any]
WIDE = 10_000
"""Columns of a pipe: nothing is cut there."""


class Column(NamedTuple):
    """One column of a table: the record's key, its title, and how to show the value."""

    key: str
    title: str
    show: Callable[[Any], str] | None = None
    right: bool = False


STYLES = {
    "completed": "green",
    "active": "cyan",
    "failed": "bold red",
    "expired": "red",
    "cancelled": "yellow",
    "running": "cyan",
    "waiting": "",
    "skipped": "dim",
    "delayed": "dim",
    "paused": "yellow",
    "ok": "green",
    "warning": "yellow",
    "violation": "bold red",
}


def instant(ms: int | str | None) -> str | None:
    """An instant for JSON: ISO 8601 in UTC with milliseconds; None for none."""
    value = int(ms) if ms else 0
    if value <= 0:
        return None
    return datetime.fromtimestamp(value / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def moment(at: datetime | None) -> str | None:
    """The same of a datetime."""
    return None if at is None else instant(round(at.timestamp() * 1000))


def ago(now_ms: int) -> Callable[[str | None], str]:
    """How to show an instant to a person: `12s ago`, `in 3m`."""

    def show(text: str | None) -> str:
        if not text:
            return "-"
        delta = now_ms / 1000 - datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()
        return f"{span(delta)} ago" if delta >= 0 else f"in {span(-delta)}"

    return show


def span(seconds: float) -> str:
    """A span in its largest fitting unit."""
    for unit, size in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f}{unit}"
    return f"{seconds:.1f}s" if seconds < 10 else f"{seconds:.0f}s"


def size(count: float) -> str:
    """Bytes as people say them."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError("the last unit takes everything")


def plain(value: Any) -> Any:
    """A value JSON can carry: bytes become the JSON they hold, or base64 under a key that says so, as does text that is
    none (a stored digest, read as text). Mappings are looked into."""
    if isinstance(value, Mapping):
        return {key: plain(v) for key, v in cast("Record", value).items()}
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            return _base64(value.encode(errors="surrogateescape"))
        return value
    if isinstance(value, bytes):
        import json

        try:
            return json.loads(value) if value else None
        except ValueError:
            return _base64(value)
    return value


def _base64(raw: bytes) -> dict[str, str]:
    return {"base64": base64.b64encode(raw).decode()}


def cell(value: Any) -> str:
    """A value in a table."""
    if value is None or value == "" or value == {} or value == []:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return printable(" ".join(f"{k}={v}" for k, v in cast("Record", value).items()))
    if isinstance(value, list | tuple | frozenset | set):
        return printable(",".join(str(v) for v in cast("Iterable[Any]", value)))
    return printable(str(value))


def printable(text: str) -> str:
    """Users' text without what would move a terminal's cursor or break a row."""
    return "".join(c if c.isprintable() else "\\n" if c == "\n" else f"\\x{ord(c):02x}" for c in text)


def encodes(text: str, stream: TextIO) -> bool:
    """Whether a stream takes the text as it is."""
    try:
        text.encode(getattr(stream, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        return False
    return True


class Out:
    """One command's standard output."""

    def __init__(
        self, *, json: bool, stream: TextIO | None = None, color: bool = True, width: int | None = None
    ) -> None:
        self.json, self.stream = json, stream or sys.stdout
        self.tty = self.stream.isatty()
        self.color, self._width = color, width
        self._above: Console | None = None
        """Prints above a progress bar while there is one."""

    def console(self) -> Console:
        from rich.console import Console

        # No colours means no escapes at all, bold ones neither. A pipe is not cut at a width.
        width = self._width or (None if self.tty else WIDE)
        return Console(
            file=self.stream,
            color_system="auto" if self.color else None,
            width=width,
            markup=False,
            highlight=False,
            emoji=False,
        )

    def record(self, record: Record, title: str = "", shown: Sequence[Column] | None = None) -> None:
        """One thing: two columns of names and values, or one JSON object."""
        if self.json:
            return self.line(record)
        columns = shown or [Column(key, key.replace("_", " ")) for key in record]
        pairs = [{"name": c.title, "value": c.show(record[c.key]) if c.show else record[c.key]} for c in columns]
        self.rows(pairs, [Column("name", title or "field"), Column("value", "")])

    def line(self, record: Record) -> None:
        """One JSON object on its own line, sent at once so that a reader of a pipe need not wait."""
        import json

        text = json.dumps(record, ensure_ascii=False, separators=(",", ":"))
        # What the stream cannot carry (half a surrogate pair, an ASCII locale) leaves as JSON's own escape.
        self.stream.write(text if encodes(text, self.stream) else json.dumps(record, separators=(",", ":")))
        self.stream.write("\n")
        self.stream.flush()

    def rows(self, records: Iterable[Record], columns: Sequence[Column], *, empty: str = "") -> int:
        """Many things of a kind; answers how many there were. `empty` is what people are told if none."""
        n = 0
        if self.json:
            for n, record in enumerate(records, 1):  # noqa: B007
                self.line(record)
            return n
        found = list(records)
        if found:
            self.console().print(self.table(found, columns))
        elif empty:
            self.say(empty)
        return len(found)

    def table(self, records: Sequence[Record], columns: Sequence[Column], title: str | None = None) -> Any:
        from rich import box
        from rich.table import Table
        from rich.text import Text

        table = Table(
            box=box.SIMPLE_HEAD if self.tty else None,
            title=title,
            title_justify="left",
            header_style="bold",
            pad_edge=False,
            show_edge=False,
        )
        for column in columns:
            # An id is copied with the mouse: it is folded rather than cut.
            table.add_column(Text(column.title), justify="right" if column.right else "left", overflow="fold")
        for record in records:
            values = [(column, record[column.key]) for column in columns]
            texts = [printable(column.show(value)) if column.show else cell(value) for column, value in values]
            table.add_row(*(Text(text, style=STYLES.get(text, "")) for text in texts))
        return table

    def styled(self, lines: Iterable[Sequence[str]], styles: Mapping[str, str]) -> None:
        """Lines of parts with a space between them, where a part that names a state has its style; uncut."""
        from rich.text import Text

        if not self.tty:
            self.stream.writelines(" ".join(filter(None, parts)) + "\n" for parts in lines)
            return
        console = self.console()
        for parts in lines:
            texts = [Text(part, style=styles.get(part, "")) for part in parts if part]
            console.print(Text(" ").join(texts), soft_wrap=True)

    def say(self, text: str) -> None:
        """A sentence for a person; programs get none."""
        if not self.json:
            (self._above or self.console()).print(text, soft_wrap=True, markup=False, highlight=False)

    @contextmanager
    def progress(self, what: str, total: int | None) -> Generator[Callable[[int], None]]:
        """A progress bar on a terminal's stderr; elsewhere nothing. Yields `advance(n)`."""
        if self.json or not sys.stderr.isatty():
            yield lambda n: None
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        console = Console(stderr=True, color_system="auto" if self.color else None)
        with Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console
        ) as bar:
            task = bar.add_task(what, total=total)
            self._above = bar.console
            try:
                yield lambda n: bar.advance(task, n)
            finally:
                self._above = None
