"""What users write: nodes in an adjacency dict inside a graph."""

from tapeprop.graph.base import GraphStructure
from tapeprop.graph.merge import MergeMode
from tapeprop.graph.node import LayerNode, SequentialNode

__all__ = ["GraphStructure", "LayerNode", "MergeMode", "SequentialNode"]
