"""The verdict's rule against what a grid of rates shows, on the tasks it was fitted on and on others.

Each task is trained at seven rates (half decades) under a cosine schedule, on the same batches. Over the first 100 steps r
is read every 5 as the library does by default, from the step's own batch, with what a reading sees beside it: loss, loss of
the best constant prediction, gradient norm, length of the weights, update-to-weight ratio, silent units, whether there are
normalisation layers. The truth of a run is what its end shows:

* right where the final training loss (mean of the last twentieth) is within 1.5 times the grid's best; up to 3 times the
  answer "right" passes as well as the side;
* else too low or too high, by the side of the best rate; a run without an end is too high.

The rule reads the first 100 steps alone, and so do the rules beside it: two thresholds on the gradient norm, on the loss's
slope or on the update-to-weight ratio, the best pair on the tasks that the rule was fitted on too.

    python benchmarks/verdict.py             # judge the runs in results/verdict_runs.json
    python benchmarks/verdict.py --kinds     # and cross-validate the constants over kinds of data
    python benchmarks/verdict.py --run       # train first what is not in the results (all: about 30 minutes of one thread)
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from _verdict_further_tasks import FURTHER
from _verdict_held_out import HELD_OUT
from _verdict_more_tasks import MORE
from _verdict_tasks import FIT, RULES, Task, batches

from topoopt import TopoConfig
from topoopt.curvature import recognise
from topoopt.measurement import SpectralReading
from topoopt.optimizer.reading import Reader
from topoopt.optimizer.weights import Sample
from topoopt.parallel import Ranks
from topoopt.verdict import judge
from topoopt.verdict import rule as thresholds
from topoopt.verdict.evidence import median

RESULTS = Path(__file__).parent / "results" / "verdict_runs.json"
EVERY, UNTIL, PRODUCTS = 5, 100, TopoConfig().reading_products
FITTED = [*FIT, *MORE, *FURTHER]
WARMING = 10
"""Steps of a preconditioned rule that are read as warming up."""
COLUMNS = ("r", "loss", "baseline", "silent", "grad_norm", "weight_norm", "update_ratio")
"""What is written down of every reading."""


# -- training ---------------------------------------------------------------------------------------------------------


def train(task: Task, lr: float) -> dict[str, Any]:
    """One run: its readings as columns, as the library takes them by default, and its final loss (None where it is lost)."""
    torch.manual_seed(0)
    model, loss_of = task.model(), task.loss()
    optimizer = RULES[task.rule][0](model.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, task.steps)
    reader, parameters = Reader(optimizer, TopoConfig(), Ranks(model)), list(model.parameters())
    readings: list[SpectralReading] = []
    tail: list[float] = []
    for step, (x, y) in enumerate(batches(task)):
        due = step % EVERY == 0 and step <= UNTIL
        optimizer.zero_grad()
        tape = reader.tape(model, inside=False).start() if due else None
        loss = loss_of(model(x), y)
        loss.backward()
        if tape is not None:
            tape.stop()
            reading, sample = reader.read(tape, None, model, None), Sample(parameters)
            optimizer.step()
            readings.append(replace(reading.at(1.0, *sample.lengths()), step=step))
        else:
            optimizer.step()
        schedule.step()
        if step >= task.steps - task.steps // 20:
            tail.append(float(loss.detach()))
    first, (rule, edge) = readings[0], recognise(optimizer)
    columns = {name: column([rounded(getattr(r, name), 3) for r in readings]) for name in COLUMNS}
    final = rounded(sum(tail) / len(tail), 4)
    return {"lr": lr, "edge": edge, "rule": rule, "normalized": first.normalized, "final": final, "columns": columns}


def column(values: list[float | None]) -> list[float | None] | float | None:
    """A column that is all the same is one value."""
    return values[0] if len(set(values)) == 1 else values


def rounded(value: float, digits: int) -> float | None:
    """To significant digits; None where it is no number, which JSON has no word for."""
    return float(f"{value:.{digits}g}") if math.isfinite(value) else None


def run(path: Path, only: str = "") -> None:
    """Train every task at every rate and write the readings down, where that has not been done with today's readings."""
    known = {"fit": {}, "held out": {}} | (json.loads(path.read_text()) if path.exists() else {})
    began = time.perf_counter()
    for part, tasks in (("fit", FITTED), ("held out", HELD_OUT)):
        for task in tasks:
            if only not in task.key or known[part].get(task.key, {}).get("products") == PRODUCTS:
                continue
            since = time.perf_counter()
            runs = [train(task, lr) for lr in RULES[task.rule][1]]
            known[part][task.key] = {
                "batch": task.batch, "steps": task.steps, "products": PRODUCTS, "runs": runs,
            }  # fmt: skip
            path.parent.mkdir(exist_ok=True)
            path.write_text(dumped(known))
            finals = " ".join(f"{run['final']}" for run in runs)
            print(f"{part}: {task.key} ({time.perf_counter() - since:.1f} s): {finals}", flush=True)
    print(f"{time.perf_counter() - began:.0f} s")


