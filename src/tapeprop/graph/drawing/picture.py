"""What a drawing shows, before anything has a place: boxes and lines, of a graph or of a tape."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from unicodedata import category

from tapeprop.graph.auto_norm import norms_behind
from tapeprop.graph.merge import MergeMode
from tapeprop.graph.node import LayerNode
from tapeprop.graph.structure import incoming
from tapeprop.ir import Tensor
from tapeprop.ir.dims import text
from tapeprop.layers.container import Sequential
from tapeprop.layers.layer import BEHIND
from tapeprop.runtime.listing import Listing

if TYPE_CHECKING:
    from tapeprop.graph.base import GraphStructure

#: Merges whose result depends on the order of the operands: their lines are numbered.
ORDERED = (MergeMode.SUB, MergeMode.DOT, MergeMode.CHCAT)


@dataclass(frozen=True)
class Box:
    """A node of a graph, a norm behind one, or a row of a tape.

    key: what colours go by: the node's name, or the row's number. layers: what it computes, one text for each layer or op. shape: of its
    result, "" where unknown. merge: how several operands become one, "" for at most one. tags: "frozen", "checkpoint" and so on.
    kind: "root", "term", "root term", "node", "norm" or "row". group: of a row, its span. node: of a row, its node.
    """

    key: str
    layers: tuple[str, ...]
    shape: str = ""
    merge: str = ""
    tags: tuple[str, ...] = ()
    kind: str = "node"
    group: str = ""
    node: str = ""

    @property
    def lines(self) -> tuple[str, ...]:
        """All of it as lines of text: name, merge, layers, shape, tags; of a row number and op, node, shape."""
        if self.kind == "row":
            return tuple(filter(None, (f"{self.key}  {self.layers[0]}", self.node, self.shape)))
        return tuple(filter(None, (self.key, self.merge, *self.layers, self.shape, ", ".join(self.tags))))


@dataclass(frozen=True)
class Line:
    """From the box with one number to that with another. label: what stands at it. stopped: no gradient flows back."""

    source: int
    target: int
    label: str = ""
    stopped: bool = False


@dataclass(frozen=True)
class Picture:
    """Boxes, the lines between them, and what the whole is called. tape: whether the boxes are rows, which run in order."""

    title: str
    boxes: tuple[Box, ...]
    lines: tuple[Line, ...]
    tape: bool = False

    @property
    def groups(self) -> dict[str, list[int]]:
        """{span: the numbers of its boxes} of a tape, in order."""
        found: dict[str, list[int]] = {}
        for i, box in enumerate(self.boxes):
            found.setdefault(box.group, []).append(i)
        return found


def graph_picture(graph: GraphStructure, results: Mapping[Hashable, Tensor]) -> Picture:
    """The nodes of a graph, which need not be valid, and the norms that build() added behind the layers of some.

    results: {node: its symbolic result}, as far as known. A norm behind a node's own layer is a box of its own, one inside a node stands
    among its layers. Layers whose weights stand in several nodes are tagged "shared <number>", the same number for the same weights.
    """
    edges, named, norms = graph.graph, graph.labels, graph._norms
    before, stopped, shared = incoming(edges), graph.stopped, _shared(edges)
    boxes: list[Box] = []
    first: dict[LayerNode, int] = {}
    last: dict[LayerNode, int] = {}
    inner: list[Line] = []
    for node in edges:
        behind = dict(norms_behind(node.layer, named[node], norms))
        own = behind.pop(f"{named[node]}.{BEHIND}", None)
        first[node] = last[node] = len(boxes)
        ends = " ".join(filter(None, ("root" * (node in graph.roots), "term" * (node in graph.terms))))
        boxes.append(
            Box(
                clean(named[node]),
                tuple(map(clean, _layers(node, named[node], behind))),
                text(results[node].shape) if node in results else "",
                node.merge_mode.name if len(before[node]) > 1 or node.merge_mode is not MergeMode.SUM else "",
                _tags(node, shared.get(node, ())),
                ends or "node",
            )
        )
        if own is not None:
            last[node] = len(boxes)
            inner.append(Line(first[node], last[node]))
            key, shape = f"{named[node]}.{BEHIND}", boxes[-1].shape  # a norm keeps the shape
            boxes.append(Box(clean(key), (clean(repr(own)),), shape, kind="norm"))
    places = dict.fromkeys(edges, 0)
    lines = []
    for node, following in edges.items():
        for target in following:
            places[target] += 1
            numbered = target.merge_mode in ORDERED and len(before[target]) > 1
            label = str(places[target]) if numbered else ""
            lines.append(Line(last[node], first[target], label, (node, target) in stopped))
    return Picture(clean(str(graph)), tuple(boxes), (*inner, *lines))


def tape_picture(listing: Listing) -> Picture:
    """The rows of a tape's listing, and a line from each row to every row that reads what it makes."""
    boxes = tuple(
        Box(
            row["row"],
            (clean(row["op"]),),
            clean(row.get("shape", "")),
            tags=("python",) if row.get("why") else (),
            kind="row",
            group=clean(row["span"]),
            node=clean(row["node"]),
        )
        for row in listing
    )
    lines = tuple(Line(made, i) for i, row in enumerate(listing) for made in row.get("after", ()))
    return Picture(clean(listing.title), boxes, lines, tape=True)


def clean(value: str) -> str:
    """Text that every language here can hold: line ends are newlines, other control characters and lone surrogates are replaced."""
    value = value.replace("\r\n", "\n").replace("\r", "\n").replace("\t", " ")
    refused = {c for c in set(value) if (category(c) in ("Cc", "Cs") and c != "\n") or c in "\ufffe\uffff"}
    return "".join("\ufffd" if c in refused else c for c in value)


def _layers(node: LayerNode, name: str, behind: Mapping[str, object]) -> Iterable[str]:
    """What a node computes, layer by layer, and the norms behind layers inside it."""
    left = dict(behind)
    if isinstance(node.layer, Sequential) and type(node.layer).trace is Sequential.trace and len(node.layer):
        for key, layer in node.layer.members():
            named = "" if key.isdigit() else f"{key}: "
            yield f"{named}{layer!r}"
            for found in [k for k in left if k.startswith(f"{name}.{key}.")]:
                yield f"+ {left.pop(found)!r}"
    else:
        yield repr(node.layer)
    yield from (f"+ {norm!r}" for norm in left.values())


def _tags(node: LayerNode, shared: Sequence[int]) -> tuple[str, ...]:
    own = ("optimizer",) if node.optimizer is not None else ()
    marks = ("frozen" * node.frozen, "checkpoint" * node.checkpoint, *(f"shared {number}" for number in shared))
    return (*filter(None, marks), *own)


def _shared(nodes: Iterable[LayerNode]) -> dict[LayerNode, list[int]]:
    """{node: the numbers of the sets of nodes that have weights in common with it}."""
    holders: dict[object, dict[LayerNode, None]] = {}
    for node in nodes:
        for _, parameter in node.layer.named_parameters():
            holders.setdefault(parameter, {})[node] = None
    groups = dict.fromkeys(tuple(found) for found in holders.values() if len(found) > 1)
    numbers: dict[LayerNode, list[int]] = {}
    for number, group in enumerate(groups, 1):
        for node in group:
            numbers.setdefault(node, []).append(number)
    return numbers
