"""Recomputation as a function on instructions: what is cloned, what is kept, and that values stay as they were."""

import numpy as np
import pytest
from ops.test_catalogue import CASES, make_call

from tapeprop import ops
from tapeprop.compiler.gradient import gradients
from tapeprop.compiler.interpret import interpret
from tapeprop.compiler.recompute import recompute
from tapeprop.ir import Checkpoint, Input, Parameter, Program, Span, Tensor, Trace, current, mark, reachable, recording

RNG = np.random.default_rng(0)


class Network:
    """y of `inside(x)`, recorded between two marks and followed by a square; its gradient to x, with and without recomputation."""

    def __init__(self, inside, checkpoints=None, shape=(4, 3)):
        self.trace = Trace("float64", True)
        with recording(self.trace):
            self.x = Tensor(shape, "float64", source=Input(0))
            first = mark()
            self.y = inside(self.x)
            whole = Checkpoint(first, mark(), self.y)
            loss = ops.sum(self.y * self.y)
            self.forward = reachable([loss, *(store.value for store in self.trace.stores)])
            found = gradients({loss: self.trace.constant(np.array(1.0))}, [self.x])
        self.results = [loss, found[self.x]]
        self.plain = reachable([found[self.x]], [t for call in self.forward for t in call.results])
        targets = [store.target for store in self.trace.stores]
        self.again = recompute(self.plain, [whole] if checkpoints is None else checkpoints(whole), targets)

    def read_from_forward(self, calls):
        """The tensors that a backward span needs of forward."""
        made = {t for call in self.forward for t in call.results}
        return {t for call in calls for t in call.operands if t in made}

    def values(self, calls, feeds):
        spans = [Span("forward", self.forward, self.trace.stores), Span("backward", calls)]
        leaves = {self.x: feeds}
        for source, leaf in self.trace.leaves.items():
            if isinstance(source, Parameter):
                leaves[leaf] = np.arange(1.0, 1 + leaf.shape[0])
        return [v.tobytes() for v in interpret(Program(spans, [self.x], self.results), leaves)[0]]

    def check(self):
        """Both ways give the same bits."""
        feeds = RNG.standard_normal(self.x.shape)
        assert self.values(self.again, feeds) == self.values(self.plain, feeds)


def deep(x):
    for _ in range(4):
        x = ops.sin(x * x)
    return x


def test_inner_results_are_cloned_and_the_nodes_own_is_kept():
    found = Network(deep)
    found.check()
    assert len(found.read_from_forward(found.plain)) > 3
    assert found.read_from_forward(found.again) == {found.y}  # and x is a leaf
    assert len(found.again) > len(found.plain)


def test_without_checkpoints_nothing_changes():
    found = Network(deep, lambda whole: [])
    assert found.again == found.plain


def test_clones_stand_before_their_first_reader_and_bear_the_nodes_name():
    def inside(x):
        current().node = "inside"
        return deep(x)

    found = Network(inside)
    made = set()
    forward = {t for call in found.forward for t in call.results}
    for call in found.again:
        assert all(t.producer is None or t in made or t in forward for t in call.operands)
        made.update(call.results)
    clones = [call for call in found.again if call.results[0] not in {t for c in found.plain for t in c.results}]
    assert {call.node for call in clones} == {"inside"}


def test_the_parts_of_a_chain_are_cloned_one_after_another():
    """While the gradient of the last part is at work, nothing of the first stands yet."""
    marks = []

    def inside(x):
        for _ in range(3):
            first = mark()
            x = deep(x)
            marks.append(Checkpoint(first, mark(), x))
        return x

    found = Network(inside, lambda whole: marks)
    found.check()
    original = {t for call in found.plain for t in call.results}
    kinds = "".join("g" if call.results[0] in original else "c" for call in found.again)
    assert "gc" in kinds.lstrip("g")  # clones come after gradients of what was cloned before
    assert found.read_from_forward(found.again) <= {c.result for c in marks}


def test_of_nodes_inside_one_another_the_outermost_counts():
    inner = []

    def inside(x):
        for _ in range(3):
            first = mark()
            x = deep(x)
            inner.append(Checkpoint(first, mark(), x))
        return x

    found = Network(inside, lambda whole: [*inner, whole])
    found.check()
    assert found.read_from_forward(found.again) == {found.y}


def test_vectors_are_kept():
    found = Network(lambda x: ops.sin(x) * ops.exp(ops.sum(x, axis=0)))
    found.check()
    assert [t.ndim for t in found.read_from_forward(found.again) - {found.y}] == [1]


def test_what_the_result_is_a_view_of_is_kept():
    found = Network(lambda x: ops.reshape(ops.reshape(ops.tanh(x * x), (12,)), (2, 6)))
    found.check()
    labels = [call.attributes.get("label") for call in found.again]
    assert "tanh" not in labels  # tanh's gradient reads its result


def advancing(x, state):
    trace = current()
    factor = trace.latest(state)
    trace.store(state, factor * 2.0)
    y = x * ops.reshape(factor, (1, 3))
    return ops.sin(y) * y


def test_state_that_forward_advances_is_not_read_again():
    state = Parameter((3,), np.ones(3), trainable=False, dtype="float64", name="state")
    found = Network(lambda x: advancing(x, state))
    found.check()
    leaf = found.trace.parameter(state)
    assert all(leaf not in call.operands for call in found.again)
    clones = len(found.again) - len(found.plain)
    assert clones == 1  # the sine; the scaled x is made of the old state, by way of a view, and is kept


@pytest.mark.parametrize("shape", [(4, 3), (2, 3, 2, 2)])
def test_batch_norm_is_repeated_without_its_running_values(shape):
    """Its result does not depend on them, so that old ones need not be kept."""
    names = ("gamma", "beta", "mean", "var")
    parameters = [Parameter((3,), np.ones(3), trainable=n < 2, dtype="float64", name=k) for n, k in enumerate(names)]

    def inside(x):
        y, _, _, *new = ops.batch_norm(x * 2.0, *parameters)
        for parameter, value in zip(parameters[2:], new, strict=True):
            current().store(parameter, value)
        return y * ops.sigmoid(y)

    found = Network(inside, shape=shape)
    found.check()
    (clone,) = [call for call in found.again if call.op.name == "batch_norm"]
    assert not {found.trace.parameter(p) for p in parameters[2:]} & set(clone.operands)
    # batch_norm_grad reads the batch's statistics, which are vectors
    assert all(t.ndim == 1 or t is found.y for t in found.read_from_forward(found.again))


def test_twenty_thousand_instructions_are_no_recursion():
    def inside(x):
        for _ in range(5000):
            x = ops.sin(x)
        return x

    found = Network(inside)
    assert found.read_from_forward(found.again) <= {found.y}


@pytest.mark.parametrize(("op", "number"), CASES)
def test_every_op_says_right_which_operands_its_results_depend_on(op, number):
    """Whatever single result is wanted, or all: computed from `operands_for` it has the same bits."""
    call, arrays, _, results, tensors = make_call(op, number, "float64")
    values = dict(zip(tensors, arrays, strict=True))
    with np.errstate(all="ignore"):
        expected = op.reference(call, *arrays)
        for wanted in [[i == k for i in range(len(results))] for k in range(len(results))] + [[True] * len(results)]:
            operands = op.operands_for(results[0].producer, wanted)
            assert [(t.shape, t.dtype) for t in operands] == [(t.shape, t.dtype) for t in tensors]
            found = op.reference(call, *(values[t].copy() for t in operands))
            for i, need in enumerate(wanted):
                assert not need or np.asarray(found[i]).tobytes() == np.asarray(expected[i]).tobytes()
