"""A drawing in the language that a path's ending asks for."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from tapeprop.errors import GraphError
from tapeprop.graph.drawing.picture import Picture
from tapeprop.graph.drawing.svg import svg
from tapeprop.graph.drawing.text import dot, mermaid
from tapeprop.runtime.writing import write_text


def _fenced(picture: Picture) -> str:
    return f"```mermaid\n{mermaid(picture)}```\n"


#: {ending of a path: what writes it}
LANGUAGES: dict[str, Callable[[Picture], str]] = {
    ".svg": svg, ".mmd": mermaid, ".md": _fenced, ".dot": dot, ".gv": dot,
}  # fmt: skip


def check_ending(path: str | os.PathLike[str]) -> str:
    """The path's ending in lower case. GraphError where it is none of LANGUAGES."""
    ending = Path(path).suffix.lower()
    if ending not in LANGUAGES:
        *others, last = LANGUAGES
        raise GraphError(f"plot: expected a path that ends in {', '.join(others)} or {last}, got {os.fspath(path)!r}")
    return ending


def written(picture: Picture, path: str | os.PathLike[str] | None) -> str:
    """The drawing in the language that the path's ending asks for, written there; Mermaid without a path.

    GraphError for other endings; OSError where the file cannot be written.
    """
    if path is None:
        return mermaid(picture)
    drawing = LANGUAGES[check_ending(path)](picture)
    write_text(path, [drawing])
    return drawing
