"""H0 and H1 against the libraries installed beside them, each in a process of its own: seconds and peak memory.

    python benchmarks/homology_libraries.py [--n0 4096] [--n1 2048] [--only h0|h1|points]

Targets: H0 from distances at least 20 times faster than ripser.py with a fifth of its memory; H0 from points within 1.5
times the bare product X X^T at (4096, 1537) and 3 times at (2048, 513); H0 + H1 at least 15 times faster than ripser.py.
Medians of three runs on one thread; the memory is what the runs added to the process's peak.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys

PROGRAM = """
import json, resource, statistics, time
import numpy as np, torch
from topoopt.geometry import distances
from topoopt.homology import persistence, spanning_tree
torch.set_num_threads(1)
n, d = {n}, {d}
x = torch.randn(n, d, generator=torch.Generator().manual_seed(0))
D = distances(x) if {given} else None
X, M = x.numpy(), D.numpy() if {given} else None
{setup}
def run(): return {call}
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before, times = peak(), []
for _ in range({repeats}):
    began = time.perf_counter(); run(); times.append(time.perf_counter() - began)
print(json.dumps([statistics.median(times), peak() - before]))
"""

GUDHI = "from gudhi.sklearn.rips_persistence import RipsPersistence as R"
H0 = {
    "topoopt": ("", "", "spanning_tree(D)"),
    "ripser.py": ("ripser", "import ripser", "ripser.ripser(M, maxdim=0, distance_matrix=True)"),
    "gudhi": ("gudhi", GUDHI, "R(homology_dimensions=0, input_type='full distance matrix').fit_transform([M])"),
    "redzed": ("redzed_tda", "import redzed_tda", "redzed_tda.rips(M, maxdim=0)"),
    "giotto-ph": ("gph", "import gph", "gph.ripser_parallel(M, maxdim=0, metric='precomputed', n_threads=1)"),
    "scipy": ("scipy", "from scipy.sparse.csgraph import minimum_spanning_tree as mst", "mst(M)"),
}
POINTS = {
    "X X^T": ("", "", "x @ x.T"),
    "topoopt": ("", "", "spanning_tree(distances(x), points=x)"),
    "ripser.py": ("ripser", "import ripser", "ripser.ripser(X, maxdim=0)"),
    "gudhi": ("gudhi", GUDHI, "R(homology_dimensions=0).fit_transform([X])"),
    "scikit-learn": (
        "sklearn",
        "from sklearn.cluster import AgglomerativeClustering as A",
        "A(n_clusters=1, linkage='single', compute_distances=True).fit(X)",
    ),
    "scipy": ("scipy", "from scipy.cluster.hierarchy import linkage", "linkage(X, 'single')"),
}
H1 = {
    "topoopt": ("redzed_tda", "", "persistence(distances=D, degree=1)"),
    "topoopt (ripser)": ("ripser", "", "persistence(distances=D, degree=1, backend='ripser')"),
    "ripser.py": ("ripser", "import ripser", "ripser.ripser(M, maxdim=1, distance_matrix=True)"),
    "gudhi": ("gudhi", GUDHI, "R(homology_dimensions=(0, 1), input_type='full distance matrix').fit_transform([M])"),
    "giotto-ph": ("gph", "import gph", "gph.ripser_parallel(M, maxdim=1, metric='precomputed', n_threads=1)"),
}


def measured(setup: str, call: str, n: int, d: int, given: bool, repeats: int) -> tuple[float, float]:
    """(seconds, MB) of one call in a fresh process."""
    program = PROGRAM.format(setup=setup, call=call, n=n, d=d, given=given, repeats=repeats)
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    seconds, megabytes = json.loads(done.stdout)
    return seconds, megabytes


def table(title: str, rivals: dict[str, tuple[str, str, str]], n: int, d: int, given: bool, repeats: int) -> None:
    print(f"\n{title}, n = {n}, d = {d}\n{'':<20}{'seconds':>10}{'MB':>8}{'times the first':>18}")
    first = 0.0
    for name, (module, setup, call) in rivals.items():
        if module and importlib.util.find_spec(module) is None:
            print(f"{name:<20}{'not installed':>18}")
            continue
        seconds, megabytes = measured(setup, call, n, d, given, repeats)
        first = first or seconds
        print(f"{name:<20}{seconds:>10.3f}{megabytes:>8.0f}{seconds / first:>18.2f}", flush=True)


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--n0", type=int, default=4096)
    arguments.add_argument("--n1", type=int, default=2048)
    arguments.add_argument("--only", choices=["h0", "points", "h1"])
    arguments.add_argument("--repeats", type=int, default=3)
    options = arguments.parse_args()
    if options.only in (None, "h0"):
        table("H0 from distances", H0, options.n0, 64, True, options.repeats)
    if options.only in (None, "points"):
        table("H0 from points", POINTS, options.n0, 1537, False, options.repeats)
        table("H0 from points", POINTS, options.n0 // 2, 513, False, options.repeats)
    if options.only in (None, "h1"):
        table("H0 + H1 from distances", H1, options.n1, 64, True, options.repeats)


if __name__ == "__main__":
    main()
