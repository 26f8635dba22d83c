"""The errors a user can meet. Every message names the node, what was expected, what came, and the remedy."""

from __future__ import annotations

__all__ = [
    "CompileError",
    "CycleError",
    "DTypeError",
    "DeviceError",
    "DeviceMemoryError",
    "DisconnectedError",
    "DuplicateNameError",
    "GraphError",
    "LabelError",
    "MergeError",
    "NotBuiltError",
    "NumericsError",
    "ShapeError",
    "StateError",
    "WeightFileError",
]


class GraphError(ValueError):
    """A graph, its data or its use is not right; the base of all errors here but DeviceError."""


class CycleError(GraphError):
    """The edges of the graph form a cycle."""


class DisconnectedError(GraphError):
    """A node cannot be reached from a root or reaches no term; or root or term is missing."""


class ShapeError(GraphError):
    """A shape, rank or channel count does not fit."""


class MergeError(ShapeError):
    """The operands of a merge do not go together."""


class DTypeError(GraphError, TypeError):
    """An array has a dtype that is refused (complex, object, string) or another than the graph's."""


class DuplicateNameError(GraphError):
    """Two nodes of one graph bear the same explicit name."""


class LabelError(GraphError):
    """Labels are out of range, of a wrong dtype or of a wrong shape."""


class NumericsError(GraphError):
    """A NaN or an infinity where `debug_nan` looks for them."""


class CompileError(GraphError):
    """A kernel could not be built."""


class WeightFileError(GraphError):
    """A weight or graph file is truncated, corrupt or does not fit the graph."""


class StateError(GraphError, RuntimeError):
    """A call came at the wrong time: backward before forward, update without an optimizer, an edit during a run."""


class NotBuiltError(StateError):
    """The graph has to be built first."""


class DeviceError(RuntimeError):
    """A device is missing, lost or out of memory."""


class DeviceMemoryError(DeviceError):
    """A device has no room for what was asked."""
