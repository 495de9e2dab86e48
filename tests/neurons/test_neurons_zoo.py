"""Every architecture of the zoo: the groups that are expected, each checked by permuting the module itself."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import neuron_zoo_hf  # noqa: F401 (registers its architectures)
import pytest
import torch
from neuron_zoo import ZOO, Example
from torch import Tensor, nn

from topoopt.neurons import Discovery, NeuronGroup, discover


def build(name: str) -> Example:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ZOO[name].build()


def permute_by_hand(tensor: Tensor, dim: int, places: list[list[int]], perm: list[int]) -> None:
    """Entry by entry, from the definition of a slice: what lay at unit perm[i]'s places comes to unit i's."""
    before = tensor.clone()
    for i, source in enumerate(perm):
        for to, come_from in zip(places[i], places[source], strict=True):
            tensor.select(dim, to).copy_(before.select(dim, come_from))


def places_of(group: NeuronGroup, unit: int, s: Any) -> list[int]:
    return [s.offset + o * s.stride + unit * s.inner + k for o in range(s.outer) for k in range(s.inner)]


def floating(result: Any) -> Iterator[Tensor]:
    if isinstance(result, Tensor):
        if result.is_floating_point():
            yield result
    elif isinstance(result, dict):
        for value in result.values():
            yield from floating(value)
    elif isinstance(result, list | tuple):
        for value in result:
            yield from floating(value)


def run(example: Example) -> list[Tensor]:
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(1)
        return list(floating(example.model(*example.args, **example.kwargs)))


def shake(model: nn.Module) -> None:
    """Zeros, ones and other symmetric weights hide mistakes: make all of them random."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(
                torch.randn(p.shape, generator=generator, dtype=p.dtype)
                * (0.5 if p.ndim < 2 else 0.5 / p[0].numel() ** 0.5)
            )
        for name, b in model.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                b.add_(0.3 * torch.rand(b.shape, generator=generator))


def check(example: Example, groups: Discovery) -> None:
    """Each group permuted for itself in the model's own float32, compared with its own unpermuted output."""
    example.model.eval()
    shake(example.model)
    reference = run(example)
    generator = torch.Generator().manual_seed(3)
    for group in groups:
        tensors = dict(example.model.named_parameters(remove_duplicate=False)) | dict(
            example.model.named_buffers(remove_duplicate=False)
        )
        state = {name: t.detach().clone() for name, t in tensors.items()}
        perm = torch.randperm(group.n, generator=generator).roll(1).tolist()
        if perm == list(range(group.n)):
            perm = perm[1:] + perm[:1]
        with torch.no_grad():
            for s in group.slices:
                permute_by_hand(tensors[s.tensor], s.dim, [places_of(group, u, s) for u in range(group.n)], perm)
        for before, after in zip(reference, run(example), strict=True):
            close = torch.allclose(before, after, rtol=2e-3, atol=2e-4 * float(before.abs().max() + 1e-6))
            assert close, f"{group} changes the output by {float((before - after).abs().max())}"
        with torch.no_grad():
            for name, t in tensors.items():
                t.copy_(state[name])


def kinds(groups: Discovery) -> dict[str, list[int]]:
    found: dict[str, list[int]] = defaultdict(list)
    for group in groups:
        found[group.kind].append(group.n)
    return {kind: sorted(sizes) for kind, sizes in found.items()}


@pytest.mark.parametrize("name", list(ZOO))
def test_expected_groups_are_found_and_are_symmetries(name: str) -> None:
    if ZOO[name].build.__module__ == "neuron_zoo_hf":
        pytest.importorskip("transformers")
    example = build(name)
    groups = discover(example.model, *example.args, **example.kwargs)
    assert kinds(groups) == ZOO[name].expected, str(groups)
    assert not groups.unverified, "propagation itself should have known"
    check(example, groups)


def test_the_zoo_is_wide() -> None:
    assert len(ZOO) >= 90
