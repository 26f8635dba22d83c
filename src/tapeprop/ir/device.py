"""What launches on a GPU are cut to. Pure data: ops choose by it, drivers carry it."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["SIMULATED_DEVICE", "Device", "Tile"]

REGISTERS = 65536  # of a multiprocessor
OTHER_REGISTERS = 32  # of a thread of a product, besides those that hold its numbers
BUSY_THREADS = 768  # that keep a multiprocessor at work with a product


@dataclass(frozen=True)
class Tile:
    """How a block of threads of a GPU computes a stretch of a matrix product.

    A block makes (m, n) elements of the result, k terms at a time, of float64 half as many; each of its
    (m / thread_m) * (n / thread_n) threads keeps (thread_m, thread_n) of them in registers.
    """

    m: int
    n: int
    k: int
    thread_m: int
    thread_n: int

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return self.m // self.thread_m * (self.n // self.thread_n)

    def together(self, item_bytes: int) -> int:
        """Blocks that share a multiprocessor, for which the kernels of products keep their registers few enough."""
        sums, fetched = self.thread_m * self.thread_n, (self.m + self.n) * self.k // self.threads
        numbers = sums + self.thread_m + self.thread_n + 2 * fetched  # what is fetched, and where it lies
        registers = OTHER_REGISTERS + numbers * item_bytes // 4
        return max(1, min(REGISTERS // (registers * self.threads), BUSY_THREADS // self.threads))


@dataclass(frozen=True)
class Device:
    """What launches on a GPU are cut to. The bits of a result may depend on it, and on nothing else but shapes.

    block: threads of a block where the kernel does not ask for another number; a power of two, and whole warps on a real device.
    blocks: the most blocks of a launch whose threads stride over the work. tiles: of matrix products, the largest first.
    multiprocessors: a product has to be cut into as many blocks to keep the whole device at work.
    """

    block: int = 256
    blocks: int = 1024
    tiles: tuple[Tile, ...] = (
        Tile(128, 128, 8, 8, 8), Tile(64, 64, 16, 4, 4), Tile(16, 128, 16, 4, 4), Tile(32, 32, 16, 2, 2)
    )  # fmt: skip
    multiprocessors: int = 132

    def spread(self, count: int) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
        """(grid, block) for threads that stride over `count` elements: for (i = cuda.grid(1); i < count; i += cuda.gridsize(1))."""
        return (max(1, min(-(-count // self.block), self.blocks)), 1, 1), (self.block, 1, 1)

    def rows(self, count: int, length: int | None = None) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
        """(grid, block) for blocks that stride over `count` rows: for (row = blockIdx.x; row < count; row += gridDim.x).

        length: of a row, whose block then has a thread for about four elements, but at least a warp.
        """
        block = self.block
        if length is not None:
            block = min(block, max(32, 1 << (-(-length // 4) - 1).bit_length()))
        return (max(1, min(count, 16 * self.blocks)), 1, 1), (block, 1, 1)


#: For Numba's simulator, where a thread takes milliseconds to start: the smallest that still has several threads, blocks and tiles.
SIMULATED_DEVICE = Device(4, 2, (Tile(8, 8, 4, 4, 4), Tile(4, 4, 4, 2, 2)), 2)
