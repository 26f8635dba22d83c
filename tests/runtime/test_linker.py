import os
import pickle
import threading

import numpy as np
import pytest
from runtime.kernels_for_tests import HERE, kernel
from runtime.tapes_for_tests import make_tape, run_program

from tapeprop.errors import CompileError, GraphError
from tapeprop.ir.kernels import Kernel, row_words
from tapeprop.runtime import linker
from tapeprop.runtime.executor import run
from tapeprop.runtime.linker import load, load_text
from tapeprop.targets.cpu.kernel import NumbaKernel, RAISED, run_body, run_plain


@pytest.fixture
def cold(tmp_path, monkeypatch):
    """An empty kernel cache."""
    monkeypatch.setenv("TAPEPROP_CACHE_DIR", str(tmp_path / "cache"))


def value_of(kernel_of_a_constant: Kernel) -> int:
    number = np.zeros(1, np.int64)
    tape, control = make_tape([(kernel_of_a_constant, (number,), ())])
    assert run(tape, control) is None
    return int(number[0])


# ---- names


def test_kernel_is_data():
    one = Kernel.of(f"{HERE}:scaled_sum", scale=2.5, text="a", flag=True, nested=((1, None), "x"))
    assert pickle.loads(pickle.dumps(one)) == one
    assert hash(pickle.loads(pickle.dumps(one))) == hash(one)
    assert one.module == HERE
    assert one.label == "scaled_sum(flag=True, nested=((1, None), 'x'), scale=2.5, text='a')"
    assert len(Kernel.of("a:b", text="x" * 1000).label) < 121
    assert one != "something else"
    with pytest.raises(AttributeError):
        one.builder = "a:b"


@pytest.mark.parametrize("value", [[1], {"a": 1}, np.int64(3), (1, [2]), b"x", 1j, print])
def test_parameters_are_literals(value):
    with pytest.raises(TypeError, match="parameter size"):
        Kernel.of("a:b", size=value)


@pytest.mark.parametrize("name", ["nothing", "a:", ":b", "a.b", "a b:c", "a:b:c", "a..b:c", ""])
def test_builder_is_a_module_and_a_function(name):
    with pytest.raises(ValueError, match="package.module:function"):
        Kernel.of(name)


def test_words_of_a_row():
    assert row_words([(64, (2, 3)), ("later", ()), (128, (5,))], (7, True)) == [64, 2, 3, "later", 128, 5, 7, 1]
    assert NumbaKernel.words([(64, (2,))], (np.int64(7),)) == [64, 2, 7]
    declared = NumbaKernel(print, (("a", "float32", 2), ("int32", 0)), ("n",), scratch="float64")
    assert declared.field_count == 3 + 1 + 3 + 1
    assert declared.arrays[1:] == (("array1", "int32", 0), ("scratch", "float64", 2))


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((None, ()), TypeError),
        ((print, (("x", "float16", 1),)), ValueError),
        ((print, (("x", "float32", -1),)), ValueError),
        ((print, (("x", "float32", 1.0),)), ValueError),
        ((print, (), "n"), TypeError),
    ],
)
def test_declarations_are_checked(arguments, error):
    with pytest.raises(error):
        NumbaKernel(*arguments)


# ---- loading


def test_addresses_are_kept():
    first = load([kernel("constant", value=1), kernel("constant", value=2), kernel("constant", value=1)])
    assert len(first) == 2
    assert load([kernel("constant", value=2)]) == {kernel("constant", value=2): first[kernel("constant", value=2)]}
    assert load([]) == {}
    assert [value_of(kernel("constant", value=i)) for i in (1, 2)] == [1, 2]


def test_kernels_of_one_factory_keep_their_constants(cold):
    """Compiled in several processes, they hold functions of the same mangled names."""
    scales = [1.5 + i for i in range(6)]
    kernels = [kernel("scaled_sum", scale=scale) for scale in scales]
    x, y = np.arange(100, dtype=np.float32), np.ones(100, np.float32)
    z = np.zeros((6, 100), np.float32)
    tape, control = make_tape([(k, (x, y, out), ()) for k, out in zip(kernels, z)])
    assert run(tape, control) is None
    np.testing.assert_array_equal(z, x + np.float32(scales)[:, None])


def test_every_kind_of_argument():
    rng = np.random.default_rng(0)
    total, matrix = np.zeros(1), rng.standard_normal((3, 4))
    single, pixels = np.float32([2.5]), np.uint8([200, 100])
    labels, scratch = np.int32([-5, 7]), np.zeros((2, 3))
    arrays = (total, matrix, single.reshape(()), pixels, labels)
    tape, control = make_tape([(kernel("every_argument"), arrays, ())])
    words = row_words([(a.ctypes.data, a.shape) for a in arrays], ()) + [3, 4, scratch.ctypes.data, 2, 3]
    words = words[:-5] + [scratch.ctypes.data, 2, 3, 3, 4]
    tape = np.zeros((1, 24), np.int64)  # make_tape puts the integers last, and so does the row: scratch stands before them
    tape, control = _row(kernel("every_argument"), words)
    assert run(tape, control) is None
    expected = matrix.sum() + 2.5 + 300 + 2 + 30 + 400
    np.testing.assert_allclose(total[0], expected, rtol=1e-12)
    total[0] = 0
    run_plain(kernel("every_argument"), tape[0])
    np.testing.assert_allclose(total[0], expected, rtol=1e-12)
