"""Time and memory of discovery: over depth, on GPT-2 with 124 million parameters, on 8 billion without memory for them.

    python benchmarks/neurons_scale.py [depth] [gpt2] [llama]

Depth: the seconds of each part for stacks of transformer layers; the last column is seconds per layer, which stays the
same when the work is linear. GPT-2: next to one forward of the model. Llama: 8 billion parameters on the meta device, with
the largest resident memory of the process.
"""

from __future__ import annotations

import resource
import sys
import time
from collections import Counter

import torch
from torch import nn

from topoopt.neurons import discover
from topoopt.neurons.candidates import candidates
from topoopt.neurons.gate import Gate
from topoopt.neurons.propagation import propagate


class Stack(nn.Module):
    """Transformer layers between two linear maps."""

    def __init__(self, depth: int, width: int = 32) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True)
        self.embed, self.head = nn.Linear(5, width), nn.Linear(width, 2)
        self.layers = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (batch, length, 5) -> (batch, length, 2)."""
        return self.head(self.layers(self.embed(x)))


def over_depth() -> None:
    """Propagation and the whole discovery over depth."""
    print(f"{'layers':>8}{'groups':>8}{'axes s':>10}{'all s':>10}{'axes ms/layer':>16}{'all ms/layer':>16}")
    x = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(0))
    for depth in (2, 4, 8, 16, 32, 64):
        model = Stack(depth)
        gate = Gate(model, (x,), {})
        start = time.perf_counter()
        candidates(gate.model, propagate(gate.recording).values)
        axes = time.perf_counter() - start
        start = time.perf_counter()
        groups = discover(model, x)
        whole = time.perf_counter() - start
        print(
            f"{depth:>8}{len(groups):>8}{axes:>10.2f}{whole:>10.2f}{1e3 * axes / depth:>16.1f}{1e3 * whole / depth:>16.1f}"
        )


def gpt2() -> None:
    """GPT-2 small with random weights."""
    from transformers import GPT2Config, GPT2LMHeadModel

    model, ids = GPT2LMHeadModel(GPT2Config()), torch.arange(8)[None]
    start = time.perf_counter()
    model(ids)
    forward, start = time.perf_counter() - start, time.perf_counter()
    groups = discover(model, ids)
    print(f"GPT-2: a forward {forward:.2f} s, discovery {time.perf_counter() - start:.2f} s, {_summary(groups)}")


def llama() -> None:
    """Llama with 8 billion parameters on the meta device."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=128256,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    before, start = _memory(), time.perf_counter()
    groups = discover(model, torch.arange(8, device="meta")[None])
    seconds, size = time.perf_counter() - start, sum(p.numel() for p in model.parameters()) / 1e9
    print(f"Llama, {size:.2f} billion on meta: {seconds:.2f} s, {_memory() - before:.2f} GB, {_summary(groups)}")
    print("\n".join(f"  {note}" for note in groups.notes))


def _summary(groups: list) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in sorted(Counter(g.kind for g in groups).items()))


def _memory() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    parts = {"depth": over_depth, "gpt2": gpt2, "llama": llama}
    for part in sys.argv[1:] or parts:
        parts[part]()
