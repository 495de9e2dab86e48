"""compact: the same function, or the group whole and its reason; on every architecture, with equal neurons planted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import neuron_zoo_hf  # noqa: F401 (registers its architectures)
import pytest
import torch
import torch.nn.functional as F
from neuron_zoo import ZOO, Example, rand
from torch import Tensor, nn

from topoopt.errors import ConfigError
from topoopt.neurons import NeuronGroup, compact, discover
from topoopt.neurons.compacting import undescribed

BY_HAND = [name for name, one in ZOO.items() if one.build.__module__ != "neuron_zoo_hf"]
FAMILIES = ["gpt2", "bert", "t5", "llama", "mixtral", "phi3", "falcon", "mamba", "vit", "convnext", "wav2vec2", "xlnet"]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOPOOPT_CACHE", str(tmp_path))


def build(name: str) -> Example:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        example = ZOO[name].build()
        with torch.no_grad():
            for p in example.model.parameters():  # ones and zeros hide mistakes
                p.add_(0.1 * torch.randn_like(p))
    example.model.eval()
    return example


def plant(model: nn.Module, group: NeuronGroup, source: int = 0, target: int = -1) -> None:
    """Make one unit equal to another, in all that belongs to it."""
    tensors = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    with torch.no_grad():
        for s in group.slices:
            if s.siblings:
                tensors[s.siblings[target]].copy_(tensors[s.siblings[source]])
                continue
            places, tensor = s.positions(group.n), tensors[s.tensor]
            tensor.index_copy_(s.dim, places[target], tensor.index_select(s.dim, places[source]))


def run(model: nn.Module, *args: Any, **kwargs: Any) -> list[Tensor]:
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(1)
        return list(_floating(model.eval()(*args, **kwargs)))


def _floating(result: Any) -> Any:
    if isinstance(result, Tensor):
        if result.is_floating_point():
            yield result
    elif isinstance(result, dict | list | tuple):
        for value in result.values() if isinstance(result, dict) else result:
            yield from _floating(value)


def assert_same(small: nn.Module, model: nn.Module, *args: Any, **kwargs: Any) -> None:
    for after, before in zip(run(small, *args, **kwargs), run(model, *args, **kwargs), strict=True):
        torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-5 * float(before.abs().max()))


def assert_sizes_agree(model: nn.Module) -> None:
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if isinstance(module, nn.Linear):
            assert (module.out_features, module.in_features) == tuple(weight.shape)
        elif isinstance(module, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d):
            assert (module.in_channels, module.out_channels // module.groups) == tuple(weight.shape[:2])
        elif isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            assert (module.out_channels, module.in_channels // module.groups) == tuple(weight.shape[:2])
        elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.InstanceNorm1d) and weight is not None:
            assert module.num_features == len(weight)
        elif isinstance(module, nn.Embedding | nn.EmbeddingBag):
            assert (module.num_embeddings, module.embedding_dim) == tuple(weight.shape)
        elif isinstance(module, nn.MultiheadAttention):
            assert module.embed_dim == module.in_proj_weight.shape[1]
            assert module.num_heads * module.head_dim == module.out_proj.weight.shape[1]
        elif isinstance(module, nn.LSTM) and not module.proj_size:
            assert (4 * module.hidden_size, module.input_size) == tuple(module.weight_ih_l0.shape)


@pytest.mark.parametrize("name", BY_HAND + FAMILIES)
def test_every_architecture_keeps_its_function(name: str) -> None:
    """A pair of equal neurons in each group: merged, or the group is left whole by name."""
    if name in FAMILIES:
        pytest.importorskip("transformers")
    example = build(name)
    groups = discover(example.model, *example.args, **example.kwargs)
    for group in groups:
        plant(example.model, group)
    small, report = compact(example.model, groups)
    assert_same(small, example.model, *example.args, **example.kwargs)
    assert_sizes_agree(small)
    for group in groups:
        one = report[group.name]
        assert one.kept + one.merged + one.removed == group.n
        assert bool(one.reason) == (one.kept == group.n), str(report)
        assert group.name in str(report)
    assert (report.parameters[1] < report.parameters[0]) == any(one.merged or one.removed for one in report.values())


class Between(nn.Module):
    def __init__(self, between: Any, first: nn.Module | None = None, last: nn.Module | None = None) -> None:
        super().__init__()
        self.first, self.between, self.last = first or nn.Linear(6, 16), between, last or nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.between(self.first(x)))


def _rms_by_hand(h: Tensor) -> Tensor:
    return h * torch.rsqrt(h.square().mean(-1, keepdim=True) + 1e-6)


COUPLED: dict[str, Callable[[], nn.Module]] = {
    "softmax": lambda: Between(lambda h: h.softmax(-1)),
    "normalize": lambda: Between(lambda h: F.normalize(h, dim=-1)),
    "RMSNorm": lambda: Between(nn.RMSNorm(16)),
    "RMSNorm by hand": lambda: Between(_rms_by_hand),
    "LayerNorm": lambda: Between(nn.LayerNorm(16)),
    "GroupNorm": lambda: Between(nn.GroupNorm(1, 16)),
    "the k largest": lambda: Between(lambda h: h * (h >= h.topk(4, -1).values[..., -1:])),
    "what lies above the median": lambda: Between(lambda h: (h - h.median(-1, keepdim=True).values).relu()),
    "the mean of all": lambda: Between(lambda h: h - h.mean(-1, keepdim=True)),
    "a number of units in the code": lambda: Between(lambda h: h.view(-1, 16).relu()),
}


@pytest.mark.parametrize("name", COUPLED)
def test_units_that_act_on_each_other_are_left_whole(name: str) -> None:
    torch.manual_seed(0)
    model = COUPLED[name]().eval()
    x = rand(4, 6)
    groups = discover(model, x)
    plant(model, groups[0])
    small, report = compact(model, groups, 1e-6)
    assert torch.equal(small(x), model(x))
    assert report[groups[0].name].kept == 16
    assert "cannot become one" in report[groups[0].name].reason


@pytest.mark.parametrize("name", ["transposed", "instance norm", "bare instance norm", "batch norm", "depthwise"])
def test_convolutions_are_cut(name: str) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d
    build: dict[str, Callable[[], nn.Module]] = {
        "transposed": lambda: Between(torch.relu, nn.ConvTranspose2d(3, 16, 3), nn.ConvTranspose2d(16, 3, 3)),
        "instance norm": lambda: Between(nn.InstanceNorm2d(16, affine=True), conv(3, 16, 3), conv(16, 3, 3)),
        "bare instance norm": lambda: Between(nn.InstanceNorm2d(16), conv(3, 16, 3), conv(16, 3, 3)),
        "batch norm": lambda: Between(nn.BatchNorm2d(16), conv(3, 16, 3), conv(16, 3, 3)),
        "depthwise": lambda: Between(conv(16, 16, 3, groups=16), conv(3, 16, 3), conv(16, 3, 3)),
    }
    model = build[name]().eval()
    x = rand(2, 3, 9, 9)
    groups = discover(model, x)
    plant(model, groups[0])
    small, report = compact(model, groups)
    assert report[groups[0].name].kept == 15
    assert_same(small, model, x)
    assert_sizes_agree(small)
    width = getattr(small.get_submodule("between"), "num_features", 15) if "norm" in name else 15
    assert width == 15


def test_a_mistake_cannot_hide_behind_saturation() -> None:
    """One unit wins the softmax on these inputs: merging two others changes nothing here, and everything elsewhere."""
    torch.manual_seed(0)
    model = Between(lambda h: h.softmax(-1))
    x = rand(4, 6)
    groups = discover(model, x)
    plant(model, groups[0], 1, 2)
    with torch.no_grad():
        model.first.bias[0] = 100.0
    _, report = compact(model, groups)
    assert report[groups[0].name].kept == 16


def test_neurons_that_nobody_reads_or_nothing_reaches() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.Sigmoid(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3))
    x = rand(7, 5)
    groups = discover(model, x)
    with torch.no_grad():
        model[2].weight[:, 1] = 0.0  # read by nobody
        model[0].weight[4] = 0.0  # reached by nothing: always sigmoid(bias)
        model[2].weight[5] = 0.0
        model[2].bias[5] = 0.7  # always tanh(0.7)
    small, report = compact(model, groups)
    assert [report[g.name].removed for g in groups] == [2, 1]
    assert_same(small, model, rand(9, 5) * 3)
    constant = torch.sigmoid(model[0].bias[4]) * model[2].weight[[0, 1, 2, 3, 4], 4]
    torch.testing.assert_close(small[2].bias, model[2].bias[:5] + constant)


def test_a_constant_that_no_bias_can_say_stays() -> None:
    model = nn.Sequential(nn.Linear(5, 8), nn.Sigmoid(), nn.Linear(8, 6, bias=False))
    padded = nn.Sequential(nn.Conv2d(2, 4, 1), nn.Sigmoid(), nn.Conv2d(4, 2, 3, padding=1))
    for one, x in ((model, rand(7, 5)), (padded, rand(2, 2, 5, 5))):
        groups = discover(one, x)
        with torch.no_grad():
            one[0].weight[0] = 0.0
        small, report = compact(one, groups)
        assert report[groups[0].name].removed == 0
        assert_same(small, one, x)


def test_units_silent_on_the_data_go_when_asked() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))
    batches = [rand(20, 5).clamp(-1, 1), -3 * rand(20, 5).clamp(-1, 1)]
    groups = discover(model, batches[0])
    with torch.no_grad():
        model[0].bias[2] = -50.0  # dead on anything of ordinary size
        model[0].bias[5] = -0.3 - float((batches[0] @ model[0].weight[5]).max())  # dead on the first batch alone
    assert compact(model, groups)[1][groups[0].name].kept == 8
    small, report = compact(model, groups, inputs=batches, silent=True)
    assert report[groups[0].name].removed == 1
    for x in batches:
        assert_same(small, model, x)
    assert compact(model, groups, inputs=batches[0], silent=True)[1][groups[0].name].removed == 2


def test_near_twins_go_only_as_far_as_allowed() -> None:
    """At the default change a near twin stays and an equal one goes; a larger change is asked for, and reported."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))
    x = rand(20, 5)
    groups = discover(model, x)
    plant(model, groups[0], 0, 1)
    with torch.no_grad():
        model[0].weight[3] = model[0].weight[2] + 0.01
        model[0].bias[3] = model[0].bias[2]
    _, report = compact(model, groups, tolerance=0.1)
    assert (report[groups[0].name].merged, report.change < 1e-5) == (1, True)
    small, report = compact(model, groups, tolerance=0.1, change=0.2)
    assert report[groups[0].name].merged == 2
    assert 1e-4 < report.change < 0.2
    torch.testing.assert_close(small(x), model(x), rtol=0.2, atol=0.2)


