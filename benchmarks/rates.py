"""`topoopt.suggest` against the rates that people use: final training loss of 400 steps under a cosine schedule.

Rows: topoopt's suggestion; the learning-rate range test by both of its rules (steepest descent of the smoothed loss, as
Lightning's `lr_find` has it, and a tenth of the rate of the smallest loss); Prodigy; schedule-free AdamW; torch's default;
and what all are measured by, the best of a grid of seven rates. A task is run from two initialisations, its loss is their
geometric mean. The tasks that are held out were never looked at while `suggest` was made (`_rates_tasks.py` marks them).

    python benchmarks/rates.py                   # what is not in results/rates.json yet, then the table
    python benchmarks/rates.py --only suggest    # that row anew, the grid and the others from the file
    python benchmarks/rates.py --show            # the table alone
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _rates_tasks import RULES, TASKS, Batch, Task, fresh_model, train

import topoopt

RESULTS = Path(__file__).parent / "results" / "rates.json"
RANGE_STEPS, LOWEST, HIGHEST, STOP = 100, 1e-6, 10.0, 4.0
"""The range test: steps, ends of the sweep, and the multiple of the smallest smoothed loss at which it stops."""
LOST = 1000.0
"""A run is lost when its loss is not finite, or so many times the best of the grid."""


def range_test(task: Task, data: list[Batch], seed: int) -> tuple[list[float], list[float]]:
    """Rates and smoothed losses of a sweep that grows geometrically, until the loss is several times its smallest."""
    model, rates, losses, average = fresh_model(task, seed), [], [], 0.0
    optimizer = RULES[task.rule].make(model.parameters(), lr=LOWEST)
    for step, batch in enumerate(data[:RANGE_STEPS]):
        for group in optimizer.param_groups:
            group["lr"] = LOWEST * (HIGHEST / LOWEST) ** (step / (RANGE_STEPS - 1))
        optimizer.zero_grad()
        loss = task.loss_fn(model, batch)
        loss.backward()
        optimizer.step()
        average = 0.98 * average + 0.02 * float(loss.detach())
        smoothed = average / (1 - 0.98 ** (step + 1))
        if not math.isfinite(smoothed) or (step > 1 and smoothed > STOP * min(losses)):
            break
        rates.append(optimizer.param_groups[0]["lr"])
        losses.append(smoothed)
    return rates, losses


def steepest(task: Task, data: list[Batch], seed: int) -> float:
    """Lightning's rule: where the smoothed loss falls fastest, the first ten rates and the last left out."""
    rates, losses = range_test(task, data, seed)
    return rates[10 + int(np.gradient(losses[10:-1]).argmin())]


def tenth_of_minimum(task: Task, data: list[Batch], seed: int) -> float:
    """The older rule: a tenth of the rate of the smallest smoothed loss."""
    rates, losses = range_test(task, data, seed)
    return rates[int(np.argmin(losses))] / 10


def suggested(task: Task, data: list[Batch], seed: int) -> tuple[float, dict[str, Any]]:
    """topoopt's rate, and what it says of it."""
    model = fresh_model(task, seed)
    optimizer = RULES[task.rule].make(model.parameters(), lr=RULES[task.rule].default)
    found = topoopt.suggest(model, optimizer, data, task.loss_fn)
    approached = max((one.step, one.lr) for one in found.readings if one.trial == 0)[1]
    said = {"known": found.known, "bracket": found.bracket, "steps": found.steps, "approached": approached}
    return found.lr[0], said | {"reason": found.reason}


def own_rule(task: Task, data: list[Batch], seed: int, lr: float) -> float:
    """Loss of the task's own rule at a rate."""
    return train(task, data, lambda p: RULES[task.rule].make(p, lr=lr), seed=seed)


def prodigy(task: Task, data: list[Batch], seed: int) -> float:
    """Loss under Prodigy, at its rate of 1."""
    from prodigyopt import Prodigy

    return train(task, data, partial(Prodigy, lr=1.0), seed=seed)


def schedule_free(task: Task, data: list[Batch], seed: int) -> float:
    """Loss under schedule-free AdamW at its default rate, without a schedule."""
    from schedulefree import AdamWScheduleFree

    return train(task, data, AdamWScheduleFree, cosine=False, seed=seed)


RATES: dict[str, Callable[[Task, list[Batch], int], Any]] = {
    "suggest": suggested,
    "lr_find, steepest": steepest,
    "lr_find, minimum / 10": tenth_of_minimum,
    "default": lambda task, data, seed: RULES[task.rule].default,
}
RIVALS = {"Prodigy": prodigy, "schedule-free AdamW": schedule_free}
ROWS = ["grid", *RATES, *RIVALS]


def run(task: Task, data: list[Batch], row: str) -> dict[str, Any]:
    """A row of a task: the losses and, where it chose one, the rate of each initialisation."""
    if row == "grid":
        return {f"{lr:g}": [own_rule(task, data, seed, lr) for seed in task.seeds] for lr in RULES[task.rule].grid}
    if row in RIVALS:
        return {"losses": [RIVALS[row](task, data, seed) for seed in task.seeds]}
    lrs, said = [], []
    for seed in task.seeds:
        answer = RATES[row](task, data, seed)
        lr, more = answer if isinstance(answer, tuple) else (answer, None)
        lrs.append(lr)
        said += [more] if more else []
    losses = [own_rule(task, data, seed, lr) for seed, lr in zip(task.seeds, lrs)]
    return {"losses": losses, "lr": lrs} | ({"said": said} if said else {})


