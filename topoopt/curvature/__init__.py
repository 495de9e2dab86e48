"""Curvature: how strongly the loss and the update rule stretch a step, for any torch optimizer."""

from topoopt.curvature.field import field_of, field_proximity
from topoopt.curvature.rules import recognise
from topoopt.curvature.spectrum import SpectralEstimate, Spectrum, opened, proximity
from topoopt.curvature.tracker import SpectralTracker, Tracked

__all__ = [
    "SpectralEstimate",
    "SpectralTracker",
    "Spectrum",
    "Tracked",
    "field_of",
    "field_proximity",
    "opened",
    "proximity",
    "recognise",
]
