"""`topoopt check`: a run's verdict as an exit status, for CI."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from topoopt.cli.making import opened
from topoopt.report import RunRecord
from topoopt.terminal import Terminal
from topoopt.verdict import STATES

ORDER = ("right", "too low", "at the edge", "too high", "collapsed")
"""From best to worst; any other state is no verdict on the rate."""
FAILED = 3


def check(arguments: argparse.Namespace) -> int:
    """Exit 3 when the verdict is worse than asked for."""
    run = opened(arguments.record, quiet=arguments.quiet).last
    passed, reason = judged(run, arguments.at_most, arguments.fail_on, allow_unknown=arguments.allow_unknown)
    state = run.verdict.state if run.verdict is not None else None
    lines = list(run.verdict.lines) if run.verdict is not None else []
    if arguments.json:
        print(json.dumps({"passed": passed, "reason": reason, "state": state, "lines": lines}, indent=2))
    else:
        terminal = Terminal()
        terminal.say(f"{'passed' if passed else 'failed'}: {reason}")
        for line in () if arguments.quiet else lines:
            terminal.paragraph(line)
    return 0 if passed else FAILED


def judged(
    run: RunRecord, at_most: str = "right", fail_on: Sequence[str] | None = None, *, allow_unknown: bool = False
) -> tuple[bool, str]:
    """Whether a run passes, and why.

    Args:
        run: the run.
        at_most: the worst verdict that passes, in the order of `ORDER`.
        fail_on: only these states fail, whatever `at_most` is.
        allow_unknown: a run of which nothing is said passes.
    """
    state = run.verdict.state if run.verdict is not None else ""
    if fail_on:
        return (
            state not in fail_on,
            f"the verdict is {state or 'missing'!r}; {', '.join(map(repr, fail_on))} would fail",
        )
    if state not in ORDER:
        known = state if state in STATES else "missing"
        return allow_unknown, f"the verdict is {known!r}: nothing is known of the rate"
    passed = ORDER.index(state) <= ORDER.index(at_most)
    return passed, f"the verdict is {state!r}; the worst that passes is {at_most!r}"
