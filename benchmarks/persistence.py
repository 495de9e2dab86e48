"""Persistence, ours beside every library that is installed: seconds, peak memory, exactness; H0 from points and H0 + H1.

    python benchmarks/persistence.py [--full] [--tables h0 h1 births measure bottleneck] [--tools NAME ...] [--fill] ...

Each call runs in a process of its own, on one thread; times are of the processor, so that other work on the machine does not
count, medians with the least and the largest: of one call where it takes more than five seconds, of three where more than half of
one, of nine below, after one that is not counted. Memory is what the calls added to the process's peak. Difference is from
the first library of a table that gives an answer: the largest relative one of a sorted death (H0), whether the sorted H1 bars are
the same, bit for bit in float32, or the distances of the diagrams.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import _limited
from _kept import kept, parser_of
from _results import Column, Row, Table, Value, results, save

PROGRAM = """
import json, statistics, sys, time
import numpy as np
X, M = np.load(sys.argv[1]), np.load(sys.argv[2]) if {matrix} else None
{setup}
def run(): return {call}
def peak():  # not ru_maxrss, which begins at that of the process that started this one
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) / 1024
def timed():
    global found
    began = time.process_time(); found = run(); return time.process_time() - began
before, found = peak(), None
times = [timed()]
if times[0] < 0.5: times = [timed() for _ in range(9)]  # the first made the memory ready
elif times[0] < 5: times += [timed() for _ in range(2)]
answer = {answer}
if answer is not None: np.save(sys.argv[3], np.asarray(answer, dtype=np.float64))
print(json.dumps([statistics.median(times), min(times), max(times), len(times), peak() - before]))
"""
OURS = """
import torch
torch.set_num_threads(1)
from topoopt.geometry import Cloud, collect, distances, measure
from topoopt.homology import bottleneck, loop_births, persistence
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
    "topoopt, a step": ("", OURS, "collect([measure(x, y)])", "None"),
    "topoopt, a step, two windows": (
        "",
        OURS,
        "collect([measure(x, y, windows={'first': old, 'last': 2 * old})])",
        "None",
    ),
}
TWO = """
if X.shape[1] > 2:  # H1 of points, and of the same a little moved
    import redzed_tda
    from scipy.spatial.distance import cdist
    Y = X + 1e-2 * np.random.default_rng(2).normal(size=X.shape)
    a, b = (np.asarray(redzed_tda.rips(cdist(points, points), maxdim=1)[1]) for points in (X, Y))
else:  # drawn at random
    draw = np.random.default_rng(0)
    born = draw.uniform(size=len(X))
    a = np.c_[born, born + draw.exponential(0.1, len(X))]
    b = np.sort(a + draw.normal(scale=0.01, size=a.shape), axis=1)
"""
BIRTHS: dict[str, Rival] = {
    "redzed-tda, H0 and H1": (
        "redzed_tda", "import redzed_tda", "redzed_tda.rips(M, maxdim=1)", "np.sort(np.float32(found[1][:, 0]))"
    ),
    "topoopt, births": ("", OURS, "loop_births(D)", "found"),
}  # fmt: skip
BOTTLENECK: dict[str, Rival] = {
    "hera in gudhi, exact": (
        "gudhi",
        TWO + "from gudhi.hera import bottleneck_distance as h",
        "h(a, b, delta=0.0)",
        "found",
    ),
    "topoopt": ("redzed_tda", TWO + "from topoopt.homology import bottleneck", "bottleneck(a, b)", "found"),
    "gudhi (CGAL, GPL)": ("gudhi", TWO + "import gudhi", "gudhi.bottleneck_distance(a, b)", "found"),
    "persim": ("persim", TWO + "import persim", "persim.bottleneck(a, b)", "found"),
}
TABLES: dict[str, tuple[str, dict[str, Rival]]] = {
    "h0": ("H0 from points", H0),
    "h1": ("H0 + H1 from distances", H1),
    "measure": ("All that is measured of a group, H1 aside", MEASURE),
    "births": ("Births of H1 alone, from distances", BIRTHS),
    "bottleneck": ("Bottleneck distance of two diagrams", BOTTLENECK),
}
SIZES = {
    "h0": ((1024, 257),),
    "h1": ((512, 64),),
    "measure": ((1024, 257),),
    "births": ((1024, 64),),
    "bottleneck": ((300, 16),),
}
FULL = {
    "h0": ((256, 64), (2048, 513), (4096, 1537)),
    "h1": ((256, 64), (1024, 64), (2048, 64)),
    "measure": ((256, 785), (2048, 513), (4096, 1537)),
    "births": ((2048, 64),),
    "bottleneck": ((2768, 2),),
}
PATIENCE = 60
"""Seconds of the processor that a library has for all calls of a size."""


