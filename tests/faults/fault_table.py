"""The table of faults: each row injects one into a training, and says what is seen of it, where it is recorded, and what it cost.

    python tests/faults/fault_table.py          every fault is injected, and the table printed
    python tests/faults/fault_table.py --write  the same, into docs/faults.md

`test_fault_table.py` runs the same rows: the table cannot say more than the tests.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from fault_training import Observed

PAGE = Path(__file__).parents[2] / "docs" / "faults.md"
BEGIN, END = "<!-- the table: make faults -->\n", "<!-- the end of the table -->\n"
PARTS = {
    "faults_measuring": "Measuring",
    "faults_steering": "Steering",
    "faults_model": "The model and its optimizer change",
    "faults_state": "Checkpoints",
    "faults_sinks": "Sinks and records",
    "faults_around": "The program around it",
    "faults_ends": "Ends",
}


@dataclass(frozen=True)
class Fault:
    """One row."""

    name: str
    injected: str
    said: str
    """What is logged, once, or raised; "" for nothing."""
    recorded: str
    """What the record holds in words; "" for nothing."""
    counts: dict[str, int]
    """What the record counts: exactly so many, under `fault/` too nothing else."""
    part: str
    inject: Callable[[], Observed]
    unharmed: str = "bits equal"

    @property
    def where(self) -> str:
        """The record's place for it, in a table."""
        counted = ", ".join(f"`{name}` {n}" for name, n in self.counts.items())
        return "; ".join(filter(None, [counted, f"“{self.recorded}”" if self.recorded else ""])) or "nothing to record"

    def check(self) -> Observed:
        """Inject it; raises AssertionError unless what is seen is what the row says."""
        found = self.inject()
        assert found.same, f"{self.name}: the run is not the bare run"
        times = sum(self.said in text for text in found.said) if self.said else len(found.said)
        assert times == (1 if self.said else 0), f"{self.name}: {self.said!r} {times} times in {found.said}"
        faults = {name: n for name, n in found.counts.items() if name.startswith("fault/") or name in self.counts}
        assert faults == self.counts, f"{self.name}: {faults}, not {self.counts}"
        assert not self.recorded or any(self.recorded in text for text in found.texts), (
            f"{self.name}: {self.recorded!r} is not in {sorted(set(found.texts))}"
        )
        return found


_rows: list[Fault] = []


def fault(
    name: str,
    injected: str,
    *,
    said: str = "",
    recorded: str = "",
    counts: dict[str, int] | None = None,
    unharmed: str = "bits equal",
) -> Callable[[Callable[[], Observed]], Callable[[], Observed]]:
    """Make a function a row of the table."""

    def row(inject: Callable[[], Observed]) -> Callable[[], Observed]:
        _rows.append(Fault(name, injected, said, recorded, counts or {}, inject.__module__, inject, unharmed))
        return inject

    return row


def rows() -> list[Fault]:
    """All of them, part by part."""
    for part in PARTS:
        import_module(part)
    order = list(PARTS)
    return sorted(_rows, key=lambda one: order.index(one.part))


def lines(table: list[Fault]) -> Iterator[str]:
    """The table as Markdown."""
    part = ""
    for one in table:
        if one.part != part:
            part = one.part
            yield f"\n### {PARTS[part]}\n\n"
            yield "| fault | injected | said | recorded | the run |\n|---|---|---|---|---|\n"
        cells = (one.name, one.injected, f"“{one.said}”" if one.said else "nothing", one.where, one.unharmed)
        yield "| " + " | ".join(cell.replace("|", "\\|").replace("<", "&lt;") for cell in cells) + " |\n"


def page(text: str, table: list[Fault]) -> str:
    """A page with the table in its place."""
    before, rest = text.split(BEGIN)
    return before + BEGIN + f"\n{len(table)} faults.\n" + "".join(lines(table)) + "\n" + END + rest.split(END)[1]


def main() -> int:
    """Inject every fault, print the table, and with --write put it into the documentation."""
    table, wrong, began = rows(), 0, time.process_time()
    for one in table:
        start = time.process_time()
        try:
            one.check()
            seen = "as the row says"
        except Exception as error:
            wrong, seen = wrong + 1, f"NOT SO: {type(error).__name__}: {error}"
        print(f"{one.name}: {seen} ({time.process_time() - start:.1f} s)", file=sys.stderr, flush=True)
    print("".join(lines(table)))
    print(f"{len(table)} faults injected, {wrong} not handled; {time.process_time() - began:.0f} s", file=sys.stderr)
    if "--write" in sys.argv and not wrong:
        PAGE.write_text(page(PAGE.read_text(encoding="utf-8"), table), encoding="utf-8")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.modules["fault_table"] = sys.modules["__main__"]  # the rows register here
    raise SystemExit(main())
