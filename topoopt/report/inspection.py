"""`topoopt inspect`: the neurons of saved checkpoints, and what lies between them."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from topoopt.errors import ConfigError
from topoopt.geometry import compare, degeneracy, distances
from topoopt.homology import persistence, prominent
from topoopt.neurons import NeuronGroup, discover, select

COLUMNS = (
    f"{'group':<44}  {'n':>6} {'d':>7}  {'merge margin':>12}  {'vanishing':>9}  {'twins':>5}  features that stand out"
)


def inspect(
    checkpoints: Sequence[str],
    *,
    model: str | None = None,
    inputs: str | None = None,
    only_groups: bool = False,
    include: Sequence[str] | None = None,
    degree: int = 1,
) -> Iterator[str]:
    """Yield the lines of the answer: groups, then for each checkpoint its neurons, then the distortion between neighbours.

    Args:
        checkpoints: Hugging Face folders (config and weights), or files of a state dict, of one and the same architecture.
        model: "module:callable" that makes the module for state dicts.
        inputs: "module:callable" that makes example inputs; token ids are made up for a Hugging Face model without it.
        only_groups: stop after the groups.
        include: glob patterns over group names.
        degree: highest degree of homology.

    Raises:
        ConfigError: for a checkpoint that cannot be read, with what is missing.
    """
    modules = [load(checkpoint, model) for checkpoint in checkpoints]
    args, kwargs = example_inputs(modules[0], inputs)
    found = discover(modules[0], *args, **kwargs)
    yield str(found)
    if only_groups:
        return
    groups, _ = select(found, include)
    for checkpoint, module in zip(checkpoints, modules):
        yield f"\n{checkpoint}\n{COLUMNS}"
        for group in groups:
            yield _line(group, module, degree)
    for (a, before), (b, after) in zip(zip(checkpoints, modules), list(zip(checkpoints, modules))[1:]):
        yield f"\nfrom {a} to {b}: distortion of distances between neurons"
        for group in groups:
            moved = compare(group.points(before), group.points(after))
            pair = f"most stretched {moved.upper_pair}, most shrunk {moved.lower_pair}"
            yield f"{group.name:<44}  {moved.lower:.4f} to {moved.upper:.4f}  ({pair})"


def load(checkpoint: str, model: str | None) -> nn.Module:
    """Return the module of a checkpoint, with its weights."""
    path = Path(checkpoint)
    if not path.exists():
        raise ConfigError(f"there is no checkpoint at {checkpoint}")
    if path.is_dir():
        return _from_folder(path)
    if model is None:
        raise ConfigError(
            f"{checkpoint} holds weights without a model: name a callable that makes it, --model module:callable"
        )
    module = call(model)
    if not isinstance(module, nn.Module):
        raise ConfigError(f"--model {model} made a {type(module).__name__}, not a torch.nn.Module")
    try:
        module.load_state_dict(_state_dict(path))
    except (RuntimeError, ValueError) as error:
        raise ConfigError(f"the weights of {checkpoint} do not fit the model of {model}: {error}") from error
    return module


def _from_folder(path: Path) -> nn.Module:
    if not (path / "config.json").exists():
        raise ConfigError(
            f"{path} has no config.json: give a Hugging Face folder, or a file with a state dict and --model"
        )
    try:
        import transformers
    except ImportError as error:
        raise ConfigError("a Hugging Face folder needs transformers: pip install 'topoopt[transformers]'") from error
    config = transformers.AutoConfig.from_pretrained(path, local_files_only=True)
    kinds = [getattr(transformers, name, None) for name in config.architectures or ()]
    kind = next((k for k in kinds if k is not None), transformers.AutoModel)
    return kind.from_pretrained(path, local_files_only=True)  # type: ignore[no-any-return]


def _state_dict(path: Path) -> dict[str, Any]:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    data = torch.load(path, map_location="cpu", weights_only=True)
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(data, dict) and isinstance(data.get(key), dict):
            return data[key]
    return data


def example_inputs(module: nn.Module, inputs: str | None) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments of one forward: made by the user's callable, or made up from a Hugging Face model's own description."""
    if inputs is not None:
        made = call(inputs)
        if isinstance(made, dict):
            return (), made
        return (tuple(made) if isinstance(made, tuple | list) else (made,)), {}
    dummy = getattr(module, "dummy_inputs", None)
    if isinstance(dummy, dict):
        return (), dummy
    first = next((m for m in module.modules() if isinstance(m, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)), None)
    if isinstance(first, nn.Linear):
        return (torch.randn(2, first.in_features, generator=torch.Generator().manual_seed(0)),), {}
    raise ConfigError("this model needs example inputs: name a callable that makes them, --inputs module:callable")


def call(where: str) -> Any:
    """Import "module:callable" (the working directory counts) and call it."""
    name, _, attribute = where.partition(":")
    if not attribute:
        raise ConfigError(f"{where!r} is no module:callable")
    sys.path.insert(0, str(Path.cwd()))
    try:
        return getattr(importlib.import_module(name), attribute)()
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{where} cannot be imported: {error}") from error
    finally:
        sys.path.remove(str(Path.cwd()))


def _line(group: NeuronGroup, module: nn.Module, degree: int) -> str:
    points = group.points(module)
    d = distances(points)
    weak = degeneracy(points, d)
    result = persistence(distances=d, degree=degree)
    margin = float(result.diagrams[0][0, 1])
    features = ", ".join(f"{len(prominent(dgm))} of {len(dgm)} in H{k}" for k, dgm in enumerate(result.diagrams) if k)
    n, width = points.shape
    return f"{group.name:<44}  {n:>6} {width:>7}  {margin:>12.4g}  {weak.vanishing:>9}  {weak.twins:>5}  {features}"
