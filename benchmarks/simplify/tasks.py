"""The tasks: data, a model of any widths, its optimizer, loss and accuracy."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn import datasets
from torch import Tensor, nn
from torch.optim import Optimizer

from topoopt.neurons import NeuronGroup


class Task:
    """Training data, a model with units to spare, and what counts."""

    name: str
    batch = 256
    steps = 3000
    large_rates: tuple[float, ...]
    torch_pruning = True
    inputs: Tensor
    targets: Tensor
    test_inputs: Tensor
    test_targets: Tensor

    def build(self, widths: list[int] | None = None) -> nn.Module:
        raise NotImplementedError

    def optimizer(self, model: nn.Module, rate: float | None = None) -> Optimizer:
        """At a rate that is to be steered, or at one that is not."""
        return torch.optim.SGD(model.parameters(), lr=1.0 if rate is None else rate)

    def widths(self, model: Any) -> list[int]:
        raise NotImplementedError

    def loss(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Squared error against one-hot targets."""
        return F.mse_loss(model(x), F.one_hot(y, 10).to(torch.float32))

    def outputs(self, model: nn.Module, x: Tensor) -> Tensor:
        return model(x)

    def accuracy(self, model: nn.Module) -> float:
        with torch.no_grad():
            return float((self.outputs(model, self.test_inputs).argmax(-1) == self.test_targets).double().mean())

    def chooses(self, group: NeuronGroup) -> bool:
        return group.kind in ("hidden", "channel")

    def per_group(self, widths: list[int]) -> list[int]:
        return widths


def digits(images: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x, y = datasets.load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    inputs, targets = torch.tensor(x[order] / 16.0, dtype=torch.float32), torch.tensor(y[order])
    inputs = inputs.reshape(-1, 1, 8, 8) if images else inputs
    return inputs[:1297], targets[:1297], inputs[1297:], targets[1297:]


class Mlp(Task):
    name, large_rates = "mlp", (1.0, 3.0)

    def __init__(self) -> None:
        self.inputs, self.targets, self.test_inputs, self.test_targets = digits(images=False)

    def build(self, widths: list[int] | None = None) -> nn.Module:
        a, b = widths or (48, 48)
        return nn.Sequential(nn.Linear(64, a), nn.ReLU(), nn.Linear(a, b), nn.ReLU(), nn.Linear(b, 10))

    def widths(self, model: Any) -> list[int]:
        return [model[0].out_features, model[2].out_features]


class Cnn(Task):
    name, batch, steps, large_rates = "cnn", 128, 1000, (0.3, 1.0)

    def __init__(self) -> None:
        self.inputs, self.targets, self.test_inputs, self.test_targets = digits(images=True)

    def build(self, widths: list[int] | None = None) -> nn.Module:
        a, b = widths or (16, 32)
        return nn.Sequential(
            nn.Conv2d(1, a, 3), nn.BatchNorm2d(a), nn.ReLU(), nn.Conv2d(a, b, 3), nn.BatchNorm2d(b), nn.ReLU(),
            nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * b, 10),
        )  # fmt: skip

    def widths(self, model: Any) -> list[int]:
        return [model[0].out_channels, model[3].out_channels]


class Gpt2(Task):
    name, batch, steps, large_rates, torch_pruning = "gpt2", 32, 400, (0.01, 0.03), False
    length = 32

    def __init__(self) -> None:
        sources: tuple[Any, ...] = (datasets.load_digits, datasets.load_iris, datasets.load_wine, datasets.load_breast_cancer,
                   datasets.load_diabetes)  # fmt: skip
        text = "".join(source()["DESCR"] for source in sources)
        letters = sorted(set(text))
        self._letters = len(letters)
        ids = torch.tensor([letters.index(c) for c in text])
        rows = ids[: len(ids) // (self.length + 1) * (self.length + 1)].reshape(-1, self.length + 1)
        rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))]
        last = len(rows) // 5
        self.inputs, self.targets = rows[last:, :-1].contiguous(), rows[last:, 1:].contiguous()
        self.test_inputs, self.test_targets = rows[:last, :-1].contiguous(), rows[:last, 1:].contiguous()

    def build(self, widths: list[int] | None = None) -> nn.Module:
        from transformers import GPT2Config, GPT2LMHeadModel

        config = GPT2Config(
            vocab_size=self._letters, n_positions=self.length, n_embd=32, n_layer=2, n_head=4,
            n_inner=widths[0] if widths else 128, activation_function="relu", resid_pdrop=0.0, embd_pdrop=0.0,
            attn_pdrop=0.0, bos_token_id=0, eos_token_id=0,
        )  # fmt: skip
        return GPT2LMHeadModel(config)

    def widths(self, model: Any) -> list[int]:
        return [model.transformer.h[0].mlp.c_fc.nf]

    def loss(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(model(x).logits.flatten(0, 1), y.flatten(), label_smoothing=0.1)

    def outputs(self, model: nn.Module, x: Tensor) -> Tensor:
        return model(x).logits

    def optimizer(self, model: nn.Module, rate: float | None = None) -> Optimizer:
        return torch.optim.AdamW(model.parameters(), lr=3e-3 if rate is None else rate)

    def chooses(self, group: NeuronGroup) -> bool:
        return group.kind == "hidden"

    def per_group(self, widths: list[int]) -> list[int]:
        return [widths[0]] * 2


TASKS: dict[str, type[Task]] = {one.name: one for one in (Mlp, Cnn, Gpt2)}
