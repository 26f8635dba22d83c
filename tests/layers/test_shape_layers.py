"""Layers that move, cut, repeat and look up: values, what torch 2.13 gives, refusals."""

import numpy as np
import pytest
from traced import C, R, S, run

import tapeprop as tp
from tapeprop.errors import DTypeError, GraphError, ShapeError
from tapeprop.layers import DenseND, Embedding, Layer, Pad, PositionalEncoding, Slice, Transpose, Upsample2D


def output(layer: Layer, x: np.ndarray) -> np.ndarray:
    return run(layer, [x]).outputs[0]


def test_transpose_and_slice_are_numpys() -> None:
    x = S(2, 3, 5)
    np.testing.assert_array_equal(output(Transpose((0, 2, 1)), x), x.transpose(0, 2, 1))
    np.testing.assert_array_equal(output(Transpose([2, 0, 1]), x), x.transpose(2, 0, 1))
    np.testing.assert_array_equal(output(Slice((None, 1), (None, 3), (None, 1)), x), x[:, 1:3])
    np.testing.assert_array_equal(output(Slice((slice(None), slice(None, None, -2))), x), x[:, ::-2])
    np.testing.assert_array_equal(output(Slice((0, -2, 1)), x), x[0:, -2:, 1:])
    assert Slice((None, 1)).out_shape((None, 3, None)) == (None, 2, None)
    assert Slice((slice(0, 1),)).starts == (0,)


def test_constant_borders() -> None:
    x = S(2, 3, 4, 5)
    np.testing.assert_array_equal(output(Pad(1), x), np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1))))
    border = Pad((2, (0, 1)), value=-1.5)
    expected = np.pad(x, ((0, 0), (0, 0), (2, 2), (0, 1)), constant_values=-1.5)
    np.testing.assert_array_equal(output(border, x), expected)


@pytest.mark.parametrize(
    ("mode", "weighted", "gradient"),  # torch: sum(y R), sum |dx| of pad(x, (3, 0, 1, 2), mode), x = S(2, 3, 5, 4)
    [
        ("reflect", 1.7722155941436815, 147.97945379960584),
        ("replicate", 12.168941679273543, 191.34408657255057),
        ("circular", 1.7705906249238197, 84.53766050304912),
    ],
)
def test_borders_of_the_arrays_own(mode: str, weighted: float, gradient: float) -> None:
    x, layer = S(2, 3, 5, 4), Pad(((1, 2), (3, 0)), mode)
    found = run(layer, [x], [R(2, 3, 8, 7)])
    name = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}[mode]
    np.testing.assert_array_equal(found.outputs[0], np.pad(x, ((0, 0), (0, 0), (1, 2), (3, 0)), name))
    np.testing.assert_allclose((found.outputs[0] * R(2, 3, 8, 7)).sum(), weighted, rtol=1e-11)
    np.testing.assert_allclose(np.abs(found.inputs[0]).sum(), gradient, rtol=1e-11)


def test_upsampling() -> None:
    x = np.array([[[[1.0, 2.0], [3.0, 4.0]]]])
    np.testing.assert_array_equal(output(Upsample2D(), x)[0, 0], np.kron(x[0, 0], np.ones((2, 2))))
    rows = output(Upsample2D(2, mode="bilinear"), x)[0, 0]
    np.testing.assert_allclose(rows[0], [1, 1.25, 1.75, 2])
    np.testing.assert_allclose(rows[:, 0], [1, 1.5, 2.5, 3])
    corners = output(Upsample2D(size=(2, 4), mode="bilinear", align_corners=True), x)[0, 0]
    np.testing.assert_allclose(corners[0], [1, 4 / 3, 5 / 3, 2])
    assert Upsample2D((1.5, 0.5)).out_shape((None, 3, 5, 5)) == (None, 3, 7, 2)
    assert Upsample2D(size=7).out_shape((2, 3, 5, 5)) == (2, 3, 7, 7)