def test_the_model_itself_is_never_run_or_changed() -> None:
    class Watched(nn.Sequential):
        runs = 0

        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
            if self is model:
                type(self).runs += 1
            return super().forward(x)

    model = Watched(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).train()
    groups = discover(model, rand(4, 5))
    plant(model, groups[0])
    model[0].weight.grad = torch.ones_like(model[0].weight)
    model[0].register_forward_hook(lambda *_: pytest.fail("a hook of the user's ran"))
    before = {name: t.clone() for name, t in model.state_dict().items()}
    random = torch.get_rng_state()
    Watched.runs = 0
    small, report = compact(model, groups)
    assert report[groups[0].name].merged == 1
    assert Watched.runs == 0
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert (model.training, small.training, small[1].training) == (True, True, True)
    assert small[0].weight.grad is None


def test_attention_with_fewer_heads_takes_masks() -> None:
    torch.manual_seed(0)
    model = nn.MultiheadAttention(12, 3, batch_first=True).eval()
    x = rand(2, 5, 12)
    groups = [g for g in discover(model, x, x, x, need_weights=False) if g.kind == "head"]
    plant(model, groups[0])
    small, report = compact(model, groups)
    assert report[groups[0].name].kept == 2
    assert isinstance(small, nn.MultiheadAttention)
    padding = torch.zeros(2, 5, dtype=torch.bool)
    padding[0, 3:] = True
    causal = torch.ones(5, 5).triu(1).bool()
    for masks in ({}, {"key_padding_mask": padding}, {"attn_mask": causal}, {"attn_mask": rand(5, 5)}):
        for q, kv, more in ((x, x, masks), (x[0], x[0], {k: m for k, m in masks.items() if k == "attn_mask"})):
            expected = model(q, kv, kv, need_weights=False, **more)[0]
            torch.testing.assert_close(small(q, kv, kv, need_weights=False, **more)[0], expected, rtol=1e-5, atol=1e-5)
    assert small(x, x, x)[1].shape == (2, 5, 5)


