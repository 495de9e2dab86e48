"""What is seen of the user's own step, from the end of the step before it on: its calls of the model, and their tape."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_map

from topoopt.curvature import Tape
from topoopt.curvature.taping.calls import called_through
from topoopt.errors import TopoError
from topoopt.modules import innermost
from topoopt.optimizer.attach import Unpickled
from topoopt.optimizer.faults import logger
from topoopt.optimizer.reading import Reader
from topoopt.parallel import Ranks

Inputs = tuple[tuple[Any, ...], dict[str, Any]]


class FirstInputs:
    """The arguments of the first training forward, so that discovery needs no example from the user.

    Of the model itself or, where it is not called as a whole (an agent's `act`, `layer.forward(x)`), of its outermost
    parts. Hooks are there until all that is there to see has been seen.
    """

    def __init__(self, model: nn.Module) -> None:
        self.of: dict[str, Inputs] = {}
        """Name of the part ("" for the model) -> (args, kwargs)."""
        self.wrapper: nn.Module | None = None
        """A data-parallel wrapper that the model was called through."""
        self._depth = 0
        own = self._own = innermost(model)
        self._handles: list[Any] = []
        for name, module in own.named_modules():
            self._handles += self._watched(name, module)
        if own is not model:
            self._handles += self._watched("", model)

    def _watched(self, name: str, module: nn.Module) -> list[Any]:
        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._depth += 1
            if name == "" and self.wrapper is None and module is self._own:
                self.wrapper = called_through(self._own)
            if name not in self.of and (name == "" or self._depth == 1):
                self.of[name] = tree_map(_detach, (args, dict(kwargs)))

        def after(module: nn.Module, args: Any, result: Any) -> None:
            self._depth = max(0, self._depth - 1)

        return [
            module.register_forward_pre_hook(Unpickled(before), with_kwargs=True),  # type: ignore[arg-type]
            module.register_forward_hook(Unpickled(after), always_call=True),  # type: ignore[arg-type]
        ]

    @property
    def seen(self) -> bool:
        """Whether anything of the model was called."""
        return bool(self.of)

    def whole(self) -> Inputs | None:
        """The model's own (args, kwargs); None where it was not called itself."""
        return self.of.get("")

    def cover(self, names: Iterable[str]) -> bool:
        """Whether all these parameters belong to what was called."""
        parts = tuple(f"{part}." for part in self.of)
        return "" in self.of or all(name.startswith(parts) for name in names)

    def close(self) -> None:
        """Remove the hooks, and let go of the inputs."""
        for handle in self._handles:
            handle.remove()
        self._handles = []


def _detach(leaf: Any) -> Any:
    return leaf.detach() if isinstance(leaf, torch.Tensor) else leaf


class Capture:
    """Watches the coming step of a model: with a tape where it is to be read, and until its first inputs are known.

    Args:
        model: as the user calls it.
        ranks: told of a data-parallel wrapper that the model is called through.
    """

    def __init__(self, model: nn.Module, ranks: Ranks) -> None:
        self.model, self._ranks = model, ranks
        self.inputs: FirstInputs | None = FirstInputs(model)
        self.forward_seen = True
        """Whether something of the model was called for the step under way."""
        self._tape: Tape | None = None
        self._inside = False
        """Whether the model is not called as a whole: its parts are watched, and everything between them."""

    @property
    def running(self) -> bool:
        """Whether a tape of the coming step is being written."""
        return self._tape is not None

    def outdated(self, rule: Optimizer) -> bool:
        """Whether the weights have been replaced since the coming step began to be watched (`fully_shard` does it in place)."""
        now = {id(p) for group in rule.param_groups for p in group["params"]}
        return self._tape is not None and any(id(p) not in now for p in self._tape.parameters)

    def move_to(self, model: nn.Module) -> None:
        """Watch another module from now on."""
        self.stop()
        self.model = model
        if self.inputs is not None:
            self.look_at_inputs()

    def look_at_inputs(self) -> None:
        """Watch the model's next forward for its inputs."""
        if self.inputs is not None:
            self.inputs.close()
        self.inputs = FirstInputs(self.model)

    def know_inputs(self) -> None:
        """All is known that its inputs were needed for."""
        if self.inputs is not None:
            self._inside = self.inputs.whole() is None and self.inputs.seen
            self.inputs.close()
            self.inputs = None

    def start(self, reader: Reader) -> None:
        """Write down the coming step, from now on."""
        self._tape = None
        try:
            self._tape = reader.tape(self.model, inside=self._inside).start()
        except TopoError as error:  # a rule by signs, no parameter that moves: said at the reading
            logger.debug("topoopt: the coming step is not watched: %s", error)

    def stop(self) -> Tape | None:
        """End watching the step; returns its tape."""
        tape, self._tape = self._tape, None
        if tape is not None:
            tape.stop()
        for seen in (tape, self.inputs):
            if seen is not None and seen.wrapper is not None:
                self._ranks.found(seen.wrapper)
        return tape

    def taken(self) -> Tape | None:
        """The tape of the step that is about to be taken, if one was written."""
        tape = self.stop()
        written = tape is not None and bool(tape.calls or tape.losses or tape.entries)
        self.forward_seen = written or self.inputs is None or self.inputs.seen
        if self.inputs is not None and self.inputs.seen and not (tape is not None and tape.calls):
            self._inside = self.inputs.whole() is None  # not called as a whole: from now on its parts are watched
        return tape

    def close(self) -> None:
        """Watch nothing any more."""
        self.stop()
        if self.inputs is not None:
            self.inputs.close()
