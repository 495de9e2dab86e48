"""Where commands speak: tables and bars drawn by rich on a terminal that can show them, plain lines anywhere else."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TextIO

STYLES = {
    "constrained": "green",
    "permissive": "yellow",
    "simplification": "red",
    "right": "green",
    "too low": "yellow",
    "at the edge": "yellow",
    "too high": "red",
    "collapsed": "red",
}
"""Words that have a colour; they are told in words all the same."""
NARROWEST = 8
"""Characters that a column of text keeps on a screen that is too narrow for it."""


class Terminal:
    """One stream to speak to, stdout where none is given. Text is cleaned of control characters, which records may hold."""

    def __init__(self, stream: TextIO | None = None, *, quiet: bool = False) -> None:
        self.stream = sys.stdout if stream is None else stream
        self.quiet = quiet
        self.console: Any = None if quiet else _console(self.stream)

    @property
    def width(self) -> int:
        """Columns: of the terminal, or 80."""
        return self.console.width if self.console is not None else shutil.get_terminal_size((80, 24)).columns

    def say(self, text: str = "", style: str = "") -> None:
        """Print lines as they stand; nothing when quiet."""
        if self.quiet:
            return
        text = "\n".join(clean(line) for line in text.split("\n"))
        if self.console is None:
            print(text, file=self.stream, flush=True)
        else:
            self.console.print(text, style=style or None, markup=False, highlight=False, soft_wrap=True)

    def paragraph(self, text: str, style: str = "") -> None:
        """Print a sentence: broken between words where it is wider than a terminal; as one line anywhere else."""
        if self.stream.isatty():
            text = textwrap.fill(clean(text), self.width, break_long_words=False, break_on_hyphens=False)
        self.say(text, style)

    def table(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Print rows under their columns, as wide as the screen; nothing for no rows."""
        if not rows or self.quiet:
            return
        if self.console is None:
            for line in plain_table(rows, self.width):
                print(line, file=self.stream)
            self.stream.flush()
        else:
            self.console.print(rich_table(rows, self.width))

    @contextlib.contextmanager
    def progress(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        """A bar while something long is done: yields a function that takes how much is. Only on a terminal."""
        if self.console is None:
            yield lambda done: None
            return
        from rich.progress import Progress

        with Progress(console=self.console, transient=True) as bar:
            task = bar.add_task(clean(what), total=total)
            yield lambda done: bar.update(task, completed=done)


def plain_table(rows: Sequence[Mapping[str, Any]], width: int) -> list[str]:
    """Rows as aligned lines of text: numbers to the right, text to the left and shortened where the screen is too narrow."""
    names = list(rows[0])
    cells = [names, *[[cell(row[name]) for name in names] for row in rows]]
    right = [_is_numeric(rows, name) for name in names]
    widths = fitting(rows, width)
    return ["  ".join(_fitted(line[k], widths[k], right[k]) for k in range(len(names))).rstrip() for line in cells]


def fitting(rows: Sequence[Mapping[str, Any]], width: int) -> list[int]:
    """The width of each column: as wide as its cells; of those of text the widest is narrowed until the table fits the screen."""
    names = list(rows[0])
    widths = [max(len(str(name)), *(len(cell(row[name])) for row in rows)) for name in names]
    texts = [k for k, name in enumerate(names) if not _is_numeric(rows, name)]
    while texts and sum(widths) + 2 * (len(names) - 1) > width:
        widest = max(texts, key=lambda k: widths[k])
        if widths[widest] <= NARROWEST:
            break
        widths[widest] -= 1
    return widths


def rich_table(rows: Sequence[Mapping[str, Any]], screen: int = 80) -> Any:
    """The same as rich's table, with colours where a word has one."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 1))
    for name, width in zip(rows[0], fitting(rows, screen), strict=True):
        justify = "right" if _is_numeric(rows, name) else "left"
        table.add_column(Text(clean(str(name))), justify=justify, no_wrap=True, overflow="ellipsis", width=width)
    for row in rows:
        table.add_row(*(Text(cell(value), style=STYLES.get(str(value), "")) for value in row.values()))
    return table


def cell(value: Any) -> str:
    """One value for people: four digits, "-" for what is not known."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else clean(str(value))


def clean(text: str) -> str:
    """Text without what would move a terminal's cursor or change its colours: such characters are written as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def can_be_live(stream: TextIO) -> bool:
    """Whether lines can be drawn over: a terminal, and no dumb one."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def _console(stream: TextIO) -> Any:
    """rich's console for a terminal that can show it; None anywhere else, and where rich is not installed."""
    if not can_be_live(stream):
        return None
    try:
        from rich.console import Console
    except ImportError:
        return None
    return Console(file=stream)


def _is_numeric(rows: Sequence[Mapping[str, Any]], name: str) -> bool:
    return all(isinstance(row[name], int | float) or row[name] is None for row in rows)


def _fitted(text: str, width: int, right: bool) -> str:
    text = text if len(text) <= width else f"{text[: width - 1]}…"
    return text.rjust(width) if right else text.ljust(width)
