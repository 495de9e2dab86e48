"""A record as one HTML page that needs nothing else: numbers, plots, and what was left out and why."""

from __future__ import annotations

import base64
import io
from collections import Counter
from html import escape
from typing import TYPE_CHECKING

from topoopt.measurement import GroupMeasurement, Measurement, Phase
from topoopt.report import plots
from topoopt.report.record import Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1000px; margin: 2rem auto; padding: 0 1rem; color: #1d1d1f; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; border-bottom: 1px solid #ddd; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13px; }
th, td { padding: 0.2rem 0.6rem; text-align: right; border-bottom: 1px solid #eee; }
th:first-child, td:first-child { text-align: left; }
img { max-width: 100%; } .phase { padding: 0.1rem 0.5rem; border-radius: 0.5rem; } .note { color: #555; font-size: 13px; }
"""
COLUMNS = ("group", "n", "d", "r of the group", "gain", "distortion since start", "merge margin", "vanishing", "twins")


def page(record: Record) -> str:
    """Return the page as text."""
    measurements = record.measurements
    parts = [f"<h1>topoopt: {escape(str(record.path))}</h1>", _summary(measurements)]
    if measurements:
        last = measurements[-1]
        parts += ["<h2>Phase, learning rate and loss</h2>", _image(plots.history_figure(measurements))]
        parts += ["<h2>Layers at the last measurement</h2>", _layers(last), "<h2>Persistence</h2>", _persistence(last)]
        parts += ["<h2>What was left out, approximated or is outside the theory</h2>", _omissions(measurements)]
        parts += ["<h2>What the controller did</h2>", _decisions(measurements)]
    if record.problems:
        parts.append("<h2>Lines of the record that could not be read</h2>" + _list(record.problems))
    body = "\n".join(parts)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>topoopt</title><style>{STYLE}</style></head>'
        f"<body>{body}</body></html>"
    )


def _summary(measurements: list[Measurement]) -> str:
    if not measurements:
        return "<p>The record holds no measurement yet.</p>"
    last = measurements[-1]
    phases = Counter(m.phase for m in measurements)
    spread = ", ".join(f"{count} {phase}" for phase, count in phases.items())
    eta = ", ".join(f"{value:.4g}" for value in last.eta_star)
    colour = plots.COLOURS[last.phase]
    return (
        f'<p>Last measured at step {last.step}: <span class="phase" style="background:{colour}66">{last.phase}</span>, '
        f"r = {last.proximity:.4g} (edge {last.edge:g}, {escape(last.estimator)} estimate, rule {escape(last.rule or '?')}), "
        f"eta* = {eta}.</p><p>{len(measurements)} measurements ({spread}); measuring took {last.share:.2%} of the "
        f"wall time.</p>"
        f'<p class="note">{_meaning(last.phase)} r is local: it is that of one batch, at one point.</p>'
    )


def _meaning(phase: Phase) -> str:
    return {
        Phase.CONSTRAINED: "Below r = 1 the step is bi-Lipschitz on the neurons: none merge in it.",
        Phase.PERMISSIVE: "From r = 1 on the guarantee is lost; nothing forces a change.",
        Phase.SIMPLIFICATION: "At or past the edge of stability, where simplification was observed.",
        Phase.UNKNOWN: "No estimator could run.",
    }[phase]


def _layers(last: Measurement) -> str:
    rows = [_row(name, group) for name, group in last.groups.items()]
    head = "".join(f"<th>{column}</th>" for column in COLUMNS)
    return f"<table><tr>{head}</tr>{''.join(rows)}</table>" if rows else "<p>No group was measured.</p>"


def _row(name: str, group: GroupMeasurement) -> str:
    own = "" if group.proximity is None else f"{group.proximity:.3g} (step {group.proximity_step})"
    low, high = group.distortion_total
    cells = (
        escape(name), group.n, group.d, own, f"{group.gain:.3g}", f"{low:.3g} to {high:.3g}",
        f"{group.merge_margin:.3g}", group.vanishing, group.twins,
    )  # fmt: skip
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _persistence(last: Measurement) -> str:
    figures = []
    for name, group in list(last.groups.items())[:6]:
        title = f"{name} (diagrams of step {group.diagrams_step}, certified above ratio {group.resolution:.3g})"
        figures += [
            _image(plots.diagram_figure(group.diagrams, title)),
            _image(plots.betti_figure(group.diagrams, name)),
        ]
    more = len(last.groups) - 6
    return "".join(figures) + (f'<p class="note">and {more} more groups, in the record</p>' if more > 0 else "")


def _omissions(measurements: list[Measurement]) -> str:
    reasons: Counter[str] = Counter()
    for m in measurements:
        reasons.update(f"{name}: {reason}" for name, reason in m.skipped.items())
        reasons.update(m.notes)
        reasons.update(note for group in m.groups.values() for note in group.notes)
    return _list(f"{reason} ({count} of {len(measurements)} measurements)" for reason, count in reasons.most_common())


def _decisions(measurements: list[Measurement]) -> str:
    lines = []
    for m in measurements:
        decision = m.decision
        if decision is not None and (decision.rule != "none" or decision.events):
            events = "; ".join(decision.events)
            why = "; ".join(part for part in (decision.note, events) if part)
            lines.append(f"step {m.step}: factor {m.lr_scale:.4g} by {decision.policy} ({decision.rule}) {why}")
    return _list(lines[-200:])


def _list(lines: object) -> str:
    items = "".join(f"<li>{escape(str(line))}</li>" for line in lines)  # type: ignore[attr-defined]
    return f"<ul>{items}</ul>" if items else "<p>Nothing.</p>"


def _image(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return f'<img alt="" src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">'
