"""Which layers `build(auto_batch_norm=True)` puts a batch norm behind, and the norms that a graph keeps for them.

A convolution or dense layer gets one where all that reads its result is an activation, in every place in which the layer
stands. Read off the structure alone:

* An activation is a layer of `Activation` other than Linear and Softmax: a norm before an output's probabilities is not meant.
* Identity, Activation.Linear and what is empty pass the question on to what follows them.
* A merge of several operands is no activation, nor is any other layer: one with a norm behind it "has one", and one whose result is
  pooled, flattened or added first is not "followed by" an activation.
* A result that leaves the graph is read by the caller; that of a graph inside another, by what follows there.
* Nodes that are left out as dead ends read nothing and get none.
* Layers that a layer of the user's holds are left alone: only its trace() knows what reads them.

So a layer that stands in several places has one norm, in all of them or in none, as it has one weight.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from tapeprop.layers.activation import Activation
from tapeprop.layers.container import Sequential
from tapeprop.layers.conv import Convolution
from tapeprop.layers.conv_transpose import ConvTranspose
from tapeprop.layers.dense import Dense
from tapeprop.layers.layer import BEHIND, Layer, Member
from tapeprop.layers.norm import BatchNorm, BatchNorm1D, BatchNorm2D, BatchNorm3D
from tapeprop.layers.shape import Identity

if TYPE_CHECKING:
    from tapeprop.graph.base import GraphStructure

Normed = Convolution | ConvTranspose | Dense
#: (layer, the norm behind it), in the order in which the layers are met.
Norms = tuple[tuple[Normed, BatchNorm], ...]

_PASSING = (Identity, Activation.Linear)
_ACTIVATIONS = tuple(
    cls
    for cls in vars(Activation).values()
    if isinstance(cls, type) and cls not in (Activation.Linear, Activation.Softmax)
)


def norm_for(layer: Normed) -> BatchNorm:
    """A new norm of the rank and channels of a layer's result."""
    if isinstance(layer, Dense):
        return BatchNorm1D(layer.out_features)
    return (BatchNorm1D, BatchNorm2D, BatchNorm3D)[layer.rank - 1](layer.out_channels)


def norms_for(graph: GraphStructure) -> Norms:
    """The norms of a graph that is valid: those it or a graph inside keeps already, new ones for the rest."""
    known = {id(layer): norm for layer, norm in _kept(graph)}
    found = _Scan()
    found.graph(graph, read=False)
    return tuple(
        (layer, known.get(id(layer)) or norm_for(layer))
        for _, layer in graph.walk()
        if isinstance(layer, Normed) and found.followed.get(id(layer), False)
    )


def walk_with_norms(members: Iterable[Member], norms: Norms) -> Iterator[Member]:
    """What a walk meets, and each norm behind the layer that it follows, as `<key of the layer>.auto_norm`."""
    behind = {id(layer): norm for layer, norm in norms}
    key, waiting = "", None
    for name, member in members:
        if waiting is not None and not name.startswith(f"{key}."):  # the layer's own parameters come first
            yield from waiting.walk(f"{key}.{BEHIND}")
            waiting = None
        yield name, member
        if id(member) in behind:
            key, waiting = name, behind[id(member)]
    if waiting is not None:
        yield from waiting.walk(f"{key}.{BEHIND}")


def norms_behind(layer: Layer, name: str, norms: Norms) -> Iterator[tuple[str, BatchNorm]]:
    """(`<name>.auto_norm` or deeper, norm) of those that stand behind a layer called `name` or one inside it."""
    behind = {id(found): norm for found, norm in norms}
    for key, member in layer.walk(name) if behind else ():
        if id(member) in behind:
            yield f"{key}.{BEHIND}", behind[id(member)]


def _kept(graph: GraphStructure) -> list[tuple[Normed, BatchNorm]]:
    """The norms of graphs inside, then its own, which count in their stead."""
    from tapeprop.graph.base import GraphStructure

    inside = [member for _, member in graph.walk() if isinstance(member, GraphStructure) and member is not graph]
    return [pair for owner in (*inside, graph) for pair in owner._norms]


class _Scan:
    """A walk from the outputs to the inputs. followed: {id of a layer: whether activations follow it in all places so far}."""

    def __init__(self) -> None:
        self.followed: dict[int, bool] = {}

    def layer(self, layer: Layer, read: bool) -> bool:
        """Whether an activation is what reads this layer's input; read: whether it is what reads its result."""
        from tapeprop.graph.base import GraphStructure

        if isinstance(layer, GraphStructure):
            return self.graph(layer, read)
        if isinstance(layer, Sequential) and type(layer).trace is Sequential.trace:
            for inner in reversed(list(layer)):
                read = self.layer(inner, read)
            return read
        if isinstance(layer, _PASSING):
            return read
        if isinstance(layer, Normed):
            self.followed[id(layer)] = self.followed.get(id(layer), True) and read
            return False
        for _, child in layer.children():
            self.layer(child, False)
        return isinstance(layer, _ACTIVATIONS)

    def graph(self, graph: GraphStructure, read: bool) -> bool:
        """As `layer`, for a graph with one root; read: for all of its terms."""
        traversal, terms = graph.check(), set(graph.terms)
        readers: dict[object, list[bool]] = {node: [read] if node in terms else [] for node in traversal.order}
        first = False
        for node in reversed(traversal.order):
            first = self.layer(node.layer, all(readers[node]))
            for operand in traversal.operands[node]:
                readers[operand].append(first and len(traversal.operands[node]) == 1)
        return first
