"""LocalResponseNorm and GlobalResponseNorm: torch's numbers (for the second, of ConvNeXt V2's formula in torch), and refusals."""

import numpy as np
import pytest
from traced import C, R, run

from tapeprop.errors import GraphError, ShapeError
from tapeprop.layers import GlobalResponseNorm, Layer, LocalResponseNorm


def check(layer: Layer, shape: tuple[int, ...], along: float, to_x: float, to_parameters: list[float]) -> None:
    """<y, R> and the l1 norms of the gradients against torch 2.13's, in float64: x = 3 C, weights sin(1 + k), biases sin(2 + k)."""
    for number, (_, parameter) in enumerate(layer.named_parameters()):
        parameter.assign(np.sin(1 + number + np.arange(parameter.size)).reshape(parameter.shape))
    found = run(layer, [3 * C(*shape)], [R(*shape)], training=True)
    np.testing.assert_allclose((found.outputs[0] * R(*shape)).sum(), along, rtol=1e-9)
    np.testing.assert_allclose(np.abs(found.inputs[0]).sum(), to_x, rtol=1e-8)
    sums = [np.abs(found.parameters[parameter]).sum() for _, parameter in layer.named_parameters()]
    np.testing.assert_allclose(sums, to_parameters, rtol=1e-9)
    np.testing.assert_array_equal(run(layer, [3 * C(*shape)]).outputs[0], found.outputs[0])  # as in training
    assert layer.out_shape((None, *shape[1:])) == (None, *shape[1:])


@pytest.mark.parametrize(
    ("layer", "shape", "along", "to_x", "to_parameters"),
    [
        (LocalResponseNorm(1, 0.3, 0.6, 1.2), (2, 6, 3, 4), 0.864797500384572, 30.04740974859998, []),
        (LocalResponseNorm(2, 0.3, 0.6, 1.2), (2, 6, 3, 4), 0.7118328130168294, 39.912620496121505, []),
        (LocalResponseNorm(3, 0.3, 0.6, 1.2), (2, 6, 3, 4), 0.8614799767582006, 41.05041218695128, []),
        (LocalResponseNorm(4, 0.3, 0.6, 1.2), (2, 6, 3, 4), 0.9124412202509262, 45.223616800232904, []),
        (LocalResponseNorm(9, 0.3, 0.6, 1.2), (2, 6, 3, 4), 1.2137311055131978, 53.52370548944916, []),
        (LocalResponseNorm(2), (2, 6, 3), 3.776474730909083, 24.46779767086951, []),
        (LocalResponseNorm(3), (1, 4, 2, 2, 2), 1.2368496783850738, 20.579159713052647, []),
        (
            GlobalResponseNorm(6),
            (2, 6, 3, 4),
            33.16257012394007,
            89.57506476841824,
            [13.050802510674188, 77.6989000655669],
        ),
        (
            GlobalResponseNorm(6),
            (2, 6, 5),
            0.39168383638905624,
            47.64114034630888,
            [13.58577234997594, 2.7719112746599457],
        ),
    ],
)
def test_equals_torch(layer: Layer, shape: tuple[int, ...], along: float, to_x: float, to_parameters: list) -> None:
    check(layer, shape, along, to_x, to_parameters)


def test_an_even_window_has_one_channel_more_before() -> None:
    x = np.array([[[1.0], [10.0], [100.0]]])
    found = run(LocalResponseNorm(2, alpha=2.0, beta=1.0, k=0.0), [x]).outputs[0]
    np.testing.assert_allclose(found, x / [[[1.0], [101.0], [10100.0]]])


def test_global_response_norm_begins_as_the_identity() -> None:
    layer = GlobalResponseNorm(3)
    np.testing.assert_array_equal(run(layer, [C(2, 3, 4, 5)]).outputs[0], C(2, 3, 4, 5))
    assert layer.param_size == (6, 0)
    # a channel of zeros has a gradient, as in torch
    found = run(layer, [np.zeros((1, 3, 4))])
    np.testing.assert_array_equal(found.inputs[0], 1)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: LocalResponseNorm(0), "LocalResponseNorm: expected size"),
        (lambda: LocalResponseNorm(3, alpha="1"), "alpha"),
        (lambda: LocalResponseNorm(3, beta=float("inf")), "beta"),
        (lambda: GlobalResponseNorm(0), "in_features"),
        (lambda: GlobalResponseNorm(4, -1e-6), "epsilon"),
    ],
)
def test_wrong_arguments(make, named: str) -> None:
    with pytest.raises(GraphError, match=named):
        make()


@pytest.mark.parametrize(
    ("layer", "shape", "message"),
    [
        (LocalResponseNorm(3), (4,), "LocalResponseNorm expects (N, C, ...), got (4,): add a batch axis"),
        (GlobalResponseNorm(6), (2, 6), "GlobalResponseNorm expects (N, 6, ...) of rank 3 or more, got (2, 6)"),
        (GlobalResponseNorm(6), (2, 4, 3, 3), "got 4 in (2, 4, 3, 3): write GlobalResponseNorm(4)"),
    ],
)
def test_wrong_inputs_get_a_remedy(layer: Layer, shape: tuple, message: str) -> None:
    with pytest.raises(ShapeError) as caught:
        layer.out_shape(shape)
    assert message in str(caught.value)
