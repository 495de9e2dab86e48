"""accelerate, with gradient accumulation and a scheduler: attach after `prepare`, and go on as before.

python examples/plain_accelerate.py --steps 200
accelerate launch examples/plain_accelerate.py --steps 200
"""

from __future__ import annotations

import argparse

import torch
from _digits import digits, network
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader

from topoopt.integrations.accelerate import attach


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--mode", default="report", choices=["report", "preserve", "simplify", "hold"])
    parser.add_argument("--every", type=int, default=20)
    options = parser.parse_args(arguments)

    accelerator = Accelerator(gradient_accumulation_steps=2)
    train, images, labels = digits()
    model, criterion = network(), nn.CrossEntropyLoss()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=options.steps)
    loader = DataLoader(train, batch_size=32, shuffle=True, drop_last=True)
    model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)

    topo = attach(accelerator, optimizer, model, mode=options.mode, every=options.every, budget=None)
    while topo.steps < options.steps:
        for x, y in loader:
            with accelerator.accumulate(model):
                loss = criterion(model(x), y)
                accelerator.backward(loss)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
            if topo.measured and accelerator.sync_gradients:
                accelerator.print(
                    f"step {topo.steps - 1:4d}  loss {loss.item():.3f}  {topo.phase:<14}  r {topo.proximity:.3g}"
                )
            if topo.steps == options.steps:
                break
    topo.detach()
    accelerator.print(topo.verdict)
    with torch.no_grad():
        accuracy = (model(images.to(accelerator.device)).argmax(1).cpu() == labels).double().mean()
    accelerator.print(f"accuracy {accuracy:.3f}")


if __name__ == "__main__":
    main()
