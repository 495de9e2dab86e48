"""Fine-tune MiniLM on Reuters R8 with and without the callback, side by side: seconds and accuracy of both.

    python benchmarks/finetune_pair.py --steps 1029

Both runs go on at the same time, each on its own half of the cores, so that both see the same machine; then they change
places. 1,029 steps of 16 texts are three epochs. Pairs of wall times still differ by some per cent on a busy machine: the
processes' CPU time, homology's own process included, is the second witness.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

PROGRAM = Path(__file__).parents[1] / "examples" / "finetune_minilm.py"


@dataclass(frozen=True)
class Run:
    """What one run printed, and what it took."""

    seconds: float
    """Trainer's own train_runtime."""
    cpu: float
    """User and system time of the process and its children, loading and evaluation included."""
    accuracy: float
    says: str
    """The lines about measuring."""


def start(mode: str, cores: list[int], folder: str, options: argparse.Namespace) -> subprocess.Popen[str]:
    """Start one run on some cores."""
    flags = {"--mode": mode, "--steps": options.steps, "--budget": options.budget, "--test": 10_000, "--out": folder}
    command = [
        sys.executable,
        str(PROGRAM),
        "--every",
        str(options.every),
        *(str(x) for kv in flags.items() for x in kv),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": str(len(cores)), "TQDM_DISABLE": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment)
    os.sched_setaffinity(process.pid, cores)
    return process


def finish(process: subprocess.Popen[str]) -> Run:
    """Wait for a run and read what it printed.

    Raises:
        RuntimeError: when it failed.
    """
    assert process.stdout is not None
    text = process.stdout.read()
    _, status, used = os.wait4(process.pid, 0)
    found = re.search(r"trained in ([\d.]+) s\naccuracy ([\d.]+)", text)
    if status or found is None:
        raise RuntimeError(f"the run failed (status {status}):\n{text[-2000:]}")
    says = "; ".join(line for line in text.splitlines() if "measur" in line)
    return Run(float(found[1]), used.ru_utime + used.ru_stime, float(found[2]), says)


def pair(swapped: bool, options: argparse.Namespace) -> tuple[Run, Run]:
    """(without, with), side by side."""
    cores = sorted(os.sched_getaffinity(0))
    halves = [cores[: len(cores) // 2], cores[len(cores) // 2 :]]
    first, second = reversed(halves) if swapped else halves
    with TemporaryDirectory() as one, TemporaryDirectory() as other:
        bare = start("off", first, one, options)
        measured = start("report", second, other, options)
        return finish(bare), finish(measured)


def main() -> None:
    """Print one line a run, and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1029)
    parser.add_argument("--every", type=int, default=100)
    parser.add_argument("--budget", type=float, default=0.01)
    parser.add_argument("--pairs", type=int, default=2)
    options = parser.parse_args()
    if len(os.sched_getaffinity(0)) < 2:
        raise SystemExit("two runs side by side need two cores")
    walls, cpus = [], []
    for turn in range(options.pairs):
        bare, measured = pair(turn % 2 == 1, options)
        for name, run in (("without", bare), ("with", measured)):
            print(
                f"{name:<8} {run.seconds:8.1f} s  cpu {run.cpu:8.1f} s  accuracy {run.accuracy:.4f}  {run.says}",
                flush=True,
            )
        walls.append(measured.seconds / bare.seconds)
        cpus.append(measured.cpu / bare.cpu)
        print(f"with / without: wall {walls[-1]:.4f}, cpu {cpus[-1]:.4f}", flush=True)
    wall, cpu = (math.prod(ratios) ** (1 / len(ratios)) for ratios in (walls, cpus))
    print(f"all pairs, geometric mean: wall {wall:.4f}, cpu {cpu:.4f}")


if __name__ == "__main__":
    main()
