"""Units that are whole modules: experts behind a router, branches side by side, heads in a list; and what is none."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from topoopt.neurons import NeuronGroup, discover


class Experts(nn.Module):
    """Four experts in a list, each a small network, the best two of them weighted by a router; then a norm."""

    def __init__(self, sparse: bool) -> None:
        super().__init__()
        self.router = nn.Linear(6, 4)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(6, 5), nn.GELU(), nn.Linear(5, 6, bias=False)) for _ in range(4)
        )
        self.sparse = sparse

    def forward(self, x: Tensor) -> Tensor:
        gates = self.router(x).softmax(-1)
        if not self.sparse:
            return torch.stack([gates[:, i, None] * expert(x) for i, expert in enumerate(self.experts)]).sum(0)
        out = torch.zeros_like(x)
        weights, chosen = gates.topk(2, dim=-1)
        for i, expert in enumerate(self.experts):
            row, place = (chosen == i).nonzero(as_tuple=True)  # as many rows as there are: it cannot be exported
            if row.tolist():
                out = out.index_add(0, row, weights[row, place, None] * expert(x[row]))
        return out


class Branches(nn.Module):
    """Three branches whose results are averaged, or joined and read by a projection."""

    def __init__(self, joined: bool) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.heads = nn.ModuleList(nn.Linear(6, 4, bias=False) for _ in range(3))
        self.project = nn.Linear(12 if joined else 4, 2)
        self.joined = joined

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).tanh()
        made = [head(x) for head in self.heads]
        return self.project(torch.cat(made, -1) if self.joined else torch.stack(made).mean(0).tanh())


class Stack(nn.Module):
    """Layers one after the other: as alike as experts, and not interchangeable."""

    def __init__(self, size: int = 6) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(size, size) for _ in range(3))
        self.weights = nn.Parameter(torch.randn(3))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x).tanh() + x
        return x


class Uneven(nn.Module):
    """Branches side by side that a fixed number tells apart."""

    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleList(nn.Linear(6, 2) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([(i + 1.0) * branch(x) for i, branch in enumerate(self.branches)]).sum(0)


def the_bank(model: nn.Module, x: Tensor, name: str) -> NeuronGroup:
    (group,) = [group for group in discover(model, x) if group.name == name]
    return group


CASES = {
    "all experts": (lambda: Experts(sparse=False), "experts", "expert", 4, (6 * 5 + 5 + 5 * 6) + 6 + 1),
    "the best two experts": (lambda: Experts(sparse=True), "experts", "expert", 4, (6 * 5 + 5 + 5 * 6) + 6 + 1),
    "averaged branches": (lambda: Branches(joined=False), "heads", "expert", 3, 24),
    "joined branches": (lambda: Branches(joined=True), "heads", "expert", 3, 24 + 4 * 2),
}


@pytest.mark.parametrize("name", CASES)
def test_modules_side_by_side_are_units(name: str) -> None:
    build, bank, kind, n, d = CASES[name]
    torch.manual_seed(0)
    model, x = build(), torch.randn(16, 6)
    group = the_bank(model, x, bank)
    assert (group.kind, group.n, group.dimension(model)) == (kind, n, d)
    before, points = model(x), group.points(model)
    assert points.shape == (n, d)
    perm = torch.tensor([1, 2, 0, 3][:n])
    group.permute(model, perm)
    assert torch.equal(group.points(model), points[perm])
    assert torch.allclose(model(x), before, atol=1e-6)
    assert not torch.equal(points[perm], points)


def test_a_point_holds_the_whole_expert_and_its_row() -> None:
    model, x = Experts(sparse=False), torch.randn(16, 6)
    point = the_bank(model, x, "experts").points(model)[2]
    expert: Any = model.experts[2]
    parts = [expert[0].weight, expert[0].bias, expert[2].weight, model.router.weight[2], model.router.bias[2]]
    expected = torch.cat([part.detach().flatten() for part in parts])
    assert torch.equal(point.sort().values, expected.sort().values)


def test_scatter_indices_and_masks_know_whole_tensors() -> None:
    model, x = Experts(sparse=False), torch.randn(16, 6)
    group = the_bank(model, x, "experts")
    points = group.points(model)
    flat = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert torch.equal(flat[group.indices(model)], points)
    masks = group.masks(model)
    assert sum(int(mask.sum()) for mask in masks.values()) == points.numel()
    group.scatter(model, 2 * points)
    assert torch.equal(group.points(model), 2 * points)


def test_an_expert_takes_its_optimizer_state_along() -> None:
    """Training goes on as it would have: an expert that never had a gradient keeps that, too."""
    torch.manual_seed(0)
    runs = []
    for moved in (False, True):
        torch.manual_seed(1)
        model, x = Experts(sparse=False), torch.randn(16, 6)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        group = the_bank(model, x, "experts")
        for step in range(6):
            if moved and step == 3:
                group.permute(model, [2, 0, 3, 1], optimizer)
            optimizer.zero_grad()
            (model(x) - x.roll(1, 1)).square().mean().backward()
            optimizer.step()
        runs.append(group.points(model))
    assert torch.allclose(runs[1], runs[0][[2, 0, 3, 1]], atol=1e-5)
    assert not torch.allclose(runs[1], runs[0], atol=1e-2)

    experts: Any = model.experts
    untouched = experts[0][0].weight
    del optimizer.state[untouched]
    group.permute(model, [1, 0, 2, 3], optimizer)
    assert untouched in optimizer.state
    assert experts[1][0].weight not in optimizer.state


@pytest.mark.parametrize("build", [Stack, Uneven])
def test_likeness_is_not_enough(build: type[nn.Module]) -> None:
    found = discover(build(), torch.randn(16, 6))
    assert not [group for group in found if group.kind in ("expert", "head")]


def test_layers_of_a_stack_are_no_guess_that_failed() -> None:
    assert discover(Stack(), torch.randn(16, 6)).unverified == {}
    assert "branches" in discover(Uneven(), torch.randn(16, 6)).unverified


class InFloat32(nn.Module):
    """A kernel that takes float32 alone, between two layers."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.first, self.second, self.scale = nn.Linear(6, 8), nn.Linear(8, 3), scale

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype is not torch.float32:
            raise TypeError(f"this kernel takes float32, not {x.dtype}")
        return 1.0 + self.scale * self.second(self.first(x).tanh())


