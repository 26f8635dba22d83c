"""Pools of every rank against torch 2.13 in float64, and what they refuse.

x = S(shape), y is weighted by R (tests/traced.py); the table holds sum(y R) and the sum of |dx|, computed by hand with torch.
"""

import numpy as np
import pytest
from traced import R, S, run

from tapeprop.errors import GraphError, ShapeError
from tapeprop.layers import (
    AdaptiveAvgPool1D,
    AdaptiveAvgPool2D,
    AdaptiveAvgPool3D,
    AvgPool1D,
    AvgPool2D,
    AvgPool3D,
    GlobalAvgPool1D,
    GlobalAvgPool3D,
    GlobalMaxPool1D,
    GlobalMaxPool2D,
    LpPool1D,
    LpPool2D,
    LpPool3D,
    MaxPool1D,
    MaxPool2D,
    MaxPool3D,
    Pool1D,
    Pool3D,
)

TORCH = [
    (MaxPool1D(3, 2, 1, ceil_mode=True), (2, 3, 12), (2, 3, 7), -3.4038027296339775, 28.908973172442074),
    (MaxPool2D(3, 2, 1, 2, True), (2, 3, 12, 10), (2, 3, 6, 5), -5.151622177901205, 103.6530655016195),
    (MaxPool2D(5, 4, ceil_mode=True), (2, 3, 6, 4), (2, 3, 2, 1), 9.263403992075759, 9.631443695243844),
    (
        MaxPool3D((2, 3, 2), (1, 2, 3), 1, (1, 2, 1), True),
        (2, 3, 7, 8, 9),
        (2, 3, 8, 4, 4),
        -30.828825709166935,
        358.6177112118643,
    ),
    (AvgPool1D(3, 2, 1), (2, 3, 11), (2, 3, 6), 0.027116989144963216, 21.73234792810353),
    (AvgPool2D(3, 4, 1, True, True), (2, 3, 12, 11), (2, 3, 4, 3), 0.26081667127353314, 34.02616009637971),
    (AvgPool2D(3, 2, 1, False, True), (2, 3, 12, 10), (2, 3, 7, 6), 2.205752504524796, 154.9682427624829),
    (AvgPool3D(3, 2, 1, True, True), (2, 3, 8, 7, 6), (2, 3, 5, 4, 4), 0.09979113727845701, 133.13896211630768),
    (
        AvgPool3D((2, 3, 1), (1, 2, 2), (1, 1, 0), False),
        (2, 3, 8, 7, 6),
        (2, 3, 9, 4, 3),
        0.356590739425926,
        338.6771682068678,
    ),
    (LpPool1D(2, 3, 2), (2, 3, 9), (2, 3, 4), 9.269734799531603, 20.723312787947748),
    (LpPool2D(4, 3, 2), (2, 3, 8, 9), (2, 3, 3, 4), 11.0111002263945, 73.46560773430603),
    (LpPool3D(2, 3, 2), (2, 3, 7, 8, 5), (2, 3, 3, 3, 2), -33.81669027703309, 321.64300071419495),
    (AdaptiveAvgPool1D(4), (2, 3, 5), (2, 3, 4), 0.8340921154828771, 13.386310380748624),
    (AdaptiveAvgPool2D((3, 4)), (2, 3, 7, 10), (2, 3, 3, 4), 1.6825988724079166, 47.85825063372333),
    (AdaptiveAvgPool2D((7, 5)), (2, 3, 7, 10), (2, 3, 7, 5), 0.498594654905284, 131.8667777082914),
    (
        AdaptiveAvgPool3D((2, None, 4)),
        (2, 3, 5, 7, 6),
        (2, 3, 2, 7, 4),
        -0.01686131659027243,
        153.4746683560217,
    ),
    (GlobalAvgPool3D(), (2, 3, 4, 5, 6), (2, 3, 1, 1, 1), 0.015489329256545564, 5.729050788138132),
    (GlobalMaxPool1D(), (2, 3, 7), (2, 3, 1), 5.545024821993528, 5.729050788138131),
]


