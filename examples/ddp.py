"""Distributed data parallel: every rank wraps its optimizer, all ranks see one measurement and one factor.

torchrun --nproc-per-node 2 examples/ddp.py --steps 200 --mode preserve
"""

from __future__ import annotations

import argparse
import os

import torch
import torch.distributed as dist
from _digits import digits, network
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler

from topoopt import TopoOptimizer


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--lr", type=float, default=0.5)
    parser.add_argument("--every", type=int, default=25)
    parser.add_argument("--mode", default="preserve", choices=["report", "preserve", "simplify", "hold"])
    options = parser.parse_args(arguments)
    for name, alone in {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29531"}.items():
        os.environ.setdefault(name, alone)  # started without torchrun: a world of one
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()

    train, images, labels = digits()
    inner, criterion = network(), nn.CrossEntropyLoss()
    model = DistributedDataParallel(inner)
    sgd = torch.optim.SGD(model.parameters(), lr=options.lr)
    optimizer = TopoOptimizer(
        sgd,
        model,  # the wrapped module: this is how the ranks know that they share one run
        mode=options.mode,
        every=options.every,
        budget=None,
    )
    loader = DataLoader(train, batch_size=64 // world, sampler=DistributedSampler(train), drop_last=True)
    while optimizer.steps < options.steps:
        loader.sampler.set_epoch(optimizer.steps)  # type: ignore[attr-defined]
        for x, y in loader:
            optimizer.zero_grad()
            criterion(model(x), y).backward()
            optimizer.step()
            if optimizer.measured and rank == 0:
                print(
                    f"step {optimizer.steps - 1:4d}  {optimizer.phase:<14}  r {optimizer.proximity:8.3g}"
                    f"  lr x {optimizer.lr_scale:.6f}"
                )
            if optimizer.steps == options.steps:
                break
    factor = optimizer.lr_scale
    optimizer.detach()
    if rank == 0:
        print(optimizer.verdict)
    with torch.no_grad():
        accuracy = (inner(images).argmax(1) == labels).double().mean()
    print(f"rank {rank} of {world}: accuracy {accuracy:.3f}, last factor {factor!r}")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
