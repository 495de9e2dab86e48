"""Every row of the table of faults, and the page that shows it."""

from __future__ import annotations

import pytest
from fault_table import PAGE, Fault, page, rows

ROWS = rows()


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_fault_is_said_counted_and_costs_the_run_nothing(row: Fault) -> None:
    row.check()


def test_the_page_shows_these_rows() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert page(text, ROWS) == text, "run `make faults ARGS=--write`"


def test_no_row_is_there_twice() -> None:
    names = [row.name for row in ROWS]
    assert len(set(names)) == len(names) > 60
