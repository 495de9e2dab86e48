"""The rehearsal: a cut model run as its user runs it, in its own types, on its device and by its own kernels.

The trial compares in float64 and, of mixtures, in an implementation that takes any size. Kernels may not: some want sizes
that are multiples of 16 bytes.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from topoopt.neurons.compacting.cutting import Cut, Original
from topoopt.neurons.copying import copy_of
from topoopt.neurons.running import Call, apart, run


class Rehearsal:
    """A private copy of a model, and whether it runs at all on the inputs there are."""

    def __init__(
        self,
        model: nn.Module,
        inputs: Sequence[tuple[tuple[Any, ...], dict[str, Any]]],
        call: Call | str | None = None,
    ) -> None:
        self._model, self._call = copy_of(model).eval(), call
        self._of = Original(self._model)
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        self._inputs = tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, inputs[0])
        self._able = not self._runs()

    def why_not(self, cut: Cut) -> str:
        """Why the cut model does not run though the uncut one does; "" where it does, or neither can."""
        if not self._able:
            return ""
        undo = cut.carry_out(self._of, self._model)
        try:
            return self._runs()
        finally:
            undo()

    def _runs(self) -> str:
        args, kwargs = copy.deepcopy(self._inputs)
        try:
            with apart(self._model, None), torch.no_grad():
                run(self._model, self._call, args, kwargs)
        except Exception as error:  # kernels raise whatever they like
            text = str(error).strip().splitlines()
            return f"the smaller model does not run in its own type ({type(error).__name__}: {(text or [''])[0][:160]})"
        return ""
