"""What a run shows while it trains, and how results show themselves: in notebooks, on terminals, in log files."""

from __future__ import annotations

import io
import math
import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from measurements import make
from page_records import measured, trained
from runs import a_run, a_summary, a_verdict

from topoopt.measurement import SpectralReading
from topoopt.report import Live
from topoopt.report.live import curve

HOSTILE = "<script>alert(1)</script>"


def reading(step: int, r: float, **more: Any) -> SpectralReading:
    return SpectralReading(step=step, r=r, edge=2.0, lr=(0.1,), loss=1.0, **more)


def show(live: Live, rs: list[float]) -> None:
    live.begin(a_run("one"))
    for step, r in enumerate(rs):
        live.reading(reading(step, r))
    live(make(len(rs) - 1))
    live.verdict(3, a_verdict())
    live.end(a_summary(a_run("one")))
    live.close()


def test_a_log_file_gets_a_line_at_the_start_at_changes_that_last_and_at_the_end() -> None:
    stream = io.StringIO()
    show(Live(stream), [0.1, 0.1, 3.0, 0.1, 1.5, 1.5, 1.5])
    lines = stream.getvalue().splitlines()
    assert lines[0].startswith("Net (")
    assert [line.split(",")[0] for line in lines[1:4]] == [
        "step 1: constrained",
        "step 5: permissive",
        "step 3: verdict right",
    ]
    assert lines[4].startswith("ended after")
    assert tuple(lines[5:8]) == a_verdict().lines
    assert lines[8:] == [a_verdict().gauge.line()]  # type: ignore[union-attr]


def test_that_there_are_no_readings_yet_is_not_told() -> None:
    stream = io.StringIO()
    live = Live(stream)
    live.begin(a_run("one"))
    for step, state in ((0, "not enough readings"), (9, "too low"), (19, "not enough readings")):
        live.verdict(step, replace(a_verdict(), state=state))
    told = [line for line in stream.getvalue().splitlines() if line.startswith("step")]
    assert told == ["step 9: verdict too low", "step 19: verdict not enough readings"]


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_is_drawn_over(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("rich")
    monkeypatch.setenv("TERM", "xterm-256color")
    stream = Screen()
    show(Live(stream, rows=3), [0.1, 0.2, 1.5])
    text = stream.getvalue()
    assert "\x1b[1A" in text or "\x1b[2K" in text  # a line is drawn over
    assert "permissive" in text
    assert "step 3" in text
    assert "verdict: right" in text
    assert a_verdict().advice in text


def test_a_notebook_has_one_output_that_is_updated(monkeypatch: pytest.MonkeyPatch) -> None:
    display = pytest.importorskip("IPython.display")
    drawn: list[str] = []
    handle = SimpleNamespace(update=lambda html: drawn.append(html.data))
    monkeypatch.setattr(display, "display", lambda *_, **__: handle)
    monkeypatch.setattr(sys.modules["IPython"], "get_ipython", lambda: SimpleNamespace(kernel=object()))
    live = Live(rows=2)
    live.begin(a_run("one", model=HOSTILE, total_steps=10))
    for step, r in enumerate([0.1, 0.2, 0.4]):
        live.reading(reading(step, r))
    live.end(a_summary(a_run("one")))
    live.close()
    assert len(drawn) == 4
    assert "step 3 of 10" in drawn[2]
    assert "<progress" in drawn[2]
    assert "<polyline" in drawn[2]
    assert drawn[2].count("<tr>") == 3  # the head and two rows
    assert a_verdict().advice in drawn[3]
    assert HOSTILE not in drawn[0]


def test_the_curve_goes_from_the_first_to_the_last_reading() -> None:
    assert curve([(0, 0.5)]) == ""
    points = curve([(0, 0.5), (10, 1.0), (20, 2.0)], 100, 40).split("points='")[1].split("'")[0].split()
    assert [point.split(",")[0] for point in points] == ["0.0", "50.0", "100.0"]
    heights = [float(point.split(",")[1]) for point in points]
    assert heights == pytest.approx([40.0, 20.0, 0.0])


def results() -> list[Any]:
    m, run = measured(0, 0, 2), a_run("one")
    return [m, m.groups["layer.0.weight"], m.spectral, a_verdict(), run, a_summary(run)]


@pytest.mark.parametrize("one", results(), ids=lambda one: type(one).__name__)
def test_a_result_is_one_short_line(one: Any) -> None:
    text = repr(one)
    assert text.startswith(f"<{type(one).__name__} ")
    assert "\n" not in text
    assert len(text) < 250


@pytest.mark.parametrize("one", [r for r in results() if hasattr(r, "_repr_html_")], ids=lambda one: type(one).__name__)
def test_a_result_shows_itself_without_markup_of_its_own_texts(one: Any) -> None:
    html = one._repr_html_()
    assert html.startswith("<")
    assert html.count("<table") == html.count("</table>")


def test_texts_of_a_run_are_escaped() -> None:
    assert HOSTILE not in a_run("one", model=HOSTILE)._repr_html_()
    assert "r 0.2" in repr(trained().runs[0].readings[0])
    assert "warming up" in repr(reading(1, math.inf, warming="yes"))
