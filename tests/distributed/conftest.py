from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gloo_ranks
import pytest
import torch
import torch.multiprocessing as mp


@pytest.fixture
def launch(tmp_path):
    """Runs `function(rank, world, *args)` in `world` gloo processes and returns what each of them returned."""

    def start(function: Callable[..., Any], world: int, *args: Any) -> list[Any]:
        folder = tmp_path / f"{function.__name__}-{world}-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        mp.spawn(gloo_ranks.run, (world, str(folder), function, args), nprocs=world)
        return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(world)]

    return start
