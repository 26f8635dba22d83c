"""The stand-in for `cuda.bindings.driver` against the real one, where that is installed: names, arguments, constants."""

import inspect
import re
from pathlib import Path

import pytest
from targets import fake_cuda
from targets.fake_cuda import FakeCuda

from tapeprop.errors import DeviceError
from tapeprop.targets.cuda import nvidia
from tapeprop.targets.cuda.nvidia import NvidiaDriver

HERE = Path(nvidia.__file__).parent
USED = sorted(
    set(re.findall(r"\bcu[A-Z]\w+", "".join((HERE / f"{name}.py").read_text() for name in ("nvidia", "nvidia_calls", "staging"))))
)  # fmt: skip
ENUMS = [name for name in vars(fake_cuda) if name.startswith("CU")]


def parameters(function) -> list[str]:
    return list(inspect.signature(function).parameters)


def test_the_stand_in_has_what_is_used():
    assert len(USED) > 30
    assert [name for name in USED if not hasattr(FakeCuda, name)] == []


@pytest.mark.parametrize("name", USED)
def test_functions_take_the_same_arguments(name):
    driver = pytest.importorskip("cuda.bindings.driver")
    assert parameters(getattr(FakeCuda, name))[1:] == parameters(getattr(driver, name))


@pytest.mark.parametrize("name", ENUMS)
def test_constants_are_the_same(name):
    driver = pytest.importorskip("cuda.bindings.driver")
    real = getattr(driver, name)
    for member in getattr(fake_cuda, name):
        assert int(getattr(real, member.name)) == member
        assert getattr(real, member.name).name == member.name
    for flag in ("CU_MEMHOSTALLOC_PORTABLE", "CU_MEMHOSTALLOC_DEVICEMAP"):
        assert getattr(driver, flag) == getattr(FakeCuda, flag)


def test_functions_give_the_status_first():
    """Of the few that answer without a device. Handles are numbers to int()."""
    driver = pytest.importorskip("cuda.bindings.driver")
    status, text = (
        driver.cuGetErrorString(driver.CUresult.CUDA_ERROR_OUT_OF_MEMORY) if _has_library(driver) else (0, b"")
    )
    assert status == 0
    assert isinstance(text, bytes)
    for handle in (driver.CUstream, driver.CUcontext, driver.CUdeviceptr):
        assert int(handle(4711)) == 4711
    assert driver.CUresult.CUDA_SUCCESS == 0
    assert driver.CUDA_VERSION >= 12000


def _has_library(driver) -> bool:
    try:
        driver.cuInit(0)
    except Exception:
        return False
    return True


def test_a_machine_without_a_driver_is_told_so():
    driver = pytest.importorskip("cuda.bindings.driver")
    if _has_library(driver):
        pytest.skip("there is a driver here")
    with pytest.raises(
        DeviceError, match=r"NVIDIA's driver was not found \(.*\); install it, or build with device='cpu'"
    ):
        NvidiaDriver()
