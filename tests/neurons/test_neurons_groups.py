"""Groups: gathering, writing, permuting with optimizer state, caching, choosing, unwrapping, compacting."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import neuron_zoo_hf  # noqa: F401 (registers its architectures)
import pytest
import torch
from hypothesis import given, settings
from neuron_zoo import ZOO, Example, rand
from torch import nn

from topoopt.errors import ConfigError, DiscoveryError
from topoopt.neurons import (
    Discovery,
    NeuronGroup,
    Slice,
    compact,
    discover,
    optimizer_coverage,
    select,
    tensor_ids,
    unwrap,
    verify,
)

VARIED = [
    "mlp_layer_norm",
    "cnn_batch_norm",
    "group_norm",
    "lstm",
    "attention_fused_view",
    "gated_interleaved",
    "llama",
]


def build(name: str) -> Example:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ZOO[name].build()


def found(name: str) -> tuple[Example, Discovery]:
    example = build(name)
    example.model.eval()
    return example, discover(example.model, *example.args, **example.kwargs)


def flat(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


@pytest.mark.parametrize("name", VARIED)
def test_points_are_the_entries_that_the_indices_name(name: str) -> None:
    example, groups = found(name)
    for group in groups:
        points, indices = group.points(example.model), group.indices(example.model)
        assert points.shape == (group.n, group.dimension(example.model))
        assert not points.requires_grad
        assert torch.equal(points, flat(example.model)[indices])
        if group.kind != "recurrent":  # a recurrent weight belongs to the unit it leaves and to the one it enters
            assert len(indices.unique()) == indices.numel(), "an entry belongs to one place of one neuron"


@pytest.mark.parametrize("name", VARIED)
def test_masks_cover_what_the_indices_name(name: str) -> None:
    example, groups = found(name)
    names = dict(example.model.named_parameters())
    for group in groups:
        masks = group.masks(example.model)
        marked = torch.cat([masks.get(n, torch.zeros_like(p, dtype=torch.bool)).reshape(-1) for n, p in names.items()])
        expected = torch.zeros_like(marked)
        expected[group.indices(example.model).reshape(-1)] = True
        assert torch.equal(marked, expected)


@pytest.mark.parametrize("name", VARIED)
def test_scatter_writes_what_points_reads(name: str) -> None:
    example, groups = found(name)
    for group in groups:
        before, points = flat(example.model).clone(), group.points(example.model)
        other = rand(len(before))[group.indices(example.model)]
        group.scatter(example.model, other)
        assert torch.equal(group.points(example.model), other)
        outside = torch.ones_like(before, dtype=torch.bool)
        outside[group.indices(example.model).reshape(-1)] = False
        assert torch.equal(flat(example.model)[outside], before[outside])
        group.scatter(example.model, points)
        assert torch.equal(flat(example.model), before)


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 5), outer=st.integers(1, 3), inner=st.integers(1, 3), offset=st.integers(0, 4),
    gap=st.integers(0, 3), dim=st.integers(0, 2), seed=st.integers(0, 99),
)  # fmt: skip
def test_a_slice_lies_where_its_definition_says(
    n: int, outer: int, inner: int, offset: int, gap: int, dim: int, seed: int
) -> None:
    stride = n * inner + gap
    shape = [2, 3, 2]
    shape[dim] = offset + outer * stride + 1
    model = nn.Module()
    model.w = nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(seed)))
    s = Slice("w", dim, offset, outer, inner, stride)
    group = NeuronGroup("g", "hidden", n, (s,))
    rows = []
    for i in range(n):
        places = [offset + o * stride + i * inner + k for o in range(outer) for k in range(inner)]
        assert s.positions(n)[i].tolist() == places
        rows.append(torch.stack([model.w.detach().select(dim, p) for p in places]).reshape(-1))
    points = group.points(model)
    assert torch.equal(points, torch.stack(rows))
    before, perm = model.w.detach().clone(), torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    group.permute(model, perm)
    assert torch.equal(group.points(model), points[perm])
    group.permute(model, perm.argsort())
    assert torch.equal(model.w.detach(), before)


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD, torch.optim.RMSprop, torch.optim.Adagrad])
def test_training_commutes_with_permuting(kind: Any) -> None:
    """Permute weights and state, then train: the same as train, then permute. Without the state it is not."""
    settings: dict[str, Any] = {"lr": 0.01} | (
        {"momentum": 0.9} if kind in (torch.optim.SGD, torch.optim.RMSprop) else {}
    )
    x, y = rand(16, 5).double(), rand(16, 3).double()

    def run(permute_at: int, state: bool = True) -> torch.Tensor:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).double()
        optimizer = kind(model.parameters(), **settings)
        group = discover(model, x)[0]
        perm = torch.tensor([3, 0, 1, 2, 7, 4, 5, 6])
        for step in range(20):
            if step == permute_at:
                group.permute(model, perm, optimizer if state else None)
            optimizer.zero_grad()
            (model(x) - y).square().mean().backward()
            optimizer.step()
        if permute_at >= 20:
            group.permute(model, perm, optimizer)
        return flat(model)

    torch.testing.assert_close(run(10), run(20), rtol=1e-10, atol=1e-12)
    assert not torch.allclose(run(10, state=False), run(20), rtol=1e-6)


@pytest.mark.parametrize("perm", [[0, 1, 2], [0] * 8, list(range(1, 9))])
def test_what_is_no_permutation_is_refused(perm: list[int]) -> None:
    example, groups = found("mlp")
    with pytest.raises(DiscoveryError, match=r"not a permutation of 0 \.\. 7"):
        groups[0].permute(example.model, perm)


def test_groups_are_gathered_on_meta_too() -> None:
    _, groups = found("llama")
    meta = build("llama").model.to("meta")
    for group in groups:
        assert group.points(meta).shape == (group.n, group.dimension(meta))
        assert group.points(meta).is_meta


class _Switched(nn.Module):
    def __init__(self, product: bool) -> None:
        super().__init__()
        self.product = product
        self.a, self.b = nn.Linear(3, 6), nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.a(x)
        return self.b(x.cumsum(-1) if self.product else x)


def test_a_switch_that_changes_the_function_changes_the_groups() -> None:
    assert len(discover(_Switched(product=False), rand(4, 3))) == 1
    assert len(discover(_Switched(product=True), rand(4, 3))) == 0


def test_a_branch_that_looks_at_numbers_is_followed() -> None:
    _, groups = found("data_dependent_branch")
    assert [(g.kind, g.n) for g in groups] == [("hidden", 9), ("hidden", 6)]
    assert not groups.notes


def test_selection_leaves_out_unusual_kinds_unless_they_are_named() -> None:
    _, groups = found("gpt2")
    chosen, skipped = select(groups)
    assert {g.kind for g in chosen} == {"hidden", "head"}
    assert set(skipped) == {g.name for g in groups if g.kind in ("residual", "head_dim")}
    residual = next(g for g in groups if g.kind == "residual")
    assert select(groups, include=residual.name)[0] == [residual]
    assert residual not in select(groups, include="*", exclude=residual.name)[0]
    with pytest.raises(ConfigError, match=r"'nothing\*' matches no neuron group"):
        select(groups, include="nothing*")


def test_wrapped_models_are_the_model_inside() -> None:
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 2))
    for wrapped in (torch.compile(model), nn.DataParallel(model), nn.DataParallel(torch.compile(model))):
        assert unwrap(wrapped) is model
        assert list(discover(wrapped, rand(4, 5))) == list(discover(model, rand(4, 5)))
        group = discover(wrapped, rand(4, 5))[0]
        assert torch.equal(group.points(wrapped), group.points(model))


def test_coverage_is_the_share_of_parameters_in_groups() -> None:
    _, groups = found("mlp")  # 5-8-12-3: only the last bias belongs to no neuron
    assert groups.coverage == pytest.approx(1 - 3 / (5 * 8 + 8 + 8 * 12 + 12 + 12 * 3 + 3))


def test_optimizers_outside_the_theory_are_said_to_be() -> None:
    weights = [nn.Parameter(torch.zeros(2, 2))]
    assert optimizer_coverage(torch.optim.AdamW(weights)).covered

    class Adam8bit(torch.optim.Adam):
        pass

    class Unheard(torch.optim.Optimizer):
        pass

    assert "block-quantised" in optimizer_coverage(Adam8bit(weights)).reason
    assert "Unheard" in optimizer_coverage(Unheard(weights, {})).reason


def test_compacting_keeps_the_function() -> None:
    example, groups = found("cnn_batch_norm")
    model = example.model
    first = next(g for g in groups if g.n == 6)
    points = first.points(model)
    points[1] = points[0]  # a double
    first.scatter(model, points)
    norm = model[1]
    assert isinstance(norm, nn.BatchNorm2d)
    with torch.no_grad():
        assert isinstance(model[4], nn.Conv2d)
        model[4].weight[:, 3] = 0.0  # read by nobody
    small, report = compact(model, groups)
    assert (report[first.name].kept, report[first.name].merged, report[first.name].removed) == (4, 1, 1)
    torch.testing.assert_close(small(*example.args), model(*example.args), rtol=1e-4, atol=1e-5)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())
    assert isinstance(small[1], nn.BatchNorm2d)
    assert small[1].num_features == 4
    with pytest.raises(ConfigError, match="tolerance=-1"):
        compact(model, groups, tolerance=-1)


def test_extra_rules_teach_an_operator() -> None:
    """A user's own operator freezes what it touches until a rule speaks for it."""
    from topoopt.neurons.rules import RULES, Value

    calls = []

    def rule(out: list[int], x: Value, *args: Any, **kwargs: Any) -> Value:
        calls.append(out)
        return Value(list(x.dims))

    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 2))
    assert [g.n for g in discover(model, rand(4, 5), extra_rules={"tanh": rule})] == [8]
    assert calls == [[4, 8]]
    assert RULES["tanh"] is not rule


