"""A learning rate before the real run: from r of a few steps, and a few short runs, on a copy."""

from topoopt.suggestion.applying import put_in_force
from topoopt.suggestion.result import RateReading, Suggestion, Trial
from topoopt.suggestion.suggest import suggest

__all__ = ["RateReading", "Suggestion", "Trial", "put_in_force", "suggest"]
