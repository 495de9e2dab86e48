"""A record is one run: what stands there is gone on with by a resumed run, and kept whole beside any other."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from measurements import make
from page_records import measured
from runs import a_run, a_summary, a_verdict, write_run
from scipy.cluster.hierarchy import is_valid_linkage

from topoopt import Phase, TopoConfig
from topoopt.errors import FileError
from topoopt.measurement import Decision, SpectralReading
from topoopt.report import JsonLines, RecordError, html, lazy, lines, read, reading

GOLDEN = Path(__file__).parent / "golden" / "version1.jsonl"


def test_everything_that_is_told_comes_back(tmp_path: Path) -> None:
    run = a_run("one")
    record = read(write_run(tmp_path / "record.jsonl", run))
    assert record.run == run
    assert record.config == run.settings
    assert [m.step for m in record.measurements] == [0, 10]
    assert [one.step for one in record.readings] == [0, 5, 10, 15]
    assert list(record.decisions) == [(3, Decision(0.5, "preserve", "target"))]
    assert list(record.verdicts) == [(10, a_verdict())]
    assert record.summary == a_summary(run)
    assert record.verdict == a_verdict()
    assert record.last.last_step == 19
    assert not record.problems


def test_the_summary_lies_beside_the_record(tmp_path: Path) -> None:
    write_run(tmp_path / "record.jsonl", a_run("one"))
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["verdict"] == {
        "state": "right",
        "lines": list(a_verdict().lines),
        "ratio": 0.25,
        "band": [0.1, 0.67],
    }
    assert summary["run"]["id"] == "one"
    assert summary["cost"] == {"seconds": 4.0, "share": 0.01, "setup_seconds": 0.5}
    assert summary["counts"] == {"faults": 1}
    assert summary["unfinished"] == []


def test_another_run_starts_a_fresh_record_and_the_old_one_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "record.jsonl"
    write_run(path, a_run("one"))
    before = path.read_bytes()
    write_run(path, a_run("two", lr=(0.7,)), range(5))
    assert [m.lr[0] for m in read(path).measurements] == [0.7] * 5
    assert len(read(path).runs) == 1
    assert (tmp_path / "record-one.jsonl").read_bytes() == before
    assert json.loads((tmp_path / "summary-one.json").read_text())["run"]["id"] == "one"
    assert json.loads((tmp_path / "summary.json").read_text())["run"]["id"] == "two"
    write_run(tmp_path / "again.jsonl", a_run("one"))
    os.rename(tmp_path / "again.jsonl", path)
    write_run(path, a_run("three"))
    assert (tmp_path / "record-one-2.jsonl").exists()
    assert (tmp_path / "record-one.jsonl").read_bytes() == before


def test_two_runs_at_once_keep_to_their_own_files(tmp_path: Path) -> None:
    path = tmp_path / "record.jsonl"
    with JsonLines(path) as first, JsonLines(path) as second:
        for sink, id in ((first, "one"), (second, "two")):
            sink.begin(a_run(id))
            sink(make(0))
        second.end(a_summary(a_run("two")))
        first(make(1))
        first.end(a_summary(a_run("one")))
    assert [m.step for m in read(path).measurements] == [0]
    assert [m.step for m in read(tmp_path / "record-one.jsonl").measurements] == [0, 1]
    ids = [json.loads((tmp_path / name).read_text())["run"]["id"] for name in ("summary.json", "summary-one.json")]
    assert ids == ["two", "one"]


@pytest.mark.parametrize("begun", [True, False])
def test_what_is_no_record_is_kept_too(tmp_path: Path, begun: bool) -> None:
    path = tmp_path / "record.jsonl"
    path.write_text("precious\n")
    (tmp_path / "summary.json").write_text('{"not": "ours"}')
    with JsonLines(path) as sink:
        if begun:
            sink.begin(a_run("one"))
        sink(make(0))
        sink.end(a_summary(a_run("one")))
    kept = [file for file in tmp_path.glob("record-*.jsonl") if file.read_text() == "precious\n"]
    assert len(kept) == 1
    assert (tmp_path / "summary.json").read_text() == '{"not": "ours"}'
    assert json.loads((tmp_path / "record-summary.json").read_text())["run"]["id"] == "one"


def test_two_runs_without_a_beginning_are_not_spliced(tmp_path: Path) -> None:
    path = tmp_path / "record.jsonl"
    for every, steps in ((7, range(6)), (9, range(3))):
        with JsonLines(path, TopoConfig(every=every)) as sink:
            for step in steps:
                sink(make(step))
    record = read(path)
    assert record.config is not None
    assert (record.config["every"], len(record.measurements)) == (9, 3)
    assert len(list(tmp_path.glob("record-*.jsonl"))) == 1


class Own:
    name, steers = "own", False

    def start(self) -> dict[str, object]:
        return {}

    def decide(self, reading: object, state: dict[str, object]) -> tuple[Decision, dict[str, object]]:
        return Decision(1.0, self.name, "none"), state

    def __repr__(self) -> str:
        return "Own()"


def test_a_policy_of_ones_own_is_described_in_the_header(tmp_path: Path) -> None:
    with JsonLines(tmp_path / "r.jsonl", TopoConfig(mode=Own(), every=7)) as sink:
        sink(make(0))
    record = read(tmp_path / "r.jsonl")
    assert record.config is not None
    assert (record.config["mode"]["described"], record.config["every"]) == ("Own()", 7)


def test_a_resumed_run_takes_the_place_of_what_it_does_again(tmp_path: Path) -> None:
    path = write_run(tmp_path / "record.jsonl", a_run("one"), range(0, 50, 10))
    write_run(path, a_run("two", resumed="one", resumed_at=25), range(25, 60, 10), loss=2.0)
    write_run(path, a_run("three", resumed="one", resumed_at=30), range(30, 40, 10), loss=3.0)
    record = read(path)
    assert len(record.runs) == 1
    assert [run.id for run in record.last.openings] == ["one", "two", "three"]
    assert [(m.step, m.loss) for m in record.measurements] == [(0, 1.0), (10, 1.0), (20, 1.0), (25, 2.0), (30, 3.0)]
    assert [one.step for one in record.readings] == [0, 5, 10, 15, 20, 25, 30, 35]
    assert not list(tmp_path.glob("record-*.jsonl"))


def test_appending_on_purpose_keeps_the_runs_apart(tmp_path: Path) -> None:
    path = write_run(tmp_path / "r.jsonl", a_run("one"))
    with JsonLines(path, append=True) as sink:
        sink.begin(a_run("two"))
        sink(make(3))
    record = read(path)
    assert [run.id for run in record.runs] == ["one", "two"]
    assert [[m.step for m in run.measurements] for run in record.runs] == [[0, 10], [3]]
    assert record.runs[0].summary is not None
    assert record.summary is None
    assert "2 runs" in repr(record)


def test_beginning_twice_is_one_run(tmp_path: Path) -> None:
    with JsonLines(tmp_path / "r.jsonl") as sink:
        sink.begin(a_run("one"))
        sink.begin(a_run("one"))
        sink(make(0))
    assert len(read(tmp_path / "r.jsonl").last.openings) == 1


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    run = tmp_path / "run"
    run.mkdir()
    for name in ("record.jsonl", "summary.json"):
        (run / name).symlink_to(victim)
    write_run(run / "record.jsonl", a_run("one"))
    assert victim.read_text() == "precious"
    assert not (run / "record.jsonl").is_symlink()
    (tmp_path / "link.jsonl").symlink_to(victim)
    with JsonLines(tmp_path / "link.jsonl", append=True) as sink, pytest.raises(FileError, match=r"link\.jsonl"):
        sink(make(0))
    assert victim.read_text() == "precious"


def test_a_dangling_link_is_kept_aside(tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").symlink_to(tmp_path / "nowhere")
    write_run(tmp_path / "r.jsonl", a_run("one"))
    assert not (tmp_path / "nowhere").exists()
    assert len(read(tmp_path / "r.jsonl").measurements) == 2


@pytest.mark.parametrize("place", ["/dev/null/x/record.jsonl", "/proc/record.jsonl", "/" + "a" * 5000, "a\0b/r.jsonl"])
def test_an_impossible_place_is_named(place: str) -> None:
    with pytest.raises(FileError, match="cannot be written"), JsonLines(place) as sink:
        sink(make(0))


@pytest.mark.parametrize("place", [".", "/dev/full"])
def test_a_folder_or_device_is_refused(place: str) -> None:
    with pytest.raises(RecordError, match="not a file"):
        JsonLines(place)


def test_a_record_without_merge_trees_is_read_and_shown() -> None:
    """`version2.jsonl` was written before there were any: what it lacks is not known, and nothing else is lost."""
    record = read(GOLDEN.with_name("version2.jsonl"))
    assert not record.problems
    assert [m.step for m in record.measurements] == [0, 10, 20]
    group = record.measurements[-1].groups["0"]
    assert group.merge_tree is None
    assert group.linkage().shape == (0, 4)
    assert record.verdict is not None
    assert record.verdict.advice in html.page(record)


def test_a_merge_tree_comes_back_as_it_was(tmp_path: Path) -> None:
    m = make(0, groups=measured(0, 0, 1).groups)
    with JsonLines(tmp_path / "record.jsonl") as sink:
        sink(m)
    before, after = (one.groups["layer.0.weight"] for one in (m, read(tmp_path).measurements[0]))
    assert after.merge_tree == before.merge_tree
    np.testing.assert_allclose(after.linkage(), before.linkage(), rtol=1e-6)
    assert is_valid_linkage(after.linkage())


def test_records_of_version_1_are_read() -> None:
    record = read(GOLDEN)
    assert not record.problems
    assert record.run is None
    assert record.config is not None
    assert record.config["mode"] == "preserve"
    first = record.measurements[0]
    assert [m.step for m in record.measurements] == [0, 10, 20]
    assert first.phase is Phase.CONSTRAINED
    assert first.proximity == first.spectral.r == 0.44681637859048845
    assert (first.edge, first.lr, first.estimator, first.rule) == (3.8, (0.5,), "spectral", "sgd momentum")
    assert first.spectrum[1] == pytest.approx(first.r_spec)
    assert first.groups["0"].diagrams[0].shape == (8, 2)
    assert first.groups["0"].proximity_step == 0
    assert [one.r for one in record.readings] == [m.r_spec for m in record.measurements]
    assert [decision.policy for _, decision in record.decisions] == ["preserve"] * 3


def test_a_later_format_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    path = write_run(tmp_path / "r.jsonl", a_run("one"))
    text = path.read_text().replace('"topoopt":2', '"topoopt":3').replace('"step":10,', '"news":[1],"step":10,')
    path.write_text(text + '{"type":"forecast","value":3}\n')
    record = read(path)
    assert len(record.measurements) == 2
    assert ["later version" in problem for problem in record.problems] == [True, False]
    assert "forecast" in record.problems[1]


def test_long_records_are_read_lazily_and_an_object_stays_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lazy, "KEPT", 2000)
    path = write_run(tmp_path / "r.jsonl", a_run("one"), range(0, 1000, 10))
    decoded = []
    monkeypatch.setattr(reading, "decode", lambda text, whole=reading.decode: (decoded.append(1), whole(text))[1])
    record = read(path)
    decoded.clear()
    assert [m.step for m in record.measurements] == list(range(0, 1000, 10))
    assert 80 < len(decoded) < 100  # the first few are kept, the others are read again
    last = record.measurements[-1]
    assert last is record.measurements[99]
    assert [m.step for m in record.measurements[-3:]] == [970, 980, 990]
    assert list(record.readings)[-1].step == 995
    path.unlink()
    with pytest.raises(RecordError, match="read it again"):
        record.measurements[50]
    write_run(path, a_run("two"))
    with pytest.raises(RecordError, match="read it again"):
        record.measurements[51]


def test_readings_that_are_tied_to_no_step_are_all_kept(tmp_path: Path) -> None:
    with JsonLines(tmp_path / "r.jsonl") as sink:
        for r in (0.1, 0.2):
            sink.reading(SpectralReading(r=r))
    assert [one.r for one in read(tmp_path / "r.jsonl").readings] == [0.1, 0.2]


def test_diagrams_are_lean_and_rounded_to_float32() -> None:
    deaths = [[0.0, 1 / 3], [0.0, 2 / 3], [0.0, float("inf")]]
    text = lines.encode_diagram(lines.decode_diagram(deaths))
    assert text.startswith("f4 deaths:")
    assert lines.decode_diagram(text).tolist() == [[0.0, 0.3333333432674408], [0.0, 0.6666666865348816], deaths[2]]
    tiny = lines.encode_diagram(lines.decode_diagram([[1e-60, 1e60]]))
    assert tiny.startswith("f8:")
    assert lines.decode_diagram(tiny).tolist() == [[1e-60, 1e60]]
    assert lines.decode_diagram(lines.encode_diagram(lines.decode_diagram([]))).shape == (0, 2)


def test_a_full_disk_is_one_named_error_and_the_next_line_begins_anew(tmp_path: Path, monkeypatch) -> None:
    sink = JsonLines(tmp_path / "r.jsonl")
    sink(make(0))
    write, calls = os.write, []

    def half(number: int, data: bytes) -> int:
        calls.append(len(data))
        if len(calls) == 1:
            return write(number, data[:30])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", half)
    with pytest.raises(FileError, match="No space left"):
        sink(make(1))
    monkeypatch.setattr(os, "write", write)
    sink(make(2))
    sink.close()
    record = read(tmp_path / "r.jsonl")
    assert [m.step for m in record.measurements] == [0, 2]
    assert len(record.problems) == 1
