"""Drawings as text that other programs draw: Mermaid flowcharts and Graphviz."""

from __future__ import annotations

import html

from tapeprop.graph.drawing.picture import Box, Picture


def mermaid(picture: Picture) -> str:
    """A Mermaid flowchart (https://mermaid.js.org/syntax/flowchart.html).

    Roots and terms have round ends, norms are hexagons, frozen nodes and lines without a gradient are dashed; a tape's spans are subgraphs.
    Mermaid draws no more than 500 lines and 50,000 characters unless its maxEdges and maxTextSize are raised.
    """
    lines = ["flowchart TD"]
    for number, (name, members) in enumerate(picture.groups.items()):
        indent = "        " if picture.tape else "    "
        if picture.tape:
            lines.append(f'    subgraph s{number}["{_mermaid_label(name)}"]')
        for i in members:
            left, right = _mermaid_shape(picture.boxes[i])
            label = _mermaid_label("\n".join(picture.boxes[i].lines))
            lines.append(f'{indent}n{i}{left}"{label}"{right}')
        if picture.tape:
            lines.append("    end")
    for line in picture.lines:
        words = " ".join(filter(None, (line.label, "stop" * line.stopped)))
        arrow = "-.->" if line.stopped else "-->"
        lines.append(f"    n{line.source} {arrow}{f'|{words}|' if words else ''} n{line.target}")
    frozen = [f"n{i}" for i, box in enumerate(picture.boxes) if "frozen" in box.tags]
    if frozen:
        lines += ["    classDef frozen stroke-dasharray: 5 4", f"    class {','.join(frozen)} frozen"]
    return "\n".join(lines) + "\n"


def dot(picture: Picture) -> str:
    """A graph in Graphviz' language (https://graphviz.org/doc/info/lang.html).

    Roots and terms are ellipses, norms octagons, frozen nodes and lines without a gradient are dashed; a tape's spans are clusters.
    """
    lines = ["digraph {", "    node [shape=box]"]
    for number, (name, members) in enumerate(picture.groups.items()):
        indent = "        " if picture.tape else "    "
        if picture.tape:
            lines += [f"    subgraph cluster_{number} {{", f'        label="{_dot_label(name)}"']
        for i in members:
            box = picture.boxes[i]
            extra = _dot_shape(box) + (", style=dashed" if "frozen" in box.tags else "")
            label = _dot_label("\n".join(box.lines))
            lines.append(f'{indent}n{i} [label="{label}"{extra}]')
        if picture.tape:
            lines.append("    }")
    for line in picture.lines:
        words = " ".join(filter(None, (line.label, "stop" * line.stopped)))
        settings = [f'label="{_dot_label(words)}"'] * bool(words) + ["style=dashed"] * line.stopped
        lines.append(f"    n{line.source} -> n{line.target}" + (f" [{', '.join(settings)}]" if settings else ""))
    return "\n".join([*lines, "}"]) + "\n"


def _mermaid_label(value: str) -> str:
    # Mermaid reads `#name;` as a character and a label that begins with a backtick as Markdown.
    escaped = html.escape(value.replace("#", "\0"), quote=False).replace('"', "&quot;")
    return escaped.replace("\0", "#35;").replace("`", "#96;").replace("\n", "<br>")


def _mermaid_shape(box: Box) -> tuple[str, str]:
    if "root" in box.kind or "term" in box.kind:
        return "([", "])"
    return ("{{", "}}") if box.kind == "norm" else ("[", "]")


def _dot_label(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _dot_shape(box: Box) -> str:
    if "root" in box.kind or "term" in box.kind:
        return ", shape=ellipse"
    return ", shape=octagon" if box.kind == "norm" else ""
