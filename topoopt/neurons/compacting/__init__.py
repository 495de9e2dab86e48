"""A smaller model of the same function: equal neurons merged, silent ones removed, and nothing taken on trust."""

from topoopt.neurons.compacting.compact import compact
from topoopt.neurons.compacting.configuration import undescribed
from topoopt.neurons.compacting.result import Compacted, Compaction
from topoopt.neurons.compacting.stored import resize, sizes_of

__all__ = ["Compacted", "Compaction", "compact", "resize", "sizes_of", "undescribed"]
