"""Records as one HTML page that needs nothing else: verdict, run, timeline, layers, words, and the data themselves.

The page is a jinja template (autoescaped), a style sheet and a script drawn with D3, all in one file; a Content Security
Policy lets these run and nothing else, and no request leaves the page. What a record says reaches the page as text or as
JSON whose `<`, `>`, `&` and quotes are escaped, never as markup.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

from topoopt.errors import ConfigError
from topoopt.report.page.cards import card, differences, layers
from topoopt.report.page.course import course_of, in_words
from topoopt.report.page.layers import METRICS, details, heat_map
from topoopt.report.page.left_out import left_out
from topoopt.report.page.runs import RunView, views
from topoopt.report.page.timeline import timeline
from topoopt.report.page.values import spread
from topoopt.report.page.words import GLOSSARY
from topoopt.report.record import Record
from topoopt.verdict.numbers import number as brief

if TYPE_CHECKING:
    from jinja2 import Environment

LARGEST = 3_000_000
"""Bytes of a page: what a mail carries without complaint."""
SCRIPTS = ("format.js", "charts.js", "timeline.js", "heatmap.js", "layer.js", "course.js", "download.js", "main.js")


@dataclass(frozen=True)
class Limits:
    """How much of each run is embedded."""

    points: int = 1500
    """Steps of the timeline."""
    columns: int = 120
    """Steps of the heat map."""
    layers: int = 150
    editions: int = 12
    """Steps of one layer's diagrams."""
    bars: int = 300
    """Bars of one degree of one diagram."""

    def shrinking(self) -> Iterator[Limits]:
        """Yield ever smaller limits; bars and diagrams' steps go first, since pictures of many show least of each."""
        yield self
        for bars, editions in ((150, 8), (80, 5), (40, 4), (24, 3)):
            yield replace(self, bars=bars, editions=editions)
        for halvings in range(1, 6):
            points, columns, layers = (one >> halvings for one in (self.points, self.columns, self.layers))
            yield Limits(max(points, 60), max(columns, 12), max(layers, 4), editions=2, bars=12)


def page(records: Record | Sequence[Record]) -> str:
    """Return the page of one or several records as text, at most `LARGEST` bytes of UTF-8.

    Raises:
        ConfigError: for no record at all, or when even the least of the runs does not fit.
    """
    found, notes = views([records] if isinstance(records, Record) else records)
    if not found:
        raise ConfigError("a report needs at least one run")
    for limits in Limits().shrinking():
        text = _render(found, limits, list(notes))
        if len(text.encode()) <= LARGEST:
            return text
    raise ConfigError(f"{len(found)} runs do not fit a page of {LARGEST:,} bytes: report fewer at a time")


def _render(found: list[RunView], limits: Limits, notes: list[str]) -> str:
    runs = [_embedded(view, limits, notes) for view in found]
    cards = [card(view) for view in found]
    data = {
        "runs": runs,
        "metrics": [{"key": m.key, "label": m.label, "meaning": m.meaning, "log": m.log} for m in METRICS],
    }
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            title=", ".join(view.name for view in found),
            cards=cards,
            differences=differences(cards),
            tables=[(view.name, *layers(view, limits.layers)) for view in found],
            marks=[(run["name"], run["timeline"]["marks"]) for run in runs],
            courses=any(run["course"] for run in runs),
            left_out=left_out(found, notes),
            glossary=GLOSSARY,
            data=_json(data),
            **_assets(),
        )
    )


def _embedded(view: RunView, limits: Limits, notes: list[str]) -> dict[str, Any]:
    return {
        "name": view.name,
        "timeline": timeline(view, limits.points, notes),
        "heat": heat_map(view, limits.layers, limits.columns, notes),
        "details": details(view, limits.layers, limits.editions, limits.bars, notes),
        "course": _course(view, limits.points, notes),
    }


def _course(view: RunView, points: int, notes: list[str]) -> dict[str, Any] | None:
    """The looks of a policy that simplified, at most `points` of them; None for a run without."""
    found = course_of(view.decisions)
    if found is None:
        return None
    kept = spread(len(found.steps), points)
    if len(kept) < len(found.steps):
        notes.append(f"{view.name}: {len(kept)} of {len(found.steps)} looks of the simplification, evenly spaced")
    columns = {"step": found.steps, "dose": found.doses, "loss": found.losses}
    measures = {in_words(name): [values[k] for k in kept] for name, values in found.measures.items()}
    start = {in_words(name): value for name, value in found.start.items()}
    return {name: [values[k] for k in kept] for name, values in columns.items()} | {
        "measures": measures,
        "start": start,
        "ended": found.ended,
    }


def _json(data: Any) -> Any:
    """JSON that no markup can be read out of, whatever its strings hold."""
    from jinja2.utils import htmlsafe_json_dumps

    return htmlsafe_json_dumps(data, dumps=json.dumps, separators=(",", ":"), allow_nan=False)


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("topoopt.report")
    made = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    made.filters["brief"] = brief
    return made


@cache
def _assets() -> dict[str, Any]:
    """The style sheet and the scripts as they stand in the package, with the policy that allows them alone."""
    from markupsafe import Markup

    # XML's namespaces are named like addresses; written so, JavaScript reads the same, and the page holds no address at all
    library = f"/*\n{_file('d3.LICENSE')}*/\n{_file('d3.min.js')}".replace("://", ":\\/\\/")
    style = _file("page.css")
    script = "(() => {\n'use strict';\n" + "\n".join(_file(name) for name in SCRIPTS) + "})();\n"
    allowed = " ".join(_digest(one) for one in (library, script))
    policy = (
        f"default-src 'none'; script-src {allowed}; style-src {_digest(style)}; img-src data:; base-uri 'none'; "
        "form-action 'none'"
    )
    return {"style": Markup(style), "library": Markup(library), "script": Markup(script), "policy": policy}


def _file(name: str) -> str:
    return (resources.files("topoopt.report") / "templates" / name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
