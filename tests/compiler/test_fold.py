"""Folding of what follows a convolution or dense layer channel by channel: which instructions go, and the same values."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tapeprop import ops
from tapeprop.compiler.fold import fold_affine
from tapeprop.compiler.interpret import interpret
from tapeprop.compiler.passes import optimize
from tapeprop.ir import Parameter, Program, Span, Store, Tensor, Trace, reachable, recording

CHANNELS, SIDE = 4, 4


class Case:
    """A program of float64 that `body(case, y)` makes of a linear result y, with numbers for its leaves."""

    def __init__(self, body: Callable[[Case, Tensor], Tensor], dense: bool = False, bias: bool = True):
        self.rng, self.trace = np.random.default_rng(0), Trace("float64", training=False)
        self.feeds: dict[Tensor, np.ndarray] = {}
        with recording(self.trace):
            self.x = self.trace.input(0, (3, 2) if dense else (3, 2, SIDE, SIDE))
            self.feeds[self.x] = self.rng.standard_normal(self.x.shape)
            weight = self.parameter((CHANNELS, 2) if dense else (CHANNELS, 2, 3, 3))
            shift = self.parameter((CHANNELS,)) if bias else None
            self.linear = ops.dense(self.x, weight, shift) if dense else ops.conv2d(self.x, weight, shift, padding=1)
            self.outputs = [body(self, self.linear)]

    def parameter(self, shape: tuple[int, ...], positive: bool = False) -> Tensor:
        leaf = self.trace.parameter(Parameter(shape, np.zeros(shape)))
        self.feeds[leaf] = self.rng.uniform(0.5, 2, shape) if positive else self.rng.standard_normal(shape)
        return leaf

    def norm(self, y: Tensor) -> Tensor:
        shape = (CHANNELS,)
        mean, variance = self.parameter(shape), self.parameter(shape, positive=True)
        return ops.batch_norm_inference(y, self.parameter(shape), self.parameter(shape), mean, variance)

    def folded(self) -> Program:
        """The program after the pass; its outputs are compared with those before."""
        calls = reachable([*self.outputs, *(store.value for store in self.trace.stores)])
        program = Program([Span("forward", calls, self.trace.stores)], [self.x], self.outputs)
        expected, _ = interpret(program, self.feeds)

        def check(name: str, after: Program) -> None:
            for a, b in zip(interpret(after, self.feeds)[0], expected, strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12 * np.abs(b).max(), err_msg=name)

        return optimize(program, check, storage=lambda shape, dtype: Tensor(shape, dtype))


def ops_of(program: Program) -> dict[str, list[str]]:
    """{span: the ops of its instructions, aliases left out}."""
    return {s.name: [c.op.name for c in s.instructions if not c.op.alias] for s in program.spans}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dense", [False, True])
def test_a_norm_goes_into_the_weights(dense: bool, bias: bool) -> None:
    found = ops_of(Case(lambda case, y: ops.relu(case.norm(y)), dense, bias).folded())
    assert found["forward"] == ["dense" if dense else "conv2d", "elementwise"]
    assert set(found["fold"]) == {"elementwise"}


def through_a_row(case: Case, y: Tensor) -> Tensor:
    """A convolution of rank 1, which is one of images with a single row behind a reshape, with its norm."""
    rows = ops.reshape(y, (3, CHANNELS, SIDE * SIDE))
    return ops.relu(case.norm(ops.conv1d(rows, case.parameter((CHANNELS, CHANNELS, 3)), padding=1)))


def test_a_norm_behind_a_convolution_in_one_dimension() -> None:
    found = ops_of(Case(through_a_row).folded())
    assert found["forward"] == ["conv2d", "conv2d", "elementwise"]
    assert set(found["fold"]) == {"elementwise"}


def test_a_scale_before_and_a_shift_behind_reshapes() -> None:
    def body(case: Case, y: Tensor) -> Tensor:
        scaled = ops.reshape(y * column(case), (3, CHANNELS, 2, 2 * SIDE))
        return ops.reshape(scaled, (3, CHANNELS, 4 * SIDE)) + ops.reshape(case.parameter((CHANNELS,)), (CHANNELS, 1))

    assert ops_of(Case(body).folded())["forward"] == ["conv2d"]


def test_a_norm_behind_a_convolution_in_three_dimensions() -> None:
    def body(case: Case, y: Tensor) -> Tensor:
        volumes = ops.reshape(y, (3, CHANNELS, 2, 2, SIDE))
        return case.norm(ops.conv3d(volumes, case.parameter((CHANNELS, CHANNELS, 1, 2, 2))))

    assert ops_of(Case(body).folded())["forward"] == ["conv2d", "conv3d"]


def test_a_reshape_that_mixes_the_channels_stays_before_its_scale() -> None:
    def body(case: Case, y: Tensor) -> Tensor:
        return ops.reshape(y, (3, 2, 2 * SIDE, SIDE)) * ops.reshape(case.parameter((2,)), (2, 1, 1))

    assert "fold" not in [span.name for span in Case(body).folded().spans]


def column(case: Case) -> Tensor:
    return ops.reshape(case.parameter((CHANNELS,)), (CHANNELS, 1, 1))


def test_a_scale_leaves_no_bias_and_a_shift_leaves_the_weights() -> None:
    scaled = Case(lambda case, y: y * column(case), bias=False).folded()
    assert [len(call.operands) for call in scaled.span("forward").instructions] == [2]
    shifted = Case(lambda case, y: column(case) + y, bias=False).folded()
    assert [call.op.name for call in shifted.span("forward").instructions] == ["conv2d"]
    assert [store.value.shape for store in shifted.span("fold").stores] == [(CHANNELS,)]


def read_twice(case: Case, y: Tensor) -> Tensor:
    return ops.relu(case.norm(y)) + y


def by_the_input(case: Case, y: Tensor) -> Tensor:
    return y * ops.reshape(ops.mean(case.x, axis=(0, 1, 2)), (CHANNELS, 1, 1))  # as wide as there are channels


def by_state_that_changes(case: Case, y: Tensor) -> Tensor:
    state = case.parameter((CHANNELS,))
    case.trace.stores.append(Store(ops.tanh(state), state))
    return y - ops.reshape(state, (CHANNELS, 1, 1))


def along_another_axis(case: Case, y: Tensor) -> Tensor:
    return y * case.parameter((SIDE,))  # as long as there are channels, but along the width


def taken_off(case: Case, y: Tensor) -> Tensor:
    return column(case) - y


@pytest.mark.parametrize(
    "body",
    [read_twice, by_the_input, by_state_that_changes, along_another_axis, taken_off, lambda case, y: ops.relu(y)],
)
def test_what_stays(body: Callable[[Case, Tensor], Tensor]) -> None:
    found = Case(body).folded()
    assert "fold" not in [span.name for span in found.spans]


def test_a_result_that_is_an_output_stays() -> None:
    case = Case(lambda case, y: case.norm(y))
    case.outputs.append(case.linear)
    assert "fold" not in [span.name for span in case.folded().spans]


def test_weights_made_of_the_input_stay() -> None:
    def body(case: Case, y: Tensor) -> Tensor:
        return case.norm(ops.conv2d(case.x, ops.reshape(y[0:1, :, 0:2, 0:2], (CHANNELS, 2, 2, 1))))

    assert "fold" not in [span.name for span in Case(body).folded().spans]


def test_nothing_folds_without_a_place_to_keep_it() -> None:
    case = Case(lambda case, y: case.norm(y))
    program = Program([Span("forward", reachable(case.outputs))], [case.x], case.outputs)
    assert [span.name for span in optimize(program).spans] == ["forward"]
    assert fold_affine(program, Tensor).spans[0].name == "fold"
