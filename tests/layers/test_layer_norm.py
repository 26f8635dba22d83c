"""LayerNorm, RMSNorm, GroupNorm and InstanceNorm: torch's numbers, open sizes, what is refused with which remedy."""

import numpy as np
import pytest
from traced import C, R, run

import tapeprop as tp
from tapeprop.errors import GraphError, ShapeError
from tapeprop.layers import Conv2D, GroupNorm, InstanceNorm, Layer, LayerNorm, RMSNorm


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
        (LayerNorm(5), (2, 3, 5), 3.475006288724548, 3.535119645338921, [5.971219921446595, 3.043026817546137]),
        (LayerNorm((3, 5)), (2, 3, 5), 11.749016533160383, 3.420773484004885, [16.039309918358843, 7.999713354238145]),
        (LayerNorm((3, 5), bias=False), (2, 3, 5), 12.13069848481493, 3.420773484004885, [16.039309918358843]),
        (LayerNorm(4, 1e-3, elementwise_affine=False), (3, 4), -0.19414073904560208, 0.32394263545241647, []),
        (RMSNorm(5), (2, 3, 5), 2.5394651931937067, 3.7218511727448487, [6.134273795761041]),
        (RMSNorm((3, 5), 1e-3), (2, 3, 5), 12.271422650286125, 3.3639076270319213, [16.218017254347806]),
        (RMSNorm(5, elementwise_affine=False), (2, 3, 5), 2.2962779590624707, 8.109282832825594, []),
        (GroupNorm(2, 6), (2, 6, 3, 4), 29.955796686302843, 23.975646863690656, [4.46107542817758, 77.6989000655669]),
        (GroupNorm(2, 6), (4, 6), 2.6758974614846416, 1.140415835656629, [7.707998741433412, 7.617698865077475]),
        (GroupNorm(3, 6, affine=False), (2, 6, 2, 2, 2), 0.22464506925803696, 12.118264806472125, []),
        (InstanceNorm(3), (2, 3, 5), -0.28127984253461047, 0.7626808665279567, []),
        (
            InstanceNorm(3, affine=True),
            (2, 3, 4, 5),
            15.244222357581037,
            9.58346432889848,
            [1.8523973170322892, 57.721999796153526],
        ),
        (
            InstanceNorm(3, affine=True),
            (2, 3, 2, 2, 3),
            5.189450037706503,
            4.739779020966836,
            [1.9220876702046512, 8.51196108037919],
        ),
    ],
)
def test_equals_torch(layer: Layer, shape: tuple[int, ...], along: float, to_x: float, to_parameters: list) -> None:
    check(layer, shape, along, to_x, to_parameters)


def test_parameters() -> None:
    for layer, shape in [(LayerNorm((2, 3)), (2, 3)), (GroupNorm(2, 6), (6,)), (InstanceNorm(6, affine=True), (6,))]:
        assert [(name, p.shape) for name, p in layer.named_parameters()] == [("weight", shape), ("bias", shape)]
        assert (layer.weight.value == 1).all()
        assert not layer.bias.value.any()
        assert layer.param_size == (12, 0)  # as BatchNorm's
    assert [name for name, _ in RMSNorm(4).named_parameters()] == ["weight"]
    assert [name for name, _ in LayerNorm(4, bias=False).named_parameters()] == ["weight"]
    for layer in (LayerNorm(4, elementwise_affine=False), RMSNorm(4, elementwise_affine=False), InstanceNorm(4)):
        assert not list(layer.named_parameters())
    assert repr(LayerNorm(4, 1e-3, bias=False)) == "LayerNorm((4,), epsilon=0.001, bias=False)"
    assert repr(GroupNorm(2, 6, affine=False)) == "GroupNorm(2, 6, affine=False)"


def test_a_graph_of_open_sizes() -> None:
    """By the kernels: images of any size, in evaluation and folded as well."""
    nodes = [tp.LayerNode(layer) for layer in (Conv2D(3, 6, 3), GroupNorm(3, 6), InstanceNorm(6, affine=True))]
    graph = tp.LayerGraph({nodes[0]: [nodes[1]], nodes[1]: [nodes[2]], nodes[2]: []}, nodes[0], nodes[2], seed=0)
    graph.build((None, 3, None, None), dtype="float64", auto_batch_norm=True)  # no activation: none is added
    assert len(list(graph.named_parameters())) == 6
    for shape in ((2, 3, 5, 4), (3, 3, 7, 6)):
        x = np.random.default_rng(0).standard_normal(shape)
        y = graph(x, True)
        np.testing.assert_allclose(y.mean((2, 3)), 0, atol=1e-12)
        np.testing.assert_allclose(graph.predict(x), y, atol=1e-12)
    assert tp.gradcheck(graph, x) < 1e-6


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: LayerNorm(0), "normalized_shape to be an int >= 1 or a sequence of such, got 0"),
        (lambda: LayerNorm(()), "normalized_shape"),
        (lambda: LayerNorm((3, 2.5)), "normalized_shape"),
        (lambda: RMSNorm("4"), "RMSNorm: expected normalized_shape"),
        (lambda: LayerNorm(4, -1.0), "epsilon"),
        (lambda: RMSNorm(4, float("nan")), "epsilon"),
        (lambda: GroupNorm(4, 6), r"a multiple of groups=4, got 6: write GroupNorm\(2, 6\)"),
        (lambda: GroupNorm(0, 6), "groups"),
        (lambda: InstanceNorm(2.0), "in_features"),
    ],
)
def test_wrong_arguments(make, named: str) -> None:
    with pytest.raises(GraphError, match=named):
        make()


@pytest.mark.parametrize(
    ("layer", "shape", "message"),
    [
        (LayerNorm(6), (2, 5), "LayerNorm expects (..., 6), got (2, 5): write LayerNorm(5)"),
        (LayerNorm((3, 6)), (2, 3, 5), "LayerNorm expects (..., 3, 6), got (2, 3, 5): write LayerNorm((3, 5))"),
        (RMSNorm((3, 6)), (6,), "RMSNorm expects (..., 3, 6), got (6,): give it more axes"),
        (
            GroupNorm(2, 6),
            (2, 4, 3),
            "GroupNorm expects 6 channels on axis 1, got 4 in (2, 4, 3): write GroupNorm(2, 4)",
        ),
        (GroupNorm(2, 6), (6,), "GroupNorm expects (N, 6, ...) of rank 2 or more, got (6,)"),
        (InstanceNorm(6), (2, 6), "InstanceNorm expects (N, 6, ...) of rank 3 or more, got (2, 6)"),
        (InstanceNorm(6), (2, 6, 1, 1), "more than one value per channel"),
    ],
)
def test_wrong_inputs_get_a_remedy(layer: Layer, shape: tuple, message: str) -> None:
    with pytest.raises(ShapeError) as caught:
        layer.out_shape(shape)
    assert message in str(caught.value)
