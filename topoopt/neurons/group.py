"""A neuron group: n interchangeable units of a model, and where their parameters lie."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn

from topoopt.errors import DiscoveryError
from topoopt.neurons.example import Example
from topoopt.sharding import full

STATISTICS = ("running_mean", "running_var", "_u", "_v", "weight_u", "weight_v")
"""Buffers that belong to units and that training moves as it moves those: statistics, a spectral norm's vectors."""
WRAPPERS = {"DistributedDataParallel", "DataParallel", "FullyShardedDataParallel", "DeepSpeedEngine"}


def unwrap(model: nn.Module) -> nn.Module:
    """Strip `torch.compile`, DistributedDataParallel, DataParallel, FSDP1 and accelerate's wrappers."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and not WRAPPERS.isdisjoint(kind.__name__ for kind in type(model).__mro__):
            inner = getattr(model, "module", None)
        if not isinstance(inner, nn.Module) or inner is model:
            return model
        model = inner


@dataclass(frozen=True)
class Slice:
    """Where the units lie in one dimension of one tensor.

    Along `dim` unit i holds the positions offset + o * stride + i * inner + k, for o < outer and k < inner.
    """

    tensor: str
    """Name of the parameter or buffer, as in `named_parameters` of the unwrapped model."""
    dim: int
    offset: int = 0
    outer: int = 1
    inner: int = 1
    stride: int = 0
    """Distance between outer blocks; n * inner where they are adjacent."""
    role: str = "out"
    """ "out", "in", "bias", "scale", or "state" (a buffer, permuted but no part of the points)."""
    siblings: tuple[str, ...] = ()
    """Where each unit is a whole tensor of its own (experts as modules): their names, unit by unit; `tensor` is the first."""
    shape: tuple[int, ...] = field(default=(), compare=False, repr=False)
    """The tensor's shape when the group was found; () where a slice was written by hand."""

    @property
    def tensors(self) -> tuple[str, ...]:
        """Names of all tensors that the slice lies in."""
        return self.siblings or (self.tensor,)

    def positions(self, n: int, device: torch.device | str = "cpu") -> Tensor:
        """Positions along `dim` of all units: (n, outer * inner) int64."""
        outer = torch.arange(self.outer, device=device) * self.stride
        inner = torch.arange(self.inner, device=device)
        units = torch.arange(n, device=device) * self.inner
        return self.offset + (units[:, None, None] + outer[None, :, None] + inner[None, None, :]).reshape(n, -1)


