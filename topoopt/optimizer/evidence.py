"""What a reading sees beside r: how the loss stands, whether anything moves, and whether units are silent."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from topoopt.curvature import Shadow, Tape
from topoopt.curvature.passage import Passage
from topoopt.curvature.taping.entries import Entry, Kept
from topoopt.device import brought_over
from topoopt.measurement import SpectralReading

ACTIVATIONS = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.GELU, nn.SiLU, nn.Mish, nn.ELU, nn.SELU, nn.CELU, nn.Tanh, nn.Sigmoid, nn.Softplus,
    nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.Softsign, nn.PReLU, nn.RReLU,
)  # fmt: skip
FUNCTIONS = (
    "relu", "relu_", "relu6", "leaky_relu", "leaky_relu_", "gelu", "silu", "mish", "elu", "elu_", "selu", "celu", "tanh", "tanh_",
    "softplus", "hardtanh", "hardswish",
)  # fmt: skip
"""Activations that a forward calls as functions, by their name."""
NORMS = (
    nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.modules.instancenorm._InstanceNorm, nn.RMSNorm,
    nn.LocalResponseNorm,
)  # fmt: skip
CLASSES = ("cross_entropy", "cross_entropy_loss", "nll_loss")
"""Losses of classes."""
LOSSES = (*CLASSES, "mse_loss")
"""Those of which the loss of the best constant prediction is known."""
IGNORED = -100
"""Label that no loss counts."""
STILL = 1e-6
"""A unit whose output varies over the batch by less than this share of the layer's largest output is silent."""


class Evidence:
    """Collects device numbers in one replay of a reading and brings them over together."""

    def __init__(self) -> None:
        self._silent: list[Tensor] = []
        self._bases: list[Tensor] = []
        self._units = 0
        self._seen: dict[str, float] | None = None

    @contextmanager
    def watching(self, shadow: Shadow) -> Iterator[None]:
        """Look at the activations of the next replay."""
        self._silent, self._units, self._seen = [], 0, None
        shadow.watch = self._watch
        try:
            yield
        finally:
            shadow.watch = None

    @contextmanager
    def looking_on(self, model: nn.Module) -> Iterator[None]:
        """Look at the activations of the model itself, and at labels, while a given loss is evaluated; not of a compiled one,
        which hooks would have compiled anew.
        """
        self._silent, self._bases, self._units, self._seen = [], [], 0, None
        if any(hasattr(m, "_orig_mod") or getattr(m, "_compiled_call_impl", None) for m in model.modules()):
            yield
            return
        with self._watch(model), _Functions(self._see_labels, LOSSES):
            yield

    @torch.no_grad()
    def _see_labels(self, of: object, args: Any, output: Any) -> None:
        base = _of_labels(getattr(of, "__name__", ""), [t for t in args[:2] if isinstance(t, Tensor)])
        if base is not None:
            self._bases.append(base)

    @contextmanager
    def _watch(self, module: nn.Module) -> Iterator[None]:
        """Hooks on the activations, for one call; where a model has none as modules, its functions are seen."""
        if self._silent:
            yield
            return
        parts = [m for m in module.modules() if isinstance(m, ACTIVATIONS) or _is_activation(m)]
        handles = [m.register_forward_hook(self._see) for m in parts]
        try:
            with nullcontext() if parts else _Functions(self._see, FUNCTIONS):
                yield
        finally:
            for handle in handles:
                handle.remove()

    @torch.no_grad()
    def _see(self, of: object, args: Any, output: Any) -> None:
        if not isinstance(output, Tensor) or output.ndim < 2 or not output.is_floating_point():
            return
        channel = 1 if output.ndim == 4 else output.ndim - 1
        over = [d for d in range(output.ndim) if d != channel]
        low, high = output.detach().amin(over), output.detach().amax(over)
        largest = torch.maximum(high.abs(), low.abs()).amax()
        self._silent.append(((high - low) <= STILL * largest).sum())
        self._units += output.shape[channel]

    def coming_along(self, tape: Tape, shadow: Shadow) -> Callable[[Tensor], list[float]]:
        """Brings numbers (n,) over, after a replay, and in the same host read what was seen."""

        def read(first: Tensor) -> list[float]:
            numbers = self._numbers(tape, shadow)
            values = torch.cat([first, *(n.detach().to(first).reshape(1) for n in numbers.values())]).tolist()
            self._seen = dict(zip(numbers, values[len(first) :]))
            return values[: len(first)]

        return read

    def _numbers(self, tape: Tape, shadow: Shadow) -> dict[str, Tensor]:
        """On the device."""
        gradient = [g for g in (p.grad for p in tape.parameters) if g is not None]
        numbers = {"gradient": _norm(gradient), "loss": shadow.value}
        if self._silent:
            numbers["silent"] = torch.stack([s.float() for s in self._silent]).sum()
        base = _baseline(shadow.entries)
        return numbers if base is None else {**numbers, "baseline": base}

    def add(self, reading: SpectralReading, tape: Tape, shadow: Shadow, passage: Passage) -> SpectralReading:
        """The reading with what was seen: one host read for all of it, if it has not come along with another."""
        seen = self._seen
        if seen is None:
            numbers = self._numbers(tape, shadow)
            seen = dict(zip(numbers, brought_over(list(numbers.values()))))
        share = passage.share
        factor = passage.uniform if passage.direction is None else None
        scaled = factor if factor is not None and not 0.5 < factor < 2 else 1.0  # a scaler's factor is not the loss's
        return replace(
            reading,
            loss=seen["loss"] * scaled,
            baseline=seen.get("baseline", math.nan),
            grad_norm=seen["gradient"],
            clipped=share if factor is None or 0.5 < factor < 2 else 1.0,
            silent=seen["silent"] / self._units if self._units else math.nan,
            normalized=_holds_norms(shadow.module),
        )

    def of_loss(
        self, reading: SpectralReading, found: Sequence[Tensor | None], passage: Passage, model: nn.Module
    ) -> SpectralReading:
        """What a given loss shows: the gradient's length, and the units and labels where `looking_on` saw them."""
        gradient = [g for g in found if g is not None]
        numbers = {"gradient": _norm(gradient)} if gradient else {}
        if self._silent:
            numbers["silent"] = torch.stack([s.float() for s in self._silent]).sum()
        if self._bases:
            numbers["baseline"] = torch.stack([base.to(self._bases[0].device) for base in self._bases]).mean()
        seen = dict(zip(numbers, brought_over(list(numbers.values()))))
        silent = seen["silent"] / self._units if self._silent else math.nan
        self._silent, self._bases = [], []
        return replace(
            reading,
            baseline=seen.get("baseline", math.nan),
            grad_norm=seen.get("gradient", math.nan),
            clipped=passage.share,
            silent=silent,
            normalized=_holds_norms(model),
        )