@pytest.mark.parametrize(("layer", "shape", "pooled", "weighted", "gradient"), TORCH, ids=[repr(t[0]) for t in TORCH])
def test_values_and_gradients_are_torchs(layer, shape, pooled, weighted, gradient) -> None:
    assert layer.out_shape(shape) == pooled
    found = run(layer, [S(*shape)], [R(*pooled)])
    np.testing.assert_allclose((found.outputs[0] * R(*pooled)).sum(), weighted, rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(np.abs(found.inputs[0]).sum(), gradient, rtol=1e-11)


def test_a_tie_in_a_volume_goes_to_the_first_in_row_major_order() -> None:
    x = np.zeros((1, 1, 2, 2, 2))
    x[0, 0, 0, 1, 1] = x[0, 0, 1, 0, 0] = 1.0
    expected = np.zeros_like(x)
    expected[0, 0, 0, 1, 1] = 1.0
    np.testing.assert_array_equal(run(MaxPool3D(), [x]).inputs[0], expected)


def test_a_norm_of_nothing_has_no_slope() -> None:
    for p in (0.5, 1, 2, 3):
        found = run(LpPool2D(p), [np.zeros((1, 1, 2, 2))])
        assert found.outputs[0].item() == 0
        assert (found.inputs[0] == 0).all()
    assert np.isnan(run(LpPool2D(2), [np.array([[[[1, np.nan], [2, 3]]]])]).outputs[0]).all()


def test_an_odd_norm_is_of_magnitudes() -> None:
    assert run(LpPool1D(3), [np.array([[[-1.0, 2.0]]])]).outputs[0].item() == pytest.approx(9 ** (1 / 3), rel=1e-15)


def test_sizes_that_are_open() -> None:
    assert Pool1D().out_shape((None, 3, None)) == (None, 3, None)
    assert Pool3D(mode="avg").out_shape((None, 3, None, 8, None)) == (None, 3, None, 4, None)
    assert GlobalAvgPool1D().out_shape((None, 3, None)) == (None, 3, 1)
    assert AdaptiveAvgPool2D(1).out_shape((None, 3, None, None)) == (None, 3, 1, 1)
    for layer in (AdaptiveAvgPool2D(2), MaxPool2D(ceil_mode=True)):
        with pytest.raises(ShapeError, match="give them"):
            layer.out_shape((None, 3, None, 8))


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: MaxPool1D((2, 2)), "MaxPool1D: expected filter_size to be an int"),
        (lambda: MaxPool3D((2, 2)), "MaxPool3D: expected filter_size to be an int or three ints"),
        (lambda: MaxPool2D(dilation=0), "dilation"),
        (lambda: Pool3D(padding=(0, 1)), r"\(front, back\), \(top, bottom\)"),
        (lambda: AvgPool1D(2, padding=2), "half the window, 2, got 2"),
        (lambda: LpPool2D(0), "p to be a number > 0, got 0"),
        (lambda: LpPool2D(float("inf")), "p to be a finite number"),
        (lambda: AdaptiveAvgPool2D((2, 2, 2)), "AdaptiveAvgPool2D: expected out_size"),
        (lambda: AdaptiveAvgPool1D(0), "every out_size"),
    ],
)
def test_wrong_arguments(make, named: str) -> None:
    with pytest.raises(GraphError, match=named):
        make()


@pytest.mark.parametrize(
    ("layer", "shape", "message"),
    [
        (Pool1D(), (2, 3, 8, 8), r"Pool1D expects \(N, C, L\), got \(2, 3, 8, 8\): give sequences of rank 3"),
        (GlobalMaxPool2D(), (2, 3, 8), r"GlobalMaxPool2D expects \(N, C, H, W\)"),
        (AdaptiveAvgPool3D(2), (2, 3, 8, 8), r"AdaptiveAvgPool3D expects \(N, C, D, H, W\)"),
        (MaxPool3D(9), (2, 3, 8, 9, 9), r"max_pool3d: .* at least the window \(9, 9, 9\)"),
        (MaxPool2D(2, 1, 1, 3), (2, 3, 2, 8), "at least the dilation"),
    ],
)
def test_wrong_inputs(layer, shape, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        layer.out_shape(shape)
