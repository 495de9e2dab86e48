"""`topoopt doctor`: what topoopt finds here."""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import time
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import topoopt
from topoopt.cli.figures import jsonable
from topoopt.cli.models import arguments_of
from topoopt.errors import ConfigError
from topoopt.report.tables import Row
from topoopt.terminal import Terminal

BUNDLES = ("all", "dev")
"""Extras that only gather others."""


def doctor(arguments: argparse.Namespace) -> int:
    """Print versions, extras, device and engines; with a callable, what one reading costs there."""
    import torch

    from topoopt.homology.backends import choose

    said: dict[str, Any] = {"topoopt": topoopt.__version__, "python": platform.python_version()}
    needed, extras = requirements()
    said |= {name: _version(name) or "missing" for name in needed}
    said |= {"device": _device(torch), "threads": torch.get_num_threads(), "cores": os.cpu_count()}
    said["homology"] = choose()
    cost = None if arguments.callable is None else cost_of(arguments.callable)
    if arguments.json:
        print(
            json.dumps(
                jsonable({**said, "extras": {name: _version(name) for name in extras}, "reading": cost}), indent=2
            )
        )
        return 0
    terminal = Terminal()
    told = {**said, **(_cost_for_people(cost) if cost else {})}
    for name, value in told.items():
        terminal.say(f"{name:<{max(map(len, told))}}  {value}")
    terminal.say()
    libraries = [_installed(name, extra) for name, extra in extras.items()]
    if all(not one["install"] for one in libraries):
        libraries = [{key: value for key, value in one.items() if key != "install"} for one in libraries]
    terminal.table(libraries)
    return 0


def _cost_for_people(cost: Mapping[str, Any]) -> dict[str, str]:
    """What `cost_of` found, in units that are read at a glance."""
    times = f"{cost['reading, gradients']:.3g} of its gradients, {cost['products']} products by {cost['engine']}"
    return {
        "one gradient takes": f"{1e3 * cost['gradient, seconds']:.3g} ms",
        "a first reading takes": f"{1e3 * cost['reading, seconds']:.3g} ms, as much as {times}",
        "update rule": cost["rule"],
    }


def requirements() -> tuple[list[str], dict[str, str]]:
    """Libraries that topoopt's own metadata asks for, and those of its extras, each with its extra."""
    needed: list[str] = []
    extras: dict[str, str] = {}
    for line in metadata.requires("topoopt") or ():
        name = re.split(r"[^\w.-]", line, maxsplit=1)[0]
        extra = re.search(r"""extra == ["']([\w-]+)["']""", line)
        if extra is None:
            needed.append(name)
        elif extra[1] not in BUNDLES and name != "topoopt":
            extras.setdefault(name, extra[1])
    return needed, extras


def _installed(name: str, extra: str) -> Row:
    version = _version(name)
    return {
        "library": name,
        "version": version or "-",
        "install": "" if version else f"pip install 'topoopt[{extra}]'",
    }


def cost_of(where: str) -> dict[str, Any]:
    """Time one gradient and one reading of r on the user's model, optimizer and first batch.

    The gradient is timed once it has run once; the reading is a first one, without a start from an earlier estimate.

    Raises:
        TopoError: where the loss or the reading cannot be made, with the reason.
    """
    from topoopt.curvature import proximity

    args, kwargs = arguments_of(where)
    names = ("model", "optimizer", "batches", "loss_fn")
    given = dict(zip(names, args)) | kwargs
    loss = _loss_of(given)
    loss().backward()
    began = time.perf_counter()
    loss().backward()
    gradient = time.perf_counter() - began
    given["optimizer"].zero_grad()
    reading = proximity(given["optimizer"], loss, products=8)
    return {
        "gradient, seconds": round(gradient, 6),
        "reading, seconds": round(reading.seconds, 6),
        "reading, gradients": round(reading.seconds / gradient, 2),
        "products": reading.products,
        "engine": reading.engine,
        "rule": reading.rule,
        "r": reading.r,
        "edge": reading.edge,
    }


def _loss_of(given: dict[str, Any]) -> Any:
    """The loss of the first batch, as `topoopt.suggest` takes it: `loss_fn(model, batch)`, or the model's own."""
    missing = [name for name in ("model", "optimizer", "batches") if name not in given]
    if missing:
        raise ConfigError(f"the callable returned no {missing[0]}: return (model, optimizer, batches, loss_fn)")
    batch = next(iter(given["batches"]))
    model, loss_fn = given["model"], given.get("loss_fn")

    def loss() -> Any:
        try:
            if loss_fn is not None:
                return loss_fn(model, batch)
            made = model(**batch) if isinstance(batch, Mapping) else model(batch)
            return getattr(made, "loss", made)
        except Exception as error:  # the user's own code: whatever it raises is theirs to mend
            raise ConfigError(f"the loss of the first batch raised {type(error).__name__}: {error}") from error

    return loss


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _device(torch: Any) -> str:
    if hasattr(torch, "accelerator") and torch.accelerator.is_available():
        return str(torch.accelerator.current_accelerator())
    return "cpu"