def mean(losses: list[float]) -> float:
    """The geometric mean; infinite if one run is lost."""
    return math.exp(statistics.mean(map(math.log, losses))) if all(map(math.isfinite, losses)) else math.inf


def best_of(kept: dict[str, Any]) -> tuple[float, float]:
    """The grid's best rate and its loss."""
    rate = min(kept["grid"], key=lambda lr: mean(kept["grid"][lr]))
    return float(rate), mean(kept["grid"][rate])


def key(task: Task) -> str:
    return f"{task.name} | {task.rule}"


# ---------------------------------------------------------------- the table


def judged(kept: dict[str, Any], row: str) -> tuple[float, list[float]] | None:
    """Loss over the grid's best, and the rates over its best rate; None where the row says that it does not know."""
    rate, best = best_of(kept)
    said = kept[row].get("said", [])
    if not all(one["known"] for one in said):
        return None
    return mean(kept[row]["losses"]) / best, [lr / rate for lr in kept[row].get("lr", [])]


def summary(tasks: list[dict[str, Any]], row: str) -> list[str]:
    """Cells of a row: within 1.5 and 3, lost, not known, the worst that was not lost, the spread of the rate."""
    found = [judged(kept, row) for kept in tasks]
    ratios = [one[0] for one in found if one is not None]
    logs = [math.log(ratio) for one in found if one is not None for ratio in one[1]]
    varied = row != "default" and len(logs) > 1
    return [
        f"{sum(ratio <= 1.5 for ratio in ratios)} of {len(tasks)}",
        str(sum(ratio <= 3 for ratio in ratios)),
        str(sum(not ratio <= LOST for ratio in ratios)),
        str(len(tasks) - len(ratios)),
        f"{max((ratio for ratio in ratios if ratio <= LOST), default=math.nan):.3g}",
        f"{math.exp(statistics.mean(logs)):.2g} x or / {math.exp(statistics.stdev(logs)):.2g}" if varied else "",
    ]


def coverage(tasks: list[dict[str, Any]]) -> tuple[int, int]:
    """How many brackets hold the grid's best rate, of how many."""
    inside = [
        one["bracket"][0] <= best_of(kept)[0] <= one["bracket"][1]
        for kept in tasks
        for one in kept["suggest"]["said"]
        if one["known"]
    ]
    return sum(inside), len(inside)


def approach_error(tasks: dict[str, dict[str, Any]], other: bool) -> tuple[float, float]:
    """Geometric mean and spread of where the approach ended over the grid's best rate, at a momentum of 0.9 or at others."""
    logs = [
        math.log(one["approached"] / best_of(kept)[0])
        for name, kept in tasks.items()
        for one in kept["suggest"]["said"]
        if other == any(part in name.split(" | ")[1] for part in (" .5", " .95"))
    ]
    return math.exp(statistics.mean(logs)), math.exp(statistics.stdev(logs))


def show(kept: dict[str, dict[str, Any]]) -> None:
    """Print both tables, of the tasks that were fitted on and of those held out, and what each task gave."""
    rows = [row for row in ROWS[1:] if all(row in one for one in kept.values())]
    columns = [
        "",
        "within 1.5 x",
        "3 x",
        "lost",
        "not known",
        "worst not lost",
        "rate over the grid's best: mean, spread",
    ]
    for held_out in (False, True):
        part = {name: one for name, one in kept.items() if one["held_out"] == held_out}
        print(f"\n{'Held out' if held_out else 'Fitted on'}: {len(part)} tasks\n")
        print("| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))
        for row in rows:
            print("| " + " | ".join([row, *summary(list(part.values()), row)]) + " |")
        if "suggest" in rows:
            inside, count = coverage(list(part.values()))
            print(f"\nThe bracket holds the grid's best rate in {inside} of {count}.")
            for other, name in ((False, "0.9"), (True, "0.5 and 0.95")):
                mid, spread = approach_error(part, other)
                print(f"The approach alone, momentum {name}: {mid:.2f} of the best rate, spread {spread:.2f}.")
    print("\n| task | rule | held out | best of grid | at | " + " | ".join(rows) + " |\n|" + "---|" * (5 + len(rows)))
    for name, one in kept.items():
        rate, best = best_of(one)
        found = [judged(one, row) for row in rows]
        cells = ["not known" if value is None else f"{value[0]:.2f}" if value[0] <= LOST else "lost" for value in found]
        head = [*name.split(" | "), "yes" if one["held_out"] else "", f"{best:.3g}", f"{rate:g}"]
        print("| " + " | ".join([*head, *cells]) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=ROWS, help="run this row anew")
    parser.add_argument("--tasks", default="", help="part of a task's name or rule")
    parser.add_argument("--show", action="store_true", help="print what is kept, run nothing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message=".*lr_scheduler.step.*")
    kept: dict[str, dict[str, Any]] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for task in TASKS if not options.show else ():
        if options.tasks not in key(task):
            continue
        one = kept.setdefault(key(task), {"held_out": task.held_out})
        wanted = [row for row in ROWS if row not in one or row == options.only]
        data = task.data() if wanted else []
        for row in wanted:
            one[row] = run(task, data, row)
            RESULTS.write_text(json.dumps(kept, indent=1) + "\n")
    show(kept)


if __name__ == "__main__":
    main()
