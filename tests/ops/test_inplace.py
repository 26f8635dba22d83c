"""Every pair of result and operand that an op says may share memory gives the same bits where they do."""

import ctypes
from dataclasses import replace

import numpy as np
import pytest
from ops.kernel_harness import run_launch

from tapeprop.compiler.interpret import call_of
from tapeprop.ir import Input, Tensor, Trace, recording
from tapeprop.ir.kernels import FIRST_FIELD
from tapeprop.ops import registry
from tapeprop.ops.op import Ref, record
from tapeprop.runtime.linker import load
from tapeprop.runtime.memory import address_of

pytestmark = pytest.mark.conformance


def cases():
    for name, op in sorted(registry.items()):
        if op.alias or not op.inplace:  # pairs that depend on the instruction belong to the family's own tests
            continue
        for number, _ in enumerate(op.samples()):
            for pair in op.inplace:
                yield pytest.param(op, number, pair, id=f"{name}{number}-{pair[0]}{pair[1]}")


@pytest.mark.parametrize(("op", "number", "pair"), list(cases()))
@pytest.mark.parametrize("workers", [1, 3])
def test_result_in_the_memory_of_an_operand(op, number, pair, workers):
    sample = op.samples()[number]
    arrays = [np.asarray(a) for a in sample.operands(np.random.default_rng(3))]
    with recording(Trace("float64", True)):
        tensors = [Tensor(a.shape, str(a.dtype), source=Input(i)) for i, a in enumerate(arrays)]
        instruction = record(op, tensors, sample.attributes)[0].producer
    call = call_of(instruction, {})
    apart = run_launch(op.cpu(call), call, arrays, workers)
    shared = run_over_operand(op.cpu(call), call, arrays, workers, *pair)
    for a, b in zip(apart, shared, strict=True):
        np.testing.assert_array_equal(a, b)


def run_over_operand(launch, call, arrays, workers, result, operand):
    """The results of a launch whose result `result` begins as a copy of operand `operand`, and is read as that operand."""
    place = launch.fields.index(Ref("result", result))
    fields = tuple(Ref("result", result) if item == Ref("operand", operand) else item for item in launch.fields)

    def run(kernel, row, _worker, _workers):
        ctypes.memmove(int(row[FIRST_FIELD + place]), arrays[operand].ctypes.data, arrays[operand].nbytes)
        function = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 3)(load([kernel])[kernel])
        for worker in range(workers):
            function(address_of(row), worker, workers)

    return run_launch(replace(launch, fields=fields), call, arrays, workers, run=run)
