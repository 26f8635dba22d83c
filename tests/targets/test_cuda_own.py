"""Kernels of users to machine code for a GPU: what compiles, and what they read where it does not."""

import numba
import numpy as np
import pytest
from ops.test_add_an_op import NAME, module  # noqa: F401

import tapeprop as tp
from tapeprop.compiler.interpret import call_of
from tapeprop.errors import CompileError
from tapeprop.ir import Input, Tensor, Trace, recording
from tapeprop.ops import registry
from tapeprop.ops.op import ArrayType, Call, Device
from tapeprop.targets.cuda.library import SIMULATED, missing_parts

pytestmark = pytest.mark.skipif(SIMULATED or bool(missing_parts()), reason="needs the extra cuda, and no simulator")


@numba.njit
def square(value):
    return value * value


@tp.ops.kernel
class Squared:
    """By a helper, with attributes of every kind."""

    flat = True

    def kernel(x, y, worker, workers, factors=(2.0, 1), mode="all", on=True, none=None):
        for i in range(x.size * worker // workers, x.size * (worker + 1) // workers):
            y[i] = factors[0] * square(x[i]) + factors[1] if mode == "all" and on and none is None else 0.0


@tp.ops.kernel
class Raising:
    """Raises, which has to be told."""

    def kernel(x, y):
        if x[0, 0] > 3:
            raise ValueError("too large")
        y[0, 0] = x[0, 0]


@tp.ops.kernel
class Writing:
    """Writes to its operand."""

    def kernel(x, y):
        x[0, 0] = 1.0


@tp.ops.kernel
class Allocating:
    """Makes an array."""

    def kernel(x, y):
        y[:, 0] = np.zeros(x.shape[0])


@tp.ops.kernel
class Whole:
    """Makes an array of a function of whole arrays."""

    def kernel(x, y):
        y[0, :] = np.exp(x[0, :])


@tp.ops.kernel
class Unknown:
    """Uses what arrays do not have."""

    def kernel(x, y):
        y[0, 0] = x.nothing()


def launched(op):
    with recording(Trace("float32", True)):
        x = Tensor((5, 7), "float32", source=Input(0))
        return op.cuda(call_of(op(x).producer, {}), Device())


def compiled(op):
    from tapeprop.targets.cuda.object_code import compile_to_cubin

    return compile_to_cubin(launched(op).kernel, (9, 0, "a"), report=True)


@pytest.mark.parametrize("op", [Squared, Raising], ids=repr)
def test_it_compiles_without_a_stack(op):
    usage = compiled(op).usage
    assert (usage.stack, usage.spills) == (0, 0)


def test_an_exception_becomes_a_report():
    from numba import cuda
    from numba.cuda import types

    from tapeprop.targets.cuda.kernel import shim
    from tapeprop.targets.cuda.object_code import _pretended

    def code(op):
        signature = types.void(types.int64, types.int64)
        with _pretended((9, 0)):
            text, _ = cuda.compile(
                shim(launched(op).kernel), signature, device=False, abi="numba", output="ptx", cc=(9, 0)
            )
        return str(text)

    assert "atom.global.cas" in code(Raising)
    assert "atom" not in code(Squared)


@pytest.mark.parametrize(
    ("op", "reason"),
    [
        (Writing, "it writes to an operand, which it may only read"),
        (Allocating, "it allocates memory"),
        (Whole, "it allocates memory"),
        (Unknown, r"Unknown attribute 'nothing' .*test_cuda_own.py\", line \d+"),
    ],
)
def test_a_refusal_names_the_op_and_the_remedy(op, reason):
    with pytest.raises(CompileError, match=f"^op '{op.name}': numba.cuda cannot compile .*{reason}") as caught:
        compiled(op)
    assert "device='cpu'" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("module")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("reverse", [False, True])
def test_the_kernel_of_add_an_op_compiles(dtype, reverse):
    from tapeprop.targets.cuda.object_code import compile_to_cubin

    kind = ArrayType((5, 7), dtype)
    launch = registry[NAME].cuda(Call((kind,), (kind,), {"reverse": reverse}), Device())
    usage = compile_to_cubin(launch.kernel, (9, 0, "a"), report=True).usage
    assert (usage.stack, usage.spills) == (0, 0)
