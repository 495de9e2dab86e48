"""Verdict: what a run's readings say of its learning rate, in words. Plain numbers in, three sentences out."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Verdict:
    """What a run's readings say of its learning rate, in three sentences with their evidence."""

    state: str
    """One of `STATES`."""
    happened: str
    """What happened, with the evidence."""
    advice: str
    """What to try, with a number where one is known."""
    unknown: str
    """What is not known."""

    @property
    def lines(self) -> tuple[str, str, str]:
        """The three lines that every surface shows."""
        return self.happened, self.advice, self.unknown

    def __str__(self) -> str:
        return "\n".join(self.lines)


STATES = ("too low", "right", "too high", "at the edge", "collapsed", "not enough readings", "lower bound only")
"""What a `Verdict` may say."""
