"""What a run of a copy must not touch, refused before it happens.

A copy's forward is the user's code, and may reach past the copy: draw from the generators of Python and numpy, seed torch's,
call a live module by a global name, or run a compiled function. This thread's profile hook sees such a call as it begins.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from topoopt.errors import DiscoveryError

SEEDS = ("manual_seed", "seed", "set_state", "set_offset", "graphsafe_set_state")
PYTHONS = (random.Random, np.random.Generator, np.random.RandomState)
"""Generators that are not torch's."""


class NotApart(DiscoveryError):
    """A model that cannot be run without touching what is not its copy's."""


class Refused(BaseException):  # no Exception: a model that catches those must not go on
    """Ends a run before it touches what is not the copy's."""


@contextmanager
def guarded(model: nn.Module, generators: dict[int, Any]) -> Iterator[None]:
    """Refuse what is not the copy's, seen by this thread's profile hook before it happens.

    Where the user profiles this thread the hook is theirs, and nothing is refused.
    """
    if sys.getprofile() is not None:
        yield
        return
    sys.setprofile(_Watch(model, generators).see)
    try:
        yield
    except Refused as refused:
        raise NotApart(str(refused)) from None
    finally:
        sys.setprofile(None)


class _Watch:
    """A profile hook that knows what belongs to a copy."""

    def __init__(self, model: nn.Module, generators: dict[int, Any]) -> None:
        self._own = {id(module): module for module in model.modules()}
        self._generators = generators
        self._mentions: dict[Any, str] = {}
        device = torch.get_device_module() if torch.accelerator.is_available() else None
        self._shared = [torch.default_generator, *getattr(device, "default_generators", ())]

    def see(self, frame: Any, event: str, arg: Any) -> None:
        if event == "c_call":
            self._called(arg)
        elif event == "call":
            self._entered(frame)

    def _called(self, function: Any) -> None:
        owner = getattr(function, "__self__", None)
        if isinstance(owner, PYTHONS) and id(owner) not in self._generators and function.__name__ != "getstate":
            raise Refused(f"{_DRAWS} ({type(owner).__name__}.{function.__name__})")
        if isinstance(owner, torch.Generator) and function.__name__ in SEEDS and any(owner is g for g in self._shared):
            raise Refused("running the model sets a random generator of torch's that all threads share")

    def _entered(self, frame: Any) -> None:
        code = frame.f_code
        if code is _CALL:
            module = frame.f_locals["self"]
            if id(module) not in self._own and any(True for _ in _tensors(module)):
                raise Refused(f"running the model calls a {type(module).__name__} that is no part of it")
        elif code is _INIT:
            module = frame.f_locals["self"]
            self._own[id(module)] = module
        elif code.co_name == "compile_wrapper":
            raise Refused("running the model runs a compiled function, which would be compiled for the copy")
        elif code is _OWN_RANDOM:
            made = frame.f_locals["self"]
            self._generators[id(made)] = made
        elif not code.co_filename.startswith(_LIBRARIES):
            if code not in self._mentions:
                self._mentions[code] = self._global_numpy(code, frame.f_globals)
            if self._mentions[code]:
                raise Refused(f"{_DRAWS} ({self._mentions[code]} in {code.co_name})")

    def _global_numpy(self, code: Any, names: dict[str, Any]) -> str:
        """The name by which a function may reach numpy's global generator, whose draws no profile hook sees."""
        for name in code.co_names:
            held = names.get(name)
            if (held is np and "random" in code.co_names) or held is np.random:
                return f"{name}.random" if held is np else name
            if isinstance(held, PYTHONS[1:]) or isinstance(getattr(held, "__self__", None), PYTHONS[1:]):
                return name
        return ""


_DRAWS = "running the model draws from a random generator of Python's or numpy's that all threads share"
_CALL, _INIT, _OWN_RANDOM = nn.Module._call_impl.__code__, nn.Module.__init__.__code__, random.Random.__init__.__code__
_LIBRARIES = tuple(path for path in (*torch.__path__, *np.__path__))


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()