def test_layers_of_one_width_are_cut_alike() -> None:
    """A recurrent module has one width: two equal units in one layer and three in the other make one less in both."""
    torch.manual_seed(0)
    example = build("lstm_two_layers")
    groups = discover(example.model, *example.args)
    plant(example.model, groups[0])
    small, report = compact(example.model, groups)
    assert [report[g.name].kept for g in groups] == [7, 7]
    assert "one width" in report[groups[0].name].reason
    plant(example.model, groups[1], 0, 1)
    plant(example.model, groups[1], 0, 2)
    small, report = compact(example.model, groups)
    assert [report[g.name].kept for g in groups] == [6, 6]
    assert_same(small, example.model, *example.args)


@pytest.mark.parametrize(
    ("name", "numbers"), [("gpt2", {"n_inner": 19}), ("llama", {"num_attention_heads": 2, "intermediate_size": 19})]
)
def test_the_configuration_says_the_new_sizes(name: str, numbers: dict[str, int], tmp_path: Any) -> None:
    pytest.importorskip("transformers")
    example = build(name)
    kinds = ("hidden", "head") if name == "llama" else ("hidden",)
    groups = [g for g in discover(example.model, *example.args) if g.kind in kinds and "head.2" not in g.name]
    for group in groups:
        plant(example.model, group)
    small, report = compact(example.model, groups)
    assert all(report[g.name].kept == g.n - 1 for g in groups)
    assert report.notes == ()
    assert not undescribed(small)
    assert {key: getattr(small.config, key) for key in numbers} == numbers
    assert small.config.use_cache == example.model.config.use_cache
    small.save_pretrained(tmp_path / "small")
    loaded = type(small).from_pretrained(tmp_path / "small")
    assert_same(loaded, example.model, *example.args)


def test_what_cannot_be_done_is_said() -> None:
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))
    groups = discover(model, rand(4, 5))
    plant(model, groups[0])
    bare = [NeuronGroup(g.name, g.kind, g.n, g.slices) for g in groups]
    _, report = compact(model, bare)
    assert "no inputs" in report[groups[0].name].reason
    assert compact(model, bare, inputs=rand(4, 5))[1][groups[0].name].kept == 7
    _, report = compact(model, groups, inputs=rand(4, 9))
    assert "cannot be run" in report[groups[0].name].reason
    for wrong in ({"tolerance": -1}, {"change": -1.0}, {"silent": True}):
        with pytest.raises(ConfigError):
            compact(model, groups, **wrong)


def test_large_inputs_are_not_held_on_to() -> None:
    model = nn.Sequential(nn.Linear(600, 8), nn.ReLU(), nn.Linear(8, 3))
    x = torch.rand(600, 600)
    groups = discover(model, x)
    example = groups[0].example
    assert example is not None
    assert not isinstance(example.args[0], Tensor)
    (drawn,), _ = example.inputs()
    assert drawn.shape == x.shape
    assert float(drawn.min()) >= 0.0
    assert abs(float(drawn.mean() - x.mean())) < 0.05
