"""Checkpoints of others, loaded without running what they bring: no code of theirs, no unbounded sizes."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from topoopt.errors import ConfigError, TopoError
from topoopt.extras import require
from topoopt.report.writing import shortened

SLACK = 2**30
"""Bytes that a checkpoint may have beyond four times its model's weights (which is weights and an optimizer's moments)."""
DEEPEST = 10_000
"""Layers of the deepest model that a config.json may describe."""
CONFIG = 16 * 2**20
"""Bytes of the largest config.json."""


def load(checkpoint: str, model: str | None = None) -> nn.Module:
    """Return the module of a checkpoint, with its weights, on the CPU.

    Args:
        checkpoint: a Hugging Face folder (no code of the folder is run), or a file of a state dict (.safetensors, or what
            `torch.save` wrote, read with `weights_only`).
        model: "module:callable" that makes the module for a state dict.

    Raises:
        ConfigError: for a checkpoint that cannot be read, with what is missing or wrong.
    """
    path = Path(checkpoint)
    try:
        there, folder = path.exists(), path.is_dir()
    except (OSError, ValueError):  # too long, or with a null character
        there, folder = False, False
    if not there:
        raise ConfigError(f"there is no checkpoint at {shortened(checkpoint)}")
    if folder:
        return _from_folder(path)
    if model is None:
        raise ConfigError(
            f"{checkpoint} holds weights without a model: name a callable that makes it, --model module:callable"
        )
    module = call(model)
    if not isinstance(module, nn.Module):
        raise ConfigError(f"--model {model} made a {type(module).__name__}, not a torch.nn.Module")
    weights = state_dict(path, bytes_of(module))
    try:
        module.load_state_dict(weights)
    except (RuntimeError, ValueError, TypeError, AttributeError) as error:
        raise ConfigError(f"the weights of {checkpoint} do not fit the model of {model}: {error}") from error
    return module


def example_inputs(module: nn.Module, inputs: str | None) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments of one forward: made by the user's callable, or made up from a Hugging Face model's own description.

    Raises:
        ConfigError: where none can be made up.
    """
    if inputs is not None:
        return _arguments(call(inputs))
    dummy = getattr(module, "dummy_inputs", None)
    if isinstance(dummy, dict):
        return (), dummy
    first = next((m for m in module.modules() if isinstance(m, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)), None)
    if isinstance(first, nn.Linear):
        return (torch.randn(2, first.in_features, generator=torch.Generator().manual_seed(0)),), {}
    raise ConfigError("this model needs example inputs: name a callable that makes them, --inputs module:callable")


