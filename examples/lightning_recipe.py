"""Lightning: one callback.

python examples/lightning_recipe.py --steps 200
"""

from __future__ import annotations

import argparse

import torch
from _digits import digits, network
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from topoopt.integrations.lightning import TopoCallback


class Digits(LightningModule):
    """A classifier of digits."""

    def __init__(self) -> None:
        super().__init__()
        self.network = network()

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (n, 10)."""
        return self.network(x)

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        """Return the loss of a batch."""
        x, y = batch
        loss = nn.functional.cross_entropy(self(x), y)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return one optimizer."""
        return torch.optim.SGD(self.parameters(), lr=0.3)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--every", type=int, default=25)
    parser.add_argument("--mode", default="report", choices=["report", "preserve", "simplify", "hold"])
    options = parser.parse_args(arguments)
    train, images, labels = digits()
    topo = TopoCallback(mode=options.mode, every=options.every, budget=None)
    model = Digits()
    trainer = Trainer(
        max_steps=options.steps,
        accelerator="cpu",
        callbacks=[topo],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, DataLoader(train, batch_size=64, shuffle=True))
    last = topo.last
    assert last is not None
    print(f"step {last.step}: {last.phase}, r {last.proximity:.3g}, groups: {', '.join(last.groups)}")
    print(topo.verdict)
    with torch.no_grad():
        print(f"accuracy {(model(images).argmax(1) == labels).double().mean():.3f}")


if __name__ == "__main__":
    main()
