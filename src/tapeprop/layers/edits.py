"""A count of edits: has anything that a traced program depends on been changed since?

Nodes, edges and hyper-parameters may be edited at any time, in a graph nested many levels down as well. Comparing the
whole structure before every call would cost more than a small network's step, so whoever edits counts up here, and a
graph compares structures only where the count has moved. The count is the process's, not a graph's: one number says
"nothing at all was edited". It orders nothing and nothing else is derived from it.
"""

from __future__ import annotations

import itertools

_numbers = itertools.count(1)
_latest = 0


def edited() -> None:
    """Called after any edit of a layer, a node or a graph."""
    global _latest
    _latest = next(_numbers)


def edits() -> int:
    """A number that differs from an earlier answer if anything was edited in between."""
    return _latest
