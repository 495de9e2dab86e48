"""Pictures for other people's figures: what is drawn is what was measured, on the axes that were given."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from measurements import make
from page_records import looks, measured, readings, record, trained

from topoopt import plots
from topoopt.errors import ConfigError
from topoopt.report.plots import betti_figure, diagram_figure, history_figure, overview_figure

EVERY: list[Callable[..., Axes]] = [
    plots.phases, plots.layers, plots.diagram, plots.barcode, plots.betti, plots.merge_tree
]  # fmt: skip


def run() -> Any:
    return trained().runs[0]


@pytest.mark.parametrize("draw", EVERY, ids=lambda draw: draw.__name__)
def test_each_draws_on_given_axes_or_on_its_own(draw: Callable[..., Axes]) -> None:
    given = Figure().subplots()
    assert draw(run(), given) is given
    own = draw(run())
    assert own is not given
    for axes in (given, own):
        axes.figure.savefig("/dev/null", format="png")


@pytest.mark.parametrize("draw", EVERY, ids=lambda draw: draw.__name__)
def test_a_list_and_a_single_measurement_are_runs_too(draw: Callable[..., Axes]) -> None:
    draw(run().measurements)
    draw(run().measurements[-1])


def line(axes: Axes, label: str) -> np.ndarray:
    return next(one for one in axes.get_lines() if one.get_label() == label).get_xydata()  # type: ignore[return-value]


def test_phases_show_r_its_bound_and_the_phases_by_name() -> None:
    axes = plots.phases(run())
    np.testing.assert_allclose(line(axes, "$r = \\eta/\\eta^*$")[:, 1], [0.2 * 1.4**k for k in range(12)])
    np.testing.assert_allclose(line(axes, "$r_{pair}$, a lower bound")[:, 1], [0.05 * (k + 1) for k in range(12)])
    legend = axes.get_legend()
    assert legend is not None
    assert {"constrained", "permissive", "simplification"} <= {text.get_text() for text in legend.get_texts()}
    assert {text.get_text() for text in axes.texts} == {"1", "edge 2"}
    hatches = [patch.get_hatch() for patch in axes.patches if patch.get_hatch()]
    assert len(set(hatches)) == 3


def test_an_edge_that_is_not_known_is_not_drawn() -> None:
    axes = plots.phases([make(step, edge=None, proximity=0.3 + step) for step in range(3)])
    assert [text.get_text() for text in axes.texts] == ["1"]
    assert [patch.get_label() for patch in axes.patches] == ["constrained"]
    overview_figure([make(step, edge=None) for step in range(3)]).savefig("/dev/null", format="png")


def test_a_run_without_any_step_is_an_empty_picture() -> None:
    plots.phases(record().runs[0]).figure.savefig("/dev/null", format="png")
    history_figure([]).savefig("/dev/null", format="png")


def test_readings_between_measurements_are_drawn() -> None:
    axes = plots.phases(record(readings=readings([0.5, math.nan, 0.7])).runs[0])
    np.testing.assert_array_equal(line(axes, "$r = \\eta/\\eta^*$")[:, 1], [0.5, math.nan, 0.7])


def test_layers_show_the_metric_of_each_layer_and_leave_holes() -> None:
    measurements = [measured(10 * k, k, 3 if k else 2) for k in range(4)]
    axes = plots.layers(measurements, metric="twins")
    values = axes.collections[0].get_array()
    assert values is not None
    np.testing.assert_array_equal(np.ma.filled(values.reshape(3, 4), -1), [[0, 1, 2, 3], [0, 1, 2, 3], [-1, 1, 2, 3]])
    assert [text.get_text() for text in axes.get_yticklabels()] == [f"layer.{i}.weight" for i in range(3)]
    with pytest.raises(ConfigError, match=r"metric='nonsense' .* twins"):
        plots.layers(measurements, metric="nonsense")
    with pytest.raises(ConfigError, match="no layer was measured"):
        plots.layers([make(0)])


def test_the_widest_or_the_named_layer_is_drawn() -> None:
    one = measured(0, 0, 2)
    wider = {"wide": measured(0, 1, 1, bars=40).groups["layer.0.weight"]}
    m = make(0, groups={**one.groups, **wider})
    assert "wide, step 0" in plots.diagram(m).get_title()
    assert "layer.1.weight" in plots.barcode(m, layer="layer.1.weight").get_title()
    assert plots.betti(one.groups["layer.0.weight"]).get_title() == "step 0"
    with pytest.raises(ConfigError, match="no diagrams of a layer 'none': this run has layer"):
        plots.diagram(m, layer="none")
    with pytest.raises(ConfigError, match="no layer of this run"):
        plots.diagram(make(0))


def test_a_barcode_has_a_bar_for_each_feature() -> None:
    group = measured(0, 0, 1).groups["layer.0.weight"]
    axes = plots.barcode(group)
    assert [len(bars.get_segments()) for bars in axes.collections] == [len(d) for d in group.diagrams]  # type: ignore[attr-defined]


def test_a_merge_tree_joins_at_its_distances() -> None:
    group = measured(0, 0, 1).groups["layer.0.weight"]
    joined = [float(branch.get_xdata()[1]) for branch in plots.merge_tree(group).get_lines()]  # type: ignore[index]
    np.testing.assert_allclose(joined, group.linkage()[:, 2])
    without = plots.merge_tree(replace(group, merge_tree=None))
    assert [text.get_text() for text in without.texts] == ["no merge tree was recorded"]
    assert plots.merge_tree(run()).get_title() == "layer layer.0.weight, step 110"


def test_a_course_is_dose_and_response() -> None:
    ramp = trained(decisions=looks()).runs[0]
    axes = plots.course(ramp)
    np.testing.assert_allclose(
        line(axes, "effective rank, of 12"), [[1.03, 1], [1.339, 7 / 12], [1.7407, 0.25]], rtol=1e-3
    )
    assert line(plots.course(ramp, measure="silent"), "silent units, of 5")[:, 1].tolist()[:2] == [0.0, 1.0]
    with pytest.raises(ConfigError, match="measure='twins' was not looked at: choose from effective_rank, silent"):
        plots.course(ramp, measure="twins")
    with pytest.raises(ConfigError, match="no course: only Simplify"):
        plots.course(run())


def test_a_comparison_is_in_units_of_the_edge() -> None:
    axes = plots.compare({"gentle": trained().runs[0], "unknown": [make(0, edge=None, proximity=3.0)]})
    np.testing.assert_allclose(line(axes, "gentle")[:, 1], [0.1 * 1.4**k for k in range(12)])
    np.testing.assert_allclose(line(axes, "unknown (r: its edge is not known)")[:, 1], [3.0])
    assert plots.compare([run(), run()]).get_legend() is not None
    with pytest.raises(ConfigError, match="no run to compare"):
        plots.compare([])


def test_figures_of_trackers_are_drawn() -> None:
    group = measured(0, 0, 1).groups["layer.0.weight"]
    for figure in (
        diagram_figure(group.diagrams),
        betti_figure(group.diagrams, "title"),
        history_figure(run().measurements),
        overview_figure(run().measurements),
    ):
        figure.savefig("/dev/null", format="png")


def test_matplotlib_is_imported_when_something_is_drawn() -> None:
    code = "import sys, topoopt.plots; print('matplotlib' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
        == "False"
    )
