"""The gate: no group is used that has not been verified numerically.

On a copy of the model in float64, with every parameter and statistic random (initial weights hide mistakes: ones, zeros,
zero low-rank factors), a permutation of a true symmetry changes the output by rounding only.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from topoopt.errors import DiscoveryError
from topoopt.neurons.copying import copy_of, on_host, settle
from topoopt.neurons.group import STATISTICS, NeuronGroup, named_tensors
from topoopt.neurons.recording import Recording, recorded
from topoopt.neurons.running import Call, apart, run
from topoopt.neurons.watching import NotApart, guarded

logger = logging.getLogger("topoopt")
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
"""Largest relative change of an output's entry that a true symmetry causes, by the precision of the gate's copy."""
FILLER = 1e3
"""Entries above this say nothing of how large the others are: activations of the random copy are near 1."""
SAMPLE = 1 << 16
"""So many entries are enough for a median; numbers that fill masked places repeat, and count once."""


class _FedByAnother(Exception):
    """Ends a forward in which there is nothing more to see."""


class Gate:
    """A random copy of a model, and its output on one input, against which permutations are held.

    Raises:
        DiscoveryError: when the model cannot be copied, or not run in `dtype`.
        NotApart: when it cannot be run without touching what all threads share.
    """

    def __init__(
        self,
        model: nn.Module,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        dtype: torch.dtype = torch.float64,
        seed: int = 0,
        call: Call | str | None = None,
    ) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self._dtype, self.tolerance, self._call = dtype, TOLERANCE[dtype], call
        try:
            self.model = settle(copy_of(model, dtype))
        except Exception as error:
            raise DiscoveryError(
                f"the model cannot be copied for verification ({type(error).__name__}: {error})"
            ) from error
        for p in self.model.parameters():  # what is frozen in training still acts
            p.requires_grad_(p.is_floating_point() or p.is_complex())
        self._args, self._kwargs = tree_map(lambda leaf: on_host(leaf, dtype), (args, dict(kwargs)))
        self._randomise()
        self.recording = Recording(self.model, (self._args, self._kwargs))
        """The graph of the reference run."""
        name = str(dtype).removeprefix("torch.")
        try:
            self._live: list[Tensor] = self._outputs(self.recording)
        except NotApart:
            raise
        except Exception as error:
            raise DiscoveryError(
                f"the model cannot be run in {name} for verification ({type(error).__name__}: {error})"
            ) from error
        self._acts: dict[str, bool] = {}
        self._reference = [out.detach() for out in self._live]
        self._typical = [typical_size(out) for out in self._reference]
        if not any(torch.isfinite(out).any() for out in self._reference):
            raise DiscoveryError("the model's output on random weights is not finite: no group can be verified")

    def redraw(self, seed: int) -> None:
        """Put other random weights into the model; the reference run stays that of the first."""
        self._generator.manual_seed(seed)
        self._randomise()

    def _randomise(self) -> None:
        """Weights of a size that keeps activations near 1; statistics and scales positive. Uniform: drawn the fastest."""
        for name, tensor in {id(t): (name, t) for name, t in named_tensors(self.model).items()}.values():
            last = name.rsplit(".", 1)[-1]
            if isinstance(tensor, nn.Parameter):
                scale = 1.0 / math.sqrt(max(1, math.prod(tensor.shape[1:]))) if tensor.ndim > 1 else 0.3
                shift = 1.0 if tensor.ndim == 1 and not last.startswith("bias") else 0.0
                self._fill(tensor.data, shift, math.sqrt(3.0) * scale)
            elif last in STATISTICS:
                self._fill(tensor, 0.0 if last == "running_mean" else 1.0, 0.5)

    def _fill(self, tensor: Tensor, center: float, reach: float) -> None:
        if tensor.is_complex():
            tensor = torch.view_as_real(tensor)
        if tensor.is_floating_point():
            tensor.uniform_(center - reach, center + reach, generator=self._generator)

    def _outputs(self, recording: Recording | None = None) -> list[Tensor]:
        watched = recording is not None or bool(self.recording.read)  # no branch without a look at numbers
        with apart(self.model, self._dtype, watched=watched), recorded(recording):
            result = run(self.model, self._call, self._args, self._kwargs)
        if recording is not None:
            recording.finish(tensors_in(result))
        return [out for out in tensors_in(result) if out.is_floating_point() or out.is_complex()]

    @cached_property
    def steady(self) -> bool:
        """Whether the copy gives the same output again (runs it once)."""
        return self._largest(self._outputs()) <= self.tolerance

    def _largest(self, outputs: Sequence[Tensor]) -> float:
        """Largest relative change of any entry of the outputs; infinite where they are not of the reference's shapes."""
        if len(outputs) != len(self._reference):
            return math.inf
        compared = zip(outputs, self._reference, self._typical)
        return max((relative_change(out.detach(), was, typical) for out, was, typical in compared), default=math.inf)

    def change(self, moves: Sequence[tuple[NeuronGroup, Tensor]]) -> float:
        """Largest relative change of the output when groups are permuted.

        The copy is put back after a change; where there is none it has the same function and stays permuted.
        """
        self._live, done, change = [], list[tuple[NeuronGroup, Tensor]](), math.inf
        try:
            for group, perm in moves:
                group.permute(self.model, perm)
                done.append((group, perm))
            change = self._largest(self._outputs())
        except Exception:  # a permutation that cannot even be carried out is no symmetry
            logger.debug("topoopt: a permutation of %s failed", [group.name for group, _ in moves], exc_info=True)
        if change > self.tolerance:
            for group, perm in reversed(done):
                group.permute(self.model, perm.argsort())
        return change

    def in_a_row(self, names: Sequence[str]) -> bool:
        """Whether what one of these modules is fed was made from another's result: layers of a stack, not units abreast."""
        made: set[Any] = set()
        clear: set[Any] = set()

        def see(module: nn.Module, args: Any, kwargs: Any, result: Any) -> None:
            waiting = [t.grad_fn for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
            while waiting:
                node = waiting.pop()
                if node in made:
                    raise _FedByAnother
                if node is not None and node not in clear:
                    clear.add(node)
                    waiting.extend(before for before, _ in node.next_functions)
            made.update(t.grad_fn for t in tensors_in(result) if t.grad_fn is not None)

        handles = [self.model.get_submodule(n).register_forward_hook(see, with_kwargs=True) for n in names]
        try:
            with apart(self.model, self._dtype, watched=bool(self.recording.read)):
                run(self.model, self._call, self._args, self._kwargs)
        except _FedByAnother:  # seen at the second layer of a stack: the rest need not be run
            return True
        finally:
            for handle in handles:
                handle.remove()
        return False

    def permutation(self, n: int) -> Tensor:
        """A random permutation that leaves nothing where it was."""
        order = torch.randperm(n, generator=self._generator, device="cpu")
        perm = torch.empty_like(order)
        perm[order] = order.roll(1)
        return perm

    def dead(self, groups: Sequence[NeuronGroup]) -> set[str]:
        """Names of groups whose parameters do not act on the output at all: permuting those proves nothing.

        A group's smallest tensor is asked first, all of them only where that does not act: gradients of large weights
        would cost as much memory as the weights.
        """
        tensors = named_tensors(self.model)
        held = {
            g.name: sorted({t for s in g.slices for t in s.tensors}, key=lambda name: tensors[name].numel())
            for g in groups
        }
        self._ask({names[0] for names in held.values()})
        silent = {group: names[1:] for group, names in held.items() if not self._acts[names[0]]}
        self._ask({name for names in silent.values() for name in names})
        return {group for group, names in silent.items() if not any(self._acts[name] for name in names)}

    def _ask(self, names: set[str]) -> None:
        """Find out which of these tensors act: those that have a gradient. Each is asked once."""
        tensors = {
            name: tensor for name, tensor in named_tensors(self.model).items() if name in names - self._acts.keys()
        }
        if not tensors:
            return
        outputs = [out for out in self._live or self._outputs() if out.requires_grad]
        asked = {name: tensor for name, tensor in tensors.items() if tensor.requires_grad}
        if not outputs:  # a run without gradients: what it used acts
            acting = {name for _, name, _ in self.recording.leaves.values()}
        elif asked:
            finite = [torch.where(torch.isfinite(out), out, 0.0) for out in outputs]
            noise = [
                torch.randn(out.shape, generator=self._generator, dtype=out.dtype, device="cpu") for out in outputs
            ]
            total = torch.stack([(out * n).sum().real for out, n in zip(finite, noise)]).sum()
            with guarded(self.model, {}):  # a backward may be the model's own code
                grads = torch.autograd.grad(total, list(asked.values()), retain_graph=True, allow_unused=True)
            acting = {name for name, grad in zip(asked, grads) if grad is not None and bool(grad.any())}
        else:
            acting = set()
        self._acts |= {name: name in acting for name in tensors}


def relative_change(out: Tensor, reference: Tensor, typical: float | None = None) -> float:
    """Largest change of an entry against its own size, or against the others' typical one where it is smaller.

    `typical` is `typical_size(reference)`, which is computed where it is not given. What is infinite or undefined has to
    stay so.
    """
    finite = torch.isfinite(reference)
    if out.shape != reference.shape or not torch.equal(torch.isfinite(out), finite):
        return math.inf
    if not torch.equal(out[~finite].nan_to_num(), reference[~finite].nan_to_num()):
        return math.inf
    if not finite.all():
        out, reference = out[finite], reference[finite]
    if not out.numel():
        return 0.0
    floor = typical_size(reference) if typical is None else typical
    return float(((out - reference).abs() / reference.abs().clamp_min(max(floor, 1e-12))).max())


def typical_size(reference: Tensor) -> float:
    """The median size of an output's entries, of those that differ and are no fillers; 0 where all are."""
    sizes = reference.abs().flatten()
    usual = sizes[(sizes > 0) & (sizes < FILLER)]
    if not usual.numel():
        return 0.0
    return float(usual[:: max(1, usual.numel() // SAMPLE)].unique().median())


def tensors_in(result: Any) -> list[Tensor]:
    """The tensors of an output: in what pytrees know, and in the attributes of other objects (a distribution)."""
    leaves = []
    for leaf in tree_leaves(result):
        within = [leaf] if isinstance(leaf, Tensor) or not hasattr(leaf, "__dict__") else tree_leaves(dict(vars(leaf)))
        leaves += [one for one in within if isinstance(one, Tensor)]
    return leaves
