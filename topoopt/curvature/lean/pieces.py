"""Weights as flat pieces, and directions rounded piece by piece: to 8 bits an entry, to 4 where one waits for the next reading.

A processor brings a temporary as large as an embedding into being page by page, which takes ten times as long as the arithmetic
on it; a piece stays in its cache. A direction is *what its eight bits say*: the product with it is exact, and only that it is not
quite the direction that was meant (by some 0.6 % of its length, at random) costs anything: the square of that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 128
"""Entries that share one scale."""
FINE, COARSE = 127, 7
"""Largest codes of 8 and of 4 bits. Coarse codes are for a start: they turn a direction by some 8 degrees, 1 % of its square."""
SMALLEST = 1e-30
HERE, THERE = 1 << 18, 1 << 24
"""Entries of a piece at most: on a processor, whose cache holds one; on a device, where each costs a launch and memory is kept."""


@dataclass(frozen=True)
class Piece:
    """A stretch of one parameter, flat."""

    parameter: int
    start: int
    stop: int

    def of(self, flat: Tensor) -> Tensor:
        """This stretch of something as long as the parameter: a view."""
        return flat[self.start : self.stop]


def cut(parameters: Sequence[Tensor]) -> list[Piece]:
    """The pieces of all parameters, in order; each begins with a block."""
    found = []
    for i, p in enumerate(parameters):
        most = HERE if p.device.type == "cpu" else THERE
        found += [Piece(i, at, min(at + most, p.numel())) for at in range(0, p.numel(), most)]
    return found


def flat(tensor: Tensor) -> Tensor:
    """All entries in a row: a view where they lie so."""
    return tensor.detach().reshape(-1)


class Rounded:
    """A direction about as long as it was, piece by piece, in 0.28 of its size in float32; coarse, 0.16."""

    def __init__(
        self, codes: list[Tensor], scales: list[Tensor], sizes: list[int], largest: int, square: Tensor
    ) -> None:
        self._codes, self._scales, self._sizes, self._largest = codes, scales, sizes, largest
        self.square = square
        """Of its length, as rounded: a number on the device."""

    @classmethod
    def of(cls, count: int, piece: Callable[[int], Tensor], largest: int = FINE) -> Rounded:
        """Round `count` pieces, each asked for once and dropped; zeros stay zeros."""
        codes, scales, sizes, squares = [], [], [], []
        for k in range(count):
            tensor = piece(k)
            short = -len(tensor) % BLOCK
            blocks = (torch.nn.functional.pad(tensor, (0, short)) if short else tensor).view(-1, BLOCK)
            scale = blocks.abs().amax(-1, keepdim=True).clamp_min_(SMALLEST).div_(largest)
            scale = scale.to(torch.promote_types(scale.dtype, torch.float32))
            whole = torch.div(blocks, scale).round_()
            code = whole.to(torch.int8)
            codes.append(code if largest == FINE else _packed(code))
            scales.append(scale)
            sizes.append(len(tensor))
            squares.append(whole.square_().sum(-1, keepdim=True).mul_(scale.square()).sum())
        return cls(codes, scales, sizes, largest, total(squares))

    def piece(self, k: int) -> Tensor:
        """One piece: a tensor of its own."""
        codes, scale = self._codes[k], self._scales[k]
        codes = codes if self._largest == FINE else _unpacked(codes)
        return codes.to(scale.dtype).mul_(scale).view(-1)[: self._sizes[k]]

    def times(self, factor: Tensor) -> Rounded:
        """This direction times a number on its device, in the same codes."""
        scales = [scale * factor.to(scale) for scale in self._scales]
        return Rounded(self._codes, scales, self._sizes, self._largest, self.square * factor.to(self.square).square())

    def flat(self) -> Tensor:
        """All of it."""
        pieces = [self.piece(k) for k in range(len(self._codes))]
        return torch.cat([piece.to(pieces[0].device) for piece in pieces])

    def coarse(self) -> Rounded:
        """The same in fewer bits."""
        return self if self._largest == COARSE else Rounded.of(len(self._codes), self.piece, COARSE)

    def fits(self, pieces: Sequence[Piece]) -> bool:
        """Whether it lies in these pieces."""
        return self._sizes == [piece.stop - piece.start for piece in pieces]

    @property
    def size(self) -> int:
        """How many entries it has."""
        return sum(self._sizes)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(t.numel() * t.element_size() for t in (*self._codes, *self._scales))


def total(numbers: Sequence[Tensor]) -> Tensor:
    """The sum of numbers, wherever they are."""
    return torch.stack([one.to(numbers[0].device) for one in numbers]).sum()


def dot(one: Tensor, other: Tensor) -> Tensor:
    """The inner product of two flat tensors, in the type of the first."""
    return torch.dot(one, other.to(one.dtype))


def _packed(codes: Tensor) -> Tensor:
    """Codes from -7 to 7, two in a byte."""
    pairs = (codes + 8).to(torch.uint8).view(*codes.shape[:-1], -1, 2)
    return pairs[..., 0] | (pairs[..., 1] << 4)


def _unpacked(pairs: Tensor) -> Tensor:
    codes = torch.stack([pairs & 15, pairs >> 4], -1).view(*pairs.shape[:-1], -1)
    return codes.to(torch.int8) - 8