@dataclass
class Layout:
    interleaved: bool


class Gated(nn.Module):
    """A gated layer whose halves lie as a configuration says that prints nothing of it."""

    def __init__(self, layout: Layout, nonlinearity: Any = torch.sigmoid) -> None:
        super().__init__()
        self.layout, self.up, self.down, self.f = layout, nn.Linear(6, 16), nn.Linear(8, 3), nonlinearity

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.up(x)
        a, b = (h[..., ::2], h[..., 1::2]) if self.layout.interleaved else h.chunk(2, -1)
        return self.down(a * self.f(b))


def test_models_that_look_alike_get_groups_of_their_own() -> None:
    """They differ in a dataclass or in a function, one after the other in one process."""
    x = rand(4, 6)
    for interleaved in (False, True, False):
        model = Gated(Layout(interleaved))
        (group,) = discover(model, x)
        assert verify(model, group, x) < 1e-12
    assert not discover(Gated(Layout(interleaved=False), lambda h: h.cumsum(-1)), x)


def test_discovery_needs_no_home_and_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "nowhere"))
    monkeypatch.chdir(tmp_path)
    assert len(found("mlp")[1]) == 2
    assert not list(tmp_path.rglob("*"))


class Fused(nn.Module):
    """BEiT, EVA, Swin v2 of timm: a fused qkv whose bias is put together, some of it from a buffer of zeros."""

    def __init__(self, constant_key: bool = False) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(16, 48, bias=False), nn.Linear(16, 5)
        self.q, self.v = nn.Parameter(torch.zeros(16)), nn.Parameter(torch.zeros(16))
        if constant_key:
            self.register_buffer("k", torch.zeros(16), persistent=False)
        else:
            self.k = nn.Parameter(torch.zeros(16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        qkv = nn.functional.linear(x, self.qkv.weight, torch.cat((self.q, self.k, self.v)))
        q, k, v = qkv.reshape(*x.shape[:2], 3, 4, 4).permute(2, 0, 3, 1, 4)
        return self.out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("constant_key", [False, True])
def test_heads_are_found_where_a_bias_is_put_together(constant_key: bool) -> None:
    model, x = Fused(constant_key), rand(2, 6, 16)
    heads = [group for group in discover(model, x) if group.kind == "head"]
    assert [group.n for group in heads] == [4]
    biases = {s.tensor for s in heads[0].slices if len(s.tensor) == 1}
    assert biases == ({"q", "v"} if constant_key else {"q", "k", "v"})


def test_a_group_says_when_it_no_longer_fits() -> None:
    model, x = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)), rand(4, 5)
    (group,) = discover(model, x)
    ids = tensor_ids(model)
    assert group.fits(model) == group.fits(model, ids) == group.fits(nn.DataParallel(model), ids) == ""
    model[2] = nn.Linear(8, 3)
    assert group.fits(model) == ""
    assert "2.weight is another tensor" in group.fits(model, ids)
    model[0], model[2] = nn.Linear(5, 12), nn.Linear(12, 3)  # widened
    assert "0.weight has the shape (12, 5); it was (8, 5)" in group.fits(model)
    model[0], model[2] = nn.Linear(9, 8), nn.Linear(8, 3)  # reads more
    assert "0.weight has the shape (8, 9)" in group.fits(model)
    model[0] = nn.Identity()  # merged into another
    assert "no 0.weight any more" in group.fits(model)


