"""The trial: a cut model beside the uncut one, on private copies, entry by entry of their outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils._pytree import tree_map

from topoopt.errors import DiscoveryError
from topoopt.neurons.compacting.attributes import Setting
from topoopt.neurons.compacting.cutting import Cut, Original
from topoopt.neurons.compacting.roles import incoming
from topoopt.neurons.copying import copy_of, on_host, settle
from topoopt.neurons.gate import Gate, tensors_in
from topoopt.neurons.group import NeuronGroup, named_tensors
from topoopt.neurons.running import Call, apart, run

Inputs = tuple[tuple[Any, ...], dict[str, Any]]
FLOOR = {torch.float64: 1e-6, torch.float32: 1e-2}
"""An entry's scale is at least this share of its output's largest entry: below lies rounding."""


class Trial:
    """A private copy of a model with its own weights, and its outputs on all inputs.

    Raises:
        DiscoveryError: when the model cannot be copied, or not run in `dtype`.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Sequence[Inputs],
        call: Call | str | None = None,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        self._dtype, self._call, self._watched = dtype, call, True
        self._runs = [tree_map(lambda leaf: on_host(leaf, dtype), one) for one in inputs]
        self.model = self._copy(model)
        self.settle()

    def _copy(self, model: nn.Module) -> nn.Module:
        try:
            return settle(copy_of(model, self._dtype))
        except Exception as error:  # whatever a user's module raises when it is copied
            raise DiscoveryError(f"the model cannot be copied ({type(error).__name__}: {error})") from error

    def settle(self) -> None:
        """Take the copy as it is now for the uncut one."""
        self.of = Original(self.model)
        try:
            self._expected = self._outputs()
        except Exception as error:  # whatever a user's forward raises
            name = str(self._dtype).removeprefix("torch.")
            raise DiscoveryError(f"the model cannot be run in {name} ({type(error).__name__}: {error})") from error
        if not any(bool(torch.isfinite(out).any()) for out in self._expected):
            raise DiscoveryError("no number of the model's output is finite")

    def _outputs(self, hooks: Mapping[nn.Module, Callable[..., None]] | None = None) -> list[Tensor]:
        """The floating outputs of all runs; with pre-hooks on some modules."""
        outputs: list[Tensor] = []
        for args, kwargs in self._runs:
            with apart(self.model, self._dtype, watched=self._watched), _hooked(hooks or {}), torch.no_grad():
                result = run(self.model, self._call, args, kwargs)
            outputs += [out for out in tensors_in(result) if out.is_floating_point() or out.is_complex()]
        self._watched = False
        return outputs

    def watched(self, hooks: Mapping[nn.Module, Callable[..., None]]) -> None:
        """Run all inputs with a pre-hook on each of these modules of the copy; hooks come off again."""
        self._outputs(hooks)

    def change(self, cut: Cut) -> float:
        """Largest change of an output entry under a cut, relative to the entry's scale; the copy is put back.

        Raises:
            Exception: whatever a cut model raises that cannot be run.
        """
        undo = cut.carry_out(self.of, self.model)
        try:
            outputs = self._outputs()
        finally:
            undo()
        if len(outputs) != len(self._expected):
            return torch.inf
        floor = FLOOR[self._dtype]
        return max((_apart(out, was, floor) for out, was in zip(outputs, self._expected)), default=torch.inf)

    def with_widths(self, cut: Cut) -> Cut:
        """The cut with the sizes of norms that have no tensors, seen from what they are fed."""
        bare = {
            name: module
            for name, module in self.model.named_modules()
            if isinstance(module, _NormBase) and module.weight is None and module.running_mean is None
        }
        if not bare or not cut.dropped:
            return cut
        seen: dict[str, int] = {}

        def watch(name: str) -> Callable[..., None]:
            def see(module: nn.Module, args: Any) -> None:
                seen[name] = args[0].shape[1] if args[0].ndim > 2 else module.num_features  # type: ignore[assignment]

            return see

        undo = cut.carry_out(self.of, self.model)
        try:
            self.watched({module: watch(name) for name, module in bare.items()})
        finally:
            undo()
        ratios = {name: Fraction(now, int(bare[name].num_features)) for name, now in seen.items()}  # type: ignore[call-overload]
        more = [Setting(name, "num_features", None, ratio) for name, ratio in ratios.items() if ratio != 1]
        return cut.with_settings((*cut.settings, *more))


class RandomTrial(Trial):
    """The same with random weights, in which chosen units are equal and others unread: what may be done to which group.

    On a model's own weights a mistake can hide behind what happens to be saturated or dead.
    """

    def _copy(self, model: nn.Module) -> nn.Module:
        self._runs = self._runs[:1]
        args, kwargs = self._runs[0]
        self._gate = Gate(model, args, kwargs, self._dtype, call=self._call)
        return self._gate.model

    def redraw(self, seed: int) -> None:
        """Other random weights, in place: nothing is planted in them yet."""
        self._gate.redraw(seed)

    def plant(self, group: NeuronGroup) -> None:
        """Make a group's last unit equal to its first in what makes its value, in place."""
        tensors = named_tensors(self.model)
        for s in incoming(self.model, group):
            places = s.positions(group.n)
            tensor = tensors[s.tensor].data
            tensor.index_copy_(s.dim, places[-1], tensor.index_select(s.dim, places[0]))


@contextmanager
def _hooked(hooks: Mapping[nn.Module, Callable[..., None]]) -> Iterator[None]:
    """Hooks on a model that runs already: at rest it has none."""
    handles = [module.register_forward_pre_hook(hook) for module, hook in hooks.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _apart(out: Tensor, was: Tensor, floor: float) -> float:
    """Largest difference over entries, each relative to the larger of itself and its place's root mean square."""
    if out.shape != was.shape:
        return torch.inf
    if not was.numel():
        return 0.0
    finite = torch.isfinite(was)
    if not torch.equal(finite, torch.isfinite(out)):
        return torch.inf
    size = torch.where(finite, was.abs(), 0.0)
    scale = torch.maximum(size, size.square().mean(0).sqrt() if was.ndim else size)
    scale = scale.clamp_min(max(floor * float(size.max()), 1e-300))
    return float(torch.where(finite, (out - was).abs() / scale, 0.0).max())
