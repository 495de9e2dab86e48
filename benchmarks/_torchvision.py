"""torchvision beside a torch that its wheel was not built for."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from functools import cache
from typing import Any

import torch


@cache
def torchvision() -> Any:
    """torchvision, or None where it is not installed.

    Its compiled operators belong to one build of torch. Beside another (a CPU build, say) they do not load, and importing it,
    as transformers and timm do, stops at the names of two of them, which no classifier needs: these names are then declared.
    """
    if importlib.util.find_spec("torchvision") is None:
        return None
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    for name in ("nms", "qnms"):
        torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return importlib.import_module("torchvision")
