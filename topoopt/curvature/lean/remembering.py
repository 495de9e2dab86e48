"""What one reading leaves for the next: a `Memory` as it is, or its first direction alone, rounded."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from topoopt.curvature.krylov import Memory
from topoopt.curvature.lean.pieces import COARSE, Piece, Rounded


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

    def direction(self, pieces: Sequence[Piece], parameters: Sequence[Tensor]) -> Rounded:
        """The first direction in these pieces of the parameters, which have as many entries as it."""
        if isinstance(self._direction, Rounded) and self._direction.fits(pieces):
            return self._direction
        parts = self.recall().vectors[0].split([piece.stop - piece.start for piece in pieces])
        return Rounded.of(len(pieces), lambda k: parts[k].to(parameters[pieces[k].parameter].device))

    @property
    def size(self) -> int:
        """Length of a direction."""
        return self._direction.size if isinstance(self._direction, Rounded) else self._direction.vectors.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        if isinstance(self._direction, Rounded):
            return self._direction.nbytes
        return self._direction.vectors.numel() * self._direction.vectors.element_size()
