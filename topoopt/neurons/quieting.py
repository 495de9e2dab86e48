"""A model at rest: in evaluation mode, without hooks, as it is exported, copied and verified."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

from torch import nn

STATISTICS = ("running_mean", "running_var", "_u", "_v", "weight_u", "weight_v")
"""Buffers that belong to units and that training moves as it moves those: statistics, a spectral norm's vectors."""


HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@contextlib.contextmanager
def quiet(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, no hooks, and a Hugging Face model that returns no caches and runs experts as one batch.

    All is put back after. Hooks that are part of the model's forward stay; the user's must not see what is tried here.
    """
    modules = list(model.modules())
    held = [(module, dict(vars(module)), dict(module._buffers)) for module in modules]
    wanted = {"use_cache": False, "output_hidden_states": False, "output_attentions": False}
    wanted["_experts_implementation_internal"] = "batched_mm"  # type: ignore[assignment]
    configs = {id(c): c for m in model.modules() if (c := getattr(m, "config", None)) is not None}
    saved: list[tuple[Any, str, Any]] = []
    try:
        for module in modules:
            module.training = False
            for attribute in HOOKS:
                hooks = getattr(module, attribute)
                own = {key: hook for key, hook in hooks.items() if _belongs_to_the_model(hook)}
                setattr(module, attribute, OrderedDict(own))
        for one in configs.values():
            for name, value in wanted.items():
                if getattr(one, name, None) is not None:
                    saved.append((one, name, getattr(one, name)))
                    setattr(one, name, value)
        yield
    finally:
        for one, name, value in reversed(saved):
            setattr(one, name, value)
        for module, attributes, buffers in held:  # a forward may also keep things on its module
            vars(module).clear()
            vars(module).update(attributes)
            module._buffers.clear()
            module._buffers.update(buffers)


def _belongs_to_the_model(hook: Any) -> bool:
    """Whether a hook computes weights (torch's `weight_norm`) or hands one part's states to another (a backbone's)."""
    return type(hook).__module__.startswith("torch.nn.utils") or getattr(hook, "__module__", "").startswith(
        "transformers."
    )