class _Functions(TorchFunctionMode):
    """Shows what functions of these names are given, and give."""

    def __init__(self, see: Callable[[object, Any, Any], None], names: Sequence[str]) -> None:
        super().__init__()
        self._show, self._names = see, names

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if getattr(func, "__name__", "") in self._names:
            self._show(func, (*args, *(kwargs or {}).values()), output)
        return output


def _holds_norms(model: nn.Module | None) -> bool:
    return model is not None and any(_is_norm(m) for m in model.modules())


def _is_activation(module: nn.Module) -> bool:
    """Activations that Hugging Face writes as modules of its own."""
    return type(module).__module__ == "transformers.activations"


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, NORMS) or type(module).__name__.endswith(("RMSNorm", "LayerNorm"))


def _norm(tensors: Sequence[Tensor]) -> Tensor:
    from topoopt.sharding import is_sharded, total_norm

    if not tensors:
        return torch.zeros((), device="cpu")
    if any(is_sharded(t) for t in tensors):
        return torch.tensor(total_norm(tensors), device="cpu")
    return torch.nn.utils.get_total_norm([t.detach().to_dense() if t.is_sparse else t.detach() for t in tensors])


@torch.no_grad()
def _baseline(entries: Sequence[Entry]) -> Tensor | None:
    """Loss of the best constant prediction, where the labels were seen: of cross entropy the labels' entropy, of a squared
    loss the targets' variance. On the device.
    """
    found = [base for entry in entries if (base := _of_entry(entry)) is not None]
    return torch.stack(found).mean() if found else None


def _of_entry(entry: Entry) -> Tensor | None:
    if entry.module is not None:
        labels = entry.kwargs.get("labels") if isinstance(entry.kwargs, dict) else None
        return _entropy(labels.tensor) if isinstance(labels, Kept) and not labels.tensor.is_floating_point() else None
    return _of_labels(entry.name, [r.tensor for r in tree_leaves((entry.args, entry.kwargs)) if isinstance(r, Kept)])


def _of_labels(name: str, given: Sequence[Tensor]) -> Tensor | None:
    """Of a loss by its name, and of what it is given: labels are what no gradient goes through."""
    targets = [t for t in given if not t.requires_grad]
    if name in CLASSES and targets:
        return None if targets[0].is_floating_point() else _entropy(targets[0])
    if name == "mse_loss" and targets and targets[0].ndim:
        return (targets[0] - targets[0].mean(0, keepdim=True)).square().mean().float()
    return None


def _entropy(labels: Tensor) -> Tensor:
    """In nats, of the labels that count; without a host read: each label's count is where it begins and ends in the order."""
    flat = labels.flatten().long()
    ordered = flat.sort().values
    counts = (torch.searchsorted(ordered, flat, right=True) - torch.searchsorted(ordered, flat)).float()
    counted = (flat != IGNORED).float()
    total = counted.sum().clamp_min(1.0)
    return -(counted * (counts / total).log()).sum() / total
