"""One reading of r: the step under way, taped and replayed, or a loss that the user gave; in plain numbers."""

from __future__ import annotations

import math
import time
import weakref
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from topoopt.config import TopoConfig
from topoopt.curvature import SpectralTracker, Tape, Tracked, field_of, recognise
from topoopt.curvature.lean.few import Read, at_once
from topoopt.curvature.opening import movable
from topoopt.device import HostNumbers, brought_over
from topoopt.errors import MeasurementError, NotDefinedError
from topoopt.measurement import SpectralReading
from topoopt.modules import innermost
from topoopt.neurons import NeuronGroup
from topoopt.optimizer.evidence import Evidence
from topoopt.parallel import RankError, Ranks
from topoopt.sharding import is_sharded

AVERAGES = ("exp_avg_sq", "square_avg", "sum", "exp_inf", "row_var", "variance", "exp_avg_sq_row")
"""State of rules whose preconditioner is an average of gradients, which a few steps do not fill."""
WARM = 10
"""Steps of a parameter after which its preconditioner counts as warm (at the first, Adam's step is nearly a sign)."""
WARMING = (
    "the preconditioner is warming up: it has seen {} of the {} steps after which it is told from its first gradients; r is of "
    "this step, and no phase of the run"
)


class Reader:
    """Reads r of steps of one optimizer, warm from the last reading."""

    def __init__(self, optimizer: Optimizer, config: TopoConfig, ranks: Ranks) -> None:
        self._optimizer, self._config, self._ranks = weakref.ref(optimizer), config, ranks
        self.tracker = SpectralTracker(
            optimizer,
            config.reading_products,
            config.engine,
            config.seed,
            first=config.products,
            compact=config.keep != "device",
        )
        self._turn = 0
        self._evidence = Evidence()

    @property
    def _rule(self) -> Optimizer:
        optimizer = self._optimizer()
        assert optimizer is not None
        return optimizer

    def tape(self, model: nn.Module, *, inside: bool) -> Tape:
        """A tape of the coming step."""
        return self.tracker.tape(model, inside=inside)

    def read(
        self,
        tape: Tape | None,
        loss: Callable[[], Any] | None,
        model: nn.Module,
        groups: list[NeuronGroup] | None,
        *,
        closure_given: bool = False,
        numbers: HostNumbers | None = None,
    ) -> SpectralReading:
        """Estimate r of the step under way, at the weights as they stand; with `groups` also one group's own, in turn.

        `numbers`: what the host knows already of the rule's own on the device.
        """
        began = time.perf_counter()
        rule, edge = recognise(self._rule)
        blank = SpectralReading(rule=rule, edge=edge, warming=self.warming())
        if self._config.estimator == "pairwise":
            return replace(blank, reason='estimator="pairwise" was asked for')
        try:
            with self._ranks.together():  # inside: what one rank cannot measure, none waits for
                if loss is not None:
                    found = self._by_loss(loss, model, groups or [], closure_given=closure_given)
                elif tape is not None:
                    found = self._by_tape(tape, model, groups or [], numbers)
                else:
                    movable(self._rule)  # which says why it was not, where the rule or the weights are the reason
                    raise MeasurementError("the step was not watched")
            level, constant = self._ranks.means(found.loss, found.baseline)  # each rank saw its own share of the batch
            found = self._ranks.from_zero(replace(found, loss=level, baseline=constant))
        except (NotDefinedError, MeasurementError, RankError) as error:
            self._begin_again_together()
            return replace(blank, reason=str(error), seconds=time.perf_counter() - began)
        except Exception:
            self._begin_again_together()
            raise
        return replace(found, warming=blank.warming, seconds=time.perf_counter() - began)

    def _begin_again_together(self) -> None:
        """After a reading that ranks have left at different places: what they remember must be the same on all, so nothing."""
        if self._ranks.active:
            self.tracker.begin_again()
            self._turn = 0

    def loss_alone(self, tape: Tape) -> SpectralReading:
        """The loss of a taped step, without r: one host read."""
        rule, edge = recognise(self._rule)
        values = [loss.value.detach().float().sum() for loss in tape.relevant()[1]]
        total = sum(brought_over(values)) if values else math.nan
        total = math.inf if values and math.isnan(total) else total  # seen, and no number; NaN would be: not seen
        return SpectralReading(
            rule=rule, edge=edge, loss=total, reason="only the loss was looked at", warming=self.warming()
        )

    def _by_tape(
        self, tape: Tape, model: nn.Module, groups: list[NeuronGroup], numbers: HostNumbers | None
    ) -> SpectralReading:
        if any(is_sharded(p) for p in tape.parameters):
            with self.tracker.live(tape, reduce=self._ranks.reducer()) as tracked:
                reading = self._estimated(tracked, model, groups)
                return self._evidence.of_loss(reading, tracked.spectrum.gradient, tracked.spectrum.passage, model)
        tracked = self.tracker.taped(tape, reduce=self._ranks.reducer(), numbers=numbers)
        assert tracked.step is not None
        shadow = tracked.step.shadow
        with self._evidence.watching(shadow):
            read = self._evidence.coming_along(tape, shadow)
            reading = self._estimated(tracked, model, groups, read)
        return self._evidence.add(reading, tape, shadow, tracked.step.passage)

    def _by_loss(
        self, loss: Callable[[], Any], model: nn.Module, groups: list[NeuronGroup], *, closure_given: bool
    ) -> SpectralReading:
        # A closure computes this step's gradients after us: what lies in .grad is the last step's.
        grads = "probe" if closure_given else "auto"
        with ExitStack() as stack:
            with self._evidence.looking_on(model):
                opened = self.tracker.open(loss, grads=grads, reduce=self._ranks.reducer(), model=model)
                tracked = stack.enter_context(opened)
            reading = self._estimated(tracked, model, groups)
            return self._evidence.of_loss(reading, tracked.spectrum.gradient, tracked.spectrum.passage, model)

    def _estimated(
        self, tracked: Tracked, model: nn.Module, groups: list[NeuronGroup], read: Read = at_once
    ) -> SpectralReading:
        estimate = tracked.estimate(read=read)
        field, unknown = self._field(tracked, model, groups)
        group = self._one_group(tracked, model, groups)
        r, notes = estimate.r, (*estimate.notes, *unknown)
        if group is not None and group[1] > r:  # a part of the operator is no larger than the whole
            r, notes = group[1], (*notes, f"r is that of {group[0]} alone, which its own products found to be larger")
        return SpectralReading(
            r=r,
            edge=estimate.edge,
            low=estimate.low,
            high=max(estimate.high, r) if estimate.high >= -estimate.low else estimate.high,
            field=field,
            loss=estimate.loss,
            rule=estimate.rule,
            engine=estimate.engine,
            products=estimate.products,
            probe=estimate.probe_size,
            notes=notes,
            reason="" if math.isfinite(r) else "; ".join(estimate.notes) or "the estimate is not finite",
            group=group,
        )

    def _one_group(self, tracked: Tracked, model: nn.Module, groups: list[NeuronGroup]) -> tuple[str, float] | None:
        """Block-restricted proximity of the next group in turn: which layer is nearest its critical point."""
        if not self._config.per_group or not groups:
            return None
        group = groups[self._turn % len(groups)]
        self._turn += 1
        parameters = dict(innermost(model).named_parameters(remove_duplicate=False))
        masks: dict[Tensor, Tensor] = {
            parameters[name]: mask for name, mask in group.masks(innermost(model)).items() if name in parameters
        }
        return group.name, tracked.block(masks, max(2, self.tracker.products)).r

    def _field(self, tracked: Tracked, model: nn.Module, groups: list[NeuronGroup]) -> tuple[float, tuple[str, ...]]:
        """The largest r_field of the groups, or NaN and why it is not known."""
        if not self._config.field or not groups:
            return math.nan, ()
        own = innermost(model)
        parameters = list(own.parameters())
        try:
            return max(field_of(tracked.spectrum, group.indices(own), parameters) for group in groups), ()
        except NotDefinedError as error:
            return math.nan, (f"r_field: {error}",)

    def warming(self) -> str:
        """Why the coming step's preconditioner is not warm yet; "" when it is, or when the rule has none.

        Reads `step` of one parameter of each group where it is on the host; without it what has been counted since.
        """
        optimizer, fewest = self._rule, WARM
        for group in optimizer.param_groups:
            moved = [p for p in group["params"] if p.requires_grad]
            states = [optimizer.state[p] for p in (*moved[:1], *moved[-1:]) if p in optimizer.state]
            if not states and not _averages(optimizer, group):
                continue
            if not states and moved:
                fewest = 0
            for state in states:
                steps = state.get("step")
                if not any(key in state for key in AVERAGES) or (
                    isinstance(steps, Tensor) and steps.device.type != "cpu"
                ):
                    continue
                fewest = min(fewest, _steps(steps))
        return WARMING.format(fewest, WARM) if fewest < WARM else ""

    def forget(self) -> None:
        """Drop what is remembered between readings."""
        self.tracker.forget()

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs: numbers and strings."""
        return {"tracker": self.tracker.state_dict(), "turn": self._turn}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`'s values."""
        self.tracker.load_state_dict(state["tracker"])
        self._turn = int(state["turn"])


def _steps(counted: Any) -> int:
    """A rule's own count of its steps; `WARM` where it keeps none, or something else under that name."""
    try:
        return WARM if counted is None else int(float(counted))
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return WARM


def _averages(optimizer: Optimizer, group: dict[str, Any]) -> bool:
    """Whether a rule that has no state yet will keep averages of squares: by its settings."""
    return any(key in group for key in ("betas", "rho", "alpha", "beta2_decay", "decay_rate")) and "lambd" not in group
