"""Whole graphs on a device beside the same on the CPU: training, prediction, state, errors.

Figures of the two agree to 1e-4 in float32 and 1e-9 in float64, relative to the largest: other orders of the same sums.
"""

import itertools

import numpy as np
import pytest
from on_device.launches import driver

import tapeprop as tp
from tapeprop import ops
from tapeprop.errors import DeviceError, LabelError, NumericsError
from tapeprop.layers import (
    Activation,
    AvgPool2D,
    BatchNorm1D,
    BatchNorm2D,
    Conv2D,
    Dense,
    Dropout,
    Flatten,
    Lambda,
    MaxPool2D,
    PythonLayer,
)
from tapeprop.losses import MSE, CrossEntropy
from tapeprop.optimizers import SGD, Adam, AdamW
from tapeprop.runtime.memory import Buffer

pytestmark = pytest.mark.cuda

TOLERANCE = {"float32": 1e-4, "float64": 1e-9}
DTYPES = ["float32", "float64"]


def line(*layers, seed=0):
    nodes = [tp.LayerNode(layer, name=f"n{i}") for i, layer in enumerate(layers)]
    edges = {a: [b] for a, b in itertools.pairwise(nodes)}
    return tp.LayerGraph({**edges, nodes[-1]: []}, root=nodes[0], term=nodes[-1], seed=seed)


def mlp():
    """Dense layers, batch norm over samples, dropout, a formula.

    No bias in front of a norm: its gradient is a rounding error, of which Adam makes whole steps.
    """
    return line(
        Dense(5, 7, bias=False),
        BatchNorm1D(7),
        Activation.ReLU(),
        Dropout(0.25),
        Lambda(lambda x: ops.tanh(x) * x),
        Dense(7, 3),
    )


def images():
    """Convolutions, batch norm, both pools, a sum and a concatenation of branches."""
    first = tp.SequentialNode(Conv2D(2, 3, 3, bias=False), BatchNorm2D(3), Activation.ReLU(), name="first")
    left = tp.SequentialNode(Conv2D(3, 3, 3, stride=1), name="left")
    joined = tp.LayerNode(MaxPool2D(2), name="joined")
    wide = tp.LayerNode(AvgPool2D(2), tp.MergeMode.CHCAT, name="wide")
    head = tp.SequentialNode(Flatten(), Dense(6, 3), name="head")
    edges = {first: [left, joined], left: [joined], joined: [wide, wide], wide: [head], head: []}
    return tp.LayerGraph(edges, root=first, term=head, seed=0)


NETWORKS = {"mlp": (mlp, (6, 5)), "images": (images, (3, 2, 4, 4))}


def data(name, batches=1, seed=0):
    random = np.random.default_rng(seed)
    batch, *shape = NETWORKS[name][1]
    return random.standard_normal((batch * batches, *shape)), random.integers(0, 3, batch * batches)


def pair(name, dtype="float32", optimizer=None, **options):
    """The network on the CPU and on the device, from the same weights."""
    found = []
    for device in ("cpu", "cuda"):
        graph = NETWORKS[name][0]().build(dtype=dtype, device=device, **options)
        graph.set_optimizer(optimizer or SGD(0.05, momentum=0.9))
        found.append(graph)
    return found


def same(a, b, dtype="float32"):
    np.testing.assert_allclose(a, b, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype] * max(1.0, float(np.abs(b).max())))


def same_state(a, b, dtype="float32"):
    ours, theirs = a.state_dict(), b.state_dict()
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        same(value, theirs[key], dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NETWORKS)
def test_forward_and_backward(name, dtype):
    host, device = pair(name, dtype)
    X, _ = data(name)
    for training in (True, False):
        y = host.forward(X, training)
        same(device.forward(X, training), y, dtype)
        d = np.cos(np.arange(y.size)).reshape(y.shape)
        same(device.backward(d), host.backward(d), dtype)
        for (_, a), (_, b) in zip(device.named_parameters(), host.named_parameters(), strict=True):
            if a.trainable:
                same(a.grad, b.grad, dtype)
    same(device.predict(X), host.predict(X), dtype)
    device.update()
    host.update()
    same_state(device, host, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NETWORKS)
