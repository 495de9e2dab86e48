"""Geometry and H0 of a large layer on an accelerator: 14,336 neurons of 12,288 parameters (an 8B Llama's gated units).

Prints the seconds of distances, compare and H0, the matrix product X X^T beside them and the roofline, and the peak memory.
Whatever device torch.accelerator finds is used. Without one it says so and takes a small group.

    python benchmarks/geometry_gpu.py [--n 14336] [--d 12288]
"""

from __future__ import annotations

import argparse

from gpu import CLOUD, TINY_CLOUD, geometry, named, place


def main() -> None:
    device = place()
    n, d = TINY_CLOUD if device.type == "cpu" else CLOUD
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=n)
    parser.add_argument("--d", type=int, default=d)
    options = parser.parse_args()
    if device.type == "cpu":
        print("no accelerator here: a small group is taken unless --n and --d say otherwise")
    print(named(device))
    found = geometry(options.n, options.d, device)
    clouds = 2 * 4 * options.n * options.d / 2**30
    print(f"\npeak memory {found['peak GiB']:.1f} GiB, the clouds' {clouds:.1f} included")


if __name__ == "__main__":
    main()
