"""A graph as notebooks show it: the drawing above the table."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from tapeprop.graph import tables
from tapeprop.graph.drawing.picture import clean, graph_picture
from tapeprop.graph.drawing.svg import svg

if TYPE_CHECKING:
    from tapeprop.graph.base import GraphStructure

#: Larger graphs are shown as a table alone.
DRAWN = 200


def notebook_page(graph: GraphStructure) -> str:
    """HTML with nothing outside of it: the drawing of a graph of at most DRAWN nodes, and its table. Never raises."""
    try:
        results = graph._known_results()
        rows = tables.rows(graph.graph, graph.labels, results, graph._norms)
        table = clean(tables.html_table(rows, str(graph)))
        if len(graph) > DRAWN:
            return f"<p>{len(graph):,} nodes are too many to draw here; plot('graph.svg') draws them.</p>{table}"
        drawing = svg(graph_picture(graph, results))
    except Exception as error:  # notebooks would show a traceback in place of a value that is there
        return f"<pre>{escape(_text(graph))}</pre><p>no drawing: {escape(f'{type(error).__name__}: {error}')}</p>"
    return f'<div style="overflow:auto;max-height:60em">{drawing}</div>{table}'


def _text(graph: GraphStructure) -> str:
    try:
        return repr(graph)
    except Exception:
        return object.__repr__(graph)
