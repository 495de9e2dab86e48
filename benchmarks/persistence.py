"""Persistence, ours beside every library that is installed: seconds, peak memory, exactness; H0 from points and H0 + H1.

    python benchmarks/persistence.py [--full] [--only h0|h1|bottleneck|measure] [--output benchmarks/results/persistence.json]

Each call runs in a process of its own, on one thread; times are of the processor, so that other work on the machine does not
count, medians of three with the least and the largest; memory is what the calls added to the process's peak. Difference: the
largest relative one of a sorted death (H0), or whether the sorted H1 bars are ripser's, bit for bit in float32. Targets: H0
from points within 1.5 times the bare product X X^T; H0 + H1 at least 15 times faster than ripser.py.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import importlib.util
import json
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

PROGRAM = """
import json, statistics, sys, time
import numpy as np
X, M = np.load(sys.argv[1]), np.load(sys.argv[2]) if {matrix} else None
{setup}
def run(): return {call}
def peak():  # not ru_maxrss, which begins at that of the process that started this one
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) / 1024
before, times, found = peak(), [], None
for _ in range({repeats}):
    began = time.process_time(); found = run(); times.append(time.process_time() - began)
answer = {answer}
if answer is not None: np.save(sys.argv[3], np.asarray(answer, dtype=np.float64))
print(json.dumps([statistics.median(times), min(times), max(times), peak() - before]))
"""
OURS = """
import torch
torch.set_num_threads(1)
from topoopt.geometry import Cloud, collect, distances, measure
from topoopt.homology import bottleneck, persistence
x, D = torch.from_numpy(X), None if M is None else torch.from_numpy(M)
def noise(seed): return torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))
y, old = x + 1e-3 * noise(1), x + 1e-2 * noise(2)
"""
GUDHI = "from gudhi.sklearn.rips_persistence import RipsPersistence as R"
Rival = tuple[str, str, str, str]
"""Module, set-up, call, and the numbers to compare."""
H0: dict[str, Rival] = {
    "X X^T": ("", OURS, "x @ x.T", "None"),
    "topoopt": ("", OURS, "Cloud(x).tree", "found.deaths.double()"),
    "ripser.py": ("ripser", "import ripser", "ripser.ripser(X, maxdim=0)", "np.sort(found['dgms'][0][:-1, 1])"),
    "redzed-tda": (
        "redzed_tda",
        OURS + "import redzed_tda",
        "redzed_tda.rips(distances(x).numpy(), maxdim=0)",
        "np.sort(found[0][:-1, 1])",
    ),
    "gudhi": ("gudhi", GUDHI, "R(homology_dimensions=0).fit_transform([X])", "np.sort(found[0][:-1, 1])"),
    "giotto-ph": (
        "gph",
        "import gph",
        "gph.ripser_parallel(X, maxdim=0, n_threads=1)",
        "np.sort(found['dgms'][0][:-1, 1])",
    ),
    "canns-ripser": (
        "canns_ripser",
        "import canns_ripser",
        "canns_ripser.ripser(X, maxdim=0)",
        "np.sort(found['dgms'][0][:-1, 1])",
    ),
    "scipy MST": (
        "scipy",
        "from scipy.sparse.csgraph import minimum_spanning_tree as mst; from scipy.spatial.distance import pdist, squareform",
        "mst(squareform(pdist(X)))",
        "np.sort(found.data)",
    ),
    "scipy linkage": ("scipy", "from scipy.cluster.hierarchy import linkage", "linkage(X, 'single')", "found[:, 2]"),
}
BARS = "np.sort(np.asarray({}, np.float32).reshape(-1, 2), axis=0)"
H1: dict[str, Rival] = {
    "ripser.py": (
        "ripser",
        "import ripser",
        "ripser.ripser(M, maxdim=1, distance_matrix=True)",
        BARS.format("found['dgms'][1]"),
    ),
    "topoopt": ("", OURS, "persistence(distances=D)", BARS.format("found.diagrams[1]")),
    "redzed-tda": ("redzed_tda", "import redzed_tda", "redzed_tda.rips(M, maxdim=1)", BARS.format("found[1]")),
    "gudhi": (
        "gudhi",
        GUDHI,
        "R(homology_dimensions=(0, 1), input_type='full distance matrix').fit_transform([M])",
        BARS.format("found[0][1]"),
    ),
    "giotto-ph": (
        "gph",
        "import gph",
        "gph.ripser_parallel(M, maxdim=1, metric='precomputed', n_threads=1)",
        BARS.format("found['dgms'][1]"),
    ),
    "canns-ripser": (
        "canns_ripser",
        "import canns_ripser",
        "canns_ripser.ripser(M, maxdim=1, distance_matrix=True)",
        BARS.format("found['dgms'][1]"),
    ),
}
MEASURE: dict[str, Rival] = {
    "X X^T": ("", OURS, "x @ x.T", "None"),
    "a step": ("", OURS, "collect([measure(x, y)])", "None"),
    "a step, two windows": ("", OURS, "collect([measure(x, y, windows={'first': old, 'last': 2 * old})])", "None"),
}
TWO = """
import redzed_tda
from scipy.spatial.distance import cdist
Y = X + 1e-2 * np.random.default_rng(2).normal(size=X.shape)
a, b = (np.asarray(redzed_tda.rips(cdist(points, points), maxdim=1)[1]) for points in (X, Y))
"""
BOTTLENECK: dict[str, Rival] = {
    "topoopt": ("redzed_tda", TWO + "from topoopt.homology import bottleneck", "bottleneck(a, b)", "found"),
    "gudhi (CGAL, GPL)": ("gudhi", TWO + "import gudhi", "gudhi.bottleneck_distance(a, b)", "found"),
    "hera in gudhi, exact": (
        "gudhi",
        TWO + "from gudhi.hera import bottleneck_distance as h",
        "h(a, b, delta=0.0)",
        "found",
    ),
    "persim": ("persim", TWO + "import persim", "persim.bottleneck(a, b)", "found"),
}
TABLES: dict[str, tuple[str, dict[str, Rival]]] = {
    "h0": ("H0 from points", H0),
    "h1": ("H0 + H1 from distances", H1),
    "measure": ("all that is measured of a group, H1 aside", MEASURE),
    "bottleneck": ("bottleneck distance of two H1 diagrams", BOTTLENECK),
}
SIZES = {
    "h0": ((256, 64), (1024, 257), (2048, 513)),
    "h1": ((256, 64), (512, 64), (1024, 64)),
    "measure": ((256, 785), (1024, 257), (2048, 513)),
    "bottleneck": ((300, 16),),
}
FULL = {"h0": ((4096, 1537),), "h1": ((2048, 64), (2048, 513)), "measure": ((4096, 1537),), "bottleneck": ((1000, 3),)}


def measured(rival: Rival, x: Path, matrix: Path, repeats: int, answer_at: Path) -> dict[str, Any]:
    """Processor seconds (median, least, largest), MB and the answer of one call in a fresh process."""
    import numpy as np

    _, setup, call, answer = rival
    uses_matrix = any(
        given in call for given in ("(M", "[M]", "=D)")
    )  # loading it would be the peak of calls that do not
    program = PROGRAM.format(setup=setup, call=call, answer=answer, repeats=repeats, matrix=uses_matrix)
    answer_at.unlink(missing_ok=True)
    command = [sys.executable, "-W", "ignore", "-c", program, *map(str, (x, matrix, answer_at))]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    except subprocess.TimeoutExpired:
        return {"failed": "no answer after 600 s"}
    if done.returncode:
        return {"failed": done.stderr.strip().splitlines()[-1]}
    seconds, low, high, megabytes = json.loads(done.stdout.splitlines()[-1])
    found = np.load(answer_at) if answer_at.exists() else None
    return {"seconds": seconds, "least": low, "largest": high, "megabytes": megabytes, "answer": found}


def given(n: int, d: int, folder: Path) -> tuple[Path, Path]:
    """Gaussian points (n, d) in float32 and their distances, as files."""
    import numpy as np
    import torch

    from topoopt.geometry import distances

    points = torch.randn(n, d, generator=torch.Generator().manual_seed(0))
    paths = folder / f"x-{n}-{d}.npy", folder / f"d-{n}-{d}.npy"
    for path, made in zip(paths, (points, distances(points))):
        np.save(path, made.numpy())
    return paths


def difference(found: Any, expected: Any) -> str:
    """How far an answer is from the first library's that has one."""
    import numpy as np

    if found is None or expected is None:
        return ""
    if found.shape != expected.shape:
        return f"{len(found)} bars, not {len(expected)}"
    if np.array_equal(found, expected):
        return "same"
    return f"{float((np.abs(found - expected) / np.maximum(np.abs(expected), 1e-300)).max()):.1e}"


