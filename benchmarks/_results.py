"""The one format that benchmarks write, `benchmarks/results/*.json`: rows of medians with their spread, and where they are from.

    python benchmarks/_results.py             # RESULTS.md, its plots and the README's table, from what is committed
    python benchmarks/_results.py --readme    # the README's table alone

A row is of one case (a model, a size) and one tool. What could not be run is a row too, with the error that was seen.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import datetime
import fcntl
import functools
import hashlib
import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

RESULTS = Path(__file__).parent / "results"
OURS = "topoopt"


@dataclass(frozen=True)
class Value:
    """A median of some runs, the least and the largest of them."""

    median: float
    low: float
    high: float
    runs: int = 1

    @classmethod
    def of(cls, values: Iterable[float]) -> Value:
        found = [float(value) for value in values]
        return cls(statistics.median(found), min(found), max(found), len(found))

    def over(self, other: Value) -> Value:
        """In units of another's median."""
        return replace(self, **{name: getattr(self, name) / other.median for name in ("median", "low", "high")})


@dataclass(frozen=True)
class Column:
    """What a number is, and how far topoopt's own may move before `compare` objects."""

    name: str
    unit: Literal["s", "MB", "x", "%", "steps", "count", "words"]
    better: Literal["less", "more", ""] = "less"
    factor: float | None = None
    """At most (at least, where more is better) so many times what is committed; None: not compared."""
    slack: float = 0.0
    """And so much beside it, in the column's unit: what is nearly nothing may double."""


@dataclass(frozen=True)
class Row:
    """One tool on one case."""

    case: str
    tool: str
    values: dict[str, Value] = field(default_factory=dict)
    """By the column's name."""
    words: dict[str, str] = field(default_factory=dict)
    failed: str = ""
    """Why there is no number: the error as it was seen."""
    date: str = ""
    """When it was measured, UTC."""
    code: str = ""
    """The source of topoopt that ran, see `code`."""

    @property
    def ours(self) -> bool:
        return self.tool.startswith(OURS)


@dataclass(frozen=True)
class Table:
    """Rows that stand beside each other."""

    key: str
    title: str
    explains: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...] = ()

    def median(self, case: str, tool: str, column: str) -> float | None:
        """A number of a row, or None where there is no such row or it has none."""
        for row in self.rows:
            if (row.case, row.tool) == (case, tool) and column in row.values:
                return row.values[column].median
        return None

    @property
    def cases(self) -> list[str]:
        return list(dict.fromkeys(row.case for row in self.rows))

    @property
    def tools(self) -> list[str]:
        return list(dict.fromkeys(row.tool for row in self.rows))


@dataclass(frozen=True)
class Results:
    """What one benchmark found."""

    benchmark: str
    command: str
    machine: str
    date: str
    versions: dict[str, str]
    tables: tuple[Table, ...]
    threads: int = 1
    load: float = 0.0
    """Processes that wanted the machine when it was written, the benchmark's own among them."""

    def table(self, key: str) -> Table:
        return next(table for table in self.tables if table.key == key)


def machine() -> str:
    """The processor and its cores, in plain words."""
    model = ""
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        model = f"{len(names)} cores of {names[0]}, " if names else ""
    return f"{model}{platform.machine()}, {platform.system()}, Python {platform.python_version()}"


def versions(*packages: str) -> dict[str, str]:
    """The installed version of each; "not installed" where there is none."""
    found = {}
    for name in (OURS, "torch", *packages):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    if found[OURS] != "not installed":
        found[OURS] = importlib.import_module(OURS).__version__  # of the source that runs, not of the one installed
    return found


@functools.cache
def code() -> str:
    """A few characters that change with topoopt's source, the one that runs, but for its comments and docstrings."""
    found = importlib.util.find_spec(OURS)
    assert found is not None
    assert found.origin is not None
    sources = sorted(Path(found.origin).parent.rglob("*.py"))
    return hashlib.sha256("".join(map(_without_words, sources)).encode()).hexdigest()[:10]


def _without_words(source: Path) -> str:
    """What a file does, without comments and docstrings."""
    tree = ast.parse(source.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        body = vars(node).get("body")
        if isinstance(body, list):
            body[:] = [one for one in body if not (isinstance(one, ast.Expr) and isinstance(one.value, ast.Constant))]
    return ast.dump(tree)


def load(path: Path) -> Results:
    """Read what `save` wrote."""
    data = json.loads(path.read_text(encoding="utf-8"))
    tables = tuple(
        Table(
            **{
                **table,
                "columns": tuple(Column(**column) for column in table["columns"]),
                "rows": tuple(_row(row) for row in table["rows"]),
            }
        )
        for table in data["tables"]
    )
    return Results(**{**data, "tables": tables})


def _row(data: dict[str, Any]) -> Row:
    return Row(**{**data, "values": {name: Value(*numbers) for name, numbers in data["values"].items()}})


def save(found: Results, path: Path | None = None) -> Path:
    """Write results; rows of the same machine and versions that were not measured anew stay."""
    path = RESULTS / f"{found.benchmark}.json" if path is None else path
    path.parent.mkdir(parents=True, exist_ok=True)
    with _alone_in(path.parent):
        whole = merged(load(path), found) if path.exists() else found
        data: Any = asdict(whole)
        for table in data["tables"]:
            for row in table["rows"]:
                row["values"] = {
                    name: [float(f"{v['median']:.6g}"), float(f"{v['low']:.6g}"), float(f"{v['high']:.6g}"), v["runs"]]
                    for name, v in row["values"].items()
                }
        path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    print(f"written: {path}")
    return path


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Two pieces of a benchmark that run side by side do not lose each other's rows."""
    place = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(place, fcntl.LOCK_EX)
        yield
    finally:
        os.close(place)


def merged(old: Results, new: Results) -> Results:
    """The new rows among the old ones, where both are of one machine and the same versions."""
    if (old.machine, old.versions) != (new.machine, new.versions):
        return new
    fresh = {table.key: table for table in new.tables}
    tables = []
    for table in old.tables:
        if table.key not in fresh:
            tables.append(table)
            continue
        now = fresh.pop(table.key)
        rows = {(row.case, row.tool): row for row in table.rows} | {(row.case, row.tool): row for row in now.rows}
        tables.append(replace(now, rows=tuple(sorted(rows.values(), key=_size))))
    return replace(new, tables=(*tables, *fresh.values()))


def _size(row: Row) -> int:
    """Cases that are sizes ascend; all others stay where they are."""
    size = re.match(r"n = ([\d,]+)", row.case)
    return int(size[1].replace(",", "")) if size else 0


def results(script: str, arguments: Sequence[str], tables: Iterable[Table], packages: Sequence[str]) -> Results:
    """Results of a script, of now and of this machine."""
    command = " ".join(["python", f"benchmarks/{Path(script).name}", *arguments])
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes")[:16]
    load = round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else 0.0
    dated = (
        replace(table, rows=tuple(row if row.date else replace(row, date=now, code=code()) for row in table.rows))
        for table in tables
    )
    return Results(Path(script).stem, command, machine(), now[:10], versions(*packages), tuple(dated), load=load)


def main() -> None:
    import _tables

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--readme", action="store_true", help="the README's table alone")
    given = parser.parse_args()
    _tables.write_readme()
    if not given.readme:
        _tables.write_results()


if __name__ == "__main__":
    main()
