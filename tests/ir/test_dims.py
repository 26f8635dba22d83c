"""Open sizes: one canonical form, exact division, questions that stay open."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapeprop.ir.dims import Dim, UndecidedError, at_least, broadcast, evaluate, product, same, text

N, H = Dim.symbol("N"), Dim.symbol("H")


def test_equal_sizes_take_one_form():
    assert (H + 2 - 3) // 1 + 1 == H
    assert (H - 1) // 2 + 1 == (H + 1) // 2
    assert N * H == H * N
    assert 2 * H - H - H == 0


@given(st.integers(1, 50), st.integers(1, 50), st.integers(1, 4), st.integers(0, 3), st.integers(1, 5))
def test_evaluation_agrees_with_integers(n, h, stride, pad, size):
    open_size = ((H + 2 * pad - size) // stride + 1) * N + 3 * H
    assert evaluate(open_size, {"N": n, "H": h}) == ((h + 2 * pad - size) // stride + 1) * n + 3 * h


def test_exact_division_by_an_open_size():
    assert (N * H * 3) // (N * 3) == H
    assert (N * H) // N == H
    with pytest.raises(UndecidedError):
        (N + 1) // H


def test_questions():
    assert same(N, N)
    assert not same(N, N + 1)
    with pytest.raises(UndecidedError):
        same(N, 4)
    assert at_least(N, 1)
    with pytest.raises(UndecidedError):
        at_least(N, 2)
    assert at_least(N + H, 2)
    assert at_least(N - 1, 0)
    assert at_least((N + 3) // 2 * H + 1, 3)
    assert at_least(32 * ((N + 31) // 32) - N, 0)  # whole groups that hold N
    assert at_least(6 * ((N + H) // 3) - 2 * N - 2 * H, -4)
    undecided = [(N - 1, 1), (N - H, 0), (N // 2 + 1, 2), (3 - N, 0), (32 * ((N + 30) // 32) - N, 0), (N // 2 - N, -9)]
    for size, bound in undecided:
        with pytest.raises(UndecidedError):
            at_least(size, bound)


def test_broadcasting():
    assert broadcast((N, 1, 3), (4, 3)) == (N, 4, 3)
    assert broadcast((), (2,)) == (2,)
    with pytest.raises(ValueError, match="broadcast"):
        broadcast((2, 3), (2, 4))
    with pytest.raises(UndecidedError):
        broadcast((N,), (5,))


def test_text_and_product():
    assert text((N, 3)) == "(N, 3)"
    assert text((3,)) == "(3,)"
    assert product((N, 3, 2)) == 6 * N