def table(key: str, sizes: tuple[tuple[int, int], ...], repeats: int, folder: Path) -> list[dict[str, Any]]:
    title, rivals = TABLES[key]
    rows: list[dict[str, Any]] = []
    for n, d in sizes:
        print(
            f"\n{title}, n = {n}, d = {d}\n{'':<22}{'seconds':>9}{'MB':>7}{'times first':>13}  difference", flush=True
        )
        first, expected = None, None
        x, matrix = given(n, d, folder)
        order = sorted(rivals, key=lambda name: name == "topoopt") if key == "h0" else list(rivals)
        for name in order:
            if rivals[name][0] and importlib.util.find_spec(rivals[name][0]) is None:
                rows.append({"n": n, "d": d, "library": name, "failed": "not installed"})
                continue
            row = measured(rivals[name], x, matrix, repeats, folder / "answer.npy")
            if "failed" in row:
                print(f"{name:<22}{row['failed']}")
                rows.append({"n": n, "d": d, "library": name, **row})
                continue
            answer = row.pop("answer")
            expected = answer if expected is None else expected
            first = row["seconds"] if first is None else first
            row |= {"ratio": row["seconds"] / first, "difference": difference(answer, expected)}
            rows.append({"n": n, "d": d, "library": name, **row})
            shown = f"{row['seconds']:>9.4f}{row['megabytes']:>7.0f}{row['ratio']:>13.2f}"
            print(f"{name:<22}{shown}  {row['difference']}", flush=True)
    return rows


def versions() -> dict[str, str]:
    names = ("torch", "numpy", "ripser", "redzed-tda", "gudhi", "giotto-ph", "canns-ripser", "scipy", "persim")
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--full", action="store_true", help="the large sizes too")
    arguments.add_argument("--only", choices=list(TABLES), help="measure one table anew, keep the others")
    arguments.add_argument("--repeats", type=int, default=3)
    arguments.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "persistence.json")
    options = arguments.parse_args()
    results: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}, one thread",
        "versions": versions(),
        "tables": {},
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    if options.only and options.output.exists():
        results["tables"] = json.loads(options.output.read_text(encoding="utf-8"))["tables"]
    for key, (title, _) in TABLES.items():
        if options.only in (None, key):
            sizes = SIZES[key] + (FULL[key] if options.full else ())
            with tempfile.TemporaryDirectory() as folder:
                rows = table(key, sizes, options.repeats, Path(folder))
            results["tables"][key] = {"title": title, "rows": rows}
            options.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(f"\nwritten: {options.output}")


if __name__ == "__main__":
    main()