@dataclass(frozen=True)
class NeuronGroup:
    """n units that can be permuted without changing the model's function.

    Neuron i is the vector in R^d of *all* of unit i's parameters: incoming row, bias, norm scale and shift, outgoing column
    (Yang, Poggio, Chuang, Ziyin, arXiv 2510.02670, section 2).
    """

    name: str
    kind: str
    """hidden, channel, head, head_dim, expert, rank, recurrent or residual."""
    n: int
    slices: tuple[Slice, ...]
    example: Example | None = field(default=None, compare=False, repr=False)
    """The inputs that the group was found with, where `discover` found it."""

    @cached_property
    def _own(self) -> tuple[Slice, ...]:
        return tuple(s for s in self.slices if s.role != "state")

    def __str__(self) -> str:
        return f"{self.name} ({self.kind}, {self.n} neurons, {len(self.slices)} slices)"

    def fits(self, model: nn.Module, ids: Mapping[str, int] | None = None) -> str:
        """Why this group no longer describes `model`, or "" where it still does. Reads names and shapes, no tensor.

        Layers that were widened, pruned, merged into others (LoRA) or taken out are found this way; with `ids` (see
        `tensor_ids`, taken when the group was found) also those that were replaced by others of the same shape.
        """
        tensors = named_tensors(model)
        for s in self.slices:
            for name in s.tensors:
                reason = _misfit(s, self.n, name, tensors.get(name))
                if not reason and ids is not None and ids.get(name) != id(tensors[name]):
                    reason = f"{name} is another tensor than when the group was found"
                if reason:
                    return reason
        return ""

    def dimension(self, model: nn.Module) -> int:
        """d: the number of real numbers of one neuron; a complex parameter counts twice."""
        tensors = named_tensors(model)
        return sum(_width(s, tensors[s.tensor]) for s in self._own)

    def points(self, model: nn.Module) -> Tensor:
        """Gather the neurons as they are now: (n, d), detached, a copy, on the parameters' device and in their dtype.

        Parameters of different dtypes give the widest; complex ones give their real and imaginary parts, side by side. Of
        a group that lies on several devices everything is brought to the first that is not the host.
        Allocates the points and, of one slice at a time, a view or copy.
        Of sharded parameters one slice's at a time is gathered, on every rank: all of them must call.
        """
        tensors = named_tensors(model)
        place = _meeting(tensors[name] for s in self._own for name in s.tensors)
        taken, failed = [], None
        for s in self._own:  # to the last one whatever fails on this rank alone: the others wait in each gather
            try:
                taken.append(_take(s, [full(tensors[n].detach()) for n in s.tensors], self.n))
            except Exception as error:
                failed = failed or error
        if failed is not None:
            raise failed
        return torch.cat([_real(one).to(place, non_blocking=True) for one in taken], dim=1)

    def scatter(self, model: nn.Module, points: Tensor) -> None:
        """Write points (n, d) into the model, in place: the inverse of `points`.

        A recurrent weight belongs to the unit it leaves and the one it enters; the last slice that holds it is written last.
        """
        tensors, start = named_tensors(model), 0
        with torch.no_grad():
            for s in self._own:
                held = [tensors[name] for name in s.tensors]
                width = _width(s, held[0])
                _put(s, held, _as_held(points[:, start : start + width], held[0]), self.n)
                start += width

    def indices(self, model: nn.Module) -> Tensor:
        """Flat position of each entry of `points`: (n, d) int64 on the CPU.

        Positions count through the concatenation of `unwrap(model).parameters()`, each flattened in row-major order,
        complex ones as `torch.view_as_real` lays them out.
        """
        own = unwrap(model)
        offsets, total = {}, 0
        for parameter in own.parameters():
            offsets[id(parameter)] = total
            total += parameter.numel() * _parts(parameter)
        tensors = named_tensors(model)
        columns = []
        for s in self._own:
            held = [tensors[name] for name in s.tensors]
            flat = [torch.arange(tensor.numel(), device="cpu").reshape(tensor.shape) for tensor in held]
            start = torch.tensor([offsets[id(tensor)] for tensor in held], device="cpu")[:, None]
            parts = _parts(held[0])
            places = (_take(s, flat, self.n) * parts + start)[:, :, None] + torch.arange(parts, device="cpu")
            columns.append(places.flatten(1))
        return torch.cat(columns, dim=1)

    def masks(self, model: nn.Module) -> dict[str, Tensor]:
        """Which entries of which parameters belong to the group: name -> bool mask of the parameter's shape."""
        tensors, masks = named_tensors(model), {}
        for s in self._own:
            for name in s.tensors:
                tensor = tensors[name]
                mask = masks.setdefault(name, torch.zeros(tensor.shape, dtype=torch.bool, device=tensor.device))
                if s.siblings:
                    mask.fill_(True)
                else:
                    mask.index_fill_(s.dim, s.positions(self.n, tensor.device).reshape(-1), True)
        return masks

    def permute(
        self, model: nn.Module, perm: Sequence[int] | Tensor, optimizer: torch.optim.Optimizer | None = None
    ) -> None:
        """Move unit perm[i] to place i, in place; the model's function stays what it was.

        With `optimizer` its per-parameter state moves along: every state tensor of its parameter's shape, and all of the
        state of a parameter that is one unit's alone.

        Raises:
            DiscoveryError: when `perm` is no permutation of 0 .. n - 1.
        """
        order = torch.as_tensor(perm, dtype=torch.int64, device="cpu").cpu()
        if order.shape != (self.n,) or not torch.equal(order.sort().values, torch.arange(self.n, device="cpu")):
            raise DiscoveryError(f"perm is not a permutation of 0 .. {self.n - 1} (the neurons of {self.name})")
        tensors = named_tensors(model)
        with torch.no_grad():
            for s in self.slices:
                if s.siblings:
                    _exchange([tensors[name] for name in s.siblings], order.tolist(), optimizer)
                    continue
                tensor = tensors[s.tensor]
                for one in (tensor, *_state_of(tensor, optimizer)):
                    positions = s.positions(self.n, one.device)
                    moved = one.index_select(s.dim, positions[order.to(one.device)].reshape(-1))
                    if s.outer == 1:  # units side by side: a copy is faster than writing by index
                        one.narrow(s.dim, s.offset, self.n * s.inner).copy_(moved)
                    else:
                        one.index_copy_(s.dim, positions.reshape(-1), moved)


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers of the unwrapped model by name, tied ones under each of their names."""
    own = unwrap(model)
    named: dict[str, Tensor] = dict(own.named_parameters(remove_duplicate=False))
    named.update(own.named_buffers(remove_duplicate=False))
    return named


def tensor_ids(model: nn.Module) -> dict[str, int]:
    """Which tensor has which name now: name -> id, for `NeuronGroup.fits`."""
    return {name: id(tensor) for name, tensor in named_tensors(model).items()}


def _misfit(s: Slice, n: int, name: str, tensor: Tensor | None) -> str:
    if tensor is None:
        return f"the model has no {name} any more"
    shape = tuple(tensor.shape)
    if s.shape and shape != s.shape:
        return f"{name} has the shape {shape}; it was {s.shape} when the group was found"
    last = s.offset + (s.outer - 1) * s.stride + n * s.inner
    if not s.siblings and (s.dim >= len(shape) or shape[s.dim] < last):
        return f"{name} has the shape {shape}; {n} units need {last} places in dimension {s.dim}"
    return ""


def _parts(tensor: Tensor) -> int:
    """How many real numbers an entry is."""
    return 2 if tensor.is_complex() else 1


def _real(taken: Tensor) -> Tensor:
    return torch.view_as_real(taken).flatten(1) if taken.is_complex() else taken


def _as_held(points: Tensor, held: Tensor) -> Tensor:
    """Columns of points as entries of a tensor: the inverse of `_real`."""
    if not held.is_complex():
        return points.to(held)
    pairs = points.to(held.device, held.real.dtype).unflatten(1, (-1, 2))
    return torch.view_as_complex(pairs.contiguous())


def _width(s: Slice, tensor: Tensor) -> int:
    if s.siblings:
        return tensor.numel() * _parts(tensor)
    return s.outer * s.inner * (tensor.numel() // max(1, tensor.shape[s.dim])) * _parts(tensor)


def _blocks(s: Slice, tensor: Tensor, n: int) -> Tensor | None:
    """The units as a view (n, outer, inner, rest...), or None where outer blocks are not adjacent."""
    size = n * s.inner
    if s.outer > 1 and s.stride != size:
        return None
    moved = tensor.movedim(s.dim, 0).narrow(0, s.offset, s.outer * size)
    return moved.unflatten(0, (s.outer, n, s.inner)).transpose(0, 1)


def _meeting(tensors: Iterable[Tensor]) -> torch.device:
    """Where tensors of several devices are brought together: never to the host, which would have to wait for a queue."""
    places = [tensor.device for tensor in tensors]
    return next((place for place in places if place.type != "cpu"), places[0])


def _take(s: Slice, held: Sequence[Tensor], n: int) -> Tensor:
    if s.siblings:
        place = _meeting(held)
        return torch.stack([tensor.reshape(-1).to(place, non_blocking=True) for tensor in held])
    tensor = held[0]
    view = _blocks(s, tensor, n)
    if view is None:
        chosen = tensor.index_select(s.dim, s.positions(n, tensor.device).reshape(-1)).movedim(s.dim, 0)
        view = chosen.unflatten(0, (n, s.outer, s.inner))
    return view.reshape(n, -1)


def _put(s: Slice, held: Sequence[Tensor], values: Tensor, n: int) -> None:
    if s.siblings:
        for tensor, value in zip(held, values):
            tensor.copy_(value.reshape(tensor.shape))
        return
    tensor = held[0]
    rest = tensor.movedim(s.dim, 0).shape[1:]
    source = values.reshape(n * s.outer * s.inner, *rest).movedim(0, s.dim)
    tensor.index_copy_(s.dim, s.positions(n, tensor.device).reshape(-1), source)


def _exchange(held: Sequence[Tensor], order: Sequence[int], optimizer: torch.optim.Optimizer | None) -> None:
    """Give tensor i the values of tensor order[i], and its optimizer state."""
    before = [tensor.clone() for tensor in held]
    states = [None if optimizer is None else optimizer.state.get(tensor) for tensor in held]
    for tensor, source in zip(held, order):
        tensor.copy_(before[source])
        if optimizer is None:
            continue
        state = states[source]
        if state is not None:
            optimizer.state[tensor] = state
        else:  # a unit that has not moved yet
            optimizer.state.pop(tensor, None)


def _state_of(parameter: Tensor, optimizer: torch.optim.Optimizer | None) -> list[Tensor]:
    if optimizer is None or parameter not in optimizer.state:
        return []
    state = optimizer.state[parameter].values()
    return [value for value in state if isinstance(value, Tensor) and value.shape == parameter.shape]
