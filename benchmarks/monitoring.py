"""What it costs to watch a training run: topoopt beside its peers on the same models, and how right what they say is.

    python benchmarks/monitoring.py [--full] [--models NAME ...] [--tools TOOL ...] [--fill] [--since DATE] [--output FILE]

Each pair of a model and a tool has a process of its own, in which stretches of bare training and of watched training take turns.
Times are of the processor, those of child processes included. An *event* is what a tool does every so many steps; its price is in
bare steps, and "of a run" is what one event in 100 steps makes of it: what the tool adds to an ordinary step and a hundredth of an
event (of "topoopt, everything" an event is five readings and a measurement). For topoopt's defaults, where the budget decides, it
is what a run of as many steps as its row says was found to take, its first readings, which are on credit, among it: in a run of
1,000 steps three readings are several % of it, in one of 100,000 the budget's 1 % is all. "Once" is what a run pays once, and not
counted there. Peak memory is over that of bare training in the same process, child processes included. Errors are against a
converged oracle of the quantity the tool is to give: eigsh on exact products of the loss that is trained (for r in the optimizer's
own metric), for batch sharpness the mean over 64 mini-batches. A tool that takes more than so many seconds of the processor on a
model, all of its row included, is given up, and its row says so.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
import time
import warnings

import _limited
import torch
from _kept import kept, parser_of
from _monitor_peers import MONITORS
from _monitors import Monitor, TopoReadings
from _results import Column, Row, Table, Value, results, save
from _stretches import Stretch, peak, stretch
from _truth import errors
from _watched import PLANS, SMALL, Plan

PER = 100
"""One event in so many steps is what "of a run" is of."""
SLOW = 10.0
"""Seconds of a stretch from which on there is only one."""


def idle(plan: Plan, kind: type[Monitor]) -> list[float]:
    """What an ordinary step costs with the monitor there and nothing due, over bare ones; the two take turns every few steps."""
    pair = []
    for one_of in (Monitor, kind):
        torch.manual_seed(0)
        task = plan.build()
        task.model.train()
        monitor = one_of(task, 10**6)
        monitor.begin()
        for step in range(12):
            monitor.train(step)
        pair.append(monitor)
    found = []
    for turn in range(plan.turns):
        took = []
        for monitor in pair[:: 1 if turn % 2 else -1]:
            began = time.process_time()
            for step in range(12 + 5 * turn, 17 + 5 * turn):
                monitor.train(step)
            took.append(time.process_time() - began)
        bare, watched = took[:: 1 if turn % 2 else -1]
        found.append(watched / bare - 1)
    for monitor in pair:
        monitor.end()
    return found


def by_period(plan: Plan, kind: type[Monitor], first: Stretch, ordinary: float) -> list[float]:
    """Bare steps that a period's event takes, what it leaves to the steps after it included; the first period is left out."""
    found = []
    for turn in range(plan.pairs if sum(first.seconds) < SLOW else 1):
        bare = stretch(plan, Monitor, plan.steps).ordinary
        watched = first if turn == 0 else stretch(plan, kind, plan.steps)
        warm = watched.seconds[plan.every :]
        spent = sum(warm) + watched.children - len(warm) * bare * (1 + ordinary)
        found.append(spent / bare / (len(warm) / plan.every))
    return found


def by_budget(plan: Plan, watched: Stretch, bare: float) -> float:
    """Share of a run's time that readings and measurements took; what they leave to the step after each is theirs."""
    steps = sorted({i + k for i in watched.events for k in (0, 1) if i + k < len(watched.seconds)})
    spent = sum(watched.seconds[i] - watched.ordinary for i in steps) - watched.setup + watched.children
    return spent / (bare * len(watched.seconds))


