"""What the README and RESULTS.md say of benchmarks is what the committed results say, and the check of them can fail."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
import _kept  # noqa: E402
import _readme  # noqa: E402
import _results  # noqa: E402
import _tables  # noqa: E402
from _compare import compare  # noqa: E402
from _results import Column, Results, Row, Table, Value  # noqa: E402

COMMITTED = _tables.committed()


def test_the_readme_holds_the_table_that_the_results_give() -> None:
    text = _tables.README.read_text(encoding="utf-8")
    assert _tables.with_table(text, COMMITTED) == text, "run `python benchmarks/_results.py`"


def test_the_page_of_results_is_what_the_results_give() -> None:
    assert _tables.page(COMMITTED) == _tables.PAGE.read_text(encoding="utf-8"), "run `python benchmarks/_results.py`"


def test_every_picture_and_every_benchmark_is_there() -> None:
    pictures = re.findall(r"!\[.*?\]\((results/.*?)\)", _tables.PAGE.read_text(encoding="utf-8"))
    assert pictures
    assert all((BENCHMARKS / picture).exists() for picture in pictures)
    assert {"monitoring", "curvature_peers", "discovery_peers", "persistence"} <= set(COMMITTED)


@pytest.mark.parametrize("name", list(COMMITTED))
def test_results_say_where_they_are_from(name: str, tmp_path: Path) -> None:
    found = COMMITTED[name]
    assert found.machine
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", found.date)
    assert {"topoopt", "torch"} <= set(found.versions)
    assert found.threads == 1
    for table in found.tables:
        names = {column.name for column in table.columns}
        for row in table.rows:
            assert row.failed or row.values or row.words
            assert set(row.values) | set(row.words) <= names | {"gives"}
    assert _results.load(_results.save(found, tmp_path / "again.json")) == found


def results(
    *, ratio: float = 2.0, right: float = 10.0, seconds: float = 1.0, failed: str = "", tool: str = "topoopt"
) -> Results:
    columns = (
        Column("ratio", "x", factor=1.5),
        Column("right", "count", "more", factor=1.0),
        Column("seconds", "s"),
    )
    values = {"ratio": Value.of([ratio]), "right": Value.of([right]), "seconds": Value.of([seconds])}
    row = Row("a case", tool, {} if failed else values, failed=failed)
    return Results("a", "python a", "a machine", "2026-01-01", {"torch": "2"}, (Table("t", "T", "", columns, (row,)),))


def beside(found: Results, **more: float) -> Results:
    """The same with a peer's row."""
    table = found.tables[0]
    return replace(found, tables=(replace(table, rows=(*table.rows, *results(tool="a peer", **more).tables[0].rows)),))  # type: ignore[arg-type]


def test_the_check_sees_a_ratio_that_got_worse_and_no_other() -> None:
    committed = results()
    assert compare(committed, results(ratio=2.9, right=11, seconds=100)) == []
    assert "ratio 3.1" in compare(committed, results(ratio=3.1))[0]
    assert "right 9" in compare(committed, results(right=9))[0]
    assert "stopped" in compare(committed, results(failed="it stopped"))[0]
    assert compare(beside(results(), ratio=1), beside(results(), ratio=9)) == []


def test_no_seconds_and_no_memory_in_absolute_terms_are_compared() -> None:
    for found in COMMITTED.values():
        for table in found.tables:
            assert all(column.factor is None for column in table.columns if column.unit in ("s", "MB"))


def test_rows_of_the_same_machine_stay_and_those_of_another_go() -> None:
    old = results()
    other = replace(old.tables[0].rows[0], case="another case")
    new = replace(old, tables=(replace(old.tables[0], rows=(other,)),))
    assert [row.case for row in _results.merged(old, new).tables[0].rows] == ["a case", "another case"]
    assert _results.merged(replace(old, machine="elsewhere"), new) == new


def test_a_better_peer_has_to_have_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the reasons the table cannot be made: there are peers that are better in something."""
    monkeypatch.setattr(_readme, "WHY", {})
    with pytest.raises(ValueError, match="is better than topoopt"):
        _readme.lines(COMMITTED)


def test_every_reason_that_is_given_is_of_a_peer() -> None:
    """Which peers are better differs from run to run and from machine to machine; that they are there does not."""
    known = {(table.key, tool) for found in COMMITTED.values() for table in found.tables for tool in table.tools}
    assert set(_readme.WHY) - known == set()


def test_the_check_says_where_there_was_nothing_to_compare() -> None:
    other = replace(results().tables[0].rows[0], case="another case")
    now = replace(results(), tables=(replace(results().tables[0], rows=(other,)),))
    assert "no row" in compare(results(), now)[0]


# -- in pieces --------------------------------------------------------------------------------------------------------


def asked(path: Path, *arguments: str) -> _kept.Kept:
    given = _kept.parser_of("").parse_args(["--output", str(path), *arguments])
    return _kept.kept(given, "a.py", ["torch"])


def test_only_rows_that_are_missing_or_old_are_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = results().tables[0]
    peer = replace(table.rows[0], tool="a peer")
    found = _results.results("a.py", [], [replace(table, rows=(*table.rows, peer))], ["torch"])
    path = _results.save(found, tmp_path / "a.json")
    case = ("t", "a case")
    assert not asked(path).has(*case, ["topoopt"])
    assert asked(path, "--fill").has(*case, ["topoopt", "a peer"])
    assert not asked(path, "--fill").has(*case, ["topoopt", "another"])
    assert asked(path, "--since", "2026-01-01").has(*case, ["topoopt", "a peer"])
    assert not asked(path, "--since", "9999-01-01T00:00").has(*case, ["a peer"])
    monkeypatch.setattr(_kept, "code", lambda: "another")
    assert not asked(path, "--fill").has(*case, ["topoopt"]), "topoopt's row is of other code"
    assert asked(path, "--fill").has(*case, ["a peer"])
    monkeypatch.setattr(_kept, "machine", lambda: "elsewhere")
    assert not asked(path, "--fill").has(*case, ["a peer"])


def test_a_command_that_computes_too_long_is_ended() -> None:
    pytest.importorskip("psutil")
    import _limited

    assert _limited.run([sys.executable, "-c", "print(3)"], 60).stdout == "3\n"
    with pytest.raises(_limited.Overrun, match=r"no end after 0\.3 s of the processor"):
        _limited.run([sys.executable, "-c", "while True: pass"], 0.3)
