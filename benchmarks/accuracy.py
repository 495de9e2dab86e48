"""How right readings are along runs: r at the default price against thirty products on the same batch, noise and preconditioner.

Small networks on the digits and on text made here, SGD with momentum and AdamW, a new batch each step; a reading every tenth
step, compared every twentieth from the tenth on.

    python benchmarks/accuracy.py [--products auto,1,2,3,4] [--models mlp,cnn,gru,gpt,bert] [--steps 101]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from topoopt import TopoOptimizer
from topoopt.curvature import SpectralTracker
from topoopt.demo import digits

RESULTS = Path(__file__).parent / "results" / "accuracy.json"
(X, Y), _ = digits(0)
Loss = Callable[[nn.Module, Tensor], Tensor]


def mlp() -> tuple[nn.Module, Loss]:
    model = nn.Sequential(nn.Linear(64, 128), nn.Tanh(), nn.Linear(128, 128), nn.GELU(), nn.Linear(128, 10))
    return model, lambda m, i: cross_entropy(m(X[i]), Y[i])


def cnn() -> tuple[nn.Module, Loss]:
    layers: list[nn.Module] = []
    for i, o in ((1, 16), (16, 16)):
        layers += [nn.Conv2d(i, o, 3, padding=1), nn.BatchNorm2d(o), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 10))
    return model, lambda m, i: cross_entropy(m(X[i].view(-1, 1, 8, 8)), Y[i])


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cells, self.out = nn.GRU(8, 32, batch_first=True), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.cells(x.view(-1, 8, 8))[0][:, -1])


def gru() -> tuple[nn.Module, Loss]:
    return Recurrent(), lambda m, i: cross_entropy(m(X[i]), Y[i])


def gpt() -> tuple[nn.Module, Loss]:
    from transformers import GPT2Config, GPT2LMHeadModel

    steps = torch.randint(0, 64, (4000,), generator=torch.Generator().manual_seed(0))
    text = steps.cumsum(0) % 64

    def loss(m: nn.Module, i: Tensor) -> Tensor:
        ids = text[(i[:16, None] * 2 + torch.arange(33)[None]) % 3900]
        return m(input_ids=ids, labels=ids).loss

    return GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=64, n_embd=64, n_layer=2, n_head=4)), loss


def bert() -> tuple[nn.Module, Loss]:
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=64, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128
    )
    config.num_labels = 10
    model = BertForSequenceClassification(config)
    return model, lambda m, i: m(input_ids=(X[i[:32]] * 16).long().clamp(0, 63), labels=Y[i[:32]]).loss


MODELS: dict[str, Callable[[], tuple[nn.Module, Loss]]] = {"mlp": mlp, "cnn": cnn, "gru": gru, "gpt": gpt, "bert": bert}
RULES: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "momentum": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9),
    "adamw": lambda p: torch.optim.AdamW(p, 2e-3),
}


def errors(model_name: str, rule: str, products: int | Literal["auto"], steps: int) -> tuple[list[float], float, str]:
    """Relative errors of the readings of one run, products of a reading, and how they were taken."""
    torch.manual_seed(0)
    model, loss = MODELS[model_name]()
    optimizer: Any = TopoOptimizer(
        RULES[rule](model.parameters()),
        model,
        every=50,
        budget=None,
        homology=-1,
        per_group=False,
        reading_products=products,
    )
    reader, found, spent, engine = optimizer.topo.reader, [], [], ""
    by_tape = reader._by_tape

    def compared(tape: Any, *rest: Any) -> Any:
        nonlocal engine
        reading, step = by_tape(tape, *rest), optimizer.steps
        if step >= 10 and step % 20 == 0:
            kind = "double backward" if reading.engine.startswith("double") else "finite differences"
            oracle = SpectralTracker(optimizer.topo.rule, products=30, first=30, engine=kind)
            with torch.enable_grad():
                found.append(reading.r / oracle.taped(tape).estimate().r - 1)
            engine = reading.engine
            spent.append(reading.products)
        return reading

    reader._by_tape = compared
    batches = torch.Generator().manual_seed(1)
    for _ in range(steps):
        batch = torch.randint(0, len(X), (128,), generator=batches)
        optimizer.zero_grad()
        loss(model, batch).backward()
        optimizer.step()
    optimizer.detach()
    return found, sum(spent) / len(spent), engine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--products", default="auto,1,2,3,4")
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--steps", type=int, default=101)
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    print("| products | of them a reading | model | rule | median error | worst | median, signed | by |")
    print("|--:|--:|---|---|--:|--:|--:|---|")
    for asked in given.products.split(","):
        products = "auto" if asked == "auto" else int(asked)
        for model in given.models.split(","):
            for rule in RULES:
                found, spent, engine = errors(model, rule, products, given.steps)
                sizes = [abs(e) for e in found]
                row = {"products": products, "model": model, "rule": rule, "errors": [round(e, 4) for e in found]}
                rows.append(row | {"spent": round(spent, 2), "engine": engine})
                print(
                    f"| {products} | {spent:.1f} | {model} | {rule} | {median(sizes):.1%} | {max(sizes):.1%} | {median(found):+.1%} | {engine} |",
                    flush=True,
                )
    RESULTS.write_text(json.dumps({"torch": torch.__version__, "steps": given.steps, "rows": rows}, indent=0))


if __name__ == "__main__":
    main()
