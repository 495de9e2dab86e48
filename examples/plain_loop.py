"""A loop of one's own: wrap the optimizer, train as before, read the phase where a step was measured.

python examples/plain_loop.py --steps 400 --mode preserve
"""

from __future__ import annotations

import argparse

import torch
from _digits import digits, network
from torch import nn
from torch.utils.data import DataLoader

from topoopt import TopoOptimizer


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--lr", type=float, default=0.3)
    parser.add_argument("--every", type=int, default=50)
    parser.add_argument("--mode", default="report", choices=["report", "preserve", "simplify", "hold"])
    options = parser.parse_args(arguments)

    train, images, labels = digits()
    model, criterion = network(), nn.CrossEntropyLoss()
    sgd = torch.optim.SGD(model.parameters(), lr=options.lr, momentum=0.9)
    optimizer = TopoOptimizer(sgd, model, mode=options.mode, every=options.every, budget=None)

    step = 0
    while step < options.steps:
        for x, y in DataLoader(train, batch_size=64, shuffle=True, drop_last=True):
            optimizer.zero_grad()
            loss = criterion(model(x), y)
            loss.backward()
            optimizer.step()
            if optimizer.measured and optimizer.last is not None:  # this step was one of those that are measured
                low, high = optimizer.last.eta_star_bracket[0]
                print(
                    f"step {step:4d}  loss {loss.item():.3f}  {optimizer.phase:<14}  r {optimizer.proximity:8.3g}"
                    f"  eta* in [{low:.2g}, {high:.2g}]  lr x {optimizer.lr_scale:.3g}"
                )
            step += 1
            if step == options.steps:
                break
    optimizer.detach()
    print(optimizer.verdict)
    with torch.no_grad():
        accuracy = (model(images).argmax(1) == labels).double().mean()
    print(f"accuracy {accuracy:.3f}")


if __name__ == "__main__":
    main()
