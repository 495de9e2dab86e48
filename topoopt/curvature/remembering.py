"""What a reading leaves for the next, in little memory: the dominant directions, rounded block by block.

A start needs no digits: an error of a share e in the direction costs e^2 of the estimate.
"""

from __future__ import annotations

import torch
from torch import Tensor

from topoopt.curvature.krylov import Memory

BLOCK = 128
"""Entries that share one scale."""


class Remembered:
    """A `Memory`, as it is, or its first direction rounded to 8 bits an entry."""

    def __init__(
        self, memory: Memory | None, codes: Tensor | None, scales: Tensor | None, size: int, value: float
    ) -> None:
        self._memory, self._codes, self._scales, self._size, self._value = memory, codes, scales, size, value

    @classmethod
    def of(cls, memory: Memory, *, compact: bool) -> Remembered:
        """Keep a memory; compact, only its first direction."""
        return (
            cls.of_flat(memory.vectors[0], memory.values[0])
            if compact
            else cls(memory, None, None, 0, memory.values[0])
        )

    @classmethod
    def of_flat(cls, vector: Tensor, value: float) -> Remembered:
        """Keep a direction (any length but 0) in a quarter of its size."""
        padded = torch.nn.functional.pad(vector, (0, -len(vector) % BLOCK)).view(-1, BLOCK)
        scales = padded.abs().amax(-1, keepdim=True).clamp_min_(1e-30).div_(127)
        codes = torch.div(padded, scales).round_().to(torch.int8)
        return cls(None, codes, scales.to(torch.bfloat16), len(vector), value)

    def recall(self) -> Memory:
        """The memory, its directions about as long as they were: a shard's part alone does not know the whole's length."""
        return self._memory if self._memory is not None else Memory(self.recall_flat()[None], (self._value,))

    def recall_flat(self) -> Tensor:
        """The first direction, about as long as it was."""
        if self._memory is not None:
            return self._memory.vectors[0]
        assert self._codes is not None
        assert self._scales is not None
        return torch.mul(self._codes, self._scales.float()).view(-1)[: self._size]

    @property
    def size(self) -> int:
        """Length of a direction."""
        return self._size if self._memory is None else self._memory.vectors.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        kept = [self._codes, self._scales] if self._memory is None else [self._memory.vectors]
        return sum(t.numel() * t.element_size() for t in kept if t is not None)
