"""The README's one table: ours and every peer, a row a tool; where a peer is better the row has to say why, or making it fails."""

from __future__ import annotations

import re
from dataclasses import dataclass

from _results import Results, Row, Table


@dataclass(frozen=True)
class Part:
    """Some rows of the table, of one committed table."""

    what: str
    benchmark: str
    table: str
    cases: tuple[str, ...]
    time: str
    """The column that is the time, and its unit in words."""
    unit: str
    memory: str
    right: str
    """The column of how right it is: an error in %, a count of "models", or words."""
    ours: str
    """The row of topoopt's that peers are held against."""
    exact: str = ""
    """The same for how right it is, where that is another."""


PARTS = (
    Part(
        "Watching a run, one event in 100 steps: % of the run's time", "monitoring", "monitoring",
        ("MLP", "CNN", "GPT-2", "MiniLM, Trainer"), "of a run", "%", "peak memory", "error", "topoopt, defaults", "topoopt, r",
    ),
    Part(
        "Top eigenvalue to 1 %: time in forward and backward passes, products", "curvature_peers", "curvature",
        ("MLP", "CNN", "tiny GPT-2", "tiny BERT"), "time to 1 %", "x", "", "products to 1 %", "topoopt, warm",
    ),
    Part(
        "Interchangeable units: seconds a model, models all right", "discovery_peers", "discovery",
        ("zoo", "torchvision", "timm"), "seconds a model", "s", "", "right", "topoopt",
    ),
    Part(
        "H0 from points, times the bare product", "persistence", "h0",
        ("n = 1,024, d = 257", "n = 2,048, d = 513", "n = 4,096, d = 1,537"),
        "times the first", "x", "memory", "difference", "topoopt",
    ),
    Part(
        "H0 and H1 from distances, times ripser.py", "persistence", "h1",
        ("n = 512, d = 64", "n = 1,024, d = 64", "n = 2,048, d = 64"), "times the first", "x", "memory", "difference", "topoopt",
    ),
    Part(
        "Bottleneck distance of two diagrams, seconds", "persistence", "bottleneck",
        ("H1 of 300 points in 16 dimensions", "2,768 points each, drawn at random"), "seconds", "s", "", "difference", "topoopt",
    ),
)  # fmt: skip

BOUNDS = ("X X^T",)
"""Rows that are no peer: what topoopt is measured in."""
NOTHING = "it keeps nothing between calls"
WHY: dict[tuple[str, str], str] = {
    (
        "monitoring",
        "PyHessian",
    ): f"{NOTHING}, and takes as many products each time as its tolerance asks for; a reading of r takes one to six",
    (
        "monitoring",
        "hessian-eigenthings",
    ): f"{NOTHING}, and takes ten products each time, as called here; a reading of r takes one to six",
    ("monitoring", "batch sharpness"): NOTHING,
    (
        "monitoring",
        "wandb.watch(log='all')",
    ): "it counts what is there, and takes no product; in a short run most of topoopt's readings are on credit",
    ("monitoring", "topological-adam"): "it finds out nothing beside its own state",
    ("monitoring", "topoadamw"): "it keeps two random directions and no more",
    (
        "monitoring",
        "Cockpit, economy",
    ): "its quantities are of gradients that are there, and take no product with the Hessian",
    ("monitoring", "Cockpit, full"): "it iterates to the end, at the price beside it",
    (
        "curvature",
        "hessian-eigenthings",
    ): "a call on a network this small is set-up more than products, and topoopt's is the larger",
    (
        "curvature",
        "PyHessian",
    ): "a call on a network this small is set-up more than products, and topoopt's is the larger",
    ("discovery", "Torch-Pruning"): "it follows the graph of one backward pass, and verifies nothing",
    ("h0", "scipy linkage"): "it never holds all distances at once",
    ("h0", "redzed-tda"): "it is given topoopt's distances and copies less of them",
    ("h1", "redzed-tda"): "it is what topoopt calls, without the check of the distances and the copy into a result",
    ("h1", "gudhi"): "fewer copies of the distances; it is slower",
    ("h1", "giotto-ph"): "fewer copies of the distances; it is slower",
    ("bottleneck", "hera in gudhi, exact"): "a geometric search in compiled code, in place of all pairs",
    (
        "bottleneck",
        "gudhi (CGAL, GPL)",
    ): "a geometric search in place of all pairs; it is GPL, and was wrong on 3 of 2,000 small diagrams",
}
"""(table, tool) -> why it is better than topoopt in something."""


