"""Directions in little memory: rounded block by block to 8 bits an entry, and to 4 where one is left for the next reading.

A direction is *what the eight bits say*: its product with an operator is exact, and only that it is not quite the direction that
was meant (by some 0.6 % of its length, at random) costs anything: the square of that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from topoopt.curvature.krylov import Memory

BLOCK = 128
"""Entries that share one scale."""
FINE, COARSE = 127, 7
"""Largest codes of 8 and of 4 bits. Coarse codes are for a start: they turn a direction by some 8 degrees, 1 % of its square."""
SMALLEST = 1e-30


class Rounded:
    """A direction about as long as it was, part by part (a parameter each), in 0.28 of its size in float32; coarse, 0.16."""

    def __init__(self, codes: list[Tensor], scales: list[Tensor], shapes: list[torch.Size], largest: int) -> None:
        self._codes, self._scales, self._shapes, self._largest = codes, scales, shapes, largest

    @classmethod
    def of(cls, count: int, part: Callable[[int], Tensor], largest: int = FINE) -> Rounded:
        """Round `count` parts, each asked for once and dropped; zeros stay zeros."""
        codes, scales, shapes = [], [], []
        for i in range(count):
            tensor = part(i)
            flat = tensor.reshape(-1)
            padded = torch.nn.functional.pad(flat, (0, -len(flat) % BLOCK)).view(-1, BLOCK)
            scale = padded.abs().amax(-1, keepdim=True).clamp_min_(SMALLEST).div_(largest)
            code = torch.div(padded, scale).round_().to(torch.int8)
            codes.append(code if largest == FINE else _packed(code))
            scales.append(scale.to(torch.promote_types(scale.dtype, torch.float32)))
            shapes.append(tensor.shape)
        return cls(codes, scales, shapes, largest)

    @property
    def count(self) -> int:
        """How many parts it has."""
        return len(self._codes)

    def part(self, i: int) -> Tensor:
        """One part, in its shape: a tensor of its own."""
        shape, codes = self._shapes[i], self._codes[i]
        codes = codes if self._largest == FINE else _unpacked(codes)
        return torch.mul(codes, self._scales[i]).view(-1)[: shape.numel()].view(shape)

    def flat(self) -> Tensor:
        """All of it."""
        parts = [self.part(i).reshape(-1) for i in range(self.count)]
        return torch.cat([part.to(parts[0].device) for part in parts])

    def coarse(self) -> Rounded:
        """The same in fewer bits."""
        return self if self._largest == COARSE else Rounded.of(self.count, self.part, COARSE)

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
        return cls(Rounded.of(1, lambda _: first, COARSE) if compact else memory, memory.values[0])

    def recall(self) -> Memory:
        """The memory; rounded, its direction about as long as it was: a shard's part alone does not know the whole's length."""
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


def _packed(codes: Tensor) -> Tensor:
    """Codes from -7 to 7, two in a byte."""
    pairs = (codes + 8).to(torch.uint8).view(*codes.shape[:-1], -1, 2)
    return pairs[..., 0] | (pairs[..., 1] << 4)


def _unpacked(pairs: Tensor) -> Tensor:
    codes = torch.stack([pairs & 15, pairs >> 4], -1).view(*pairs.shape[:-1], -1)
    return codes.to(torch.int8) - 8
