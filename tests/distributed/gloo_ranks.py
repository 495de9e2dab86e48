"""What each process of a distributed test runs; a module of its own name, so that spawned processes find it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist


def run(rank: int, world: int, folder: str, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    torch.save(function(rank, world, *args), Path(folder) / f"{rank}.pt")
    with contextlib.suppress(RuntimeError):  # the result is safe; a rank that is gone already closes the connection
        dist.barrier()
        dist.destroy_process_group()
    os._exit(0)  # gloo's own threads now and then abort a process that takes itself apart, with or without topoopt
