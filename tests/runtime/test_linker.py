import ctypes
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
from tapeprop.targets.cpu.kernel import RAISED, NumbaKernel, run_body, run_plain


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
    with pytest.raises(ValueError, match=r"package\.module:function"):
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
    single, pixels = np.array(2.5, np.float32), np.array([200, 100], np.uint8)
    labels, scratch = np.array([-5, 7], np.int32), np.zeros((2, 3))
    arrays = (total, matrix, single, pixels, labels, scratch)
    tape, control = make_tape([(kernel("every_argument"), arrays, (3, 4))])
    assert run(tape, control) is None
    expected = matrix.sum() + 2.5 + 300 + 2 + 30 + 400
    np.testing.assert_allclose(total, expected, rtol=1e-12)
    for plain in (
        lambda: run_plain(kernel("every_argument"), tape[0]),
        lambda: run_body(kernel("every_argument"), arrays, (3, 4)),
    ):
        total[0] = 0
        plain()
        np.testing.assert_allclose(total, expected, rtol=1e-12)


def test_exception_in_a_body_becomes_a_code():
    x = np.array([1.0, 2.0])
    tape, control = make_tape([(kernel("nothing"), (), ()), (kernel("raising"), (x,), ())])
    assert run(tape, control) is None
    x[0] = -1
    assert run(tape, control) == (1, RAISED)


@pytest.mark.parametrize(
    ("name", "parameters", "told"),
    [
        ("failing_builder", {"reason": "no such tile"}, "RuntimeError: no such tile"),
        ("no_kernel", {}, "returned 3"),
        ("absent_builder", {}, "absent_builder"),
        ("broken", {}, "unknown_function"),
        ("allocating", {}, "NRT_"),
        ("capturing", {}, "address in this process"),
        ("unknown_symbol", {}, "tapeprop_no_such_function"),
        ("no_ir", {}, "LLVM refuses"),
    ],
)
def test_error_names_the_kernel(name, parameters, told):
    with pytest.raises(CompileError) as caught:
        load([kernel(name, **parameters)])
    assert isinstance(caught.value, GraphError)
    assert f"kernel {kernel(name, **parameters).label}" in str(caught.value)
    assert told in str(caught.value)


def test_missing_module_is_told():
    with pytest.raises(CompileError, match=r"kernel make.*no_such_module_anywhere"):
        load([Kernel.of("no_such_module_anywhere:make")])


def test_error_in_a_child_is_told_and_the_rest_kept(cold, monkeypatch):
    monkeypatch.setattr("tapeprop.targets.cpu.machine.usable_cpus", lambda: 2)
    good = [kernel("constant", value=1000 + i) for i in range(4)]
    with pytest.raises(CompileError, match="no such tile") as caught:
        load([*good, kernel("failing_builder", reason="no such tile")])
    assert "kernel failing_builder(reason='no such tile')" in str(caught.value)
    assert [value_of(k) for k in good] == [1000, 1001, 1002, 1003]


def test_a_child_that_dies_is_told(cold, monkeypatch):
    monkeypatch.setattr("tapeprop.targets.cpu.machine.usable_cpus", lambda: 2)
    with pytest.raises(CompileError, match=r"kernel dying\(value=2\d\d\d\).*ended with status 3"):
        load([kernel("dying", value=2000 + i) for i in range(5)])


@pytest.mark.parametrize("program", ["/bin/false", "/bin/echo", "/no/such/interpreter"])
def test_where_no_child_can_be_had_all_is_compiled_here(cold, monkeypatch, program):
    monkeypatch.setattr("tapeprop.targets.cpu.machine.usable_cpus", lambda: 2)
    monkeypatch.setattr("sys.executable", program)
    kernels = [kernel("constant", value=3000 + len(program) * 10 + i) for i in range(5)]
    assert len(load(kernels)) == 5
    assert value_of(kernels[4]) == 3004 + len(program) * 10


