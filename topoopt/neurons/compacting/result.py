"""What compacting did, group by group."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Compacted:
    """What was done to one group."""

    kept: int
    removed: int = 0
    merged: int = 0
    reason: str = ""
    """Why the group was left whole though it has units to spare; "" where it has none, or was compacted."""


class Compaction(dict[str, Compacted]):
    """Group name -> what was done to it; and for the whole model how far the function moved and what became of its size."""

    change: float = 0.0
    """Largest change of an output entry, relative to the entry's scale, as measured on the inputs."""
    parameters: tuple[int, int] = (0, 0)
    """Number of the model's parameters, before and after."""
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        width = max((len(name) for name in self), default=5)
        lines = [f"{'group':<{width}}  {'kept':>6}  {'merged':>6}  {'removed':>7}  left whole because"]
        for name, one in self.items():
            lines.append(f"{name:<{width}}  {one.kept:>6}  {one.merged:>6}  {one.removed:>7}  {one.reason}".rstrip())
        before, after = self.parameters
        lines.append(f"{before} parameters became {after}; the output changed by {self.change:.2g} at most")
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


@dataclass(frozen=True)
class Plan:
    """Which units of a group go, and how."""

    merged: dict[int, int] = field(default_factory=dict)
    """unit -> the equal unit that takes its outgoing weights over."""
    removed: tuple[int, ...] = ()
    """Units that nobody reads, or whose value never changes."""
    constants: dict[int, dict[str, tuple[float, ...]]] = field(default_factory=dict)
    """removed unit -> for each of the tensors that read it the value it always has, position by position."""

    @property
    def gone(self) -> list[int]:
        """All units that go, merged ones last: the last are the first to stay where fewer may go."""
        return [*self.removed, *self.merged]

    def at_most(self, count: int) -> Plan:
        """The same plan, for no more than `count` units."""
        going = set(self.gone[:count])
        return Plan(
            {i: k for i, k in self.merged.items() if i in going},
            tuple(i for i in self.removed if i in going),
            {i: c for i, c in self.constants.items() if i in going},
        )
