"""What `tapeprop profile` feeds a graph: shapes that layers tell, labels that fit the loss, data of the user's."""

from __future__ import annotations

import numpy as np
import pytest
from cli.profile_runs import NETWORK, reported, run, write
from cli.profile_runs import process as process  # a fixture of every test here

import tapeprop as tp
from tapeprop.cli import feed
from tapeprop.cli.source import Source
from tapeprop.layers import BatchNorm2D, Conv2D, Dense, Flatten, GlobalAvgPool2D, Identity, Layer, MaxPool2D, Reshape


def one(*layers: Layer) -> Source:
    node = tp.SequentialNode(*layers, name="node")
    return Source("here", tp.LayerGraph({node: []}, root=node, term=node, seed=0))


def inner(*layers: Layer) -> Layer:
    return one(*layers).graph


@pytest.mark.parametrize(
    ("layers", "shape"),
    [
        ([Dense(4, 2)], (32, 4)),
        ([Conv2D(3, 4, 3)], (32, 3, 32, 32)),
        ([Identity(), BatchNorm2D(3)], (32, 3, 32, 32)),
        ([Conv2D(1, 2, 3), MaxPool2D(2), Flatten(), Dense(2 * 14 * 14, 5)], (32, 1, 28, 28)),
        ([Conv2D(1, 2, 3), Flatten(), Dense(2 * 8 * 8, 5)], (32, 1, 8, 8)),
        ([Conv2D(1, 2, 3), Flatten(), Dense(2 * 11 * 11, 5)], (32, 1, 11, 11)),
        ([Conv2D(3, 2, 3), GlobalAvgPool2D()], (32, 3, 32, 32)),
        ([Flatten(), Dense(6, 2)], (32, 6)),
        ([Reshape(2, 3), Flatten(), Dense(6, 2)], (32, 6)),
        ([Flatten(), Reshape(-1, 2), Flatten(), Dense(6, 2)], None),
        ([Flatten()], None),
        ([inner(Flatten(), Dense(6, 2))], (32, 6)),
        ([inner(Conv2D(3, 2, 3))], (32, 3, 32, 32)),
        ([Conv2D(1, 2, 3), Flatten(), Dense(7, 5)], None),
    ],
)
def test_shapes_that_layers_tell(capsys, layers, shape) -> None:
    if shape is None:
        with pytest.raises(ValueError, match=r"give --input-shape, as 32,3,32,32"):
            feed.feed(one(*layers), None, None)
        return
    found = feed.feed(one(*layers), None, None)
    assert found.shapes == [shape]
    assert found.X.shape == shape
    assert ",".join(map(str, shape)) in capsys.readouterr().err


def test_what_is_known_best_counts(capsys) -> None:
    source = one(Conv2D(3, 4, 3))
    assert feed.feed(source, [(2, 3, 5, 7)], None).shapes == [(2, 3, 5, 7)]
    assert capsys.readouterr().err == "labels: random, for MSE\n"  # nothing was assumed of the input
    source.graph.build((None, 3, 6, 6))
    assert feed.feed(source, None, 4).shapes == [(4, 3, 6, 6)]
    assert "input: 4,3,6,6, as the graph was built\n" in capsys.readouterr().err
    assert feed.feed(source, None, None).shapes == [(32, 3, 6, 6)]
    assert "the batch is assumed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("loss", "layers", "kind", "labels"),
    [
        ("auto", [Dense(4, 3)], "CrossEntropy", (32,)),
        ("auto", [Dense(4, 1)], "MSE", (32, 1)),
        ("auto", [Conv2D(3, 2, 3)], "MSE", (32, 2, 32, 32)),
        ("cross-entropy", [Conv2D(3, 2, 3)], "CrossEntropy", (32, 32, 32)),
        *((name, [Dense(4, 3)], kind, (32,)) for name, kind in (("nll", "NLL"), ("kl-divergence", "KLDivergence"))),
        *(
            (name, [Dense(4, 3)], kind, (32, 3))
            for name, kind in (
                ("mse", "MSE"), ("mae", "MAE"), ("huber", "Huber"), ("hinge", "Hinge"),
                ("binary-cross-entropy", "BinaryCrossEntropy"),
            )
        ),
    ],
)  # fmt: skip
def test_labels_follow_the_loss(loss, layers, kind, labels) -> None:
    source = one(*layers)
    found = feed.feed(source, None, None, loss)
    assert (type(found.loss).__name__, found.y.shape) == (kind, labels)
    source.graph.build()
    assert np.isfinite(source.graph.profile(found.X, found.y, found.loss, repeats=1).seconds)


