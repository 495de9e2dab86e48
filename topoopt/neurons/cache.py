"""What was found for a model's structure, kept in memory and on disk, so that a second run of it costs nothing.

The key is everything a discovery depends on: the source of every module class, names, shapes and types of parameters and
buffers and which are tied, the configuration that modules print, the shapes and types of the inputs, torch's version and
the source of this package's own neurons room. Buffers that hold constants count with their contents.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from topoopt.neurons.group import NeuronGroup, Slice

logger = logging.getLogger("topoopt")
LARGEST = 1 << 20
"""Buffers up to this many numbers count with their contents, larger ones with a sample of as many."""
_memory: dict[str, dict[str, Any]] = {}


def key(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str | None:
    """Digest of a model's structure and its inputs'; None where no source can be read (nothing is cached then)."""
    try:
        kinds = sorted({type(module) for module in model.modules()}, key=lambda kind: kind.__qualname__)
        sources = [_source(kind) for kind in kinds]
    except (OSError, TypeError):  # classes made in a console or by a factory have no source
        return None
    digest = hashlib.sha256()
    seen: dict[int, int] = {}
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    layout = [(n, tuple(t.shape), str(t.dtype), seen.setdefault(id(t), len(seen))) for n, t in tensors]
    inputs = tree_map(_describe, (args, dict(kwargs)))
    attributes = [(name, _plain(module)) for name, module in model.named_modules()]
    for part in (torch.__version__, _own_source(), sources, repr(model), attributes, layout, inputs):
        digest.update(repr(part).encode())
    for name, buffer in model.named_buffers():
        if not name.endswith(("running_mean", "running_var", "num_batches_tracked")):
            digest.update(_content(buffer))
    return digest.hexdigest()


def load(name: str | None) -> dict[str, Any] | None:
    """Return what `save` stored, or None."""
    if name is None:
        return None
    if name in _memory:
        return _memory[name]
    try:
        data = json.loads((folder() / f"{name}.json").read_text())
        data["groups"] = [_group(group) for group in data["groups"]]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        logger.info("topoopt: the cached neurons of this model cannot be read (%s); they are found anew", error)
        return None
    _memory[name] = data
    return data


def save(name: str | None, result: dict[str, Any]) -> None:
    """Store a discovery; a disk that cannot be written to is no reason to stop."""
    if name is None:
        return
    _memory[name] = result
    text = json.dumps({**result, "groups": [asdict(group) for group in result["groups"]]})
    try:
        folder().mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=folder(), suffix=".tmp")
        with os.fdopen(handle, "w") as file:
            file.write(text)
        os.replace(temporary, folder() / f"{name}.json")
    except OSError as error:
        logger.info("topoopt: the neurons of this model could not be cached on disk (%s)", error)


def folder() -> Path:
    """$TOPOOPT_CACHE, else the user's cache folder."""
    given = os.environ.get("TOPOOPT_CACHE")
    base = os.environ.get("XDG_CACHE_HOME")
    return Path(given) if given else (Path(base) if base else Path.home() / ".cache") / "topoopt" / "neurons"


def clear() -> None:
    """Forget what is in memory; files stay."""
    _memory.clear()


def _group(data: dict[str, Any]) -> NeuronGroup:
    return NeuronGroup(data["name"], data["kind"], data["n"], tuple(_slice(s) for s in data["slices"]))


def _slice(data: dict[str, Any]) -> Slice:
    return Slice(**{**data, "siblings": tuple(data["siblings"])})


def _describe(leaf: Any) -> Any:
    return ("tensor", tuple(leaf.shape), str(leaf.dtype)) if isinstance(leaf, Tensor) else repr(leaf)


def _plain(module: nn.Module) -> list[tuple[str, str]]:
    """The plain attributes that a forward may branch on."""
    held = {k: v for k, v in vars(module).items() if not k.startswith("_") and k != "training"}
    plain = [
        (k, repr(v)) for k, v in held.items() if isinstance(v, bool | int | float | str | tuple | list | type(None))
    ]
    config = getattr(module, "config", None)
    return [*plain, ("config", str(config))] if config is not None and hasattr(config, "to_dict") else plain


def _content(buffer: Tensor) -> bytes:
    if buffer.is_meta or not buffer.numel():
        return b""
    flat = buffer.detach().flatten()
    step = max(1, flat.numel() // LARGEST)
    return flat[::step].cpu().double().numpy().tobytes()


@lru_cache(maxsize=4096)
def _source(kind: type) -> str:
    return kind.__qualname__ + inspect.getsource(kind)


@lru_cache(maxsize=1)
def _own_source() -> str:
    files = sorted(Path(__file__).parent.rglob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
