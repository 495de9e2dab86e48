"""The command `topoopt`: demo, report, inspect."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import topoopt
from topoopt.errors import TopoError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status. Errors that are the caller's to mend are one line, without a traceback."""
    arguments = _parser().parse_args(argv)
    try:
        return arguments.run(arguments)
    except TopoError as error:
        print(f"topoopt: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("topoopt: interrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="topoopt", description="How close a learning rate is to the topological critical one."
    )
    parser.add_argument("--version", action="version", version=f"topoopt {topoopt.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    demo = commands.add_parser("demo", help="train on real data that ships with a dependency, through all three phases")
    demo.add_argument("--out", type=Path, default=Path("topoopt-demo"), help="folder for record, picture and report")
    demo.add_argument("--steps", type=int, default=6000)
    demo.add_argument("--every", type=int, default=50, help="measure each this many steps")
    demo.add_argument("--budget", type=float, default=0.2, help="largest share of wall time that measuring may take")
    demo.add_argument("--seed", type=int, default=0)
    demo.add_argument("--quick", action="store_true", help="a tenth of the steps, measured whatever it costs")
    demo.set_defaults(run=_demo)

    report = commands.add_parser("report", help="a record (JSON lines) as one self-contained HTML page")
    report.add_argument("record", type=Path, metavar="RUN", help="the record, or the folder that holds record.jsonl")
    report.add_argument("-o", "--out", type=Path, help="the page (default: report.html beside the record)")
    report.set_defaults(run=_report)

    inspect = commands.add_parser(
        "inspect", help="the neurons of saved checkpoints: groups, persistence, distortion between them"
    )
    inspect.add_argument("checkpoints", nargs="+", metavar="CKPT", help="a Hugging Face folder, or a saved state dict")
    inspect.add_argument("--model", metavar="MODULE:CALLABLE", help="makes the module that state dicts are loaded into")
    inspect.add_argument(
        "--inputs", metavar="MODULE:CALLABLE", help="makes example inputs: a tensor, a tuple or a dict"
    )
    inspect.add_argument(
        "--groups", action="store_true", help="only list the neuron groups, and what was left out and why"
    )
    inspect.add_argument("--include", action="append", help="glob pattern over group names (may be given again)")
    inspect.add_argument("--degree", type=int, default=1, help="highest degree of homology")
    inspect.set_defaults(run=_inspect)
    return parser


def _demo(arguments: argparse.Namespace) -> int:
    from topoopt.demo import DemoSettings, run

    steps, budget = (arguments.steps // 10, 1.0) if arguments.quick else (arguments.steps, arguments.budget)
    run(DemoSettings(arguments.out, steps, arguments.every, budget, seed=arguments.seed))
    return 0


def _report(arguments: argparse.Namespace) -> int:
    from topoopt.report import html, read

    record = read(arguments.record)
    out = arguments.out or record.path.with_name("report.html")
    out.write_text(html.page(record), encoding="utf-8")
    print(f"{out} ({len(record.measurements)} measurements)")
    return 0


def _inspect(arguments: argparse.Namespace) -> int:
    from topoopt.report.inspection import inspect

    for line in inspect(
        arguments.checkpoints,
        model=arguments.model,
        inputs=arguments.inputs,
        only_groups=arguments.groups,
        include=arguments.include,
        degree=arguments.degree,
    ):
        print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
