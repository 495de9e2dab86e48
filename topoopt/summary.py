"""Which run a record is of, and what is said of it when it ends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from topoopt import markup
from topoopt.verdict import Verdict


@dataclass(frozen=True)
class Suggested:
    """The rate that was looked for before the run (`TopoCallback(suggest=True)`)."""

    lr: tuple[float, ...]
    """Each parameter group's, as it was put in force; empty where it is not known."""
    bracket: tuple[float, float] | None
    """(low, high) of the first group; None where it is not known."""
    known: bool
    reason: str
    steps: int = 0
    """Optimizer steps that were taken on copies."""


@dataclass(frozen=True)
class Run:
    """Which run a record is of: written in its header, at every opening."""

    id: str
    """Random, of this process's run."""
    started: str
    """ISO 8601, UTC."""
    model: str
    """Class of the model."""
    parameters: int
    """Number of its parameters."""
    optimizer: str
    """Class of the optimizer."""
    rule: str
    lr: tuple[float, ...]
    """Each parameter group's rate at the start."""
    settings: Mapping[str, object]
    """The `TopoConfig`, as JSON values."""
    versions: Mapping[str, str]
    """Of topoopt, torch, numpy and Python."""
    total_steps: int | None = None
    resumed: str = ""
    """Id of the run that this one goes on from."""
    resumed_at: int = 0
    """The step it goes on at."""
    suggested: Suggested | None = None
    """None: no rate was looked for."""

    def __repr__(self) -> str:
        return (
            f"<Run {self.id}: {self.model} ({self.parameters:,} parameters), {self.optimizer}, started {self.started}>"
        )

    def _repr_html_(self) -> str:
        """For notebooks."""
        shown = {
            name: getattr(self, name) for name in ("model", "parameters", "optimizer", "rule", "started", "total_steps")
        }
        rates = {"rates": ", ".join(f"{rate:.4g}" for rate in self.lr)}
        return markup.facts(f"run {self.id}", {**shown, **rates, "settings": dict(self.settings)})


@dataclass(frozen=True)
class Summary:
    """What is said of a run when it ends."""

    run: Run
    verdict: Verdict
    steps: int
    readings: int
    measurements: int
    seconds: float
    """Wall time from the first step on, set-up not counted."""
    share: float
    """Share of it that measuring took."""
    setup_seconds: float
    counts: Mapping[str, int] = field(default_factory=dict)
    """Faults, stretched readings, late or given-up homology."""
    unfinished: tuple[str, ...] = ()
    """What was still on its way when the run ended, by name."""

    def __repr__(self) -> str:
        looked = f"{self.readings} readings, {self.measurements} measurements"
        cost = f"{self.share:.2%} of {self.seconds:.3g} s"
        return f"<Summary of {self.run.id}: {self.verdict.state}, {self.steps} steps, {looked}, {cost}>"

    def _repr_html_(self) -> str:
        """For notebooks."""
        cost = f"{self.share:.2%} of {self.seconds:.3g} s"
        shown = {
            "steps": self.steps,
            "readings": self.readings,
            "measurements": self.measurements,
            "measuring took": cost,
        }
        told = shown | dict(self.counts) | ({"unfinished": "; ".join(self.unfinished)} if self.unfinished else {})
        return markup.verdict(self.verdict.state, self.verdict.lines, self.verdict.gauge) + markup.facts(
            f"run {self.run.id}", told
        )
