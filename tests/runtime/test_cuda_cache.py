"""Cubins in the kernel cache. Most of it with a stand-in for the compiler, so without numba-cuda."""

import pytest
from runtime.tapes_for_tests import run_program
from targets.fake_cuda import FakeCuda

from tapeprop.errors import CompileError
from tapeprop.ir.kernels import Kernel
from tapeprop.runtime import kernel_cache
from tapeprop.runtime.cuda_cache import cubins, open_device
from tapeprop.runtime.kernel_cache import entry_key
from tapeprop.targets.cuda import library, object_code
from tapeprop.targets.cuda.driver import use_driver
from tapeprop.targets.cuda.nvidia import NvidiaDriver
from tapeprop.targets.cuda.object_code import Cubin

HOPPER, AMPERE = (9, 0, "a"), (8, 6)
ONE, TWO = (Kernel.of("tapeprop.ops.softmax.cuda:made_up", number=i) for i in (1, 2))
HERE = "on_device.kernels_for_tests"


@pytest.fixture
def compiled(tmp_path, monkeypatch):
    """What the stand-in for the compiler was asked for, with an empty cache."""
    monkeypatch.setenv("TAPEPROP_CACHE_DIR", str(tmp_path / "cache"))
    asked = []

    def compile_to_cubin(kernel, capability):
        asked.append((kernel, capability))
        if kernel.builder.endswith("bad"):
            raise CompileError(f"kernel {kernel.label}: no such tile")
        return Cubin(f"symbol{len(asked)}", b"\x7fELF" + bytes(len(asked)))

    monkeypatch.setattr(object_code, "compile_to_cubin", compile_to_cubin)
    return asked


def test_each_is_compiled_once_for_each_kind_of_gpu(compiled, capsys):
    first = cubins([ONE, TWO], HOPPER)
    assert first == {ONE: Cubin("symbol1", b"\x7fELF\0"), TWO: Cubin("symbol2", b"\x7fELF\0\0")}
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "tapeprop: compiling 2 kernels for sm_90 (first use on this machine) ..."
    assert said[1].startswith("tapeprop: compiled 2 kernels in ")
    assert cubins([TWO, ONE], HOPPER) == first
    assert capsys.readouterr().err == ""
    cubins([ONE], AMPERE)
    assert compiled == [(ONE, HOPPER), (TWO, HOPPER), (ONE, AMPERE)]
    assert kernel_cache.info().entries == 3
    assert kernel_cache.clear() == 3


def test_what_was_compiled_before_an_error_is_kept(compiled):
    with pytest.raises(CompileError, match=r"bad\(\): no such tile"):
        cubins([ONE, Kernel.of("tapeprop.ops.softmax.cuda:bad"), TWO], HOPPER)
    cubins([ONE], HOPPER)
    assert len(compiled) == 2


def test_keys_tell_machines_and_compilers_apart(monkeypatch):
    keys = [
        entry_key(ONE),
        entry_key(ONE, HOPPER),
        entry_key(ONE, (9, 0)),
        entry_key(ONE, AMPERE),
        entry_key(TWO, HOPPER),
    ]
    monkeypatch.setattr(library, "toolchain", lambda: {"nvidia-nvvm": "99"})
    kernel_cache._gpu_environment.cache_clear()
    keys.append(entry_key(ONE, HOPPER))
    monkeypatch.undo()
    kernel_cache._gpu_environment.cache_clear()
    assert len(set(keys)) == len(keys)


def test_a_driver_loads_from_the_cache(compiled, monkeypatch):
    fakes = [FakeCuda(), FakeCuda()]
    for fake in fakes:
        NvidiaDriver(fake, cubins).load([ONE, TWO])
    assert len(compiled) == 2
    assert fakes[0].modules == fakes[1].modules
    assert [name for _, name in fakes[1].called("cuModuleGetFunction")] == [b"symbol1", b"symbol2"]


def test_the_process_driver_has_it(monkeypatch):
    from tapeprop.targets.cuda import nvidia

    monkeypatch.setattr(library, "require", lambda what: None)
    monkeypatch.setattr(library, "SIMULATED", False)
    monkeypatch.setattr(nvidia, "load_bindings", FakeCuda)
    with use_driver(None):
        driver = open_device("build")
        assert isinstance(driver, NvidiaDriver)
        assert driver._cubins is cubins


def test_a_warm_process_never_imports_numba(compiled):
    cubins([ONE, TWO], HOPPER)
    out, said = run_program("""
        import sys
        from tapeprop.ir.kernels import Kernel
        from tapeprop.runtime.cuda_cache import cubins
        kernels = [Kernel.of("tapeprop.ops.softmax.cuda:made_up", number=i) for i in (1, 2)]
        print(sorted(cubin.symbol for cubin in cubins(kernels, (9, 0, "a")).values()))
        print({"numba", "numba_cuda", "llvmlite"} & set(sys.modules))
    """)
    assert out.splitlines() == ["['symbol1', 'symbol2']", "set()"]
    assert said == ""


# ---- with numba-cuda


@pytest.fixture
def cold(tmp_path, monkeypatch):
    """An empty cache, and two processors, so that children compile."""
    if library.SIMULATED or library.missing_parts():
        pytest.skip("needs numba-cuda, and no simulator")
    monkeypatch.setenv("TAPEPROP_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr("tapeprop.targets.cpu.machine.usable_cpus", lambda: 2)


@pytest.mark.slow
def test_children_compile_several_kernels(cold):
    kernels = [Kernel.of(f"{HERE}:scaled", factor=float(i)) for i in range(4)] + [Kernel.of(f"{HERE}:count")]
    made = cubins(kernels, HOPPER)
    assert all(cubin.code.startswith(b"\x7fELF") for cubin in made.values())
    assert all(cubin.symbol.encode() in cubin.code for cubin in made.values())
    assert len({cubin.code for cubin in made.values()}) == 5
    assert kernel_cache.info().entries == 5


@pytest.mark.slow
def test_an_error_in_a_child_is_told(cold):
    kernels = [Kernel.of(f"{HERE}:scaled", factor=float(i)) for i in range(4)] + [Kernel.of(f"{HERE}:failing")]
    with pytest.raises(CompileError, match=r"kernel failing\(\).*no such tile"):
        cubins(kernels, HOPPER)
