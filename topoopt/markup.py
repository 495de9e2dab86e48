"""Results as small pieces of HTML, for notebooks: text is escaped, whatever it holds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

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


def verdict(state: str, lines: Iterable[str]) -> str:
    """A verdict: its word, and the lines under it."""
    word = f"<b style='font-size:1.15em;color:{COLOURS.get(state, 'inherit')}'>{escape(state)}</b>"
    said = "".join(f"<div style='margin:.25em 0'>{escape(line)}</div>" for line in lines)
    border = f"border-left:4px solid {COLOURS.get(state, '#7a828d')};padding:.3em .8em;margin:.4em 0;max-width:60em"
    return f"<div style='{border}'>{word}{said}</div>"
