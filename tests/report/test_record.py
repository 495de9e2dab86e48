"""A record gives back what was written, whatever happened to the run."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from measurements import make
from runs import a_run

from topoopt import Measurement, Phase, TopoConfig
from topoopt.measurement import Assessment, Cost, Decision, GroupMeasurement, SpectralReading
from topoopt.report import JsonLines, RecordError, border, lines, read

number = st.one_of(st.floats(allow_nan=True, allow_infinity=True, width=64))
pair = st.tuples(number, number)
text = st.text(max_size=12)
diagram = st.lists(pair, max_size=4).map(lambda rows: np.array(rows, dtype=np.float64).reshape(-1, 2))
group = st.builds(
    GroupMeasurement,
    n=st.integers(1, 9),
    d=st.integers(1, 9),
    gain=number,
    certified=st.booleans(),
    distortion=pair,
    distortion_window=pair,
    distortion_total=pair,
    contraction=number,
    merge_margin=number,
    diagrams=st.lists(diagram, max_size=3).map(tuple),
    diagrams_step=st.integers(-1, 9),
    covering_radius=number,
    resolution=number,
    recomputed=st.booleans(),
    vanishing=st.integers(0, 9),
    twins=st.integers(0, 9),
    vanishing_tolerance=number,
    twin_tolerance=number,
    proximity=st.one_of(st.none(), number),
    total_persistence=st.lists(number, max_size=3).map(tuple),
    notes=st.lists(text, max_size=2).map(tuple),
)
rates = st.lists(number, max_size=2).map(tuple)
reading = st.builds(
    SpectralReading,
    step=st.integers(-1, 10**6),
    r=number,
    edge=st.one_of(st.none(), number),
    lr=rates,
    low=number,
    high=number,
    rule=text,
    reason=text,
    notes=st.lists(text, max_size=2).map(tuple),
    group=st.one_of(st.none(), st.tuples(text, number)),
)
assessment = st.builds(
    Assessment,
    phase=st.sampled_from(Phase),
    proximity=number,
    estimator=st.sampled_from(["spectral", "pairwise", "none"]),
    eta_star=st.tuples(number),
    eta_star_bracket=st.tuples(pair),
)
measurement = st.builds(
    Measurement,
    step=st.integers(0, 10**6),
    lr=st.tuples(number),
    lr_scale=number,
    spectral=reading,
    assessment=assessment,
    groups=st.dictionaries(text, group, max_size=2),
    decision=st.one_of(st.none(), st.builds(Decision, number, text, text, text, st.lists(text, max_size=2).map(tuple))),
    cost=st.builds(Cost, number, number),
    skipped=st.dictionaries(text, text, max_size=2),
    notes=st.lists(text, max_size=2).map(tuple),
    counts=st.dictionaries(text, st.integers(0, 9), max_size=2),
)


def equal(a: Any, b: Any) -> bool:
    """Equality in which NaN equals NaN and arrays are compared by value."""
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and np.array_equal(a, b, equal_nan=True)
    if isinstance(a, float) and isinstance(b, float):
        return a == b or (math.isnan(a) and math.isnan(b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, tuple):
        return isinstance(b, tuple) and len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b))
    if hasattr(a, "__dataclass_fields__"):
        return type(a) is type(b) and all(equal(getattr(a, f.name), getattr(b, f.name)) for f in fields(a))
    return type(a) is type(b) and a == b


def rounded(m: Measurement) -> Measurement:
    """Diagrams as a record keeps them: float32 where that has their range."""

    def kept(diagram: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore", under="ignore"):
            small = diagram.astype(np.float32).astype(np.float64)
        same = (np.isinf(small) == np.isinf(diagram)) & ((small == 0) == (diagram == 0))
        return small if same.all() else diagram

    groups = {name: replace(g, diagrams=tuple(map(kept, g.diagrams))) for name, g in m.groups.items()}
    return replace(m, groups=groups)


@given(measurement)
def test_a_measurement_comes_back_as_it_was(one: Measurement) -> None:
    line = border.decode(lines.encode(lines.MeasurementLine(one)), "measurement")
    assert isinstance(line, lines.MeasurementLine)
    assert equal(rounded(one), line.value)


def simple(step: int, loss: float = 1.0) -> Measurement:
    return make(step, loss=loss)


def test_a_file_holds_settings_and_measurements(tmp_path: Path) -> None:
    config = TopoConfig(mode="preserve", every=7)
    with JsonLines(tmp_path / "deep" / "record.jsonl", config) as sink:
        sink(simple(0))
        sink(simple(7))
    record = read(tmp_path / "deep")
    assert [m.step for m in record.measurements] == [0, 7]
    assert record.config is not None
    assert record.config["every"] == 7
    assert not record.problems


def test_the_later_word_on_a_step_counts(tmp_path: Path) -> None:
    with JsonLines(tmp_path / "r.jsonl") as sink:
        for m in (simple(0, 1.0), simple(1), simple(0, 2.0)):
            sink(m)
    assert [(m.step, m.loss) for m in read(tmp_path / "r.jsonl").measurements] == [(0, 2.0), (1, 1.0)]


def test_half_a_line_of_a_killed_run_is_named_and_the_resumed_run_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    with JsonLines(path) as sink:
        sink.begin(a_run("one"))
        sink(simple(0))
    path.write_text(path.read_text() + '{"step": 1, "pha')
    with JsonLines(path) as sink:
        sink.begin(a_run("two", resumed="one", resumed_at=1))
        sink(simple(2))
    record = read(path)
    assert len(record.runs) == 1
    assert [m.step for m in record.measurements] == [0, 2]
    assert len(record.problems) == 1
    assert "line 3" in record.problems[0]


def test_what_is_no_record_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text("hello\n")
    with pytest.raises(RecordError, match="no record of topoopt"):
        read(tmp_path / "x.jsonl")
    with pytest.raises(RecordError, match="there is no record"):
        read(tmp_path / "y.jsonl")


def test_a_closed_record_says_so(tmp_path: Path) -> None:
    sink = JsonLines(tmp_path / "r.jsonl")
    sink.close()
    sink.close()
    with pytest.raises(RecordError, match="is closed"):
        sink(simple(0))
