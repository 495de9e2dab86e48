"""Commands on models of the user's: suggest, inspect, compact."""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from itertools import groupby
from pathlib import Path
from string import Formatter
from typing import Any

import topoopt
from topoopt.cli.figures import emit, jsonable
from topoopt.errors import ConfigError
from topoopt.extras import require
from topoopt.report.tables import Row
from topoopt.report.writing import write_whole
from topoopt.terminal import Terminal


def suggest(arguments: argparse.Namespace) -> int:
    """Print the rate that `topoopt.suggest` finds for what the user's callable returns."""
    args, kwargs = arguments_of(arguments.callable)
    found = topoopt.suggest(*args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]
    if arguments.json:
        data = asdict(found) if is_dataclass(found) and not isinstance(found, type) else vars(found)
        print(json.dumps(jsonable(data), indent=2, default=str))
    else:
        Terminal().say(str(found))
    return 0


def arguments_of(where: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What a user's "module:callable" returns, as the arguments of `topoopt.suggest`.

    Raises:
        ConfigError: where it is neither a tuple nor a dict.
    """
    from topoopt.report.loading import call

    made = call(where)
    if isinstance(made, Mapping):
        return (), dict(made)
    if isinstance(made, tuple) and 3 <= len(made) <= 4:
        return made, {}
    raise ConfigError(
        f"{where} returned a {type(made).__name__}: return (model, optimizer, batches) or "
        "(model, optimizer, batches, loss_fn)"
    )


def inspect(arguments: argparse.Namespace) -> int:
    """Print the groups of checkpoints, the neurons of each, and the distortion between neighbours."""
    from topoopt.report.inspection import inspect as look

    with Terminal(sys.stderr, quiet=arguments.quiet).progress("looking at the neurons", 100) as advance:
        found = look(
            arguments.checkpoints,
            model=arguments.model,
            inputs=arguments.inputs,
            only_groups=arguments.groups,
            include=arguments.include,
            degree=arguments.degree,
            progress=lambda share: advance(round(100 * share)),
        )
    groups = [{"group": one.name, "kind": one.kind, "neurons": one.n} for one in found.groups]
    rows = groups if arguments.groups else found.neurons
    if emit(arguments, {"groups": groups, "neurons": found.neurons, "distortion": found.distortion}, rows):
        return 0
    terminal = Terminal()
    terminal.say(str(found.groups))
    for heading, part in (*_parts(found.neurons, "{checkpoint}"), *_parts(found.distortion, "from {from} to {to}")):
        terminal.say(f"\n{heading}")
        terminal.table(part)
    return 0


def _parts(rows: Sequence[Row], heading: str) -> list[tuple[str, list[Row]]]:
    """Rows under a heading for each checkpoint or pair, whose names are then left out of them."""
    names = [name for _, name, *_ in Formatter().parse(heading) if name]
    return [
        (title, [{key: value for key, value in row.items() if key not in names} for row in part])
        for title, part in groupby(rows, lambda row: heading.format(**row))
    ]


def compact(arguments: argparse.Namespace) -> int:
    """Write a smaller checkpoint with the same function, and print what was removed and merged."""
    from topoopt.neurons import compact as smaller
    from topoopt.neurons import discover
    from topoopt.report.loading import example_inputs, load

    module = load(arguments.checkpoint, arguments.model)
    args, kwargs = example_inputs(module, arguments.inputs)
    small, done = smaller(module, discover(module, *args, **kwargs), tolerance=arguments.tolerance)
    if arguments.out.suffix in (".pt", ".pth", ".safetensors"):
        write_whole(arguments.out, _serialised(small.state_dict(), arguments.out))
    else:
        _write_folder(small, arguments.out)
    terminal = Terminal(quiet=arguments.quiet)
    terminal.table([{"group": name, **asdict(one)} for name, one in done.items()])
    before, after = (sum(p.numel() for p in one.parameters()) for one in (module, small))
    terminal.say(f"{arguments.out}: {after} parameters of {before}")
    return 0


def _write_folder(module: Any, out: Path) -> None:
    """Write a Hugging Face folder, and load it once to see that its configuration says the sizes of its weights."""
    from topoopt.report.loading import load

    if not hasattr(module, "save_pretrained"):
        raise ConfigError(f"{type(module).__name__} is no Hugging Face model: give a file, such as -o {out}.pt")
    if os.path.lexists(out):
        raise ConfigError(f"{out} exists already: give the name of a folder to make")
    try:
        module.save_pretrained(out)
        load(str(out))
    except ConfigError as error:
        shutil.rmtree(out, ignore_errors=True)
        why = "its configuration cannot say the sizes of its layers"
        raise ConfigError(f"{why}: give a file for the weights alone, such as -o {out}.pt ({error})") from error


def _serialised(weights: dict[str, Any], out: Path) -> bytes:
    if out.suffix == ".safetensors":
        own = {name: tensor.contiguous().clone() for name, tensor in weights.items()}
        return require("safetensors.torch", extra="transformers").save(own)
    import torch

    buffer = io.BytesIO()
    torch.save(weights, buffer)
    return buffer.getvalue()