def test_training_steps(name, dtype):
    host, device = pair(name, dtype, Adam(0.01), clip_norm=0.5)
    X, y = data(name)
    for _ in range(3):
        assert device.train_step(X, y, CrossEntropy()) == pytest.approx(
            host.train_step(X, y, CrossEntropy()), rel=TOLERANCE[dtype]
        )
    same_state(device, host, dtype)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_fit_with_a_smaller_last_batch(accumulate):
    host, device = pair("mlp", "float64")
    X, y = data("mlp", 3)
    found = [
        g.fit(X, y, loss=CrossEntropy(), optimizer=AdamW(0.01), epochs=2, batch_size=6, seed=1, accumulate=accumulate,
              validation_split=0.2, verbose=0)
        for g in (host, device)
    ]  # fmt: skip
    for a, b in zip(*(h.loss for h in found), strict=True):
        assert b == pytest.approx(a, rel=1e-9)
    assert found[0].accuracy == found[1].accuracy
    assert found[1].val_loss == pytest.approx(found[0].val_loss, rel=1e-9)
    same_state(device, host, "float64")


def test_both_ways_of_a_step_and_every_run_give_the_same_bits():
    X, y = data("mlp")
    states = []
    for way in ("step", "step", "apart"):
        graph = mlp().build(device="cuda")
        graph.set_optimizer(Adam(0.01))
        for _ in range(2):
            if way == "step":
                graph.train_step(X, y, CrossEntropy())
            else:
                graph.zero_grad()
                out = graph.forward(X, True)
                graph.backward(CrossEntropy().grad(y, out))
                graph.update()
        states.append(graph.state_dict())
    for key, value in states[0].items():
        np.testing.assert_array_equal(value, states[1][key])
        same(states[2][key], value)  # the loss of one side ran on the CPU


def test_a_captured_step_gives_the_bits_of_plain_launches(monkeypatch):
    X, y = data("mlp")
    states = []
    for captures in (False, True):
        monkeypatch.setattr(driver(), "captures", captures)
        graph = mlp().build(device="cuda")
        graph.set_optimizer(SGD(0.1))
        losses = [graph.train_step(X * n, y, CrossEntropy()) for n in (1, 2, 3)]
        states.append((losses, graph.state_dict()))
    assert states[0][0] == states[1][0]
    for key, value in states[0][1].items():
        np.testing.assert_array_equal(value, states[1][1][key])


# ---- state


def test_training_goes_on_across_devices():
    host, device = pair("mlp", "float64", Adam(0.01))
    X, y = data("mlp")
    for step in range(4):
        assert device.train_step(X, y, CrossEntropy()) == pytest.approx(host.train_step(X, y, CrossEntropy()), rel=1e-9)
        device.to("cpu" if step % 2 == 0 else "cuda")
    assert device.device == "cuda"
    same_state(device, host, "float64")


def test_state_of_one_device_is_loaded_on_another():
    host, device = pair("mlp", "float32", Adam(0.01))
    X, y = data("mlp")
    device.train_step(X, y, CrossEntropy())
    host.load_state_dict(device.state_dict())
    host.load_optimizer_state_dict(device.optimizer_state_dict())
    assert host.train_step(X, y, CrossEntropy()) == pytest.approx(device.train_step(X, y, CrossEntropy()), rel=1e-4)
    same_state(device, host)


@pytest.mark.parametrize("onto", ["cpu", "cuda"])
def test_a_graph_is_saved_on_a_device_and_loaded_onto_any(tmp_path, onto):
    graph = line(Dense(3, 4), Dropout(0.5), Dense(4, 2)).build(device="cuda")
    graph.set_optimizer(Adam(0.01))
    random = np.random.default_rng(0)
    X, y = random.standard_normal((4, 3)), random.standard_normal((4, 2))
    graph.train_step(X, y, MSE())
    graph.save(tmp_path / "graph.safetensors")
    loaded = tp.load(tmp_path / "graph.safetensors", device=onto)
    assert loaded.device == onto
    for _ in range(2):  # dropout draws on from where it was
        assert loaded.train_step(X, y, MSE()) == pytest.approx(graph.train_step(X, y, MSE()), rel=1e-5)
    same_state(loaded, graph)


