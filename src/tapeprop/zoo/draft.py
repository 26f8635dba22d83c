"""What the networks are written with: nodes added one behind another, and widths scaled as one."""

from __future__ import annotations

from collections.abc import Sequence

from tapeprop.errors import GraphError
from tapeprop.graph.merge import MergeMode
from tapeprop.graph.node import LayerNode, SequentialNode
from tapeprop.layers import Activation, BatchNorm2D, Conv2D, Layer, arguments
from tapeprop.model import LayerGraph

Named = tuple[str, Layer]


class Draft:
    """A graph in the making. The node that is added first is its root."""

    def __init__(self) -> None:
        self.edges: dict[LayerNode, list[LayerNode]] = {}

    def add(
        self,
        name: str,
        *layers: Layer | Named,
        after: LayerNode | Sequence[LayerNode] = (),
        merge: MergeMode = MergeMode.SUM,
    ) -> LayerNode:
        """A node of these layers, one after another, behind `after`.

        GraphError where channels are joined in another order than nodes were added: a graph merges in the order of its keys.
        """
        if len(layers) == 1 and isinstance(layers[0], Layer):
            node = LayerNode(layers[0], merge, name)
        else:
            node = SequentialNode(*layers, merge_mode=merge, name=name)
        self.edges[node] = []
        behind = [after] if isinstance(after, LayerNode) else list(after)
        if merge is MergeMode.CHCAT and behind != [known for known in self.edges if known in behind]:
            raise GraphError(f"{name}: expected nodes in the order in which they were added, got {behind}")
        for before in behind:
            self.edges[before].append(node)
        return node

    def line(self, *named: Named, after: LayerNode | Sequence[LayerNode] = ()) -> LayerNode:
        """Nodes of one layer each, one behind another; gives the last."""
        for name, layer in named:
            after = self.add(name, layer, after=after)
        if not isinstance(after, LayerNode):
            raise GraphError("line: expected at least one layer, got none")
        return after

    def graph(self, term: LayerNode | list[LayerNode], seed: int | None) -> LayerGraph:
        """The graph from the first node to `term`."""
        return LayerGraph(self.edges, root=next(iter(self.edges)), term=term, seed=seed)


def scaled(channels: int, width: float) -> int:
    """About width * channels, a multiple of 8, at least 8 (Howard et al. 2017, section 3.3); `channels` for a width of 1.

    GraphError unless width is a finite number above 0.
    """
    if arguments.number("zoo", "width", width, least=0.0) == 0:
        raise GraphError(f"zoo: expected width to be a finite number > 0, got {width!r}")
    return channels if width == 1 else max(8, int(channels * width + 4) // 8 * 8)


def normed(
    before: int,
    channels: int,
    size: int | tuple[int, int],
    stride: int = 1,
    *,
    activation: type[Layer] | None = Activation.ReLU,
    epsilon: float = 1e-5,
    **options: object,
) -> list[Layer]:
    """A convolution without bias, a batch norm and an activation. options: of `Conv2D`."""
    layers: list[Layer] = [
        Conv2D(before, channels, size, stride, bias=False, **options),  # type: ignore[arg-type]
        BatchNorm2D(channels, epsilon=epsilon),
    ]
    return layers if activation is None else [*layers, activation()]
