"""RESULTS.md with its plots, and the README's one table: all of it made of `results/*.json`."""

from __future__ import annotations

import re
from pathlib import Path

import _readme
from _results import RESULTS, Column, Results, Row, Table, load

PAGE = Path(__file__).parent / "RESULTS.md"
README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- benchmarks: made by `python benchmarks/_results.py` -->", "<!-- /benchmarks -->"
BENCHMARKS = (
    "monitoring", "curvature_peers", "discovery_peers", "persistence", "geometry_distances", "homology_lazy", "curvature_edge",
)  # fmt: skip


def committed() -> dict[str, Results]:
    """Every benchmark's results that are there."""
    return {name: load(RESULTS / f"{name}.json") for name in BENCHMARKS if (RESULTS / f"{name}.json").exists()}


def number(value: float) -> str:
    """Three figures."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def cell(column: Column, row: Row) -> str:
    """A value as it is shown, with its spread where it has one."""
    if column.unit == "words":
        return row.words.get(column.name, "")
    value = row.values.get(column.name)
    if value is None:
        return ""
    if column.unit == "count":
        return f"{value.median:g}"
    spread = f" ({number(value.low)} to {number(value.high)})" if value.runs > 1 else ""
    return number(value.median) + spread


def markdown(table: Table, case: str) -> list[str]:
    """The rows of one case; columns without any value are left out."""
    rows = [row for row in table.rows if row.case == case]
    columns = [c for c in table.columns if any(cell(c, row) for row in rows)]
    units = {"s": " (s)", "MB": " (MB)", "%": " (%)", "steps": " (steps)", "x": " (x)"}
    lines = [
        f"| {case} | " + " | ".join(c.name + units.get(c.unit, "") for c in columns) + " |",
        "|---|" + "|".join("---" if c.unit == "words" else "--:" for c in columns) + "|",
    ]
    for row in rows:
        if row.failed:
            lines.append(
                f"| {row.tool} | "
                + " | ".join(["", *[""] * (len(columns) - 2), f"**{clean(row.failed)}**"][-len(columns) :])
                + " |"
            )
        else:
            lines.append(f"| {row.tool} | " + " | ".join(clean(cell(c, row)) for c in columns) + " |")
    return lines


def clean(text: str) -> str:
    """Words that a table's cell can hold, and no tag."""
    return re.sub(r"[|<>]", lambda m: {"|": "/", "<": "‹", ">": "›"}[m[0]], " ".join(text.split()))


def page(found: dict[str, Results]) -> str:
    """RESULTS.md."""
    lines = [
        "# Results",
        "",
        "Made by `python benchmarks/_results.py` of `benchmarks/results/*.json`; nothing here is typed in.",
        "",
    ]
    for result in found.values():
        lines += [
            f"## {result.benchmark}",
            "",
            f"`{result.command}`, {result.date}, {result.threads} thread; {result.machine}; at its end {result.load:g} processes "
            f"wanted the machine.{measured(result)}",
        ]
        lines += [", ".join(f"{name} {version}" for name, version in result.versions.items()) + ".", ""]
        explained = ""
        for table in result.tables:
            lines += [f"### {table.title}", ""]
            if table.explains != explained:
                explained = table.explains
                lines += [explained, ""]
            if (RESULTS / picture(table)).exists():
                lines += [f"![{table.title}](results/{picture(table)})", ""]
            for case in table.cases:
                lines += [*markdown(table, case), ""]
    return "\n".join(lines).rstrip() + "\n"


def measured(result: Results) -> str:
    """From when to when its rows were measured, where that is known."""
    dates = sorted(row.date for table in result.tables for row in table.rows if row.date)
    return f" Rows are of {dates[0]} to {dates[-1]} UTC." if dates else ""


def picture(table: Table) -> str:
    return f"{table.key}.svg"


def write_results() -> None:
    """Draw the plots and write RESULTS.md."""
    import _plots

    found = committed()
    for result in found.values():
        for table in result.tables:
            if table.key in _plots.SHOWN:
                _plots.draw(table, RESULTS / picture(table))
    PAGE.write_text(page(found), encoding="utf-8")
    print(f"written: {PAGE}")


def with_table(text: str, found: dict[str, Results]) -> str:
    """The README's text with its table made anew.

    Raises:
        ValueError: where the markers are missing.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the README has no {BEGIN} ... {END}")
    return "\n".join([before + begin, *_readme.lines(found), end + after])


def write_readme() -> None:
    """The README's table, between its markers."""
    README.write_text(with_table(README.read_text(encoding="utf-8"), committed()), encoding="utf-8")
    print(f"written: {README}")