def test_a_model_that_cannot_run_in_float64_is_verified_in_float32() -> None:
    found = discover(InFloat32(), torch.randn(16, 6))
    assert [(group.kind, group.n) for group in found] == [("hidden", 8)]
    assert any("cannot be run in float64" in note and "float32" in note for note in found.notes)


def test_what_rounding_would_hide_is_not_called_verified() -> None:
    """All neurons together change the output by its millionth part: in float32 a wrong group would look right."""
    found = discover(InFloat32(scale=1e-6), torch.randn(16, 6))
    assert list(found) == []
    (reason,) = found.unverified.values()
    assert "rounding would hide a mistake" in reason


def test_experts_that_are_routed_to_in_python() -> None:
    """Switch Transformers: routing by index in Python, and a dictionary of expert modules in each sparse layer."""
    from transformers import SwitchTransformersConfig, SwitchTransformersForConditionalGeneration

    sizes = {"d_model": 12, "d_kv": 6, "d_ff": 10, "num_heads": 2, "num_layers": 2, "num_decoder_layers": 2}
    sizes |= {"num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1}
    config = SwitchTransformersConfig(vocab_size=40, num_experts=4, **sizes, decoder_start_token_id=0, pad_token_id=0)
    model = SwitchTransformersForConditionalGeneration(config)
    ids = torch.randint(3, 40, (2, 6))
    experts = [group for group in discover(model, input_ids=ids, decoder_input_ids=ids) if group.kind == "expert"]
    assert [group.n for group in experts] == [4, 4]  # one sparse layer in each stack
    for group in experts:
        assert {s.tensor.split(".mlp.")[1].split(".")[0] for s in group.slices} == {"router", "experts"}


def test_hooks_that_belong_to_the_model_stay_and_the_users_do_not_run() -> None:
    """A backbone of transformers collects its hidden states by hooks; without them its forward fails."""
    model, seen = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2)), []

    def doubled(module: nn.Module, args: Any, result: Tensor) -> Tensor:
        return torch.cat([result, result], -1)

    doubled.__module__ = "transformers.utils.output_capturing"
    model[0].register_forward_hook(doubled)
    model[2] = nn.Linear(16, 2)
    model[1].register_forward_hook(lambda *_: seen.append(1))
    (group,) = discover(model, torch.randn(5, 6))
    assert group.n == 8
    assert not seen
