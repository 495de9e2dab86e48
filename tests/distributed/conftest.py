from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable
from typing import Any

import gloo_ranks
import pytest
import torch
import torch.multiprocessing as mp

PRELOADED = ["torch.distributed.fsdp", "torch.distributed.tensor.parallel", "topoopt.optimizer.wrapper", "gloo_ranks"]
"""Loaded once, in the process that ranks are forked from: loading them takes longer than most of these tests."""
START = "forkserver" if sys.platform == "linux" else "spawn"


@pytest.fixture
def launch(tmp_path):
    """Runs `function(rank, world, *args)` in `world` gloo processes and returns what each of them returned."""

    def start(function: Callable[..., Any], world: int, *args: Any) -> list[Any]:
        folder = tmp_path / f"{function.__name__}-{world}-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        if START == "forkserver":
            multiprocessing.set_forkserver_preload(PRELOADED)
        mp.start_processes(gloo_ranks.run, (world, str(folder), function, args), nprocs=world, start_method=START)
        return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(world)]

    return start
