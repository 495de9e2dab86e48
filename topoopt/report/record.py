"""A record read back: its runs, kept apart, and what each holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from topoopt import markup
from topoopt import verdict as verdicts
from topoopt.measurement import Decision, Measurement, SpectralReading
from topoopt.report import tables
from topoopt.report.writing import shortened
from topoopt.summary import Run, Summary
from topoopt.verdict import Verdict

if TYPE_CHECKING:
    import pandas

MEASURED = "measurements"
"""The table that is meant where none is named."""


@dataclass(frozen=True, eq=False, repr=False)
class RunRecord:
    """One run of a record: all its openings, from the first to the last resumption. Sequences are read lazily, by step."""

    path: Path
    run: Run | None
    """As its last opening said it; None where it was written without `begin`, or by topoopt 0.1."""
    openings: tuple[Run, ...]
    config: Mapping[str, Any] | None
    """The settings, as `TopoConfig.to_json` writes them."""
    versions: Mapping[str, str]
    measurements: Sequence[Measurement]
    """By step; of a step that was written twice, the last; what a resumed run did again only as it did it."""
    readings: Sequence[SpectralReading]
    """By step: every reading where the run told them, else those of the measurements."""
    decisions: Sequence[tuple[int, Decision]]
    """(step, decision) at every change of the factor where the run told them, else those of the measurements."""
    verdicts: Sequence[tuple[int, Verdict]]
    """(step, verdict) at every change."""
    summary: Summary | None
    """None for a run that did not end, or was killed."""
    problems: tuple[str, ...]
    """Lines that could not be read, each with its number and reason."""

    @property
    def id(self) -> str:
        """Of the run; "" where it is not known."""
        return self.run.id if self.run is not None else ""

    @property
    def told(self) -> Verdict | None:
        """The verdict that the run itself told last; None where it told none."""
        if self.summary is not None:
            return self.summary.verdict
        return self.verdicts[-1][1] if len(self.verdicts) else None

    @cached_property
    def verdict(self) -> Verdict | None:
        """What the run itself told last, else what its readings say; None for a record without readings."""
        return self.told if self.told is not None else judged(self)

    @property
    def last_step(self) -> int:
        """The last step that anything is known of; -1 for none."""
        steps = [one[-1].step for one in (self.measurements, self.readings) if len(one)]
        return max([*steps, self.summary.steps - 1 if self.summary is not None else -1])

    def table(self, of: str = MEASURED) -> list[dict[str, Any]]:
        """Rows of plain values: of "measurements", "readings", "layers" (one a measurement and group) or "decisions".

        Raises:
            ConfigError: for another name.
        """
        return list(tables.rows(self, of))

    def to_pandas(self, of: str = MEASURED) -> pandas.DataFrame:
        """`table` as a DataFrame; needs pandas (the extra `data`)."""
        return tables.to_pandas(self, of)

    def to_csv(self, path: str | Path, of: str = MEASURED) -> Path:
        """Write `table` as CSV, row by row, and return the path."""
        return tables.to_csv(self, path, of)

    def to_parquet(self, path: str | Path, of: str = MEASURED) -> Path:
        """Write `table` as Parquet, and return the path; needs pandas and pyarrow (the extra `data`)."""
        return tables.to_parquet(self, path, of)

    def __repr__(self) -> str:
        name = self.id or "without an id"
        state = f", {self.told.state}" if self.told is not None else ""
        return f"<RunRecord {name}: {_count(self)}{state}>"

    def _repr_html_(self) -> str:
        """For notebooks."""
        told = self.verdict._repr_html_() if self.verdict is not None else ""
        return told + markup.table(shortened(self.path), [tables.card(self)])


@dataclass(frozen=True, eq=False, repr=False)
class Record:
    """A record: its runs in the order of the file. What is asked of the record itself is of its last run."""

    path: Path
    runs: tuple[RunRecord, ...]
    """At least one."""
    problems: tuple[str, ...]
    """Of all runs."""

    @property
    def last(self) -> RunRecord:
        """The last run."""
        return self.runs[-1]

    @property
    def run(self) -> Run | None:
        """Which run the last one is; None where that was not written."""
        return self.last.run

    @property
    def config(self) -> Mapping[str, Any] | None:
        """Settings of the last run."""
        return self.last.config

    @property
    def measurements(self) -> Sequence[Measurement]:
        """Measurements of the last run."""
        return self.last.measurements

    @property
    def readings(self) -> Sequence[SpectralReading]:
        """Readings of the last run."""
        return self.last.readings

    @property
    def decisions(self) -> Sequence[tuple[int, Decision]]:
        """Decisions of the last run."""
        return self.last.decisions

    @property
    def verdicts(self) -> Sequence[tuple[int, Verdict]]:
        """Verdicts of the last run."""
        return self.last.verdicts

    @property
    def verdict(self) -> Verdict | None:
        """`RunRecord.verdict` of the last run."""
        return self.last.verdict

    @property
    def summary(self) -> Summary | None:
        """What was said of the last run at its end."""
        return self.last.summary

    def table(self, of: str = MEASURED) -> list[dict[str, Any]]:
        """`RunRecord.table` of the last run."""
        return self.last.table(of)

    def to_pandas(self, of: str = MEASURED) -> pandas.DataFrame:
        """`RunRecord.to_pandas` of the last run."""
        return self.last.to_pandas(of)

    def to_csv(self, path: str | Path, of: str = MEASURED) -> Path:
        """`RunRecord.to_csv` of the last run."""
        return self.last.to_csv(path, of)

    def to_parquet(self, path: str | Path, of: str = MEASURED) -> Path:
        """`RunRecord.to_parquet` of the last run."""
        return self.last.to_parquet(path, of)

    def __repr__(self) -> str:
        runs = f"{len(self.runs)} runs, the last of " if len(self.runs) > 1 else ""
        trouble = f", {len(self.problems)} problems" if self.problems else ""
        return f"<Record {shortened(self.path)}: {runs}{_count(self.last)}{trouble}>"

    def _repr_html_(self) -> str:
        """For notebooks: the last run's verdict and a table of the runs."""
        told = self.verdict._repr_html_() if self.verdict is not None else ""
        return told + markup.table(shortened(self.path), [tables.card(run) for run in self.runs])


def judged(run: RunRecord) -> Verdict | None:
    """The verdict of a run that told none (it was killed, or is of topoopt 0.1), from its readings."""
    judge = getattr(verdicts, "judge", None)
    if judge is None or not len(run.readings):
        return None
    groups = run.measurements[-1].groups if len(run.measurements) else None
    total = run.run.total_steps if run.run is not None else None
    return judge(run.readings, total_steps=total, groups=groups)


def _count(run: RunRecord) -> str:
    return f"{len(run.measurements)} measurements, {len(run.readings)} readings, last step {run.last_step}"
