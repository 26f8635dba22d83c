"""How much of what a GPU moves between memory and its cores is asked for: warps fetch whole sectors of 32 bytes."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
from numba import njit

__all__ = ["Traffic"]

SECTOR = 32
WARP = 32


@njit
def _moved(addresses, warps, size):
    """(sectors, the fewest that could hold as much) of one access of `size` bytes by each lane, in the order of their warps."""
    sectors, fewest, begin = 0, 0, 0
    fetched, asked = np.empty(2 * WARP, np.int64), np.empty(WARP, np.int64)
    while begin < addresses.size:
        end, count_fetched, count_asked = begin, 0, 0
        while end < addresses.size and warps[end] == warps[begin]:
            address = addresses[end]
            if address not in asked[:count_asked]:
                asked[count_asked] = address
                count_asked += 1
            for sector in range(address // SECTOR, (address + size - 1) // SECTOR + 1):
                if sector not in fetched[:count_fetched]:
                    fetched[count_fetched] = sector
                    count_fetched += 1
            end += 1
        sectors += count_fetched
        fewest += (count_asked * size + SECTOR - 1) // SECTOR
        begin = end
    return sectors, fewest


class Traffic:
    """Sectors of global memory that kernels fetch and write, warp by warp. Caches are left out.

    kernel: who runs. moved: {(kernel, instruction): [sectors, the fewest that could hold what was asked for]}.
    """

    def __init__(self) -> None:
        self.kernel = ""
        self.moved: dict[tuple[str, str], np.ndarray] = defaultdict(lambda: np.zeros(2, np.int64))

    def note(self, addresses: np.ndarray, warps: np.ndarray, size: int, what: str) -> None:
        """One access of `size` bytes by each lane."""
        self.moved[self.kernel, what] += _moved(np.ascontiguousarray(addresses), warps, size)

    def of_kernels(self) -> dict[str, tuple[int, int]]:
        """{kernel: (sectors, the fewest)}."""
        found: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(2, np.int64))
        for (kernel, _), counts in self.moved.items():
            found[kernel] += counts
        return {kernel: (int(sectors), int(fewest)) for kernel, (sectors, fewest) in found.items()}
