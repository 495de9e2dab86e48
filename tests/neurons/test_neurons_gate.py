"""The gate: wrong groups are caught, right ones pass, and nothing of the user's is touched."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import neuron_zoo_hf  # noqa: F401 (registers its architectures)
import pytest
import torch
from neuron_zoo import ZOO, Example, rand
from torch import Tensor, nn

from topoopt.errors import DiscoveryError
from topoopt.neurons import NeuronGroup, Slice, discover, verify
from topoopt.neurons.copying import copy_of
from topoopt.neurons.gate import Gate, relative_change
from topoopt.neurons.judging import judge

CONTROLS = [
    "mlp", "mlp_layer_norm", "cnn_batch_norm", "resnet", "group_norm", "grouped_convolution", "unet", "densenet", "lstm",
    "gru", "lstm_both_ways", "torch_transformer_encoder", "attention_fused_thirds", "grouped_query_attention",
    "gated_halves", "weight_norm", "low_rank_adapter", "gpt2", "llama", "mixtral", "t5",
]  # fmt: skip


def build(name: str) -> Example:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ZOO[name].build()


def spoiled(group: NeuronGroup, tensors: dict[str, Tensor]) -> list[tuple[str, NeuronGroup]]:
    """The group without one of its slices, and with one of them shifted by a unit, where it can be."""
    wrong = []
    for i, s in enumerate(group.slices):
        rest = group.slices[:i] + group.slices[i + 1 :]
        if rest:
            wrong.append((s.tensor, replace(group, slices=rest)))
        last = int(s.positions(group.n).max())
        if last + s.inner < tensors[s.tensor].shape[s.dim]:
            moved = replace(s, offset=s.offset + s.inner)
            wrong.append((s.tensor, replace(group, slices=(*group.slices[:i], moved, *group.slices[i + 1 :]))))
    return wrong


SILENT = ("k.bias", "k_proj.bias", "key.bias", "weight_hh_l0_reverse")
"""Tensors with which any permutation is right. A key's bias adds one number to all scores of a query, which softmax takes
out; the backward half of an LSTM that is read at the last step has made one step, from a state of zeros."""


def test_at_least_97_of_100_spoiled_groups_are_caught() -> None:
    caught, missed = 0, []
    for name in CONTROLS:
        example = build(name)
        tensors = dict(example.model.named_parameters(remove_duplicate=False))
        tensors |= dict(example.model.named_buffers(remove_duplicate=False))
        gate = Gate(example.model, example.args, example.kwargs)
        for group in discover(example.model, *example.args, **example.kwargs):
            for where, wrong in spoiled(group, tensors):
                if judge(gate, [wrong]).passed:
                    missed.append(f"{name}: {group.name}: {where}")
                else:
                    caught += 1
    total = caught + len(missed)
    assert total > 450
    assert caught >= 0.97 * total, missed
    assert not [miss for miss in missed if not miss.endswith(SILENT)], missed


def test_wrong_groups_among_right_ones_are_found_by_bisection() -> None:
    example = build("gpt2")
    groups = list(discover(example.model, *example.args))
    chosen = next(g for g in groups if g.kind == "hidden")
    wrong = replace(chosen, name="wrong", slices=chosen.slices[:-1])
    verdict = judge(Gate(example.model, example.args, {}), [*groups[:3], wrong, *groups[3:]])
    assert list(verdict.rejected) == ["wrong"]
    assert "changes the output by" in verdict.rejected["wrong"]
    assert verdict.passed == groups


def test_two_units_swapped_by_chance_is_not_enough() -> None:
    """With n = 2 the only permutation that moves anything must be the one that is tried."""
    model = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 4))
    (group,) = discover(model, rand(5, 3))
    assert verify(model, group, rand(5, 3)) < 1e-12
    assert verify(model, replace(group, slices=group.slices[:-1]), rand(5, 3)) > 1e-3


def test_zero_and_one_initial_weights_hide_nothing() -> None:
    model = nn.Sequential(nn.Linear(3, 6), nn.LayerNorm(6), nn.Linear(6, 2))
    nn.init.zeros_(model[2].weight)  # type: ignore[arg-type]
    (group,) = discover(model, rand(5, 3))
    no_norm = replace(group, slices=tuple(s for s in group.slices if not s.tensor.startswith("1.")))
    assert verify(model, no_norm, rand(5, 3)) > 1e-3


def test_a_model_that_gives_no_finite_output_is_named() -> None:
    class Log(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x)) / 0.0

    with pytest.raises(DiscoveryError, match="not finite"):
        discover(Log(), rand(4, 3))


def test_a_model_that_cannot_be_copied_is_named() -> None:
    model = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2))
    model.lock = __import__("threading").Lock()  # type: ignore[assignment]
    with pytest.raises(DiscoveryError, match="cannot be copied"):
        discover(model, rand(4, 3))


def snapshot(model: nn.Module) -> dict[str, Any]:
    """All that a discovery could leave behind: identities, versions and values of tensors, modes, hooks, attributes."""
    held: dict[str, Any] = {}
    for name, module in model.named_modules():
        held[f"{name}.training"] = module.training
        held[f"{name}.attributes"] = {k: id(v) for k, v in vars(module).items()}
        for hooks in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"):
            held[f"{name}.{hooks}"] = list(getattr(module, hooks).items())
        if isinstance(module, nn.RNNBase):
            held[f"{name}._flat_weights"] = [id(w) for w in module._flat_weights]
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        held[name] = (id(tensor), tensor.data_ptr(), tensor._version, tensor.requires_grad, tensor.detach().clone())
        held[f"{name}.grad"] = None if tensor.grad is None else (id(tensor.grad), tensor.grad.clone())
    return held


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, tuple | list):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


@pytest.mark.parametrize(
    "name", ["lstm", "cnn_batch_norm", "weight_norm_old", "data_dependent_branch", "llama", "mixtral"]
)
def test_the_model_and_the_generators_are_left_as_they_were(name: str) -> None:
    example = build(name)
    model = example.model.train()
    next(model.children()).eval()
    ran: list[int] = []
    next(model.children()).register_forward_hook(lambda *_: ran.append(1))
    output = model(*example.args, **example.kwargs)
    (output if isinstance(output, Tensor) else output[0]).square().sum().backward()
    calls, before, state, default = len(ran), snapshot(model), torch.get_rng_state(), torch.get_default_dtype()
    config = str(getattr(model, "config", ""))
    assert discover(model, *example.args, **example.kwargs)
    after = snapshot(model)
    assert len(ran) == calls
    assert before.keys() == after.keys()
    assert not [key for key in before if not same(before[key], after[key])]
    assert torch.equal(state, torch.get_rng_state())
    assert torch.get_default_dtype() is default
    assert str(getattr(model, "config", "")) == config


def test_a_copy_in_the_middle_of_training_holds_no_graph() -> None:
    model = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2))
    model.kept = model(rand(4, 3))  # type: ignore[assignment]  # a result with a graph, which no deep copy takes
    copied = copy_of(model, torch.float64)
    assert copied.kept.grad_fn is None
    assert all(p.dtype is torch.float64 and p.grad is None for p in copied.parameters())
    assert model[0].weight.dtype is torch.float32


def test_frozen_parameters_still_make_groups_and_unread_ones_do_not() -> None:
    model = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2)).requires_grad_(False)
    model[0].unread = nn.Linear(4, 5)  # type: ignore[assignment]
    groups = discover(model, rand(4, 3))
    assert [(g.kind, g.n) for g in groups] == [("hidden", 6)]
    assert not groups.unverified
    no_effect = NeuronGroup("unread", "hidden", 5, (Slice("0.unread.weight", 0, stride=5),))
    verdict = judge(Gate(model, (rand(4, 3),), {}), [no_effect, *groups])
    assert verdict.rejected == {"unread": "its parameters have no effect on the output"}
    assert verdict.passed == list(groups)


def test_models_on_meta_are_judged_by_a_small_sibling() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 512, "intermediate_size": 1024, "num_attention_heads": 16, "num_key_value_heads": 4}
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=4, vocab_size=5000))
    state = torch.get_rng_state()
    groups = discover(model, torch.zeros(1, 6, dtype=torch.int64, device="meta"))
    assert torch.equal(state, torch.get_rng_state())
    assert (
        sorted((g.kind, g.n) for g in groups if g.kind in ("hidden", "head"))
        == [("head", 4)] * 8 + [("hidden", 1024)] * 4
    )
    assert not groups.unverified
    assert "small sibling" in groups.notes[0]


def test_models_on_meta_without_a_configuration_are_reported_as_unverified() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2))
    groups = discover(model, torch.zeros(4, 3, device="meta"))
    assert not groups
    assert list(groups.unverified) == ["0"]
    assert "no data" in groups.unverified["0"]


class Masked(nn.Module):
    """A policy whose forbidden actions are filled, in one of the ways that are usual."""

    def __init__(self, fill: Any) -> None:
        super().__init__()
        self.a, self.b, self.fill = nn.Linear(5, 8), nn.Linear(8, 6), fill

    def forward(self, x: Tensor) -> Tensor:
        logits = self.b(torch.tanh(self.a(x)))
        forbidden = torch.tensor([True, False, True, True, True, True])
        return self.fill(logits, forbidden)


FILLS = {
    "lowest": lambda logits, mask: logits.masked_fill(mask, torch.finfo(torch.float32).min),
    "infinite": lambda logits, mask: logits.masked_fill(mask, -torch.inf),
    "added": lambda logits, mask: logits + mask * -1e9,
    "added, small": lambda logits, mask: logits + mask * -1e4,
    "undefined": lambda logits, mask: logits.masked_fill(mask, torch.nan),
    "large entries": lambda logits, mask: torch.where(mask, logits * 1e30, logits),
    "zero": lambda logits, mask: logits.masked_fill(mask, 0.0),
    "probabilities": lambda logits, mask: logits.masked_fill(mask, -torch.inf).log_softmax(0),
}


@pytest.mark.parametrize("name", FILLS)
def test_filled_entries_blind_the_gate_to_nothing(name: str) -> None:
    """What is no symmetry moves the one entry that is free, however large the others are."""
    model, x = Masked(FILLS[name]), rand(7, 5)
    columns_forgotten = (Slice("a.weight", 0, stride=8), Slice("a.bias", 0, stride=8, role="bias"))
    wrong = NeuronGroup("wrong", "hidden", 8, columns_forgotten)
    right = replace(wrong, name="right", slices=(*columns_forgotten, Slice("b.weight", 1, stride=8, role="in")))
    assert verify(model, wrong, x) > 1e-3
    assert verify(model, right, x) < 1e-12
    assert [(g.kind, g.n) for g in discover(model, x)] == [("hidden", 8)]


@pytest.mark.parametrize("large", [1e4, 1e9, 1e30, torch.inf])
def test_a_change_is_seen_next_to_entries_of_any_size(large: float) -> None:
    was = torch.tensor([1.0, -0.5, large, -large], dtype=torch.float64)
    assert relative_change(was.clone(), was) == 0.0
    moved = was.clone()
    moved[1] += 1e-6
    assert 1e-7 < relative_change(moved, was) < 1e-5
    other = was.clone()
    other[2] = -large
    assert relative_change(other, was) >= 1.0
    rounded = was * (1 + 1e-15)
    assert relative_change(rounded, was) < 1e-12


def test_rounding_of_small_entries_is_no_change() -> None:
    """An entry that happens to be near 0 has the rounding of the others."""
    was = rand(100_000).double()
    was[0] = 1e-14
    assert relative_change(was + 1e-15, was) < 1e-12


class Restless(nn.Module):
    """Counts its runs, where no copy can be put back: in a slot of its class."""

    runs = 0

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        type(self).runs += 1
        return self.b(self.a(x).tanh()) * type(self).runs


def test_a_model_that_never_answers_twice_the_same_is_named() -> None:
    groups = discover(Restless(), rand(4, 5))
    assert not groups
    assert "another output each time" in groups.unverified["a"]


def test_what_a_branch_hangs_on_is_left_alone() -> None:
    """One branch is seen in a run; which unit it looks at must not become another."""

    class Branching(nn.Module):
        def __init__(self, look: Any) -> None:
            super().__init__()
            self.a, self.b, self.look = nn.Linear(5, 8), nn.Linear(8, 3), look

        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x)
            return self.b(torch.tanh(h) if self.look(h) else torch.sin(h))

    def sizes(look: Any) -> list[int]:
        return [group.n for group in discover(Branching(look), rand(4, 5))]

    assert sizes(lambda h: h[0, 0] > 0) == sizes(lambda h: h[0].tolist()[0] > 0) == []
    assert sizes(lambda h: (h[:, :4].sum() > 0).item()) == [4, 4]
    assert sizes(lambda h: h.sum() > 0) == [8]