def example_runs(module: nn.Module, inputs: str | None) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Arguments of several forwards, where the user's callable makes a list of them; else of one, as `example_inputs` has it.

    Raises:
        ConfigError: where none can be made up.
    """
    made = None if inputs is None else call(inputs)
    if not isinstance(made, list) or not made:
        return [example_inputs(module, inputs) if made is None else _arguments(made)]
    return [_arguments(one) for one in made]


def _arguments(made: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(made, dict):
        return (), made
    return (tuple(made) if isinstance(made, tuple | list) else (made,)), {}


def call(where: str) -> Any:
    """Import "module:callable" (the working directory counts) and call it.

    Raises:
        ConfigError: where it cannot be imported or called, with the reason.
    """
    name, _, attribute = where.partition(":")
    if not attribute or not name:
        raise ConfigError(f"{where!r} is no module:callable: give one as package.module:function")
    sys.path.insert(0, str(Path.cwd()))
    try:
        found = getattr(importlib.import_module(name), attribute)
    except Exception as error:  # the user's own code runs when it is imported
        raise ConfigError(f"{where} cannot be imported ({type(error).__name__}: {error})") from error
    finally:
        sys.path.remove(str(Path.cwd()))
    if not callable(found):
        raise ConfigError(f"{where} is a {type(found).__name__}, which cannot be called")
    try:
        return found()
    except TopoError:
        raise
    except Exception as error:  # the user's own code: whatever it raises is theirs to mend
        raise ConfigError(f"{where} raised {type(error).__name__}: {error}") from error


def _from_folder(path: Path) -> nn.Module:
    if not (path / "config.json").is_file():
        raise ConfigError(
            f"{path} has no config.json: give a Hugging Face folder, or a file with a state dict and --model"
        )
    _check_config(path)
    transformers = require("transformers", extra="transformers")
    try:
        config = transformers.AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        kind = _class_of(transformers, config)
        _check_weights(path, config, kind)
        return kind.from_pretrained(path, config=config, local_files_only=True, trust_remote_code=False)
    except TopoError:
        raise
    except Exception as error:  # of a library that reads a stranger's file
        raise ConfigError(f"{path} cannot be loaded ({type(error).__name__}: {str(error)[:500]})") from error


def _check_config(path: Path) -> None:
    file = path / "config.json"
    try:
        if file.stat().st_size > CONFIG:
            raise ConfigError(f"{file} has more than {CONFIG} bytes: it is no model's configuration")
        config = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise error if isinstance(error, ConfigError) else ConfigError(f"{file} is no JSON ({error})") from error
    if not isinstance(config, dict):
        raise ConfigError(f"{file} is no JSON object: it is no model's configuration")
    deep = [name for name, value in config.items() if "layers" in name and isinstance(value, int) and value > DEEPEST]
    if deep:
        raise ConfigError(f"{file} asks for {deep[0]}={config[deep[0]]}: more than {DEEPEST} are not loaded")


def _class_of(transformers: Any, config: Any) -> Any:
    """The architecture that the config names, if it is a model of transformers' own; the bare model otherwise."""
    named = [getattr(transformers, str(name), None) for name in config.architectures or ()]
    base = transformers.PreTrainedModel
    return next((k for k in named if isinstance(k, type) and issubclass(k, base)), transformers.AutoModel)


def _check_weights(path: Path, config: Any, kind: Any) -> None:
    """Refuse a config that describes far more weights than the folder holds: they would be made up, and fill the memory."""
    files = [file for ending in ("*.safetensors", "*.bin") for file in path.glob(ending)]
    held = sum(file.stat().st_size for file in files)
    with torch.device("meta"):
        empty = kind.from_config(config) if hasattr(kind, "from_config") else kind(config)
    described = sum(parameter.numel() for parameter in empty.parameters())
    if described > 2 * held + SLACK // 4:  # four bits a weight are the fewest in use
        raise ConfigError(f"{path} describes {described} weights, but its files hold {held} bytes: it is not whole")


def state_dict(path: Path, expected: int) -> dict[str, Any]:
    """Return the weights that a file holds; it may have a few times `expected` bytes.

    Raises:
        ConfigError: for a file of anything else.
    """
    size = path.stat().st_size
    if size > 4 * expected + SLACK:
        raise ConfigError(
            f"{path} has {size} bytes, its model {expected} of weights: it is not this model's checkpoint"
        )
    try:
        if path.suffix == ".safetensors":
            return require("safetensors.torch", extra="transformers").load_file(path)
        data = torch.load(path, map_location="cpu", weights_only=True)
    except TopoError:
        raise
    except Exception as error:  # of a library that reads a stranger's file
        reason = str(error).strip().split("\n")[0][:300]
        raise ConfigError(f"{path} is no checkpoint of weights ({type(error).__name__}: {reason})") from error
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(data, dict) and isinstance(data.get(key), dict):
            data = data[key]
            break
    if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
        raise ConfigError(f"{path} holds a {type(data).__name__}, not a state dict of names and tensors")
    return data


def bytes_of(module: nn.Module) -> int:
    """Bytes of a module's weights and buffers."""
    return sum(tensor.numel() * tensor.element_size() for tensor in (*module.parameters(), *module.buffers()))