def test_all_losses_can_be_chosen() -> None:
    assert {type(getattr(tp.losses, name)()).__name__ for name in feed._LOSSES.values()} == set(tp.losses.__all__) - {
        "Loss"
    }


def test_several_inputs_and_outputs(capsys) -> None:
    text = """
        import tapeprop as tp
        from tapeprop.layers import Dense, Conv2D, Flatten
        a, b = tp.LayerNode(Dense(4, 2), name="a"), tp.LayerNode(Dense(5, 2), name="b")
        total, other = tp.LayerNode(Dense(2, 3), name="total"), tp.LayerNode(Dense(2, 1), name="other")
        graph = tp.LayerGraph({a: [total], b: [total, other], total: [], other: []}, root=[a, b], term=[total, other])
    """
    found = reported(capsys, write(text), "--repeats", "1", "--batch-size", "6")
    assert found["tapes"][0]["sizes"] == ["float32 (6,4)", "float32 (6,5)", "int64 (6)", "float32 (6,1)"]
    code, _, err = run(capsys, "net.py", "--input-shape", "6,4")
    assert code == 1
    assert "expected --input-shape for each of 2 inputs (a, b), received 1" in err
    argv = ["--input-shape", "3,4", "--input-shape", "3,5", "--loss", "none", "--repeats", "1"]
    assert reported(capsys, "net.py", *argv)["tapes"][0]["sizes"] == ["float32 (3,4)", "float32 (3,5)"]


DATA = """
def profile_data():
    return {}
"""


@pytest.mark.parametrize(
    ("given", "argv", "sizes"),
    [
        ("np.ones((6, 4)), np.zeros(6, int)", [], ["float32 (6,4)", "int64 (6)"]),
        ("np.ones((6, 4)), np.zeros(6, int)", ["--batch-size", "5"], ["float32 (5,4)", "int64 (5)"]),
        ("np.ones((6, 4)), np.zeros((6, 3)), tp.losses.MAE()", [], ["float32 (6,4)", "float32 (6,3)"]),
        ("np.ones((6, 4)), np.zeros((6, 3))", ["--loss", "huber"], ["float32 (6,4)", "float32 (6,3)"]),
        (
            "{'first': np.ones((6, 4))}, {'head': np.zeros(6, int)}",
            ["--batch-size", "2"],
            ["float32 (2,4)", "int64 (2)"],
        ),
        ("[[1, 2, 3, 4], [5, 6, 7, 8]], [0, 1]", ["--batch-size", "1"], ["float32 (1,4)", "int64 (1)"]),
        ("np.ones((6, 4)), None", [], ["float32 (6,4)"]),
        ("np.ones((6, 4)), np.zeros(6, int)", ["--loss", "none"], ["float32 (6,4)"]),
        ("1 / 0", ["--input-shape", "3,4"], ["float32 (3,4)", "int64 (3)"]),
    ],
)
def test_own_data(capsys, given, argv, sizes) -> None:
    found = reported(capsys, write(NETWORK + DATA.format(given)), "--repeats", "1", *argv)
    assert found["tapes"][0]["sizes"] == sizes


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("3", "net.py:profile_data: expected (X, y) or (X, y, loss), received int"),
        ("1, 2, 3, 4", "received a tuple of 4"),
        ("1 / 0", "net.py:profile_data() (net.py, line 12) raised ZeroDivisionError: division by zero"),
        ("np.ones((6, 5)), np.zeros(6, int)", "'first'"),
        ("np.ones((6, 4)), np.zeros(5, int)", "received shape (5,)"),
    ],
)
def test_own_data_that_does_not_fit(capsys, given, expected) -> None:
    code, out, err = run(capsys, write(NETWORK + DATA.format(given)), "--repeats", "1")
    assert (code, out) == (1, "")
    assert expected in err.splitlines()[-1]