@pytest.mark.parametrize(("axis", "shape"), [(-1, (2, 3, 5)), (1, (2, 5, 3, 4)), (0, (5, 3)), (-2, (2, 3, 5, 1))])
def test_dense_along_any_axis(axis: int, shape: tuple[int, ...]) -> None:
    layer = DenseND(5, 4, axis)
    layer.bias.assign(S(4))
    x, w = C(*shape), layer.weight.value
    expected = np.moveaxis(np.moveaxis(x, axis, -1) @ w.T + S(4), -1, axis)
    assert layer.out_shape(shape) == expected.shape
    d = R(*expected.shape)
    found = run(layer, [x], [d])
    np.testing.assert_allclose(found.outputs[0], expected, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(
        found.inputs[0], np.moveaxis(np.moveaxis(d, axis, -1) @ w, -1, axis), rtol=1e-11, atol=1e-12
    )
    rows = np.moveaxis(d, axis, -1).reshape(-1, 4)
    np.testing.assert_allclose(found.parameters[layer.bias], rows.sum(0), rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(
        found.parameters[layer.weight], rows.T @ np.moveaxis(x, axis, -1).reshape(-1, 5), rtol=1e-11, atol=1e-12
    )


def test_embedding_in_a_graph() -> None:
    layer = Embedding(4, 2, padding_idx=1)
    assert (layer.weight.value[1] == 0).all()
    assert layer.param_size == (8, 0)
    layer.weight.assign(S(4, 2))
    node = tp.LayerNode(layer, name="words")
    graph = tp.LayerGraph({node: []}, root=node, term=node).build(dtype="float32")
    tokens = np.array([[3, 1, 3], [0, 3, 1]])
    np.testing.assert_array_equal(graph(tokens), S(4, 2).astype("float32")[tokens])
    graph.forward(tokens, is_train=True)
    graph.backward(R(2, 3, 2))
    expected = [
        [0.8253356149096782, 0.7648421872844884],
        [0, 0],
        [0, 0],
        [2.6177677033500504, 2.494196695439063],
    ]  # torch
    np.testing.assert_allclose(layer.weight.grad, expected, rtol=1e-6)
    for token, message in (
        (0.5, "no whole number"),
        (4, "not below the number of rows"),
        (-1, "negative"),
        (np.nan, "whole"),
    ):
        with pytest.raises(GraphError, match=f"words.*{message}"):
            graph(np.array([token]))


def test_first_values_of_an_embedding() -> None:
    values = Embedding(3000, 4, random_state=0).weight.value
    assert abs(values.std() - 1) < 0.02  # of 12,000 draws: three standard errors
    assert abs(values.mean()) < 0.03
    with pytest.raises(DTypeError, match="2\\^24"):
        Embedding(2**24 + 1, 1).out_shape((3,))


def test_positions() -> None:
    x = S(2, 4, 3)
    waves = output(PositionalEncoding(3), x) - x
    for i in range(4):
        np.testing.assert_allclose(waves[1, i], [np.sin(i), np.cos(i), np.sin(i / 10000 ** (2 / 3))], atol=1e-15)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: Transpose((0, 2)), "order of the axes"),
        (lambda: Transpose(1), "order of the axes"),
        (lambda: Slice((0, 1.5)), "starts to be a tuple"),
        (lambda: Slice((0, 1), (2,)), "stops to be a tuple"),
        (lambda: Slice((0,), None, (0,)), "steps other than 0"),
        (lambda: Slice((slice(1), 0)), "slices alone"),
        (lambda: Pad(-1), "padding"),
        (lambda: Pad(1, "mirror"), "\"circular\", got 'mirror'"),
        (lambda: Pad((1, (1, 2, 3))), "before, after"),
        (lambda: Upsample2D(0), "scale to be a number > 0"),
        (lambda: Upsample2D(mode="cubic"), "\"bicubic\", got 'cubic'"),
        (lambda: Upsample2D(align_corners=True), "align_corners"),
        (lambda: DenseND(3, 0), "out_features"),
        (lambda: Embedding(3, 2, padding_idx=3), "padding_idx below num_embeddings=3"),
        (lambda: PositionalEncoding(0), "features"),
    ],
)
def test_wrong_arguments(make, named: str) -> None:
    with pytest.raises(GraphError, match=named):
        make()


@pytest.mark.parametrize(
    ("layer", "shape", "message"),
    [
        (Transpose((0, 2, 1)), (2, 3), "rank 3"),
        (Slice((0, 0, 0)), (2, 3), "at least 3 axes"),
        (Slice((None, 5)), (2, 3), "at least one element"),
        (Pad(2, "reflect"), (2, 3, 2, 2), r"Pad\(2, mode='reflect'\): .*at most 1"),
        (Pad(1), (2, 3), "at least 3 axes"),
        (Upsample2D(), (2, 3, 4), "images of rank 4"),
        (DenseND(5, 4, 1), (2, 3, 5), r"in_features=5 on axis 1, got 3 in \(2, 3, 5\): write DenseND\(3, 4, axis=1\)"),
        (DenseND(5, 4, 3), (2, 3, 5), "an axis 3"),
        (PositionalEncoding(4, 3), (2, 5, 4), r"write PositionalEncoding\(4, max_length=5\)"),
        (PositionalEncoding(4), (2, 5), r"\(N, L, 4\)"),
    ],
)
def test_wrong_inputs(layer: Layer, shape: tuple, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        layer.out_shape(shape)
