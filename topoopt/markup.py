"""Results as small pieces of HTML, for notebooks: text is escaped, whatever it holds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any, Protocol

COLOURS = {
    "right": "#0b6336",
    "too low": "#7d4a00",
    "at the edge": "#7d4a00",
    "too high": "#a0161f",
    "collapsed": "#a0161f",
}
"""Of a verdict's word, as on the report's page; any other word has none."""


def facts(title: str, pairs: Mapping[str, Any]) -> str:
    """A titled table of names and values."""
    rows = "".join(
        f"<tr><th style='text-align:left'>{escape(name)}</th><td style='text-align:left'>{escape(str(value))}</td></tr>"
        for name, value in pairs.items()
    )
    return f"<table><caption style='text-align:left'><b>{escape(title)}</b></caption>{rows}</table>"


def table(title: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows under their columns; the title alone for no rows."""
    head = "".join(f"<th>{escape(name)}</th>" for name in (rows[0] if rows else ()))
    body = "".join("<tr>" + "".join(f"<td>{escape(str(v))}</td>" for v in row.values()) + "</tr>" for row in rows)
    return f"<table><caption style='text-align:left;white-space:nowrap'>{escape(title)}</caption><tr>{head}</tr>{body}</table>"


class Scale(Protocol):
    """What `scale` draws: a verdict's gauge."""

    @property
    def ratio(self) -> float:
        """The run's."""
        ...

    @property
    def band(self) -> tuple[float, float]:
        """Good values."""
        ...

    @property
    def aside(self) -> str:
        """What else there is to say of it."""
        ...

    @property
    def ticks(self) -> tuple[float, ...]:
        """Values that are named under the scale."""
        ...

    def place(self, value: float) -> float:
        """Where a value lies: 0 is the left end, 1 the right one."""
        ...


def scale(one: Scale) -> str:
    """A scale of r/e as a small SVG: the band a dashed box, the edge a line, the run a diamond; its `str` is the text instead."""
    left, right = 20, 400

    def at(value: float) -> float:
        return round(left + (right - left) * one.place(value), 1)

    low, high, run, edge = at(one.band[0]), at(one.band[1]), at(one.ratio), at(1.0)
    ticks = "".join(
        f"<text x='{at(tick)}' y='36' text-anchor='middle' font-size='11' fill='currentColor'>{tick:g}</text>"
        for tick in one.ticks
    )
    drawn = (
        f"<path d='M{left} 15H{right}' stroke='currentColor' opacity='.6'/>"
        f"<rect x='{low}' y='8' width='{high - low:.1f}' height='14' fill='none' stroke='currentColor' stroke-dasharray='4 2'/>"
        f"<path d='M{edge} 3V27' stroke='currentColor' stroke-width='2'/>"
        f"<path d='M{run} 7l7 8l-7 8l-7 -8z' fill='#1f5fbf' stroke='#fff'/>{ticks}"
    )
    meaning = "r/e: the diamond is this run, the box the band of good rates, the line at 1 the edge of stability"
    return (
        f"<svg width='420' height='42' viewBox='0 0 420 42' role='img' aria-label='{escape(str(one))}'>{drawn}</svg>"
        f"<div style='font-size:.85em'>{meaning}{'; ' + one.aside if one.aside else ''}</div>"
    )


def verdict(state: str, lines: Iterable[str], gauge: Scale | None = None) -> str:
    """A verdict: its word, the lines under it, and the scale where there is one."""
    word = f"<b style='font-size:1.15em;color:{COLOURS.get(state, 'inherit')}'>{escape(state)}</b>"
    said = "".join(f"<div style='margin:.25em 0'>{escape(line)}</div>" for line in lines)
    border = f"border-left:4px solid {COLOURS.get(state, '#7a828d')};padding:.3em .8em;margin:.4em 0;max-width:60em"
    return f"<div style='{border}'>{word}{said}{scale(gauge) if gauge is not None else ''}</div>"
