"""Whether a replay is the user's step: what stands between backward and `.grad`, looked at anew now and then.

The gradient in `.grad` does for the base of a product, undone. Where that has not been shown for a while, and where lengths do
not tell, the step is replayed at the weights themselves and compared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from topoopt.curvature.hessian import Reduce
from topoopt.curvature.passage import LIKE, Passage, between, by_lengths
from topoopt.curvature.replaying.shadow import Shadow
from topoopt.curvature.space import Layout
from topoopt.curvature.spectrum import Base
from topoopt.curvature.taping.tape import Tape
from topoopt.device import brought_over
from topoopt.errors import MeasurementError

Found = Sequence[Tensor | None]
"""A gradient for each parameter."""


class Checker:
    """Finds the passage of one taped step after the other."""

    def __init__(self) -> None:
        self._within = False
        """Whether something changes the gradient within backward already (a hook on a weight): lengths cannot tell it."""
        self.globally = False
        """Whether noise has to come from the default generators, since the step sets them itself."""

    def passage(
        self,
        tape: Tape,
        shadow: Shadow,
        layout: Layout,
        reduce: Reduce | None,
        *,
        anew: bool,
        undone_does: Callable[[Passage], bool],
    ) -> tuple[Passage, Callable[[], Base]]:
        """What stands between backward and the step, and what makes (loss, gradient) as backward made them.

        Args:
            tape: of the step.
            shadow: the same, to be replayed.
            layout: of the weights, in whose `.grad` the step's gradient lies.
            reduce: averages over ranks in place.
            anew: replay and compare, whatever the lengths say.
            undone_does: whether `.grad`, undone, does for the base also where the step was replayed: a copy less is held.

        Raises:
            MeasurementError: where the replay is not the user's step, with how far it is off.
        """
        if self.globally:
            shadow.draw_globally()
        found = [p.grad for p in layout.parameters]
        passage = None if anew or self._within else self._at_sight(tape, layout, found)
        if passage is not None and passage.uniform is not None:
            return passage, lambda: (shadow.value, _undone(found, passage.uniform))
        passage, base, why = self._compared(tape, shadow, found, layout, reduce)
        if shadow.noisy and not self.globally and (passage is None or passage.rest):
            shadow.draw_globally()  # checkpointing sets the generators itself
            again, base_again, _ = self._compared(tape, shadow, found, layout, reduce)
            if again is not None and not again.rest:
                self.globally, passage, base = True, again, base_again
        if passage is None:
            raise MeasurementError(why)
        if passage.uniform is not None and not passage.rest and undone_does(passage):
            return passage, lambda: (shadow.value, _undone(found, passage.uniform))
        return passage, lambda: base

    @staticmethod
    def _at_sight(tape: Tape, layout: Layout, found: Found) -> Passage | None:
        """Without a replay: nobody touched the gradients, or their lengths tell by what factor."""
        if tape.untouched:
            return Passage()
        norms = tape.raw_norms
        if norms is None:
            return None
        zero = torch.zeros((), device=norms.device)
        return by_lengths(norms, torch.stack([zero if g is None else g.norm().to(norms) for g in found]), layout, found)

    def _compared(
        self, tape: Tape, shadow: Shadow, found: Found, layout: Layout, reduce: Reduce | None
    ) -> tuple[Passage | None, Base, str]:
        value, raw = shadow.gradient()
        if reduce is not None:
            dense = [torch.zeros_like(p) if g is None else g for p, g in zip(shadow.parameters, raw)]
            reduce(dense)
            raw = list(dense)
        within = _changed_within(tape, raw)

        def read(numbers: list[Tensor]) -> list[float]:
            *values, changed = brought_over([*numbers, numbers[0].new_zeros(()) if within is None else within])
            self._within = bool(changed)
            return values

        try:
            return between(raw, found, layout, read), (value, raw), ""
        except MeasurementError as error:
            return None, (value, raw), str(error)


def _undone(found: Found, factor: float | None) -> Found:
    """The gradients as they were before a factor."""
    return found if factor in (None, 1.0) else [None if g is None else g / factor for g in found]


def _changed_within(tape: Tape, raw: Found) -> Tensor | None:
    """Whether the gradients were changed on their way to `.grad`: they are not as long there as those of a replay."""
    if tape.raw_norms is None:
        return None
    there = tape.raw_norms
    lengths = torch.stack([torch.zeros_like(there[0]) if g is None else g.norm().to(there) for g in raw])
    return (lengths - there).abs().max() > LIKE * there.max()
