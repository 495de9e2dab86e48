"""topoopt's state as a file beside a checkpoint's others: written whole or not at all, missed without harm."""

from __future__ import annotations

from pathlib import Path

import torch

from topoopt.optimizer import TopoOptimizer


def save_state(topo: TopoOptimizer, path: Path) -> None:
    """Write the state of this process's measuring."""
    temporary = path.with_name(f".{path.name}")
    torch.save(topo.topo_state_dict(), temporary)
    temporary.replace(path)


def load_state(topo: TopoOptimizer, path: Path) -> bool:
    """Take the state up where the file is there; returns whether it was."""
    if not path.is_file():
        return False
    topo.load_topo_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return True
