"""Directions in little memory: rounded block by block to 8 bits an entry, and what a reading leaves for the next one.

A direction is *what the eight bits say*, made of unit length: its product with an operator is exact, and only that it is not
quite the direction that was meant (by some 0.6 % of its length, at random) costs anything: the square of that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from topoopt.curvature.krylov import Memory

BLOCK = 128
"""Entries that share one scale."""
SMALLEST = 1e-30


class Rounded:
    """A flat direction of unit length, part by part (a parameter each), in 0.28 of its size in float32."""

    def __init__(self, codes: list[Tensor], scales: list[Tensor], shapes: list[torch.Size]) -> None:
        self._codes, self._scales, self._shapes = codes, scales, shapes

    @classmethod
    def of(cls, count: int, part: Callable[[int], Tensor]) -> Rounded:
        """Round `count` parts, each asked for once and dropped; zeros stay zeros."""
        codes, scales, shapes = [], [], []
        for i in range(count):
            tensor = part(i)
            flat = tensor.reshape(-1)
            padded = torch.nn.functional.pad(flat, (0, -len(flat) % BLOCK)).view(-1, BLOCK)
            scale = padded.abs().amax(-1, keepdim=True).clamp_min_(SMALLEST).div_(127)
            codes.append(torch.div(padded, scale).round_().to(torch.int8))
            scales.append(scale.to(torch.promote_types(scale.dtype, torch.float32)))
            shapes.append(tensor.shape)
        found = cls(codes, scales, shapes)
        squares = [found.part(i).square().sum() for i in range(count)]
        length = torch.stack([s.to(squares[0].device) for s in squares]).sum().sqrt().clamp_min(SMALLEST)
        for scale in found._scales:
            scale.div_(length.to(scale))
        return found

    @property
    def count(self) -> int:
        """How many parts it has."""
        return len(self._codes)

    def part(self, i: int) -> Tensor:
        """One part, in its shape: a tensor of its own."""
        shape = self._shapes[i]
        return torch.mul(self._codes[i], self._scales[i]).view(-1)[: shape.numel()].view(shape)

    def flat(self) -> Tensor:
        """All of it."""
        parts = [self.part(i).reshape(-1) for i in range(self.count)]
        return torch.cat([part.to(parts[0].device) for part in parts])

    def fits(self, parameters: Sequence[Tensor]) -> bool:
        """Whether its parts are shaped as these."""
        return self._shapes == [p.shape for p in parameters]

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(t.numel() * t.element_size() for t in (*self._codes, *self._scales))


class Remembered:
    """What the next reading starts from: a `Memory` as it is, or its first direction alone, rounded."""

    def __init__(self, direction: Memory | Rounded, value: float) -> None:
        self._direction, self._value = direction, value

    @classmethod
    def of(cls, memory: Memory, *, compact: bool) -> Remembered:
        """Keep a memory; compact, only its first direction."""
        first = memory.vectors[0]
        return cls(Rounded.of(1, lambda _: first) if compact else memory, memory.values[0])

    def recall(self) -> Memory:
        """The memory; rounded, of unit length: a shard's part alone does not know the whole's."""
        if isinstance(self._direction, Memory):
            return self._direction
        return Memory(self._direction.flat()[None], (self._value,))

    def parts(self, parameters: Sequence[Tensor], unflatten: Callable[[Tensor], list[Tensor]]) -> Rounded:
        """The first direction, in parts shaped as the parameters, which have as many entries as it."""
        direction = self._direction
        if isinstance(direction, Rounded) and direction.fits(parameters):
            return direction
        parts = unflatten(self.recall().vectors[0])
        return Rounded.of(len(parts), parts.__getitem__)

    @property
    def size(self) -> int:
        """Length of a direction."""
        if isinstance(self._direction, Memory):
            return self._direction.vectors.shape[1]
        return sum(shape.numel() for shape in self._direction._shapes)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        if isinstance(self._direction, Rounded):
            return self._direction.nbytes
        return self._direction.vectors.numel() * self._direction.vectors.element_size()
