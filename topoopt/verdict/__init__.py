"""Verdict: what a run's readings say of its learning rate, in words. Plain numbers in, three sentences out."""

from topoopt.verdict.judging import STATES, Verdict, judge
from topoopt.verdict.rule import stalled

__all__ = ["STATES", "Verdict", "judge", "stalled"]
