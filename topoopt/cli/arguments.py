"""What can be typed."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import topoopt
from topoopt.cli import checking, comparing, diagnosing, making, models, showing, watching
from topoopt.report.tables import TABLES
from topoopt.verdict import STATES

RUN = "the record, or the folder that holds record.jsonl"
CALLABLE = "MODULE:CALLABLE"
Command = Callable[[str, str], argparse.ArgumentParser]
"""(name, what it does) -> its own parser."""
EXITS = (
    "exit status: 0 done, 1 what you can mend, 2 usage, 3 check failed, 70 a fault of topoopt's own, 130 interrupted"
)


def parser() -> argparse.ArgumentParser:
    """The parser; each command's function is its `run`."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("-q", "--quiet", action="store_true", help="only what was asked for, no words around it")
    common.add_argument("--traceback", action="store_true", help="on an error, also where it was raised")
    whole = argparse.ArgumentParser(
        prog="topoopt",
        description="How close a learning rate is to the topological critical one. To see it: topoopt demo",
        epilog=EXITS,
    )
    whole.add_argument("-V", "--version", action="version", version=f"topoopt {topoopt.__version__}")
    commands = whole.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=text, parents=[common])

    _making(command)
    _of_runs(command)
    _of_models(command)
    _of_checkpoints(command)
    _diagnosing(command)
    return whole


def _making(command: Command) -> None:
    demo = command("demo", "train on real data that ships with a dependency, through all three phases")
    demo.add_argument("--out", type=Path, default=Path("topoopt-demo"), help="folder for record, picture and report")
    demo.add_argument("--steps", type=int, default=6000)
    demo.add_argument("--every", type=int, default=50, help="measure each this many steps")
    demo.add_argument("--budget", type=float, default=0.2, help="largest share of wall time that measuring may take")
    demo.add_argument("--seed", type=int, default=0)
    demo.add_argument("--quick", action="store_true", help="a tenth of the steps, measured whatever it costs")
    demo.set_defaults(run=making.demo)

    report = command("report", "records as one self-contained HTML page")
    report.add_argument("records", type=Path, nargs="+", metavar="RUN", help=RUN)
    report.add_argument("-o", "--out", type=Path, help="the page (default: beside the first record)")
    report.set_defaults(run=making.report)


def _of_runs(command: Command) -> None:
    compare = command("compare", "what differs between two runs: verdict, r/e, loss, cost, settings")
    compare.add_argument("records", type=Path, nargs=2, metavar="RUN", help=RUN)
    _formats(compare)
    compare.set_defaults(run=comparing.compare)

    show = command("show", "a run in the terminal: what it is, its verdict, its measurements")
    show.add_argument("record", type=Path, metavar="RUN", help=RUN)
    show.add_argument("--run-id", help="the run of a record that holds several (default: the last)")
    show.add_argument("--table", choices=TABLES, default=TABLES[0], help="which table (default: %(default)s)")
    show.add_argument(
        "--rows", type=int, default=20, help="rows of it, evenly chosen; 0 for all (default: %(default)s)"
    )
    _formats(show)
    show.set_defaults(run=showing.show)

    watch = command("watch", "follow a record that is being written, until the run ends")
    watch.add_argument("record", type=Path, metavar="RUN", help=RUN)
    watch.add_argument("--interval", type=float, default=1.0, help="seconds between two looks (default: %(default)s)")
    watch.set_defaults(run=watching.watch)

    check = command("check", "exit 3 when a run's verdict is worse than asked for (for CI)")
    check.add_argument("record", type=Path, metavar="RUN", help=RUN)
    check.add_argument(
        "--at-most",
        choices=checking.ORDER,
        default="right",
        help="the worst verdict that passes, of: " + " < ".join(checking.ORDER) + " (default: %(default)s)",
    )
    check.add_argument(
        "--fail-on", choices=STATES, action="append", help="instead: only these fail (may be given again)"
    )
    check.add_argument("--allow-unknown", action="store_true", help="a run without a verdict passes")
    check.add_argument("--json", action="store_true", help="the answer as JSON")
    check.set_defaults(run=checking.check)


def _of_models(command: Command) -> None:
    suggest = command("suggest", "a learning rate for a model, optimizer and batches of yours")
    suggest.add_argument(
        "callable",
        metavar=CALLABLE,
        help="returns the arguments of topoopt.suggest: a tuple (model, optimizer, batches, loss_fn) or a dict",
    )
    suggest.add_argument("--json", action="store_true", help="the answer as JSON")
    suggest.add_argument("--plot", type=Path, help="write loss and r/e against the rate here (.png, .svg, .pdf)")
    suggest.set_defaults(run=models.suggest)


def _of_checkpoints(command: Command) -> None:
    inspect = command("inspect", "the neurons of saved checkpoints: groups, persistence, distortion between them")
    inspect.add_argument("checkpoints", nargs="+", metavar="CKPT", help="a Hugging Face folder, or a saved state dict")
    _loading(inspect)
    inspect.add_argument(
        "--groups", action="store_true", help="only list the neuron groups, and what was left out and why"
    )
    inspect.add_argument("--include", action="append", help="glob pattern over group names (may be given again)")
    inspect.add_argument("--degree", type=int, choices=(0, 1, 2), default=1, help="highest degree of homology")
    _formats(inspect)
    inspect.set_defaults(run=models.inspect)

    compact = command("compact", "a smaller checkpoint with the same function, without the neurons that do not count")
    compact.add_argument("checkpoint", metavar="CKPT", help="a Hugging Face folder, or a saved state dict")
    _loading(compact)
    compact.add_argument(
        "-o", "--out", type=Path, required=True, help="what to make: a folder, or a file (.pt, .safetensors)"
    )
    compact.add_argument(
        "--tolerance", type=float, default=1e-3, help="how near twins are, relative to neurons (default: %(default)s)"
    )
    compact.add_argument(
        "--change", type=float, default=1e-5, help="most that any output may change, relative (default: %(default)s)"
    )
    compact.add_argument(
        "--silent", action="store_true", help="also units that are constant on --inputs (a list of batches)"
    )
    _formats(compact)
    compact.set_defaults(run=models.compact)


def _diagnosing(command: Command) -> None:
    doctor = command("doctor", "versions, extras, device, engine; with a model of yours also what a reading costs")
    doctor.add_argument("callable", metavar=CALLABLE, nargs="?", help="as for suggest: what a reading costs there")
    doctor.add_argument("--json", action="store_true", help="the answer as JSON")
    doctor.set_defaults(run=diagnosing.doctor)


def _formats(one: argparse.ArgumentParser) -> None:
    formats = one.add_mutually_exclusive_group()
    formats.add_argument("--json", action="store_true", help="as JSON")
    formats.add_argument("--csv", action="store_true", help="as CSV")


def _loading(one: argparse.ArgumentParser) -> None:
    one.add_argument("--model", metavar=CALLABLE, help="makes the module that state dicts are loaded into")
    one.add_argument("--inputs", metavar=CALLABLE, help="makes example inputs: a tensor, a tuple or a dict")