def test_gradcheck():
    graph = line(Dense(3, 2), Activation.Tanh()).build(device="cuda", dtype="float64")
    before = graph.state_dict()
    assert tp.gradcheck(graph, np.random.default_rng(0).standard_normal((2, 3)), samples=4) < 1e-6
    for key, value in graph.state_dict().items():
        np.testing.assert_array_equal(value, before[key])


def test_values_are_live_and_assign_reaches_the_device():
    graph = line(Dense(3, 2)).build(device="cuda")
    layer = graph.root.layer
    bias = layer.bias.value  # before the device has anything
    X = np.ones((2, 3))
    graph.forward(X)
    layer.weight.assign(np.zeros((2, 3)))
    bias[:] = [1.5, -2]
    np.testing.assert_array_equal(graph.forward(X), [[1.5, -2]] * 2)
    layer.weight.value[...] = 1
    np.testing.assert_array_equal(graph.predict(X), [[4.5, 1]] * 2)
    graph.set_optimizer(SGD(0.1))
    graph.train_step(X, np.zeros((2, 2)), MSE())
    np.testing.assert_array_equal(bias, graph.state_dict()["n0.bias"])
    assert bias[0] < 1.5


def test_gradients_are_edited_between_backward_and_update():
    host, device = pair("mlp", "float64", Adam(0.01))
    X, _ = data("mlp")
    for graph in (host, device):
        held = graph.root.layer.weight.grad
        for _ in range(2):
            graph.forward(X, True)
            graph.backward()
            held *= 0.5
            graph.term.layer.bias.grad[...] = 3
            graph.update()
    same_state(device, host, "float64")


def test_a_layer_of_two_graphs_on_two_devices():
    shared = Dense(4, 4)
    graphs = []
    for device in ("cpu", "cuda"):
        node = tp.LayerNode(shared, name="shared")
        graph = tp.LayerGraph({node: []}, root=node, term=node, seed=0).build(device=device, dtype="float64")
        graph.set_optimizer(SGD(0.1))
        graphs.append(graph)
    X, y = np.random.default_rng(0).standard_normal((2, 3, 4))
    for step in range(4):
        graph, other = graphs[step % 2], graphs[1 - step % 2]
        graph.train_step(X, y, MSE())
        np.testing.assert_allclose(other.forward(X), graph.forward(X), rtol=1e-12)


def test_nothing_stays_on_the_device_of_a_graph_that_has_left():
    graph = line(Dense(3, 2)).build(device="cuda")
    graph.set_optimizer(Adam())
    graph.train_step(np.ones((2, 3)), np.zeros((2, 2)), MSE())
    assert Buffer.mirrored
    graph.to("cpu")
    mirrored = [b for b in graph._buffers() if b.mirror is not None]
    assert mirrored == []
    graph.root.layer.weight.value[...] = 0  # live again
    np.testing.assert_array_equal(graph.forward(np.ones((1, 3)))[0], graph.root.layer.bias.value)


# ---- arrays of the device


def test_arrays_of_the_device_go_in_and_come_out():
    graph = line(Dense(3, 2)).build(device="cuda")
    graph.set_optimizer(SGD(0.1))
    X = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
    memory = driver().allocate(X.nbytes)
    driver().upload(memory.address, X)
    there = driver().export(memory, X.shape, "float32")
    found = graph.forward(there)
    assert type(found).__name__ == "DeviceArray"
    np.testing.assert_array_equal(np.asarray(found), graph.forward(X))
    twice = graph.forward(there)
    np.testing.assert_array_equal(np.asarray(found), np.asarray(twice))  # a fresh array each time
    gradient = graph.backward(found)
    np.testing.assert_array_equal(np.asarray(gradient), graph.backward(np.asarray(found)))
    np.testing.assert_array_equal(graph.predict(there), graph.predict(X))
    labels = np.random.default_rng(1).standard_normal((4, 2)).astype(np.float32)
    there_too = driver().allocate(labels.nbytes)
    driver().upload(there_too.address, labels)
    y = driver().export(there_too, labels.shape, "float32")
    before = graph.state_dict()
    loss = graph.train_step(there, y, MSE())
    graph.load_state_dict(before)
    assert graph.train_step(X, labels, MSE()) == loss


