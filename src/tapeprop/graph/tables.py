"""A graph as a table, in text or HTML; `graph.drawing` draws it."""

from __future__ import annotations

import html
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

from tapeprop.graph.auto_norm import Norms, norms_behind
from tapeprop.graph.node import LayerNode
from tapeprop.graph.structure import Edges
from tapeprop.ir import Tensor
from tapeprop.ir.dims import text

HEADINGS = ("node", "layer", "output", "parameters", "leads to")


@dataclass(frozen=True)
class Row:
    """One node of a table, or a norm behind one of its layers. shape: of its result, "" where unknown."""

    name: str
    layer: str
    shape: str
    parameters: int
    following: str

    @property
    def cells(self) -> tuple[str, ...]:
        """What stands under each of HEADINGS."""
        return self.name, self.layer, self.shape, f"{self.parameters:,}", self.following


def rows(
    edges: Edges[LayerNode], named: Mapping[LayerNode, str], results: Mapping[Hashable, Tensor], norms: Norms = ()
) -> list[Row]:
    """A row for each node in declaration order, and for each of `norms` behind the node that holds its layer.

    results: {node: its symbolic result}, as far as known.
    """
    found = []
    for node, following in edges.items():
        shape = text(results[node].shape) if node in results else ""
        merge = "" if node.merge_mode.value == "sum" else f" after {node.merge_mode.name}"
        frozen = " (frozen)" if node.frozen else ""
        leads = ", ".join(named[target] for target in following)
        found.append(Row(named[node], f"{node.layer!r}{merge}{frozen}", shape, sum(node.param_size), leads))
        for name, norm in norms_behind(node.layer, named[node], norms):
            found.append(Row(name, repr(norm), "", sum(norm.param_size), ""))
    return found


def text_table(
    table: Sequence[Row], param_size: tuple[int, int], nodes: int, layers: int, title: str, width: int = 48
) -> str:
    """The table in aligned columns; long cells are cut to `width`."""
    lines = [HEADINGS, *(row.cells for row in table)]
    cut = [[cell if len(cell) <= width else cell[: width - 3] + "..." for cell in line] for line in lines]
    used = [i for i in range(len(HEADINGS)) if i != 2 or any(row.shape for row in table)]
    widths = {i: max(len(line[i]) for line in cut) for i in used}
    shown = ["  ".join(_aligned(line[i], widths[i], i == 3) for i in used).rstrip() for line in cut]
    rule = "-" * max(map(len, shown))
    weights, biases = param_size
    total = f"{title}: {nodes} nodes, {layers} layers, {weights:,} weights and {biases:,} biases to train"
    return "\n".join([shown[0], rule, *shown[1:], rule, total])


def html_table(table: Sequence[Row], title: str) -> str:
    """The table as HTML, for notebooks."""
    head = "".join(f"<th>{heading}</th>" for heading in HEADINGS)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row.cells) + "</tr>" for row in table)
    return f"<table><caption>{html.escape(title)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _aligned(cell: str, width: int, right: bool) -> str:
    return cell.rjust(width) if right else cell.ljust(width)