def test_builder_in_main_is_compiled_in_this_process(cold):
    out, _ = run_program("""
        from tapeprop.ir.kernels import Kernel
        from tapeprop.runtime.linker import load
        from tapeprop.targets.cpu import machine
        from runtime import kernels_for_tests
        machine.usable_cpus = lambda: 2
        def make(value):
            return kernels_for_tests.constant(value)
        kernels = [Kernel.of("__main__:make", value=i) for i in range(5)]
        others = [kernels_for_tests.kernel("constant", value=i) for i in range(5)]
        print(len(load([*kernels, *others])))
    """)
    assert out.strip() == "10"


def test_lines_can_be_silenced_and_seconds_read(cold, monkeypatch, capsys):
    before = linker.compile_seconds()
    load([kernel("constant", value=4000)])
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "tapeprop: compiling 1 kernel (first use on this machine) ..."
    assert said[1].startswith("tapeprop: compiled 1 kernel in ")
    assert linker.compile_seconds() > before
    monkeypatch.setenv("TAPEPROP_QUIET", "1")
    load([kernel("constant", value=4001)])
    assert capsys.readouterr().err == ""


def test_threads_may_load_at_once(cold):
    found: list[dict[Kernel, int]] = []
    kernels = [kernel("constant", value=5000 + i) for i in range(8)]
    threads = [threading.Thread(target=lambda i=i: found.append(load(kernels[i : i + 4]))) for i in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    together = load(kernels)
    assert len(found) == 5
    assert all(together[k] == address for part in found for k, address in part.items())
    assert [value_of(k) for k in kernels] == list(range(5000, 5008))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_may_load(cold):
    """While a thread of the parent holds the linker's lock."""
    out, _ = run_program("""
        import os, warnings
        from runtime.kernels_for_tests import kernel
        from tapeprop.runtime import linker
        warnings.simplefilter("ignore", DeprecationWarning)
        linker.load([kernel("constant", value=1)])
        with linker._lock:
            child = os.fork()
            if child == 0:
                linker.load([kernel("constant", value=1), kernel("constant", value=2)])
                os._exit(0)
            print(os.waitpid(child, 0)[1])
    """)
    assert out.strip() == "0"


def test_texts_may_use_the_same_names():
    text = "define i64 @give() {{\n  ret i64 {}\n}}"
    addresses = [load_text(text.format(i), ["give"], "a test")["give"] for i in (1, 2, 1)]
    assert addresses[0] == addresses[2]
    assert [ctypes.CFUNCTYPE(ctypes.c_int64)(a)() for a in addresses] == [1, 2, 1]
    with pytest.raises(CompileError, match="a test"):
        load_text("define i64 @give() {", ["give"], "a test")
    with pytest.raises(CompileError, match="expected a function 'take'"):
        load_text(text.format(3), ["take"], "a test")


# ---- plain Python


def test_arguments_of_a_plain_run_are_checked():
    x = np.zeros(4, np.float32)
    with pytest.raises(TypeError, match="expected 3 arrays"):
        run_body(kernel("scaled_sum", scale=1.0), (x, x))
    with pytest.raises(TypeError, match=r"array 'y'.*float64"):
        run_body(kernel("scaled_sum", scale=1.0), (x, x.astype(np.float64), x))
    with pytest.raises(TypeError, match="no Python body"):
        run_body(kernel("nothing"), ())


def test_plain_helpers_are_followed():
    from numba import njit
    from numba.extending import intrinsic

    from tapeprop.targets.cpu import intrinsics
    from tapeprop.targets.cpu.plain import plain

    @njit
    def even(n):
        return n == 0 or odd(n - 1)

    @njit
    def odd(n):
        return n != 0 and even(n - 1)

    def through_a_module(address):
        return intrinsics.fetch_add(address, 2)

    word = np.array([5])
    python = plain(even)
    assert python(10) is True
    assert not hasattr(python, "py_func")
    assert plain(through_a_module)(word.ctypes.data) == 5
    assert word[0] == 7

    @intrinsic
    def lonely(typing_context):
        return None

    with pytest.raises(TypeError, match="no plain Python twin"):
        plain(lambda: lonely())
