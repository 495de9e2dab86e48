"""Distances between neurons and what a step does to them. Tensors in, frozen results out."""

from topoopt.geometry.degeneracy import Degeneracy, degeneracy
from topoopt.geometry.distances import distances
from topoopt.geometry.distortion import Distortion, compare, ratios
from topoopt.geometry.landmarks import Landmarks, maxmin

__all__ = ["Degeneracy", "Distortion", "Landmarks", "compare", "degeneracy", "distances", "maxmin", "ratios"]