def test_a_group_written_by_hand_fits_where_its_units_have_places() -> None:
    model = nn.Sequential(nn.Linear(5, 8))
    assert NeuronGroup("g", "hidden", 4, (Slice("0.weight", 0, 4, stride=4),)).fits(model) == ""
    assert "9 places" in NeuronGroup("g", "hidden", 4, (Slice("0.weight", 0, 5, stride=4),)).fits(model)
    assert "in dimension 2" in NeuronGroup("g", "hidden", 4, (Slice("0.weight", 2),)).fits(model)


class Complex(nn.Module):
    """A hidden layer of complex weights between real ones."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.up = nn.Parameter(torch.randn(8, 5, generator=generator, dtype=torch.complex64))
        self.shift = nn.Parameter(torch.randn(8, generator=generator))
        self.down = nn.Parameter(torch.randn(3, 8, generator=generator, dtype=torch.complex64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (torch.tanh(x.to(self.up.dtype) @ self.up.T + self.shift) @ self.down.T).abs()


def test_a_complex_weight_is_two_real_coordinates() -> None:
    model = Complex()
    (group,) = discover(model, rand(4, 5))
    points = group.points(model)
    assert (points.dtype, points.shape) == (torch.float32, (8, 2 * 5 + 1 + 2 * 3))
    assert group.dimension(model) == points.shape[1]
    distances = torch.cdist(points, points)
    rows = [torch.cat([model.up[i], model.shift[i, None], model.down[:, i]]).detach() for i in (1, 4)]
    torch.testing.assert_close(distances[1, 4], (rows[0] - rows[1]).abs().square().sum().sqrt())
    reals = [torch.view_as_real(p) if p.is_complex() else p for p in model.parameters()]
    assert torch.equal(torch.cat([p.detach().reshape(-1) for p in reals])[group.indices(model)], points)
    group.scatter(model, 2 * points)
    assert torch.equal(group.points(model), 2 * points)
    assert verify(model, group, rand(4, 5)) < 1e-12


def test_an_operator_that_is_not_known_costs_no_group_that_can_be_guessed() -> None:
    """What it touches is frozen; a guess by shapes passes the gate all the same, or does not."""

    class Spectral(nn.Module):
        def __init__(self, unknown: Any) -> None:
            super().__init__()
            self.a, self.b, self.unknown = nn.Linear(5, 8), nn.Linear(8, 3), unknown

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = torch.tanh(self.a(x))
            return self.b(h * self.unknown(h))

    groups = discover(Spectral(lambda h: torch.linalg.svdvals(h).sum()), rand(4, 5))
    assert [(g.name, g.n) for g in groups] == [("a", 8)]
    assert "_linalg_svd has no rule" in groups.notes[0]
    (rest,) = discover(Spectral(lambda h: torch.linalg.svdvals(h[:, :4]).sum()), rand(4, 5))
    assert (rest.n, rest.slices[0].offset) == (4, 4)  # nobody knows of the first four, nobody doubts the others