def one(model: str, tool: str) -> Row:
    """Everything about a tool on a model."""
    plan, kind = PLANS[model], MONITORS[tool]
    budgeted = tool.endswith("defaults")
    bare, memory = stretch(plan, Monitor, plan.steps), peak()
    watched = stretch(plan, kind, plan.run if budgeted else plan.steps)
    values = {"peak memory": Value.of([(peak() + watched.megabytes) / memory])}
    values["once"] = Value.of([watched.setup + watched.started])
    turns = idle(plan, kind)
    ordinary = statistics.median(turns)
    values["ordinary step"] = _quartiles([100 * x for x in turns])
    if budgeted:
        values["of a run"] = Value.of([100 * (ordinary + by_budget(plan, watched, bare.ordinary))])
    else:
        events = by_period(plan, kind, watched, ordinary)
        values["event"] = Value.of(events)
        values["of a run"] = Value.of(100 * (ordinary + x / PER) for x in events)
    if kind.quantity:
        off = errors(plan, TopoReadings if budgeted else kind)
        values["error"] = Value.of(100 * abs(x) for x in off)
    words = {"gives": kind.reads + (f" ({watched.readings} in {plan.run:,} steps)" if budgeted else "")}
    if kind.own_loop and plan.trainer:
        words["gives"] += f"; not under Trainer: {kind.own_loop}"
    return Row(plan.case, tool, values, words)


def _quartiles(values: list[float]) -> Value:
    """Of many short turns, the extremes say nothing."""
    low, middle, high = statistics.quantiles(values, n=4)
    return Value(middle, low, high, len(values))


def in_a_process(model: str, tool: str) -> Row:
    """The same in a process of its own, or the row that says why not."""
    case, words = PLANS[model].case, {"gives": MONITORS[tool].reads}
    try:
        done = _limited.run([sys.executable, "-W", "ignore", __file__, "--one", model, tool], PLANS[model].limit)
    except _limited.Overrun as error:
        return Row(case, tool, words=words, failed=str(error))
    if done.returncode:
        return Row(case, tool, words=words, failed=(done.stderr.strip() or "no word").splitlines()[-1][:300])
    data = json.loads(done.stdout.splitlines()[-1])
    if "failed" in data:
        return Row(case, tool, words=words, failed=data["failed"])
    return Row(case, tool, {name: Value(*v) for name, v in data["values"].items()}, data["words"])


def answer(model: str, tool: str) -> None:
    """What the parent process reads: a row, or the error that there was."""
    warnings.simplefilter("ignore")
    try:
        row = one(model, tool)
    except Exception as error:  # a peer's, to be reported as its row
        print(json.dumps({"failed": first_cause(error)}))
        return
    values = {name: [v.median, v.low, v.high, v.runs] for name, v in row.values.items()}
    print(json.dumps({"values": values, "words": row.words}))


def first_cause(error: BaseException) -> str:
    """The error that the others came of, in one line."""
    while error.__context__ is not None:
        error = error.__context__
    said = re.sub(r" object at 0x\w+", "", " ".join(str(error).split()))  # an address, another in each run
    return f"{type(error).__name__}: {said}"[:300]


COLUMNS = (
    Column("of a run", "%", factor=2.0, slack=3.0),
    Column("ordinary step", "%", factor=None),
    Column("event", "steps", factor=2.0, slack=2.0),
    Column("once", "s"),
    Column("peak memory", "x", factor=1.3, slack=0.1),
    Column("error", "%", factor=1.5, slack=5.0),
    Column("gives", "words", ""),
)
PACKAGES = (
    "transformers", "wandb", "topological-adam", "topoadamw", "cockpit-for-pytorch", "backpack-for-pytorch", "PyHessian",
    "hessian-eigenthings",
)  # fmt: skip


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--models", nargs="+", choices=list(PLANS))
    parser.add_argument("--tools", nargs="+", choices=list(MONITORS), default=list(MONITORS))
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.one:
        answer(*given.one)
        return
    there = kept(given, __file__, PACKAGES)
    explains, arguments = (__doc__ or "").split("\n\n", 2)[2].strip(), ["--full"] if given.full else []
    for model in given.models or (PLANS if given.full else SMALL):
        for tool in given.tools:
            if there.has("monitoring", PLANS[model].case, [tool]):
                continue
            row = in_a_process(model, tool)
            said = ", ".join(f"{name} {v.median:.3g}" for name, v in row.values.items())
            print(f"{row.case:<16}{tool:<24}{row.failed or said}", flush=True)
            table = Table("monitoring", f"Watching a run, one event in {PER} steps", explains, COLUMNS, (row,))
            save(results(__file__, arguments, [table], PACKAGES), given.output)


if __name__ == "__main__":
    main()
