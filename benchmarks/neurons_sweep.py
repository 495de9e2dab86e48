"""Discovery on every architecture of the installed transformers that a few general sizes can build and feed.

    python benchmarks/neurons_sweep.py [--only bert mixtral ...]

Each runs in a process of its own. Every group found is permuted in the model itself, with all weights random and in float64
where the model runs in it, and the outputs are compared: `wrong` counts those that change. It takes about an hour.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

WIDTHS = ("hidden_size", "d_model", "n_embd", "dim", "embed_dim", "projection_dim")
INNER = ("intermediate_size", "n_inner", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim", "d_ff", "hidden_dim")
DEPTHS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers", "depth")
HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads", "decoder_attention_heads")
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")
SIZES = {
    **dict.fromkeys(WIDTHS, 24),
    **dict.fromkeys(INNER, 20),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 12),
    **dict.fromkeys((*DEPTHS, "num_decoder_layers", "num_key_value_heads", "num_experts_per_tok"), 2),
    **dict.fromkeys((*HEADS, *EXPERTS), 4),
    **dict.fromkeys(("max_position_embeddings", "n_positions"), 64),
    "vocab_size": 50,
    "image_size": 16,
    "patch_size": 4,
    "head_dim": 6,
    "v_head_dim": 6,
    "kv_lora_rank": 8,
    "q_lora_rank": 8,
    "qk_nope_head_dim": 6,
    "qk_rope_head_dim": 4,
    "state_size": 4,
}
LARGEST = 60_000_000


def shrink(config: Any) -> None:
    """Set every size that is known by name, in nested configurations too."""
    for key, value in list(vars(config).items()):
        if hasattr(value, "to_dict"):
            shrink(value)
        elif key in SIZES and isinstance(value, int) and not isinstance(value, bool):
            setattr(config, key, SIZES[key])
        elif key.endswith("_token_id") and isinstance(value, int) and value >= SIZES["vocab_size"]:
            setattr(config, key, 2)
    if isinstance(getattr(config, "layer_types", None), list):
        config.layer_types = config.layer_types[:2]


def build(name: str) -> nn.Module:
    """A small model of that type: with a language model's head where there is one.

    Raises:
        LookupError: when no model of this type can be built.
    """
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    config = CONFIG_MAPPING[name]()
    shrink(config)
    for kind in ("CausalLM", "Seq2SeqLM", "MaskedLM", "ImageClassification", "AudioClassification", ""):
        auto = getattr(transformers, f"AutoModelFor{kind}" if kind else "AutoModel")
        if type(config) in auto._model_mapping:
            return auto.from_config(config).eval()
    raise LookupError(f"no model class takes the configuration of {name}")


def inputs(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Inputs to try, words first."""
    config: Any = model.config
    ids, size = torch.randint(3, 50, (2, 6)), getattr(config, "image_size", 16)
    size = size if isinstance(size, int) else 16
    yield {"input_ids": ids}
    for side in (size, 64, 224):
        yield {"pixel_values": torch.randn(2, 3, side, side)}
    yield {"input_values": torch.randn(2, 2000)}
    yield {"input_features": torch.randn(2, 80, 64)}
    yield {"input_ids": ids, "decoder_input_ids": ids}
    yield {"input_ids": ids, "pixel_values": torch.randn(2, 3, size, size)}
    yield {"input_ids": ids, "bbox": torch.randint(0, 30, (2, 6, 4))}


def run(model: nn.Module, given: dict[str, Tensor]) -> list[Tensor]:
    """Floating outputs, with the same random numbers every time."""
    from torch.utils._pytree import tree_leaves

    torch.manual_seed(1)
    with torch.no_grad():
        leaves = tree_leaves(dict(model(**given)))
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def feed(model: nn.Module) -> dict[str, Tensor]:
    """The first inputs that the model takes.

    Raises:
        LookupError: when it takes none.
    """
    refusals = []
    for given in inputs(model):
        try:
            run(model, given)
            return given
        except Exception as error:  # whatever a model says of inputs that are not its own
            refusals.append(str(error))
    raise LookupError(f"takes none of the inputs that are tried: {refusals[0]}")


def wrong(model: nn.Module, given: dict[str, Tensor], groups: Any) -> list[str]:
    """Names of groups whose permutation changes an output."""
    generator = torch.Generator().manual_seed(7)
    try:
        model.double()
        torch.set_default_dtype(torch.float64)
        given = {key: value.double() if value.is_floating_point() else value for key, value in given.items()}
        run(model, given)
        bound = 1e-8
    except Exception:  # a kernel for float32 alone
        model.float()
        torch.set_default_dtype(torch.float32)
        given = {key: value.float() if value.is_floating_point() else value for key, value in given.items()}
        bound = 5e-3
    for p in model.parameters():
        p.data += torch.randn(p.shape, generator=generator).to(p) * (0.5 if p.ndim < 2 else 0.5 / p[0].numel() ** 0.5)
    reference, found = run(model, given), []
    for group in groups:
        perm = torch.randperm(group.n, generator=generator)
        group.permute(model, perm)
        pairs = [(a, b) for a, b in zip(run(model, given), reference, strict=True) if b.numel()]
        group.permute(model, perm.argsort())
        change = max(float((a - b).abs().max() / b.abs().max().clamp_min(1e-9)) for a, b in pairs)
        if not change <= bound:
            found.append(f"{group.name} ({change:.1e})")
    return found


def one(name: str) -> str:
    """One line on one architecture; the first word is its status."""
    from topoopt import discover

    try:
        model = build(name)
        if sum(p.numel() for p in model.parameters()) > LARGEST:
            return "left-out  too large in its default sizes"
        given = feed(model)
    except Exception as error:  # sizes that do not go together, optional packages
        return f"left-out  {str(error).strip().splitlines()[0][:90] if str(error).strip() else type(error).__name__}"
    try:
        groups = discover(model, **given)  # type: ignore[arg-type]
    except Exception as error:
        return f"RAISED    {type(error).__name__}: {error}"
    failed = wrong(model, given, groups)
    kinds = ", ".join(f"{count} {kind}" for kind, count in Counter(group.kind for group in groups).items())
    return f"{'WRONG' if failed else 'right':<9} {kinds or 'no group'}; covers {groups.coverage:.0%} {' '.join(failed)}"


def main() -> None:
    """Print one line an architecture, and the totals."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(one(options.one))
        return
    totals: Counter[str] = Counter()
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
    for name in options.only or sorted(CONFIG_MAPPING.keys()):
        command = [sys.executable, __file__, "--one", name]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=180, env=environment)
            lines = done.stdout.strip().splitlines()
            line = lines[-1] if lines and not done.returncode else f"RAISED    {done.stderr.strip()[-200:]}"
        except subprocess.TimeoutExpired:
            line = "TIMEOUT   more than 180 s, the checks included"
        totals[line.split()[0]] += 1
        print(f"{name:<34} {line}", flush=True)
    print(", ".join(f"{count} {status}" for status, count in totals.items()))


if __name__ == "__main__":
    main()
