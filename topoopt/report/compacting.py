"""`topoopt compact`: a checkpoint on disk, smaller, with the same function."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from topoopt.errors import ConfigError
from topoopt.extras import require
from topoopt.neurons import NeuronGroup, compact, discover
from topoopt.neurons.compacting import Compacted, Compaction, resize, sizes_of, undescribed
from topoopt.neurons.copying import copy_of
from topoopt.neurons.running import apart
from topoopt.report.loading import bytes_of, example_runs, load, state_dict
from topoopt.report.writing import make_folder, unwritable

SIZES = "topoopt_sizes"
"""Where a file keeps the numbers that the cut modules need: a key beside "state_dict", or safetensors' metadata."""
FILES = (".pt", ".pth", ".bin", ".safetensors")
"""Endings of an `out` that is to be a file."""
ROUNDING = 1e-3
"""Change of an output, relative to the largest, that a model in low precision may show when it is loaded anew."""
Inputs = tuple[tuple[Any, ...], dict[str, Any]]
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
    progress: Callable[[float], None] = lambda share: None,
) -> Compaction:
    """Compact a checkpoint: a Hugging Face folder becomes one that `from_pretrained` loads, a state dict a smaller one.

    No code of the checkpoint is run. What a folder's configuration cannot say (attention heads of a BERT) is left whole,
    unless `out` is a file. What is written is loaded again and run beside the large model before it gets its name. A file is
    read again by `load_compacted`, which makes the modules fit.

    Args:
        checkpoint: a folder with config.json, or a file of a state dict (`torch.save`, or .safetensors).
        out: a folder or file that does not exist yet; it appears when all is written. A folder also becomes a file where
            `out` ends in .pt, .pth, .bin or .safetensors.
        model: "module:callable" that makes the module for a state dict.
        inputs: "module:callable" that makes example inputs: a tensor, a tuple of arguments, a dict of keyword arguments, or
            a list of several of these.
        tolerance: see `topoopt.compact`.
        silent: see `topoopt.compact`; it takes `inputs`.
        change: see `topoopt.compact`.
        progress: told from time to time which share of the work is done.

    Raises:
        ConfigError: for a checkpoint that cannot be read, an `out` that exists or cannot hold it, `silent` without inputs, or
            a written model that gives other outputs.
        FileError: where nothing can be written.
    """
    target, source = Path(out), Path(checkpoint)
    if os.path.lexists(target):
        raise ConfigError(f"{target} exists already: name a place that does not, or remove it first")
    if silent and inputs is None:
        raise ConfigError("silent units are those that data never moves: give inputs that are the data's")
    module = load(str(checkpoint), model)
    as_file = target.suffix in FILES
    if not as_file and not source.is_dir():
        raise ConfigError(f"{type(module).__name__} is no Hugging Face model: give a file, such as {target}.pt")
    runs = example_runs(module, inputs)
    progress(0.1)
    args, kwargs = runs[0]
    groups = list(discover(module, *args, **kwargs))
    progress(0.3)
    given = [kwargs or args for args, kwargs in runs]
    settings = {"inputs": given, "tolerance": tolerance, "silent": silent, "change": change}
    small, report = (compact if as_file else _describable)(module, groups, **settings)
    progress(0.8)
    work = partial(_file, module=module) if as_file else partial(_folder, source=source)
    _write(target, lambda place: work(place, small), lambda place: _check(place, module, runs, change, as_file))
    progress(1.0)
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


def _describable(module: nn.Module, groups: list[NeuronGroup], **settings: Any) -> tuple[nn.Module, Compaction]:
    """Compact what the model's configuration, if it has one, has numbers for; the other groups are left whole by name."""
    unsaid: dict[str, Compacted] = {}
    while True:
        small, report = compact(module, [g for g in groups if g.name not in unsaid], **settings)
        wrong = undescribed(small)
        cut = [g for g in groups if g.name in report and report[g.name].kept < g.n]
        out = [g for g in cut if any(s.tensor in wrong for s in g.slices)]
        if not out:
            break
        why = "the configuration has no word for fewer of its units: a file (.pt, .safetensors) can hold them"
        unsaid |= {g.name: Compacted(g.n, reason=why) for g in out}
    report.update(unsaid)
    return small, report


def _write(target: Path, work: Callable[[Path], None], check: Callable[[Path], None]) -> None:
    """Write beside the target under a temporary name, look at what was written, and give it its own name at the end."""
    make_folder(target.parent)
    try:
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name[:100]}.") as folder:
            place = Path(folder) / f"compacted{target.suffix}"
            work(place)
            check(place)
            os.replace(place, target)
    except OSError as error:
        raise unwritable(target, error) from error


def _folder(place: Path, small: Any, source: Path) -> None:
    small.save_pretrained(place)
    written = {file.name for file in place.iterdir()}
    for file in source.iterdir():  # tokenizers and the like
        if file.is_file() and file.name not in written and not file.name.endswith(WEIGHTS):
            shutil.copy2(file, place / file.name)


def _file(place: Path, small: nn.Module, module: nn.Module) -> None:
    sizes = json.dumps(sizes_of(small, module))
    state = {name: tensor.contiguous() for name, tensor in small.state_dict().items()}
    if place.suffix == ".safetensors":
        separate = {name: tensor.clone() for name, tensor in state.items()}
        require("safetensors.torch", extra="transformers").save_file(separate, place, metadata={SIZES: sizes})
    else:
        torch.save({"state_dict": state, SIZES: sizes}, place)


def _check(place: Path, module: nn.Module, runs: list[Inputs], change: float, as_file: bool) -> None:
    """Load what was written, and run it beside the model that it came from.

    Raises:
        ConfigError: when it gives other outputs.
    """
    again = load_compacted(place, copy_of(module)) if as_file else load(str(place), None)
    for run in runs:
        for after, before in zip(_outputs(again, run), _outputs(module, run), strict=True):
            moved = float((after - before).abs().max()) if after.shape == before.shape else torch.inf
            if not moved <= max(change, ROUNDING) * float(before.abs().max()):
                raise ConfigError(
                    f"the compacted model, loaded again, gives other outputs (by {moved:.2g}): not written"
                )


def _outputs(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    args, kwargs = inputs
    with apart(model.eval(), None), torch.no_grad():  # models that draw draw the same
        result = model(*args, **kwargs)
    leaves = tree_leaves(dict(result) if hasattr(result, "keys") else result)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]
