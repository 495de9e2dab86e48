"""The errors topoopt raises: each says the value, why it is wrong and what to do."""


class TopoError(Exception):
    """Base of every error that topoopt raises on purpose."""


class ConfigError(TopoError, ValueError):
    """A setting or an argument that cannot work."""


class MissingExtraError(ConfigError, ImportError):
    """A library that an extra of topoopt brings is not installed."""


class FileError(TopoError, OSError):
    """A file or folder that cannot be read or written, with the system's reason."""


class RecordError(TopoError, ValueError):
    """A file that is no record of a run, or a record that cannot take a line."""


class PartitionedError(ConfigError):
    """The optimizer or the model holds flat partitions of the weights, in which no neuron is whole."""


class DiscoveryError(TopoError, RuntimeError):
    """The model's neurons could not be found, with the cause."""


class MeasurementError(TopoError, RuntimeError):
    """A quantity could not be measured (NaN weights, a loss without a graph, ...)."""


class NotDefinedError(MeasurementError):
    """A quantity that this optimizer or model does not have: a property of it, not a fault."""


class SteeringError(TopoError, RuntimeError):
    """This optimizer's update does not follow its learning rate, so it cannot be steered."""
