"""Formulas recorded again: sizes are inferred anew, what depends on the trace is asked of the new one."""

import numpy as np
import pytest

import tapeprop as tp
from tapeprop import ops
from tapeprop.compiler.gradient import gradients
from tapeprop.compiler.replay import Element, Replay
from tapeprop.errors import GraphError
from tapeprop.ir import Dim, Parameter, Trace, recording


def again(outputs, leaves, sizes, training=False):
    """The outputs recorded in a trace; leaves: {placeholder: shape}."""
    random = Parameter((2,), np.array([1, 0]), trainable=False, dtype="int64")
    with recording(Trace("float64", training, random)) as trace:
        inputs = [trace.input(i, shape) for i, shape in enumerate(leaves.values())]
        replay = Replay(outputs, dict(zip(leaves, inputs, strict=True)), sizes)
        return inputs, [replay.tensor(t) for t in outputs]


def test_open_sizes_become_what_stands_there_now():
    x = tp.placeholder((None, 4), dtype="float64")
    y = ops.reshape(x, (-1, 2)) * 2
    assert y.shape == (2 * Dim.symbol("N"), 2)
    _, (fixed,) = again([y], {x: (3, 4)}, {"N": 3})
    assert fixed.shape == (6, 2)
    m = Dim.symbol("M")
    _, (renamed,) = again([y], {x: (m + 1, 4)}, {"N": m + 1})
    assert renamed.shape == (2 * m + 2, 2)


def test_a_placeholder_that_nothing_stands_for_is_named():
    x, y = tp.placeholder((), name="x", dtype="float64"), tp.placeholder((), name="y", dtype="float64")
    with pytest.raises(GraphError, match=r"every placeholder.*y"):
        again([x * y], {x: ()}, {})


def test_dropout_is_recorded_by_the_trace_it_stands_in():
    x = tp.placeholder((8,), dtype="float64")
    y = ops.dropout(x, 0.5)
    _, (idle,) = again([y], {x: (8,)}, {})
    assert idle.producer is None
    _, (drawn,) = again([y], {x: (8,)}, {}, training=True)
    assert drawn.producer.op.name == "dropout"
    with pytest.raises(GraphError, match=r"dropout.*function"):
        gradients({y: x}, [x])


def test_a_vector_of_neighbours_is_a_slice():
    with recording(Trace("float64", False)) as trace:
        vector = trace.input(0, (6,))
        scalars = [tp.placeholder((), dtype="float64") for _ in range(6)]
        leaves = {t: Element(vector, k) for k, t in enumerate(scalars)}
        replay = Replay(scalars, leaves, {})
        assert replay.vector(scalars) is vector
        assert replay.vector(scalars[2:5]).producer.op.name == "slice"
        assert replay.vector([scalars[3], scalars[1]]).producer.op.name == "concat"