def test_arrays_of_the_device_that_would_have_to_be_converted_are_refused():
    graph = line(Dense(3, 2)).build(device="cuda")
    memory = driver().allocate(4 * 3 * 8)
    there = driver().export(memory, (4, 3), "float64")
    with pytest.raises(tp.errors.DTypeError, match=r"node 'n0': input: expected float32 .* got float64; convert it"):
        graph.forward(there)
    with pytest.raises(tp.errors.ShapeError, match="n0"):
        graph.forward(driver().export(memory, (4, 2), "float32"))


# ---- what goes wrong


def test_labels_out_of_range_are_told_and_nothing_is_trained():
    graph = line(Dense(3, 2)).build(device="cuda")
    graph.set_optimizer(SGD(0.1))
    ids = np.array([0, 5], np.int64)
    memory = driver().allocate(ids.nbytes)
    driver().upload(memory.address, ids)
    before = graph.state_dict()
    with pytest.raises(LabelError, match="node 'n0'"):
        graph.train_step(np.ones((2, 3)), driver().export(memory, (2,), "int64"), CrossEntropy())
    for key, value in graph.state_dict().items():
        np.testing.assert_array_equal(value, before[key])
    good = graph.train_step(np.ones((2, 3)), np.array([0, 1]), CrossEntropy())  # and the next step runs
    assert np.isfinite(good)


def test_debug_nan_names_the_node():
    graph = line(Dense(3, 3), Lambda(ops.log)).build(device="cuda", debug_nan=True)
    graph.root.layer.weight.assign(-np.ones((3, 3)))
    with pytest.raises(NumericsError, match=r"node 'n1'.*made a NaN"):
        graph.forward(np.ones((2, 3)))


class Halved(PythonLayer):
    """x / 2, by NumPy."""

    def forward(self, x):
        return x / 2

    def backward(self, d_out):
        return d_out / 2


def test_a_python_layer_splits_the_tape():
    X = np.random.default_rng(0).standard_normal((3, 4))
    graphs = [line(Dense(4, 4), Halved(), Dense(4, 2)).build(dtype="float64", device=d) for d in ("cpu", "cuda")]
    np.testing.assert_allclose(graphs[1].forward(X), graphs[0].forward(X), rtol=1e-12)
    np.testing.assert_allclose(graphs[1].backward(), graphs[0].backward(), rtol=1e-12)
    for graph in graphs:
        graph.set_optimizer(SGD(0.1))
    losses = [graph.train_step(X, np.zeros((3, 2)), MSE()) for graph in graphs]
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)
    assert "Python" in str(graphs[1].diagnose())


def test_unknown_devices_are_refused():
    with pytest.raises(DeviceError, match="expected device 'cpu' or 'cuda', got 'tpu'"):
        line(Dense(3, 2)).build(device="tpu")
    graph = line(Dense(3, 2)).build(device="cuda")
    with pytest.raises(DeviceError, match=r"^to\(\): expected .* got 'gpu'"):
        graph.to("gpu")
    assert graph.device == "cuda"


def test_a_profile_has_every_row_and_changes_nothing():
    graph = mlp().build(device="cuda")
    graph.set_optimizer(Adam(0.01))
    X, y = data("mlp")
    graph.train_step(X, y, CrossEntropy())
    before = graph.state_dict()
    profile = graph.profile(X, y, CrossEntropy(), repeats=2)
    (tape,) = profile.tapes
    assert (tape.calls == 2).all()
    assert (tape.busy > 0).all()
    assert "gpu" in profile.machine
    assert profile.roofs is None
    assert {"matmul", "batch_norm.moments"} <= {row.op for row in profile.tapes[0].rows}
    for key, value in graph.state_dict().items():
        np.testing.assert_array_equal(value, before[key])
