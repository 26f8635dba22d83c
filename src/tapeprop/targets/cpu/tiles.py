"""Which microtile the matrix products of a machine use."""

from __future__ import annotations

from typing import Any

from tapeprop.targets.cpu import machine

__all__ = ["microtile"]


def microtile(dtype: str) -> dict[str, Any]:
    """{"lanes": elements in a vector, "height": rows of the tile}; the tile is two vectors wide.

    Of 32 registers 24 hold sums, of 16 registers 12; the others one row of B and one value of A.
    """
    return {"lanes": machine.lanes(dtype), "height": 12 if machine.vector_registers() >= 32 else 6}
