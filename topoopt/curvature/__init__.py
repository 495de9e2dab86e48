"""Curvature: how strongly the loss and the update rule stretch a step, for any torch optimizer."""

from topoopt.curvature.field import field_of, field_proximity
from topoopt.curvature.opening import opened, proximity
from topoopt.curvature.replaying.shadow import Shadow
from topoopt.curvature.rules import recognise
from topoopt.curvature.spectrum import SpectralEstimate, Spectrum
from topoopt.curvature.taping.tape import Tape
from topoopt.curvature.tracker import SpectralTracker, Tracked

__all__ = [
    "Shadow",
    "SpectralEstimate",
    "SpectralTracker",
    "Spectrum",
    "Tape",
    "Tracked",
    "field_of",
    "field_proximity",
    "opened",
    "proximity",
    "recognise",
]
