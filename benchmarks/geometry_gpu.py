"""Geometry and H0 of a large layer on an accelerator: 14,336 neurons of 12,288 parameters (an 8B Llama's gated units).

Prints the seconds of distances, compare and H0, the matrix product X X^T beside them, the peak memory and the device's name.
Without an accelerator it says so and ends.

    python benchmarks/geometry_gpu.py [--n 14336] [--d 12288]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median

import torch

from topoopt.geometry import compare, distances
from topoopt.homology import spanning_tree


def seconds(function: Callable[[], object], repeats: int = 5) -> float:
    """Median time of a call, the device's queue included."""
    times = []
    for _ in range(repeats + 1):
        torch.cuda.synchronize()
        began = time.perf_counter()
        function()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return median(times[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=14336)
    parser.add_argument("--d", type=int, default=12288)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("no accelerator here: nothing was measured")
        return
    x = torch.randn(options.n, options.d, device="cuda")
    moved = x + 1e-3 * torch.randn_like(x)
    d = distances(x)
    torch.cuda.reset_peak_memory_stats()
    print(f"{torch.cuda.get_device_name()}, n = {options.n}, d = {options.d}\n\n| | seconds |\n|---|---|")
    for name, call in (
        ("X X^T", lambda: x @ x.T),
        ("distances", lambda: distances(x)),
        ("compare", lambda: compare(x, moved)),
        ("H0 from distances", lambda: spanning_tree(d)),
    ):
        print(f"| {name} | {seconds(call):.3f} |", flush=True)
    print(
        f"\npeak memory {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB, the clouds' {2 * x.nbytes / 2**30:.1f} included"
    )


if __name__ == "__main__":
    main()
