"""Panels of products and the staging of planes: compiled against the twins, with nothing read or written beside what is named."""

import numpy as np
import pytest
from numba import njit

from tapeprop.targets.cpu.gemm import A_ROWS, B_TABLE, NO_ADDEND, PER_ROW, ROWS, STRIDED, gemm_panel
from tapeprop.targets.cpu.panels import stage_plane
from tapeprop.targets.cpu.plain import plain

LANES, HEIGHT = 4, 6
RNG = np.random.default_rng(0)


@njit(error_model="numpy")
def strided(m, n, k, a, a_m, a_k, b, b_k, table, addend, addend_m, c, c_m):
    gemm_panel(
        LANES, HEIGHT, STRIDED, ROWS, m, n, k, a, 3, a_m, a_k, b, 1, b_k, table, 0, addend, 2, addend_m, c, 5, c_m
    )


@njit(error_model="numpy")
def by_table(m, n, k, a, a_m, a_k, b, b_k, table, addend, addend_m, c, c_m):
    gemm_panel(
        LANES, HEIGHT, B_TABLE, PER_ROW, m, n, k, a, 3, a_m, a_k, b, 1, 0, table, 2, addend, 2, addend_m, c, 5, c_m
    )


@njit(error_model="numpy")
def without_addend(m, n, k, a, a_m, a_k, b, b_k, table, addend, addend_m, c, c_m):
    gemm_panel(LANES, HEIGHT, B_TABLE, NO_ADDEND, m, n, k, a, 3, a_m, a_k, b, 1, 0, table, 2, addend, 2, -1, c, 5, c_m)


@njit(error_model="numpy")
def rows_by_table(m, n, k, a, a_m, a_k, b, b_k, table, addend, addend_m, c, c_m):
    gemm_panel(LANES, HEIGHT, A_ROWS, ROWS, m, n, k, a, 3, 0, 0, b, 1, b_k, table, 2, addend, 2, addend_m, c, 5, c_m)


@pytest.mark.parametrize("function", [strided, by_table, without_addend, rows_by_table])
def test_products_are_those_of_the_twin(function):
    """Rows of every tile and of several, sums of none to three blocks of terms, columns of a part, one and two vectors."""
    for k in (0, 1, 255, 383, 384, 700):
        for m, n in ((1, 8), (5, 3), (8, 8), (13, 7), (20, 4)):
            most = max(m, k, 1)
            a, b, addend = (RNG.standard_normal(8 + most * 24) for _ in range(3))
            step = most if function is rows_by_table else n + 1
            table = np.concatenate(
                [[-(10**9)] * 2, RNG.permutation(m if function is rows_by_table else most) * min(step, most)]
            )
            a_m, a_k = (k, 1) if m % 2 else (1, m)
            for addend_m in (-1, 0, n):
                made = RNG.standard_normal(6 + m * (n + 2))
                wanted = made.copy()
                given = (m, n, k, a, a_m, a_k, b, n + 1, table.astype(np.int64), addend, addend_m)
                function(*given, made, n + 2)
                plain(function)(*given, wanted, n + 2)
                # one rounding for a product and its sum, where the twin has two
                np.testing.assert_allclose(made, wanted, rtol=1e-11, atol=1e-11)


@njit(error_model="numpy")
def stage(x, x_start, x_row, x_step, top, bottom, low, high, y, rows, count):
    stage_plane(LANES, x, x_start, x_row, x_step, top, bottom, low, high, y, 2, rows, count)


@pytest.mark.parametrize("x_step", [1, 2, 3])
def test_planes_are_those_of_the_twin(x_step):
    """Images that begin before the plane or behind it, end inside or beyond; NaN where nothing may be read."""
    for rows, count in ((1, 1), (3, 4), (4, 11), (5, 8)):
        for top, bottom, low, high in (
            (0, rows, 0, count), (-2, rows + 3, -1, count + 4), (1, rows - 1, 2, count - 1), (2, 1, 3, 2), (rows, rows + 2, 0, count),
            (-3, -1, 0, count), (0, rows, count, count + 3),
        ):  # fmt: skip
            x_row = count * x_step + 2
            x, x_start = np.full(8 + (rows + 8) * x_row, np.nan), 4 * x_row
            for u in range(max(top, 0), min(bottom, rows)):
                for j in range(max(low, 0), min(high, count)):
                    x[x_start + u * x_row + j * x_step] = 100 * u + j
            made = np.full(rows * count + 5, -1.0)
            wanted = made.copy()
            stage(x, x_start, x_row, x_step, top, bottom, low, high, made, rows, count)
            plain(stage)(x, x_start, x_row, x_step, top, bottom, low, high, wanted, rows, count)
            np.testing.assert_array_equal(made, wanted)
            assert not np.isnan(made).any()
            assert (made[:2] == -1).all()
            assert (made[rows * count + 2 :] == -1).all()
