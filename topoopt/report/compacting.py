"""`topoopt compact`: a checkpoint on disk, smaller, with the same function."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from topoopt.errors import ConfigError
from topoopt.extras import require
from topoopt.neurons import NeuronGroup, compact, discover
from topoopt.neurons.compacting import Compacted, Compaction, resize, sizes_of, undescribed
from topoopt.neurons.running import apart
from topoopt.report.loading import bytes_of, example_inputs, load, state_dict
from topoopt.report.writing import make_folder, unwritable

SIZES = "topoopt_sizes"
"""Where a file keeps the numbers that the cut modules need: a key beside "state_dict", or safetensors' metadata."""
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".index.json", ".py")
"""Files of a folder that are not copied: weights, which are written anew, and code."""


def compact_checkpoint(
    checkpoint: str | Path,
    out: str | Path,
    *,
    model: str | None = None,
    inputs: str | None = None,
    tolerance: float = 1e-3,
    silent: bool = False,
    change: float = 1e-5,
) -> Compaction:
    """Compact a checkpoint: a Hugging Face folder becomes one that `from_pretrained` loads, a state dict a smaller one.

    No code of the checkpoint is run. What a folder's configuration cannot say (attention heads of a BERT) is left whole, and
    the folder written is loaded again and compared before it gets its name. A state dict is read again by
    `load_compacted`, which makes the modules fit.

    Args:
        checkpoint: a folder with config.json, or a file of a state dict (`torch.save`, or .safetensors).
        out: a folder or file that does not exist yet; it appears when all is written.
        model: "module:callable" that makes the module for a state dict.
        inputs: "module:callable" that makes example inputs (a tensor, a tuple, a dict; a list of these with `silent`).
        tolerance: see `topoopt.compact`.
        silent: see `topoopt.compact`.
        change: see `topoopt.compact`.

    Raises:
        ConfigError: for a checkpoint that cannot be read, or an `out` that exists.
        FileError: where nothing can be written.
    """
    target = Path(out)
    if target.exists():
        raise ConfigError(f"{target} exists already: name a place that does not, or remove it first")
    module = load(str(checkpoint), model)
    args, kwargs = example_inputs(module, inputs)
    several = inputs is not None and len(args) > 1 and all(isinstance(one, tuple | dict | list) for one in args)
    groups = discover(module, *args, **kwargs)
    settings = {"tolerance": tolerance, "silent": silent, "change": change}
    given = list(args) if several else (kwargs or tuple(args))
    small, report = _describable(module, list(groups), given, settings)
    if Path(checkpoint).is_dir():
        _write(target, lambda place: _folder(place, small, Path(checkpoint), (args, kwargs), change))
    else:
        _write(target, lambda place: _file(place, target.suffix, small, module))
    return report


def load_compacted(checkpoint: str | Path, model: nn.Module) -> nn.Module:
    """Put a state dict that `compact_checkpoint` wrote into an uncut model, in place, and return it.

    Raises:
        ConfigError: when the file is none of these, or of another model.
    """
    path = Path(checkpoint)
    if not path.is_file():
        raise ConfigError(f"there is no compacted checkpoint at {path}")
    state = state_dict(path, bytes_of(model))
    if path.suffix == ".safetensors":
        with require("safetensors", extra="transformers").safe_open(path, framework="pt") as file:
            sizes = (file.metadata() or {}).get(SIZES)
    else:
        sizes = torch.load(path, map_location="cpu", weights_only=True).get(SIZES)
    if sizes is None:
        raise ConfigError(f"{path} does not say what was cut: it is no file of `topoopt compact`")
    return resize(model, state, json.loads(sizes))


def _describable(
    module: nn.Module, groups: list[NeuronGroup], inputs: Any, settings: dict[str, Any]
) -> tuple[nn.Module, Compaction]:
    """Compact what the model's configuration, if it has one, has numbers for; the other groups are left whole by name."""
    unsaid: dict[str, Compacted] = {}
    while True:
        small, report = compact(module, [g for g in groups if g.name not in unsaid], inputs=inputs, **settings)
        wrong = undescribed(small)
        cut = [g for g in groups if g.name in report and report[g.name].kept < g.n]
        out = [g for g in cut if any(s.tensor in wrong for s in g.slices)]
        if not out:
            break
        why = "the configuration has no word for fewer of its units"
        unsaid |= {g.name: Compacted(g.n, reason=why) for g in out}
    report.update(unsaid)
    return small, report


def _write(target: Path, work: Callable[[Path], None]) -> None:
    """Write beside the target under a temporary name, and give it its own at the end."""
    make_folder(target.parent)
    try:
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as folder:
            place = Path(folder) / "compacted"
            work(place)
            os.replace(place, target)
    except OSError as error:
        raise unwritable(target, error) from error


def _folder(
    place: Path, small: Any, source: Path, inputs: tuple[tuple[Any, ...], dict[str, Any]], change: float
) -> None:
    small.save_pretrained(place)
    written = {file.name for file in place.iterdir()}
    for file in source.iterdir():  # tokenizers and the like
        if file.is_file() and file.name not in written and not file.name.endswith(WEIGHTS):
            shutil.copy2(file, place / file.name)
    again = _outputs(load(str(place), None), inputs)
    for after, before in zip(again, _outputs(small, inputs), strict=True):
        moved = float((after - before).abs().max()) if after.shape == before.shape else torch.inf
        if not moved <= max(change, 1e-3) * float(before.abs().max()):
            raise ConfigError(f"the compacted model, loaded from its folder, gives other outputs (by {moved:.2g})")


def _outputs(model: nn.Module, inputs: tuple[tuple[Any, ...], dict[str, Any]]) -> list[Tensor]:
    args, kwargs = inputs
    with apart(model.eval(), None), torch.no_grad():  # models that draw draw the same
        result = model(*args, **kwargs)
    leaves = tree_leaves(dict(result) if hasattr(result, "keys") else result)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def _file(place: Path, suffix: str, small: nn.Module, module: nn.Module) -> None:
    sizes = json.dumps(sizes_of(small, module))
    state = {name: tensor.contiguous() for name, tensor in small.state_dict().items()}
    if suffix == ".safetensors":
        separate = {name: tensor.clone() for name, tensor in state.items()}
        require("safetensors.torch", extra="transformers").save_file(separate, place, metadata={SIZES: sizes})
    else:
        torch.save({"state_dict": state, SIZES: sizes}, place)
