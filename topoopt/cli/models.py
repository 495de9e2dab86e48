"""Commands on models of the user's: suggest, inspect, compact."""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from itertools import groupby
from string import Formatter
from typing import Any

import topoopt
from topoopt.cli.figures import emit, jsonable
from topoopt.errors import ConfigError
from topoopt.report.tables import Row
from topoopt.report.writing import write_whole
from topoopt.terminal import Terminal

PICTURES = (".png", ".svg", ".pdf")


def suggest(arguments: argparse.Namespace) -> int:
    """Print the rate that `topoopt.suggest` finds for what the user's callable returns."""
    if arguments.plot is not None and arguments.plot.suffix not in PICTURES:
        raise ConfigError(f"{arguments.plot} is no picture's name: give one that ends in {', '.join(PICTURES)}")
    args, kwargs = arguments_of(arguments.callable)
    found = topoopt.suggest(*args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]
    if arguments.plot is not None:
        picture = io.BytesIO()
        found.plot().savefig(picture, format=arguments.plot.suffix[1:])
        write_whole(arguments.plot, picture.getvalue())
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
    """Write a smaller checkpoint with the same function, and print what was removed, merged, and left whole for what reason."""
    from topoopt.report.compacting import compact_checkpoint

    with Terminal(sys.stderr, quiet=arguments.quiet).progress("compacting", 100) as advance:
        done = compact_checkpoint(
            arguments.checkpoint,
            arguments.out,
            model=arguments.model,
            inputs=arguments.inputs,
            tolerance=arguments.tolerance,
            silent=arguments.silent,
            change=arguments.change,
            progress=lambda share: advance(round(100 * share)),
        )
    before, after = done.parameters
    rows = [{"group": name, **asdict(one)} for name, one in done.items()]
    data = {"out": str(arguments.out), "parameters": [before, after], "change": done.change, "notes": done.notes}
    if emit(arguments, {**data, "groups": rows}, rows):
        return 0
    terminal = Terminal(quiet=arguments.quiet)
    terminal.table(rows)
    for note in done.notes:
        terminal.say(f"note: {note}")
    terminal.say(f"{arguments.out}: {after} parameters of {before}; the output changed by {done.change:.2g} at most")
    return 0
