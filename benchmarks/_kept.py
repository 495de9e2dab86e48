"""Benchmarks in pieces: what every script is asked on its command line, and which rows need not be measured again."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _results import RESULTS, code, load, machine, versions


@dataclass(frozen=True)
class Kept:
    """Rows that are there and not old: by table, case and tool."""

    rows: frozenset[tuple[str, str, str]] = frozenset()

    def has(self, table: str, case: str, tools: Sequence[str]) -> bool:
        """Whether all of these rows are there."""
        return all((table, case, tool) in self.rows for tool in tools)


def parser_of(script: str | None) -> argparse.ArgumentParser:
    """A parser that says what the script says of itself, with what all of them are asked."""
    parser = argparse.ArgumentParser(description=script, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="everything; without it what takes a minute or two")
    parser.add_argument("--output", type=Path, help="where the JSON goes (default: benchmarks/results)")
    parser.add_argument(
        "--fill", action="store_true", help="only rows that are missing, or topoopt's of another source than this one"
    )
    parser.add_argument("--since", metavar="2026-11-25T20:40", help="--fill, and rows that were measured before (UTC)")
    return parser


def kept(given: Any, script: str, packages: Sequence[str]) -> Kept:
    """The rows that need not be measured again: none unless that was asked for, nor any of another machine or versions."""
    path = given.output or RESULTS / f"{Path(script).stem}.json"
    if not (given.fill or given.since) or not path.exists():
        return Kept()
    found = load(path)
    if (found.machine, found.versions) != (machine(), versions(*packages)):
        return Kept()
    return Kept(
        frozenset(
            (table.key, row.case, row.tool)
            for table in found.tables
            for row in table.rows
            if row.date >= (given.since or "") and (not row.ours or row.code == code())
        )
    )
