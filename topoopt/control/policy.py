"""What a policy is: a pure function from a reading to a decision, with its memory passed in and out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from topoopt.measurement import Decision

State = dict[str, object]
"""A policy's memory: floats, strings, lists and dicts of them only, so that it survives a checkpoint."""


@dataclass(frozen=True)
class Seen:
    """What a policy may know of the neurons: plain numbers over all groups, at the last measurement."""

    gain: float = math.nan
    """r_pair of the last measured step."""
    measured_step: int = -1
    """The step at which the neurons were last measured; -1: not yet."""
    topology_step: int = -1
    """The step whose neurons the persistence below describes, or certifies unchanged; -1: not yet."""
    neurons: int = 0
    """Neurons over all groups."""
    vanishing: int = 0
    """Neurons of negligible norm."""
    twins: int = 0
    """Neurons that have another nearly equal to them."""
    silent: int = -1
    """Units that gave the same output on every sample of a batch; -1 where they were not seen."""
    distinct: int = -1
    """Clusters that remain when neurons within a hundredth of their group's diameter are one; -1 when unknown."""
    effective_rank: float = math.nan
    """Participation ratio of each group's cloud, summed over groups."""
    total_persistence: float = math.nan
    """Total persistence of degree >= 1."""
    largest_loop: float = math.nan
    """Longest lifetime in degree 1 over its group's diameter, the largest over groups."""
    log_persistence: float = math.nan
    """Sum of log(death / birth) in degree 1, scale-free."""


@dataclass(frozen=True, kw_only=True)
class Reading(Seen):
    """What a policy may know at the moment it decides: plain numbers about the step that is about to be taken."""

    step: int
    r: float
    """Proximity of the coming step at the *user's* learning rate (factor 1); NaN when unknown."""
    edge: float | None
    """e of the update rule, in units of r; None for a rule whose edge is not known."""
    lr: float
    """The user's learning rate for this step (the largest over parameter groups)."""
    base_lr: float
    """The peak of the user's schedule: `initial_lr` where a scheduler has set it, else the largest rate seen so far."""
    scale: float = 1.0
    """The factor in force until now."""
    loss: float = math.nan
    """Loss of the step's own batch; NaN when unknown."""
    total_steps: int | None = None
    """Length of the run, when known."""
    finite: bool = True
    """False when a loss, a gradient or a weight was found non-finite."""
    rule: str = ""
    """Update rule that was recognised, such as "sgd" or "adam"."""
    reason: str = ""
    """Why `r` is unknown, when it is."""
    warming: str = ""
    """Why `r` is of a preconditioner that is still warming up, when it is: an upper bound for now, nothing to learn from."""
    fresh: bool = True
    """False: nothing was seen anew, the user's rate has moved and `r` was moved along with it."""
    snapshot: bool = False
    """Whether the run can remember its weights and go back to them (`Decision.weights`)."""


@runtime_checkable
class Policy(Protocol):
    """From measurements to a factor on the user's learning rate. Implementations are frozen dataclasses.

    A policy that steers may also have any of

    * `interval`, the number of steps between its readings of r while r moves fast;
    * `needs`, the number of readings without which it cannot act as it is meant to: they are taken on credit, 10 at most;
    * `stale(step, total_steps, state) -> bool`: wants a fresh reading of r before this step;
    * `rests(step, state) -> bool`: wants no readings now but those that `stale` asks for;
    * `looks(step, state) -> bool`: wants the neurons measured, with homology waited for, before this step;
    * `watches(step, state) -> bool`: wants the loss of this step, which costs no reading.

    All of them are wishes: the run decides by its budget what is fulfilled.
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
        """Return the factor, in (0, 1e6), for the steps until the next reading, and the new memory. Never mutates `state`."""
        ...
