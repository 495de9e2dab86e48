"""Commands that write files: demo and report."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from topoopt.report import Record, read
from topoopt.terminal import Terminal


def demo(arguments: argparse.Namespace) -> int:
    """`topoopt demo`."""
    from topoopt.demo import DemoSettings, run

    steps, budget = (arguments.steps // 10, 1.0) if arguments.quick else (arguments.steps, arguments.budget)
    settings = DemoSettings(arguments.out, steps, arguments.every, budget, seed=arguments.seed)
    run(settings, sys.stdout, quiet=arguments.quiet)
    return 0


def report(arguments: argparse.Namespace) -> int:
    """`topoopt report`."""
    from topoopt.report import html
    from topoopt.report.writing import write_whole

    records = [opened(path, quiet=arguments.quiet) for path in arguments.records]
    name = "report.html" if len(records) == 1 else "comparison.html"
    page = html.page(records[0] if len(records) == 1 else records)
    out = write_whole(arguments.out or records[0].path.with_name(name), page)
    count = sum(len(record.measurements) for record in records)
    Terminal(quiet=arguments.quiet).say(f"{out} ({count} measurements)")
    return 0


def opened(path: Path, *, quiet: bool = False) -> Record:
    """Read a record, with a bar on stderr while that takes long."""
    errors = Terminal(sys.stderr, quiet=quiet)
    with errors.progress(f"reading {path}", 100) as advance:
        return read(path, progress=lambda done, size: advance(100 * done // max(1, size)))
