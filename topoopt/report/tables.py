"""A run as tables: rows of plain values, and the forms in which other tools take them."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from topoopt.errors import ConfigError
from topoopt.extras import require
from topoopt.measurement import Decision, GroupMeasurement, Measurement, SpectralReading
from topoopt.report.writing import opened_whole, write_whole

if TYPE_CHECKING:
    import pandas

    from topoopt.report.record import RunRecord

Row = dict[str, Any]


def rows(run: RunRecord, of: str) -> Iterator[Row]:
    """Yield the rows of one table; every row has the same columns.

    Raises:
        ConfigError: for a table that there is not.
    """
    if of not in _TABLES:
        raise ConfigError(f"there is no table {of!r}: give one of {', '.join(_TABLES)}")
    return _TABLES[of](run)


def to_pandas(run: RunRecord, of: str) -> pandas.DataFrame:
    """A table as a DataFrame."""
    return require("pandas", extra="data").DataFrame(list(rows(run, of)))


def to_csv(run: RunRecord, path: str | Path, of: str) -> Path:
    """Write a table as CSV (UTF-8, one header line)."""
    with opened_whole(path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", errors="replace", newline="")
        write_csv(rows(run, of), text)
        text.detach()
    return Path(path)


def write_csv(table: Iterator[Row], text: Any) -> None:
    """Write rows as CSV to an open text file.

    Text that a spreadsheet would take for a formula is quoted with an apostrophe: names come from other people's files.
    """
    writer = None
    for row in table:
        if writer is None:
            writer = csv.DictWriter(text, list(row), lineterminator="\n")
            writer.writeheader()
        writer.writerow({key: _harmless(value) for key, value in row.items()})
    text.flush()


def to_parquet(run: RunRecord, path: str | Path, of: str) -> Path:
    """Write a table as Parquet."""
    require("pyarrow", extra="data")
    buffer = io.BytesIO()
    to_pandas(run, of).to_parquet(buffer, engine="pyarrow", index=False)
    return write_whole(path, buffer.getvalue())


def card(run: RunRecord) -> Row:
    """What a run is, in a few short values."""
    known, last = run.run, run.measurements[-1] if len(run.measurements) else None
    return {
        "run": run.id or "?",
        "started": known.started if known is not None else "?",
        "model": known.model if known is not None else "?",
        "optimizer": known.optimizer if known is not None else (last.rule if last is not None else "?"),
        "measurements": len(run.measurements),
        "last step": run.last_step,
        "phase": str(last.phase) if last is not None else "?",
        "verdict": run.verdict.state if run.verdict is not None else "?",
    }


def _measurements(run: RunRecord) -> Iterator[Row]:
    for m in run.measurements:
        rule = m.decision.rule if m.decision is not None else ""
        yield {
            "step": m.step,
            "phase": str(m.phase),
            "estimator": m.estimator,
            "proximity": m.proximity,
            "edge": _number(m.edge),
            "r_over_edge": _over_edge(m.proximity, m.edge),
            "r_spec": m.r_spec,
            "r_pair": m.r_pair,
            "lr": m.lr[0],
            "lr_scale": m.lr_scale,
            "eta_star": m.eta_star[0],
            "eta_star_low": m.eta_star_bracket[0][0],
            "eta_star_high": m.eta_star_bracket[0][1],
            "loss": m.loss,
            "grad_norm": m.spectral.grad_norm,
            "update_ratio": m.spectral.update_ratio,
            "silent": m.spectral.silent,
            "decision": rule,
            "seconds": m.seconds,
            "share": m.share,
            "warming": m.spectral.warming,
            "skipped": "; ".join(f"{name}: {reason}" for name, reason in m.skipped.items()),
        }


def _readings(run: RunRecord) -> Iterator[Row]:
    numbers = ("loss", "baseline", "grad_norm", "update_ratio", "clipped", "silent", "low", "high")
    for one in run.readings:
        yield {
            "step": one.step,
            "r": one.r,
            "edge": _number(one.edge),
            "r_over_edge": _over_edge(one.r, one.edge),
            "lr": one.lr[0] if one.lr else math.nan,
            "scale": one.scale,
            **{name: getattr(one, name) for name in numbers},
            "products": one.products,
            "seconds": one.seconds,
            "rule": one.rule,
            "engine": one.engine,
            "probe": one.probe,
            "reason": one.reason,
            "warming": one.warming,
        }


def _layers(run: RunRecord) -> Iterator[Row]:
    for m in run.measurements:
        for name, group in m.groups.items():
            yield {"step": m.step, "layer": name, **_layer(group)}


def _layer(group: GroupMeasurement) -> Row:
    names = ("n", "d", "gain", "certified", "contraction", "merge_margin", "vanishing", "twins", "unresolved_twins")
    more = ("silent", "diameter", "effective_rank", "diagrams_step", "pending", "largest_loop", "log_persistence")
    loops = [len(diagram) for diagram in group.diagrams[1:2]]
    return {
        **{name: getattr(group, name) for name in names},
        "distortion_step_lower": group.distortion[0],
        "distortion_step_upper": group.distortion[1],
        "distortion_lower": group.distortion_window[0],
        "distortion_upper": group.distortion_window[1],
        "distortion_total_lower": group.distortion_total[0],
        "distortion_total_upper": group.distortion_total[1],
        **{name: getattr(group, name) for name in more},
        "persistence_h0": group.total_persistence[0] if group.total_persistence else math.nan,
        "persistence_h1": group.total_persistence[1] if len(group.total_persistence) > 1 else math.nan,
        "loops": loops[0] if loops else -1,
        "proximity": _number(group.proximity),
        "proximity_step": group.proximity_step,
        "notes": "; ".join(group.notes),
    }


def _decisions(run: RunRecord) -> Iterator[Row]:
    def row(step: int, one: Decision) -> Row:
        said = {"scale": one.scale, "policy": one.policy, "rule": one.rule, "note": one.note}
        return {"step": step, **said, "events": "; ".join(one.events)}

    return (row(step, one) for step, one in run.decisions)


_TABLES: dict[str, Callable[[RunRecord], Iterator[Row]]] = {
    "measurements": _measurements,
    "readings": _readings,
    "layers": _layers,
    "decisions": _decisions,
}
TABLES = tuple(_TABLES)
"""The tables that there are."""


def over_edge(readings: Sequence[SpectralReading]) -> list[float]:
    """r / e of the readings that are known and have an edge."""
    ratios = (_over_edge(one.r, one.edge) for one in readings if one.known)
    return [ratio for ratio in ratios if not math.isnan(ratio)]


def final_losses(
    measurements: Sequence[Measurement], readings: Sequence[SpectralReading], count: int = 5
) -> list[float]:
    """The last few losses that are known, of whichever sequence reaches further."""
    seen = {one.step: one.loss for one in (*(m.spectral for m in measurements[-count:]), *readings[-count:])}
    return [seen[step] for step in sorted(seen) if not math.isnan(seen[step])][-count:]


def _over_edge(r: float, edge: float | None) -> float:
    return r / edge if edge else math.nan


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _harmless(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value
