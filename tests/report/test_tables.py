"""A run as tables: the same rows in Python, CSV, pandas and Parquet."""

from __future__ import annotations

import csv
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from measurements import make
from runs import a_run, write_run

from topoopt.errors import ConfigError, MissingExtraError
from topoopt.extras import require
from topoopt.report import JsonLines, Record, read, tables

GOLDEN = Path(__file__).parent / "golden" / "version1.jsonl"


@pytest.fixture
def record(tmp_path: Path) -> Record:
    return read(write_run(tmp_path / "record.jsonl", a_run("one")))


@pytest.mark.parametrize(("of", "count"), [("measurements", 3), ("readings", 3), ("layers", 3), ("decisions", 3)])
def test_every_row_has_the_same_columns_and_plain_values(of: str, count: int) -> None:
    rows = read(GOLDEN).table(of)
    assert len(rows) == count
    assert len({tuple(row) for row in rows}) == 1
    assert [row["step"] for row in rows] == [0, 10, 20]


def test_rows_say_what_the_measurements_say(record: Record) -> None:
    row = record.table()[0]
    assert (row["step"], row["phase"], row["proximity"], row["r_over_edge"]) == (0, "constrained", 0.5, 0.25)
    assert (row["lr"], row["eta_star"], row["eta_star_high"], row["loss"]) == (0.1, 0.2, 1.0, 1.0)
    assert [one["r"] for one in record.table("readings")] == [0.5, 0.6, 0.5, 0.6]


def test_an_unknown_table_is_refused(record: Record) -> None:
    with pytest.raises(ConfigError, match="measurements, readings, layers, decisions"):
        record.table("layer")


def test_a_table_goes_to_pandas_and_parquet_and_csv(record: Record, tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    frame = record.to_pandas()
    assert list(frame["step"]) == [0, 10]
    again = pandas.read_parquet(record.to_parquet(tmp_path / "t.parquet"))
    pandas.testing.assert_frame_equal(frame, again)
    from_csv = pandas.read_csv(record.to_csv(tmp_path / "t.csv"), keep_default_na=True)
    assert list(from_csv["proximity"]) == [0.5, 0.5]
    assert list(from_csv.columns) == list(frame.columns)


def test_text_in_csv_is_no_formula(tmp_path: Path) -> None:
    group = next(iter(read(GOLDEN).measurements[0].groups.values()))
    with JsonLines(tmp_path / "r.jsonl") as sink:
        sink(make(0, groups={"=cmd|' /C calc'!A0": replace(group, notes=("-1+1", "é,\n"))}))
    path = read(tmp_path / "r.jsonl").to_csv(tmp_path / "t.csv", "layers")
    with path.open(newline="", encoding="utf-8") as file:
        row = next(csv.DictReader(file))
    assert row["layer"] == "'=cmd|' /C calc'!A0"
    assert row["notes"] == "'-1+1; é,\n"
    assert float(row["gain"]) == pytest.approx(group.gain)


def test_a_table_that_fails_leaves_no_file(tmp_path: Path, record: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "t.csv").write_text("before")

    def failing(run: object) -> object:
        yield {"step": 1}
        raise ConfigError("in the middle")

    monkeypatch.setitem(tables._TABLES, "measurements", failing)
    with pytest.raises(ConfigError, match="in the middle"):
        record.to_csv(tmp_path / "t.csv")
    assert (tmp_path / "t.csv").read_text() == "before"
    assert not list(tmp_path.glob(".t.csv*"))


def test_what_is_missing_is_named_with_its_extra() -> None:
    with pytest.raises(MissingExtraError, match=r"nowhere_at_all is not installed: pip install 'topoopt\[data\]'"):
        require("nowhere_at_all.sub", extra="data")
    with pytest.raises(ImportError, match=r"json is installed but cannot be imported"):
        require("json.nothing", extra="data")


def test_reading_a_record_needs_no_pandas() -> None:
    code = f"import sys, topoopt.report as r; r.read({str(GOLDEN)!r}).table(); print({{'pandas', 'rich'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
