"""Groups: gathering, writing, permuting with optimizer state, caching, choosing, unwrapping, compacting."""

from __future__ import annotations

import json
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
from topoopt.neurons import Discovery, NeuronGroup, Slice, cache, compact, discover, select, unwrap
from topoopt.neurons.coverage import optimizer_coverage

VARIED = [
    "mlp_layer_norm",
    "cnn_batch_norm",
    "group_norm",
    "lstm",
    "attention_fused_view",
    "gated_interleaved",
    "llama",
]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOPOOPT_CACHE", str(tmp_path))
    cache.clear()


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


def test_the_second_discovery_comes_from_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    example, first = found("gpt2")
    cache.clear()  # what is in memory, so that the file is read

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("a cached model was propagated again")

    monkeypatch.setattr("topoopt.neurons.finding.propagate", fail)
    again = discover(example.model, *example.args)
    assert list(again) == list(first)
    assert (again.frozen, again.coverage, again.notes) == (first.frozen, first.coverage, first.notes)
    with torch.no_grad():
        next(example.model.parameters()).add_(1.0)  # weights do not matter, the structure does
    assert list(discover(example.model, *example.args)) == list(first)
    wider = nn.Sequential(nn.Linear(5, 9), nn.ReLU(), nn.Linear(9, 2))
    monkeypatch.setattr("topoopt.neurons.finding.fallback.candidates", fail)
    with pytest.raises(AssertionError, match="propagated again"):
        discover(wider, rand(4, 5))


class _Switched(nn.Module):
    def __init__(self, product: bool) -> None:
        super().__init__()
        self.product = product
        self.a, self.b = nn.Linear(3, 6), nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.a(x)
        return self.b(x.cumsum(-1) if self.product else x)


def test_a_switch_that_changes_the_function_changes_the_key() -> None:
    assert len(discover(_Switched(product=False), rand(4, 3))) == 1
    assert len(discover(_Switched(product=True), rand(4, 3))) == 0


def test_a_broken_cache_file_is_found_anew(tmp_path: Path) -> None:
    example, first = found("mlp")
    (file,) = tmp_path.glob("*.json")
    for text in ("{", json.dumps({"groups": [{"name": "x"}]}), "[]"):
        file.write_text(text)
        cache.clear()
        assert list(discover(example.model, *example.args)) == list(first)


def test_a_cache_that_cannot_be_written_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("TOPOOPT_CACHE", str(blocked / "below"))
    _, groups = found("mlp")
    assert len(groups) == 2


def test_what_cannot_be_exported_gets_candidates_by_shape() -> None:
    _, groups = found("data_dependent_branch")
    assert "could not be exported" in groups.notes[0]
    assert [(g.kind, g.n) for g in groups] == [("hidden", 9), ("hidden", 6)]
    assert "could not be exported" in str(groups)


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