def lines(found: dict[str, Results]) -> list[str]:
    """The table.

    Raises:
        ValueError: where a peer is better and `WHY` has no word of it.
    """
    made = [
        "| what, on which cases | tool | time | memory | right | where a peer is better, and why |",
        "|---|---|--:|--:|--:|---|",
    ]
    for part in PARTS:
        if part.benchmark not in found or not any(t.key == part.table for t in found[part.benchmark].tables):
            continue
        table = found[part.benchmark].table(part.table)
        cases = [case for case in dict.fromkeys(_case(table, wanted) for wanted in part.cases) if case]
        head = f"**{part.what}** ({'; '.join(cases)})"
        for tool in sorted(table.tools, key=lambda tool: not tool.startswith(("topoopt", *BOUNDS))):
            rows = [_row(table, case, tool) for case in cases]
            made.append(f"| {head} | {tool} | {' | '.join(_cells(part, rows))} | {_remark(part, table, cases, tool)} |")
            head = ""
    return made


def _case(table: Table, wanted: str) -> str:
    """The case of that name, or of those that begin with it the fullest; empty where there is none."""
    if wanted in table.cases:
        return wanted
    cases = [case for case in table.cases if case.startswith(f"{wanted}, ")]
    return next((case for case in cases if case.startswith(f"{wanted}, all")), cases[0] if cases else "")


def _row(table: Table, case: str, tool: str) -> Row | None:
    return next((row for row in table.rows if (row.case, row.tool) == (case, tool)), None)


def _short(value: float) -> str:
    return f"{value:.2g}" if value < 100 else f"{value:,.0f}"


def _number(row: Row | None, column: str, suffix: str = "") -> str:
    if row is None:
        return "-"
    if row.failed:
        return "fails" if "no answer" not in row.failed and "no end" not in row.failed else "no end"
    value = row.values.get(column)
    if value is None:
        return row.words.get(column, "-") or "-"
    return _short(value.median) + suffix


def _cells(part: Part, rows: list[Row | None]) -> list[str]:
    def joined(texts: list[str]) -> str:
        return texts[0] if len(set(texts)) == 1 else " / ".join(texts)

    time = joined([_number(row, part.time) for row in rows]) + (f" {part.unit}" if part.unit != "x" else "")
    memory = joined([_number(row, part.memory) for row in rows]) if part.memory else ""
    if part.memory == "peak memory" and memory.strip("- /"):
        memory += " x"
    if part.memory == "memory" and memory.strip("- /"):
        memory += " MB"
    return [time, memory, joined([_right(part, row) for row in rows])]


def _right(part: Part, row: Row | None) -> str:
    if row is None or row.failed:
        return "-"
    if part.right == "right":
        return f"{row.values['right'].median:g} of {row.values['models'].median:g}"
    if part.right.startswith("products"):
        return f"{row.values[part.right].median:g}" if part.right in row.values else "never"
    if part.right == "error":
        return f"{_short(row.values['error'].median)} % off" if "error" in row.values else "-"
    return row.words.get(part.right, "") or "-"


def better(part: Part, table: Table, cases: list[str], tool: str) -> list[str]:
    """In what a peer is better than topoopt, on any case."""
    if tool.startswith("topoopt") or tool in BOUNDS:
        return []
    found = []
    for word, column, ours in (
        ("time", part.time, part.ours),
        ("memory", part.memory, part.ours),
        ("error", "error", part.exact),
    ):
        for case in cases:
            own, other = (_row(table, case, name) for name in (ours, tool))
            if own is None or other is None or column not in own.values or column not in other.values:
                continue
            if other.values[column].median < own.values[column].median and word not in found:
                found.append(word)
    return found


def _remark(part: Part, table: Table, cases: list[str], tool: str) -> str:
    beside = {row.failed for case in cases if (row := _row(table, case, tool)) is not None and row.failed}
    beside |= {f"{case}: {counted[1]}" for case in cases if (counted := _counted(_row(table, case, tool)))}
    said = "; ".join(sorted(beside)).replace("|", "/").replace("<", "‹").replace(">", "›")
    ahead = better(part, table, cases, tool)
    if not ahead:
        return said
    if (part.table, tool) not in WHY:
        raise ValueError(
            f"{tool} is better than {part.ours} in {', '.join(ahead)} ({part.table}): say why in _readme.WHY"
        )
    return "; ".join(filter(None, (f"{', '.join(ahead)}: {WHY[part.table, tool]}", said)))


def _counted(row: Row | None) -> re.Match[str] | None:
    """How many readings a run of which length got, where a row says so."""
    return re.search(r"\((\d+ readings, .*? steps)\)", row.words.get("gives", "")) if row else None