def measured(rival: Rival, x: Path, matrix: Path, answer_at: Path) -> dict[str, Any]:
    """Processor seconds (median, least, largest), MB and the answer of one call in a fresh process."""
    import numpy as np

    _, setup, call, answer = rival
    uses_matrix = any(
        given in call for given in ("(M", "[M]", "=D)", "(D)")
    )  # loading it would be the peak of calls that do not
    program = PROGRAM.format(setup=setup, call=call, answer=answer, matrix=uses_matrix)
    answer_at.unlink(missing_ok=True)
    command = [sys.executable, "-P", "-W", "ignore", "-c", program, *map(str, (x, matrix, answer_at))]
    try:
        done = _limited.run(command, PATIENCE)
    except _limited.Overrun as error:
        return {"failed": str(error)}
    if done.returncode:
        return {"failed": (done.stderr.strip() or f"ended with {done.returncode}").splitlines()[-1][:300]}
    *seconds, megabytes = json.loads(done.stdout.splitlines()[-1])
    found = np.load(answer_at) if answer_at.exists() else None
    return {"seconds": Value(*seconds), "megabytes": megabytes, "answer": found}


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


def named(key: str, n: int, d: int) -> str:
    """A case in words."""
    if key == "bottleneck":
        return f"{n:,} points each, drawn at random" if d <= 2 else f"H1 of {n:,} points in {d} dimensions"
    return f"n = {n:,}, d = {d:,}"


def rows_of(key: str, n: int, d: int, tools: list[str], folder: Path) -> list[Row]:
    """Every library on one size; ratios are to the first that answers."""
    rivals, rows, first, expected = TABLES[key][1], [], None, None
    x, matrix = given(n, d, folder)
    for name in sorted(rivals, key=lambda name: name == "topoopt") if key == "h0" else list(rivals):
        if name not in tools:
            continue
        if rivals[name][0] and importlib.util.find_spec(rivals[name][0]) is None:
            rows.append(Row(named(key, n, d), name, failed="not installed"))
            continue
        found = measured(rivals[name], x, matrix, folder / "answer.npy")
        if "failed" in found:
            rows.append(Row(named(key, n, d), name, failed=found["failed"]))
        else:
            answer = found["answer"]
            expected = answer if expected is None else expected
            took: Value = found["seconds"]
            first = took if first is None else first
            values = {
                "seconds": took,
                "times the first": took.over(first),
                "memory": Value.of([found["megabytes"]]),
            }
            rows.append(Row(named(key, n, d), name, values, {"difference": difference(answer, expected)}))
        said = ", ".join(f"{k} {v.median:.3g}" for k, v in rows[-1].values.items())
        print(f"{key:<11}{rows[-1].case:<32}{name:<22}{rows[-1].failed or said}", flush=True)
    return rows


COLUMNS = (
    Column("seconds", "s"),
    Column("times the first", "x", factor=2.0, slack=0.05),
    Column("memory", "MB"),
    Column("difference", "words", ""),
)
PACKAGES = ("numpy", "ripser", "redzed-tda", "gudhi", "giotto-ph", "canns-ripser", "scipy", "persim")
EVERY = list(dict.fromkeys(name for _, rivals in TABLES.values() for name in rivals))


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--tables", nargs="+", choices=list(TABLES), default=list(TABLES))
    parser.add_argument(
        "--tools", nargs="+", choices=EVERY, default=EVERY, help="a table's first is what ratios are to"
    )
    options = parser.parse_args()
    explains, arguments = (__doc__ or "").split("\n\n", 2)[2].strip(), ["--full"] if options.full else []
    there = kept(options, __file__, PACKAGES)
    for key in options.tables:
        title, rivals = TABLES[key]
        for n, d in sorted(SIZES[key] + (FULL[key] if options.full else ())):
            if there.has(key, named(key, n, d), [name for name in rivals if name in options.tools]):
                continue
            with tempfile.TemporaryDirectory() as folder:
                rows = rows_of(key, n, d, options.tools, Path(folder))
            save(
                results(__file__, arguments, [Table(key, title, explains, COLUMNS, tuple(rows))], PACKAGES),
                options.output,
            )


if __name__ == "__main__":
    main()
