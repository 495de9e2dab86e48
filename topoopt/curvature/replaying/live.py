"""A taped step of sharded weights, replayed on the live model: FSDP2's modules cannot be copied.

What `closure` does for a loss that the user gave is done for the step's own: `.grad`, buffers, attributes and generators are put
back after each replay, weights are moved in place for the time of one, and gradients are what backward leaves in `.grad`.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from topoopt.curvature.noise import put_back
from topoopt.curvature.replaying.closure import Closure
from topoopt.curvature.replaying.shadow import refuse
from topoopt.curvature.taping.entries import Entry, Kept, Slot, Weight, tensors_in
from topoopt.curvature.taping.tape import Tape
from topoopt.errors import MeasurementError
from topoopt.modules import COMPILED


class LiveStep(Closure):
    """The loss of a taped step as a function of the live weights.

    Raises:
        MeasurementError: when the tape cannot stand for the step, with what stands in the way.
    """

    def __init__(self, tape: Tape, seed: int = 0) -> None:
        self._entries, self._losses = tape.relevant()
        refuse(tape, self._entries, self._losses)
        if any(entry.attributes for entry in self._entries):
            raise MeasurementError("the sharded model keeps state on its modules: r needs loss=")
        super().__init__(self._again, tape.parameters, tape.model, seed)
        self._own = tape.own
        self._made: dict[int, Tensor] = {}

    def _again(self) -> Tensor:
        self._made = {}
        for entry in self._entries:
            with nullcontext() if entry.noise is None else put_back(entry.noise), entry.setting.restored():
                result = self._taken(entry)
            self._made |= {out: t for out, t in zip(entry.outs, tensors_in(result)) if out is not None}
        parts = []
        for loss in self._losses:
            root = self._value(loss.of)
            parts.append((root if loss.gradient is None else root * loss.gradient).sum())
        self._made = {}
        return torch.stack(parts).sum()

    def _taken(self, entry: Entry) -> Any:
        args, kwargs = tree_map(self._value, (entry.args, entry.kwargs))
        if entry.module is None:
            assert entry.func is not None
            result = entry.func(*args, **kwargs)
            target = args[0] if args and isinstance(args[0], Tensor) else kwargs.get("out")
            return (result, target) if len(entry.outs) > len(tensors_in(result)) else result
        part = self._own.get_submodule(entry.module)
        now = {name.replace(COMPILED, ""): b for name, b in part.named_buffers()}
        with torch.no_grad():
            for name, value in entry.buffers.items():
                if name in now:
                    now[name].copy_(value)
        return part(*args, **kwargs)

    def _value(self, ref: Any) -> Any:
        if isinstance(ref, Weight):
            return self.parameters[ref.index]
        if isinstance(ref, Slot):
            return self._made[ref.index]
        if not isinstance(ref, Kept):
            return ref
        found = ref.tensor.detach().clone() if ref.own else ref.tensor.detach()
        return (
            found.requires_grad_() if ref.tensor.requires_grad and not isinstance(ref.tensor, nn.Parameter) else found
        )
