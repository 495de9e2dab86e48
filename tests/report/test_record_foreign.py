"""Records of others: any line is read or named, whatever it holds, and nothing but topoopt's own errors is raised."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from runs import a_run, write_run

from topoopt.errors import TopoError
from topoopt.report import RecordError, lines, read, reading

GOLDEN = Path(__file__).parent / "golden" / "version1.jsonl"
IMG = "<img src=x onerror=alert(1)>"
CHANGES: dict[str, Any] = {
    "step": [None, "x", -1, 1.5, 10**400, 2**60, True, [], {}, "<b>"],
    "lr": [[], None, "0.1", [None], [[0.1]], ["x"], [0.1, 0.2]],
    "lr_scale": [None, "x", [], 10**400, True],
    "notes": [[["a"]], "a", [1], None],
    "skipped": [[], {"a": 1}, "x"],
    "counts": [{"a": "x"}, {"a": 1.5}, {"a": 2**60}],
    "groups": [[], {"a": None}, {"a": {}}, "x"],
    "decision": ["x", {}, {"scale": "x", "policy": "a", "rule": "b"}],
}
GROUP: dict[str, Any] = {
    "twins": [IMG, None, 1.5],
    "n": [IMG, 10**30],
    "d": [IMG, True],
    "vanishing": [IMG],
    "proximity_step": [IMG, 2**60],
    "diagrams": [IMG, ["f4:@@"], ["f4:AAAA"], ["f9:AAAAAAAA"], [[[1]]], [[["x", 1]]], [3], [None]],
    "distortion": [[1], [1, 2, 3], "ab", None],
    "merge_tree": [
        "x", [], {"sizes": [1], "merges": [[0, 1]]}, {"sizes": [1, 1], "merges": [[0, 2]]}, {"sizes": [], "merges": []},
        {"sizes": [1, 1, 1], "merges": [[0, 1], [0, 3]]}, {"sizes": [1, 0], "merges": [[0, 1]]},
        {"sizes": [1, 1], "merges": [[-1, 0]]},
    ],
}  # fmt: skip


def measurement_line(version: int) -> tuple[str, dict[str, Any]]:
    """A file's text without its last line, and that line's data, which is a measurement."""
    record = read(GOLDEN)
    texts = [lines.encode(lines.Header(2)), *(lines.encode(lines.MeasurementLine(m)) for m in record.measurements)]
    text = GOLDEN.read_text() if version == 1 else b"".join(texts).decode()
    before, last = text.rstrip("\n").rsplit("\n", 1)
    data = json.loads(last)
    return before + "\n", data


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(("name", "value"), [(name, v) for name, values in CHANGES.items() for v in values], ids=repr)
def test_a_wrong_field_is_a_named_line(version: int, name: str, value: Any, tmp_path: Path) -> None:
    if version == 1 and name == "decision" and value == {}:
        value = 3
    before, measurement = measurement_line(version)
    measurement[name] = value
    expect_a_problem(tmp_path, before + json.dumps(measurement))


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(("name", "value"), [(name, v) for name, values in GROUP.items() for v in values], ids=repr)
def test_a_wrong_field_of_a_group_is_a_named_line(version: int, name: str, value: Any, tmp_path: Path) -> None:
    before, measurement = measurement_line(version)
    measurement["groups"]["0"][name] = value
    expect_a_problem(tmp_path, before + json.dumps(measurement))


@pytest.mark.parametrize(
    "line",
    [
        '{"a":' + "[" * 100_000,
        '{"type":"measurement","lr":' + "[" * 100_000,
        '{"type":"measurement","skipped":' + '{"a":' * 100_000,
        '{"type":"measurement"}',
        '{"type":"nothing"}',
        '{"type":3}',
        "[1]",
        "3",
        "null",
        '"x"',
        "{" * 1000,
        '{"step": NaN}',
        "\ufeff{}",
        '{"type":"end"}',
        '{"type":"decision","step":1e400}',
        '{"topoopt":"x"}',
        '{"topoopt":1,"config":[]}',
    ],
    ids=lambda line: line[:30],
)
def test_a_wrong_line_is_named(line: str, tmp_path: Path) -> None:
    expect_a_problem(tmp_path, measurement_line(2)[0] + line)


def expect_a_problem(folder: Path, text: str) -> None:
    path = folder / "r.jsonl"
    path.write_text(text + "\n", encoding="utf-8")
    record = read(path)
    assert len(record.measurements) == 2
    assert len(record.problems) == 1
    assert re.match(r"line 4 could not be read: .{3,}", record.problems[0])
    assert len(record.problems[0]) < 600


def test_lines_that_are_too_long_are_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_run(tmp_path / "r.jsonl", a_run("one"))
    monkeypatch.setattr(lines, "LONGEST", 1000)
    whole = path.read_text().splitlines()
    whole.insert(2, '{"type":"reading","reason":"' + "x" * 5000 + '"}')
    path.write_text("\n".join(whole) + "\n")
    record = read(path)
    assert record.problems == ("line 3 could not be read: it is longer than 1000 bytes",)
    assert len(record.measurements) == 2
    assert record.verdict is not None


def test_many_wrong_lines_are_counted(tmp_path: Path) -> None:
    path = write_run(tmp_path / "r.jsonl", a_run("one"))
    path.write_text(path.read_text() + "x\n" * 5000)
    problems = read(path).problems
    assert len(problems) == reading.PROBLEMS + 1
    assert problems[-1] == f"and {5000 - reading.PROBLEMS} more lines"


def test_a_file_of_nothing_but_headers_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    headers = (lines.encode(lines.Header(2, run=a_run(str(i)))) for i in range(reading.OPENINGS + 50))
    path.write_bytes(b"".join(headers))
    record = read(path)
    assert len(record.runs) == reading.OPENINGS
    assert len(record.problems) == 1
    assert "what follows is left out" in record.problems[0]


@pytest.mark.parametrize("path", ["/" + "a" * 5000, "a\0b", "/dev/full", "nowhere"])
def test_what_is_no_file_is_one_error(path: str) -> None:
    with pytest.raises(RecordError, match="there is no record"):
        read(path)


def test_a_record_is_one_line_and_a_table_without_tags(tmp_path: Path) -> None:
    record = read(write_run(tmp_path / "r.jsonl", a_run("one", model=IMG)))
    assert len(repr(record)) < 300
    assert "\n" not in repr(record)
    assert "2 measurements, 4 readings, last step 19" in repr(record)
    assert IMG not in record._repr_html_()
    assert "&lt;img" in record._repr_html_()


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["nan", "inf"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_any_change_to_any_field_is_read_or_named(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    before, measurement = measurement_line(data.draw(st.sampled_from([1, 2])))
    spots = [
        measurement,
        *(v for v in measurement.values() if isinstance(v, dict) and v),
        measurement["groups"]["0"],
    ]
    spot = data.draw(st.sampled_from(spots))
    spot[data.draw(st.sampled_from(sorted(spot)))] = data.draw(values)
    read_or_refused(tmp_path_factory, (before + json.dumps(measurement) + "\n").encode())


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_any_damage_to_the_bytes_is_read_or_named(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    text = bytearray(GOLDEN.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(text) - 1))
        text[start : start + data.draw(st.integers(0, 30))] = data.draw(st.binary(max_size=10))
    read_or_refused(tmp_path_factory, bytes(text))


def read_or_refused(factory: pytest.TempPathFactory, text: bytes) -> None:
    path = factory.getbasetemp() / "fuzzed.jsonl"
    path.write_bytes(text)
    try:
        record = read(path)
    except TopoError:
        return
    for of in ("measurements", "readings", "layers", "decisions"):
        for row in record.table(of):
            assert all(isinstance(value, str | int | float | bool) for value in row.values())
    assert record._repr_html_()
