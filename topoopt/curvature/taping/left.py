"""What backward left in `.grad`: whether it still lies there, and how long it was."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class LeftByBackward:
    """The gradients of some parameters as the last backward left them: which objects, and their norms, on the device."""

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self._parameters = parameters
        self._grads: list[tuple[int, int] | None] = []
        self.norms: Tensor | None = None
        """One a parameter, 0 where there is none; None for shards, and where nothing is dense."""

    @torch.no_grad()
    def note(self) -> None:
        """Look, at the end of a backward."""
        self._grads = self._now()
        grads = [p.grad for p in self._parameters]
        dense = [g for g in grads if g is not None and not g.is_sparse]
        if not dense or any(hasattr(g, "full_tensor") for g in dense):
            self.norms = None
            return
        norms = iter(_norms(dense))
        device = dense[0].device
        lengths = [
            torch.zeros((), device=device) if g is None or g.is_sparse else next(norms).to(device, torch.float32)
            for g in grads
        ]
        self.norms = torch.stack(lengths)

    @property
    def untouched(self) -> bool:
        """Whether nobody has written to it or put something else there."""
        return bool(self._grads) and self._now() == self._grads

    def was_zeroed(self) -> bool:
        """Whether `zero_grad` came since; a host read where the gradients were written to in place."""
        now = self._now()
        if all(g is None for g in now):
            return True
        if now == self._grads:
            return False
        grads = [p.grad for p in self._parameters]
        left = _norms([g.detach() for g in grads if g is not None and not g.is_sparse])
        return not left or float(torch.stack([n.float() for n in left]).sum()) == 0.0

    def _now(self) -> list[tuple[int, int] | None]:
        return [None if p.grad is None else (id(p.grad), p.grad._version) for p in self._parameters]


def _norms(tensors: list[Tensor]) -> Sequence[Tensor]:
    return torch._foreach_norm(tensors)  # pyright: ignore[reportPrivateImportUsage]
