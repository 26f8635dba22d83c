"""Random programs for the compiler's tests: a few leaves, a few dozen ops, gradients of a scalar, stores."""

import numpy as np
from hypothesis import strategies as st

from tapeprop import ops
from tapeprop.compiler.gradient import gradients
from tapeprop.ir import Input, Parameter, Program, Span, Tensor, Trace, reachable, recording

SHAPES = [(4, 3), (4, 1), (3,), (4, 3)]
UNARY = ["relu", "tanh", "sigmoid", "exp", "softplus", "negate"]
BINARY = ["add", "subtract", "multiply", "maximum"]


@st.composite
def programs(draw, spans=True):
    """(program, feeds): forward and backward of a random expression, in float64."""
    count = draw(st.integers(1, 14))
    choices = [
        (
            draw(st.sampled_from(["unary", "binary", "reduce", "reshape", "matmul", "concat"])),
            draw(st.integers(0, 10**6)),
            draw(st.integers(0, 10**6)),
            draw(st.integers(0, 10**6)),
        )
        for _ in range(count)
    ]
    return build(choices)


def build(choices):
    """The program that a list of (kind, a, b, c) choices means."""
    rng = np.random.default_rng(len(choices))
    trace = Trace("float64", True)
    with recording(trace):
        inputs = [Tensor(s, "float64", source=Input(i), name=f"x{i}") for i, s in enumerate(SHAPES)]
        state = Parameter((4, 3), np.zeros((4, 3)), trainable=False, dtype="float64", name="state")
        pool = list(inputs)
        for kind, a, b, c in choices:
            pool.append(_step(kind, pool, a, b, c))
        wide = [t for t in pool if t.shape == (4, 3)]
        trace.store(state, ops.add(trace.latest(state), wide[-1]))
        loss = ops.mean(ops.sum_of(*(ops.mean(t) for t in pool[-3:])))
        forward = reachable([loss, *(s.value for s in trace.stores)])
        seed = Tensor((), "float64", source=Input(9), name="seed")
        found = gradients({loss: seed}, inputs)
    results = list(found.values())
    backward = reachable(results, [r for call in forward for r in call.results])
    program = Program(
        [Span("forward", forward, trace.stores), Span("backward", backward)], [*inputs, seed], [loss, *results]
    )
    feeds = {t: rng.uniform(-1, 1, t.shape) for t in inputs} | {seed: np.array(1.5)}
    feeds[trace.parameter(state)] = rng.uniform(-1, 1, (4, 3))
    return program, feeds


def _step(kind, pool, a, b, c) -> Tensor:
    x, y = pool[a % len(pool)], pool[b % len(pool)]
    if kind == "unary":
        return getattr(ops, UNARY[c % len(UNARY)])(ops.tanh(x))
    if kind == "reduce" and x.ndim == 2:
        return ops.sum(x, axis=c % 2, keepdims=True) * 0.25
    if kind == "reshape" and x.shape == (4, 3):
        return ops.reshape(ops.reshape(x, (2, 6)), (4, 3))
    if kind == "matmul" and x.shape == (4, 3) and y.shape == (4, 3):
        return ops.matmul(ops.matmul(x, y, transpose_b=True), y) * 0.1
    if kind == "concat" and x.shape == (4, 3) and y.shape == (4, 3):
        return ops.concat([x, y], axis=0)[1:5]
    if y.ndim == 2 and x.ndim == 2 and x.shape[0] != y.shape[0]:
        y = x
    return getattr(ops, BINARY[c % len(BINARY)])(x, y)


def leaf_place(names):
    """A `locate` for the planner: every leaf has a buffer of its own."""
    from tapeprop.compiler.plan import Place

    def locate(tensor):
        return Place(names.setdefault(tensor, f"leaf{len(names)}"), 0)

    return locate
