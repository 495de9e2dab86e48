"""What a policy is: a pure function from a reading to a decision, with its memory passed in and out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from topoopt.measurement import Decision

State = dict[str, object]
"""A policy's memory: floats, strings, lists and dicts of them only, so that it survives a checkpoint."""


@dataclass(frozen=True)
class Reading:
    """What a policy may know at the moment it decides: plain numbers about the step that is about to be taken."""

    step: int
    r: float
    """Proximity of the coming step at the *user's* learning rate (factor 1); NaN when unknown."""
    edge: float
    """e of the update rule, in units of r."""
    lr: float
    """The user's learning rate for this step (the largest over parameter groups)."""
    base_lr: float
    """The peak of the user's schedule: `initial_lr` where a scheduler has set it, else the first rate seen."""
    scale: float = 1.0
    """The factor in force until now."""
    loss: float = math.nan
    """Loss on the probe of this step; NaN when unknown."""
    total_steps: int | None = None
    """Length of the run, when known."""
    gain: float = math.nan
    """r_pair of the last measured step."""
    vanishing: int = 0
    """Vanishing neurons over all groups, at the last measurement."""
    twins: int = 0
    """Twin neurons over all groups, at the last measurement."""
    total_persistence: float = math.nan
    """Total persistence of degree >= 1 over all groups, at the last measurement."""
    finite: bool = True
    """False when a loss, a gradient or a weight was found non-finite."""
    rule: str = ""
    """Update rule that was recognised, such as "sgd" or "adam"."""
    reason: str = ""
    """Why `r` is unknown, when it is."""
    fresh: bool = True
    """False: nothing was measured anew, the user's rate has moved and `r` was moved along with it."""


@runtime_checkable
class Policy(Protocol):
    """From measurements to a factor on the user's learning rate. Implementations are frozen dataclasses.

    A policy that steers may also have `interval`, the number of steps between its readings when r moves fast, and
    `stale(step, total_steps, state)`, which says that it wants a fresh reading before this step.
    """

    @property
    def name(self) -> str:
        """Name in records."""
        ...

    @property
    def steers(self) -> bool:
        """Whether the policy may ever return a factor other than 1."""
        ...

    def start(self) -> State:
        """Memory of a fresh run."""
        ...

    def decide(self, reading: Reading, state: State) -> tuple[Decision, State]:
        """Return the factor for the steps until the next reading, and the new memory. Never mutates `state`."""
        ...