def dumped(known: dict[str, Any]) -> str:
    """One line a run."""
    lines = []
    for part, tasks in known.items():
        rows = [
            f'{json.dumps(key)}: {{{settings(task)}, "runs": [\n'
            + ",\n".join(json.dumps(run, separators=(",", ":")) for run in task["runs"])
            + "\n]}"
            for key, task in tasks.items()
        ]
        lines.append(f"{json.dumps(part)}: {{\n" + ",\n".join(rows) + "\n}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def settings(task: dict[str, Any]) -> str:
    """What is written of a task beside its runs."""
    return ", ".join(f'"{name}": {json.dumps(task[name])}' for name in ("batch", "steps", "products"))


# -- judging ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """One run: what was read of it, and what its end shows."""

    task: str
    lr: float
    readings: list[SpectralReading]
    steps: int
    ratio: float
    """Final loss over the grid's best."""
    truth: frozenset[str]
    """The answers that pass."""


def runs_of(part: dict[str, Any]) -> list[Run]:
    """The runs of a set of tasks, with their truth; without tasks on which a run that never moves would pass as right."""
    runs = []
    for key, task in part.items():
        finals = [math.inf if run["final"] is None else run["final"] for run in task["runs"]]
        best = finals.index(min(finals))
        if task["runs"][0]["columns"]["loss"][0] <= 1.5 * finals[best]:
            continue
        for i, run in enumerate(task["runs"]):
            ratio = finals[i] / finals[best]
            side = "too low" if i < best else "too high"
            truth = {"right"} if ratio <= 1.5 else {side, "right"} if ratio <= 3 else {side}
            runs.append(Run(key, run["lr"], readings_of(run, task), task["steps"], ratio, frozenset(truth)))
    return runs


def readings_of(run: dict[str, Any], task: dict[str, Any]) -> list[SpectralReading]:
    """The columns as readings."""
    readings = []
    count = UNTIL // EVERY + 1
    columns = [v if isinstance(v, list) else [v] * count for v in (run["columns"][name] for name in COLUMNS)]
    averages = "ad" in run["rule"] or "rms" in run["rule"]
    for i, values in enumerate(zip(*columns)):
        seen: dict[str, Any] = {name: math.nan if value is None else value for name, value in zip(COLUMNS, values)}
        readings.append(
            SpectralReading(
                step=i * EVERY, edge=run["edge"], lr=(run["lr"],), rule=run["rule"], normalized=run["normalized"],
                probe=task["batch"], warming="its averages are young" if averages and i * EVERY < WARMING else "",
                reason="" if math.isfinite(seen["r"]) else "the loss or its curvature is not finite", **seen,
            )
        )  # fmt: skip
    return readings


ANSWER = {"collapsed": "too high", "at the edge": "right"}


def ours(run: Run, every: int = EVERY) -> str:
    """The verdict as an answer; a verdict that waits is no answer, and counts as wrong."""
    state = judge([r for r in run.readings if r.step % every == 0], total_steps=run.steps).state
    return ANSWER.get(state, state)


def grad_norm(run: Run) -> float:
    return median(reading.grad_norm for reading in run.readings[WARMING // EVERY :])


def loss_slope(run: Run) -> float:
    """Share of the loss that is left after the window."""
    losses = [r.loss for r in run.readings]
    return median(losses[-5:]) / losses[0]


def update_ratio(run: Run) -> float:
    return median(reading.update_ratio for reading in run.readings[WARMING // EVERY :])


def r_over_edge(run: Run) -> float:
    return median(r.r for r in run.readings[WARMING // EVERY :]) / (run.readings[0].edge or math.nan)


def two_thresholds(value: Callable[[Run], float], runs: list[Run]) -> Callable[[Run], str]:
    """The pair of thresholds, and the direction, that judge most of these runs correctly."""
    values = [value(run) for run in runs]
    known = sorted(v for v in values if math.isfinite(v))
    cuts = [known[int(i * (len(known) - 1) / 60)] for i in range(61)]

    def answer(v: float, low: float, high: float, rising: bool) -> str:
        if not math.isfinite(v):
            return "too high"
        place = ("too low", "right", "too high") if rising else ("too high", "right", "too low")
        return place[0] if v < low else place[2] if v > high else place[1]

    def correct(options: tuple[float, float, bool]) -> int:
        return sum(answer(v, *options) in run.truth for v, run in zip(values, runs))

    pairs = [(low, high, rising) for low in cuts for high in cuts if low <= high for rising in (True, False)]
    best = max(pairs, key=correct)
    return lambda run: answer(value(run), *best)


def line(name: str, answer: Callable[[Run], str], runs: list[Run]) -> str:
    """Share of correct answers; shares of "right" said of runs over 3 times the best, of all runs and of those answers."""
    said = [(answer(run), run) for run in runs]
    correct = sum(a in run.truth for a, run in said)
    right = [run for a, run in said if a == "right"]
    wrong = sum(run.ratio > 3 for run in right)
    none = sum(a not in ("too low", "right", "too high") for a, _ in said)
    return (
        f"| {name} | {correct} of {len(runs)} | {correct / len(runs):.1%} | {wrong / len(runs):.1%} "
        f"| {wrong / max(len(right), 1):.1%} | {none} |"
    )


FAMILIES = {
    "digits": ("digits", "digits, 20 % relabelled", "digits again", "noisy digits", "sums of digits", "blurred digits", "views"),
    "mnist": ("mnist", "mnist, 30 % relabelled", "large mnist", "rotations"),
    "regression": (
        "teacher", "noisy teacher", "diabetes", "waves", "friedman", "swiss roll", "robot arm", "motion", "ratings",
        "outliers", "houses", "cars",
    ),
    "tables": ("cancer", "wine", "made classes", "drawn classes", "quadrics", "circuits", "iris", "tags", "primes"),
    "plane": ("spirals", "moons"),
    "signals": ("tones", "gratings", "heartbeats"),
    "texts": (
        "text", "other text", "prose", "counting", "text of numbers", "text of averages", "copies", "reversals",
        "brackets", "sums", "sorting",
    ),
    "photographs": ("pixels", "patches", "textures", "a picture"),
    "graphs and sets": ("graphs", "point sets", "baskets", "orbits"),
}  # fmt: skip
"""Kinds of the fitted data: the constants are fitted without one kind, and tested on it."""
GRID = {
    "LOW": (0.25, 0.3, 0.35), "LOW_BATCH": (0.5, 0.6, 0.7), "LOW_GRADIENT": (0.4, 0.5, 0.6),
    "STRAIN": (4.5, 5.5, 7.0), "HIGH": (8.0, 12.0, 20.0),
}  # fmt: skip
"""Constants of the rule that are fitted anew without each kind, and their values."""
TOLERATED = 0.5
"""What a "right" over 3 times the best costs in the fit, in wrong answers, beside being one."""


def _answers(runs: list[Run]) -> Iterator[list[str]]:
    """The verdicts at each choice of the constants."""
    before = {name: getattr(thresholds, name) for name in GRID}
    try:
        for values in itertools.product(*GRID.values()):
            for name, value in zip(GRID, values):
                setattr(thresholds, name, value)
            yield [ours(run) for run in runs]
    finally:
        for name, value in before.items():
            setattr(thresholds, name, value)


def kinds(path: Path) -> None:
    """Fit the constants without one kind of data, judge that kind, in turn; print the share of correct answers."""
    data = {task.key: task.data for task in FITTED}
    kind_of = {name: kind for kind, names in FAMILIES.items() for name in names}
    runs = runs_of(json.loads(path.read_text())["fit"])
    kind = [kind_of[data[run.task]] for run in runs]
    all_answers = list(_answers(runs))
    cost = [
        [(a not in run.truth) + TOLERATED * (a == "right" and run.ratio > 3) for a, run in zip(answers, runs)]
        for answers in all_answers
    ]
    print('\n| left out | runs | correct | "right" over 3 x |\n|---|--:|--:|--:|')
    total = wrong = 0
    for left in FAMILIES:
        best = min(range(len(cost)), key=lambda i: sum(c for c, k in zip(cost[i], kind) if k != left))
        tested = [(a, run) for a, run, k in zip(all_answers[best], runs, kind) if k == left]
        correct = sum(a in run.truth for a, run in tested)
        far = sum(a == "right" and run.ratio > 3 for a, run in tested)
        total, wrong = total + correct, wrong + far
        print(f"| {left} | {len(tested)} | {correct / len(tested):.1%} | {far / len(tested):.1%} |")
    print(f"| all | {len(runs)} | {total / len(runs):.1%} | {wrong / len(runs):.1%} |")


def report(path: Path, *, misses: bool) -> None:
    """Print how often each rule is correct, on both sets."""
    known = json.loads(path.read_text())
    sets = {name: runs_of(part) for name, part in known.items()}
    rules: dict[str, Callable[[Run], str]] = {
        "verdict": ours,
        "verdict, a reading every 20 steps": partial(ours, every=20),
    }
    rules["two thresholds on r/e"] = two_thresholds(r_over_edge, sets["fit"])
    for name, value in (("gradient norm", grad_norm), ("loss slope", loss_slope), ("update ratio", update_ratio)):
        rules[name] = two_thresholds(value, sets["fit"])
    for part, runs in sets.items():
        left_out = sorted(known[part].keys() - {run.task for run in runs})
        earlier = sum(task["products"] != PRODUCTS for task in known[part].values())
        told = f"; read by fewer products: {earlier} tasks" if earlier else ""
        print(
            f"\n{part}: {len(known[part]) - len(left_out)} tasks, {len(runs)} runs{told}; left out: {left_out or 'none'}\n"
        )
        print('| rule | correct | | "right" over 3 x, of all runs | of those said right | no answer |')
        print("|---|--:|--:|--:|--:|--:|")
        for name, answer in rules.items():
            print(line(name, answer, runs))
        for run in runs:
            if misses and ours(run) not in run.truth:
                print(f"  {run.task}, lr {run.lr:g}: {' or '.join(sorted(run.truth))} ({run.ratio:.3g} x the best)")
                print("    " + str(judge(run.readings, total_steps=run.steps)).replace("\n", "\n    "))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", action="store_true", help="train the runs that are not yet in the results")
    parser.add_argument("--only", default="", help="part of a task's name")
    parser.add_argument("--misses", action="store_true", help="print the verdicts that are wrong")
    parser.add_argument("--kinds", action="store_true", help="cross-validate over kinds of data (a minute)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.run:
        run(RESULTS, options.only)
    report(RESULTS, misses=options.misses)
    if options.kinds:
        kinds(RESULTS)


if __name__ == "__main__":
    main()
