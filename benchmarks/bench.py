"""Every benchmark that stands beside its peers, one after the other, and what is made of their results.

    python benchmarks/bench.py            # the small sizes: results/*.json, RESULTS.md, the README's table
    python benchmarks/bench.py --full     # all of them
    python benchmarks/bench.py --check    # the small sizes, beside what is committed: fails where topoopt's own ratios got worse

In pieces: `--only monitoring curvature_peers` runs these alone, and everything that is not known here is passed on to them, as
`--models minilm`, `--fill` (only rows that are missing, or topoopt's of another source) or `--since 2026-11-25T20:40`.

Each benchmark has a process of its own, on one thread; on Linux `taskset` may keep it to one core.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import _results
import _tables
from _compare import compare

FOLDER = Path(__file__).parent
SCRIPTS = ("geometry_distances", "homology_lazy", "persistence", "curvature_peers", "discovery_peers", "monitoring")
OURS = {
    "monitoring": ("--tools", "topoopt, defaults", "topoopt, r", "topoopt, everything"),
    "curvature_peers": ("--tools", "topoopt"),
    "discovery_peers": ("--tools", "topoopt"),
    "persistence": (
        "--tools",
        "topoopt",
        "X X^T",
        "topoopt, a step",
        "topoopt, a step, two windows",
        "ripser.py",
        "hera in gudhi, exact",
        "redzed-tda, H0 and H1",
        "topoopt, births",
    ),
}
"""Arguments that leave out peers which are neither compared nor what a ratio is to."""
THREADS = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def run(script: str, *arguments: str) -> bool:
    """Whether one benchmark came to its end; what it has measured by then is kept."""
    print(f"== {script} {' '.join(arguments)}", flush=True)
    began = time.perf_counter()
    command = [sys.executable, "-W", "ignore", str(FOLDER / f"{script}.py"), *arguments]
    status = subprocess.run(command, check=False, env={**os.environ, **THREADS}).returncode
    print(f"== {script}: {time.perf_counter() - began:.0f} s{f', FAILED with {status}' if status else ''}", flush=True)
    return not status


def check(scripts: list[str], more: list[str]) -> list[str]:
    """What got worse, in words."""
    worse: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        for script in scripts:
            now = Path(folder) / f"{script}.json"
            if not run(script, "--output", str(now), *OURS.get(script, ()), *more):
                worse.append(f"{script} did not come to its end")
            if now.exists():
                worse += compare(_results.load(_results.RESULTS / f"{script}.json"), _results.load(now))
    return worse


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--only", nargs="+", choices=SCRIPTS, default=list(SCRIPTS))
    given, more = parser.parse_known_args()
    if given.check:
        worse = check(given.only, more)
        print("\n".join(worse) or "no ratio of topoopt's is worse than committed by more than its tolerance")
        return 1 if worse else 0
    ended = [run(script, *(["--full"] if given.full else []), *more) for script in given.only]
    _tables.write_results()
    _tables.write_readme()
    return 0 if all(ended) else 1


if __name__ == "__main__":
    sys.exit(main())
