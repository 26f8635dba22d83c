"""A graph for readers: a table as text or HTML, and a drawing as Mermaid or Graphviz text."""

from __future__ import annotations

import html
import os
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tapeprop.errors import GraphError
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


def mermaid(
    edges: Edges[LayerNode],
    named: Mapping[LayerNode, str],
    roots: Sequence[LayerNode],
    terms: Sequence[LayerNode],
) -> str:
    """The graph as a Mermaid flowchart; roots and terms have round ends."""
    keys = {node: f"n{i}" for i, node in enumerate(edges)}
    lines = ["flowchart TD"]
    for node in edges:
        label = html.escape(_label(node, named)).replace("\n", "<br>")
        left, right = ("([", "])") if node in roots or node in terms else ("[", "]")
        lines.append(f'    {keys[node]}{left}"{label}"{right}')
    lines += [f"    {keys[node]} --> {keys[target]}" for node, following in edges.items() for target in following]
    return "\n".join(lines) + "\n"


def dot(
    edges: Edges[LayerNode],
    named: Mapping[LayerNode, str],
    roots: Sequence[LayerNode],
    terms: Sequence[LayerNode],
) -> str:
    """The graph in Graphviz' language; roots and terms are ellipses."""
    keys = {node: f"n{i}" for i, node in enumerate(edges)}
    lines = ["digraph {", "    node [shape=box]"]
    for node in edges:
        label = _label(node, named).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        shape = ", shape=ellipse" if node in roots or node in terms else ""
        lines.append(f'    {keys[node]} [label="{label}"{shape}]')
    lines += [f"    {keys[node]} -> {keys[target]}" for node, following in edges.items() for target in following]
    return "\n".join([*lines, "}"]) + "\n"


def plot(
    edges: Edges[LayerNode],
    named: Mapping[LayerNode, str],
    roots: Sequence[LayerNode],
    terms: Sequence[LayerNode],
    path: str | os.PathLike[str] | None,
) -> str:
    """The drawing in the language that the path's ending asks for, Mermaid without a path; written there.

    GraphError for other endings.
    """
    ending = ".mmd" if path is None else Path(path).suffix.lower()
    if ending in (".mmd", ".md"):
        drawing = mermaid(edges, named, roots, terms)
        if ending == ".md":
            drawing = f"```mermaid\n{drawing}```\n"
    elif ending in (".dot", ".gv"):
        drawing = dot(edges, named, roots, terms)
    else:
        raise GraphError(f"plot: expected a path that ends in .mmd, .md, .dot or .gv, got {str(path)!r}")
    if path is not None:
        Path(path).write_text(drawing, encoding="utf-8")
    return drawing


def _label(node: LayerNode, named: Mapping[LayerNode, str]) -> str:
    merge = "" if node.merge_mode.value == "sum" else f"{node.merge_mode.name}, "
    return f"{named[node]}\n{merge}{node.layer!r}"


def _aligned(cell: str, width: int, right: bool) -> str:
    return cell.rjust(width) if right else cell.ljust(width)
