"""Distances between neurons and what a step does to them. Tensors in, frozen results out."""

from topoopt.geometry.cloud import Cloud
from topoopt.geometry.degeneracy import Degeneracy, degeneracy
from topoopt.geometry.distances import checked_distances, distances
from topoopt.geometry.distortion import Distortion, compare, ratios
from topoopt.geometry.landmarks import Landmarks, maxmin
from topoopt.geometry.measure import CloudMeasurement, DeviceMeasurement, collect, measure
from topoopt.geometry.rank import effective_rank
from topoopt.geometry.stored import StoredCloud
from topoopt.geometry.tree import SpanningTree

__all__ = [
    "Cloud",
    "CloudMeasurement",
    "Degeneracy",
    "DeviceMeasurement",
    "Distortion",
    "Landmarks",
    "SpanningTree",
    "StoredCloud",
    "checked_distances",
    "collect",
    "compare",
    "degeneracy",
    "distances",
    "effective_rank",
    "maxmin",
    "measure",
    "ratios",
]
