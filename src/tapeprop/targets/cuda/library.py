"""The only place that imports numba.cuda. Everything else takes it from here, by way of `language` or `object_code`."""

from __future__ import annotations

import importlib.util
import os
from functools import cache
from typing import Any

from tapeprop.errors import DeviceError

__all__ = ["SIMULATED", "missing_parts", "numba_cuda", "require", "toolchain", "versions"]

#: Whether kernels run in Numba's simulator: NUMBA_ENABLE_CUDASIM was set when this module was first loaded.
SIMULATED = os.environ.get("NUMBA_ENABLE_CUDASIM", "0") not in ("", "0")

#: The distributions that are told in reports.
_PARTS = ("numba-cuda", "cuda-core", "cuda-bindings", "numba", "llvmlite")
REMEDY = 'install them with: pip install "tapeprop[cuda]" (it needs a driver of CUDA 13)'


def missing_parts() -> list[str]:
    """The packages without which no kernel can be compiled for a GPU; empty where all are there."""
    wanted = {"numba_cuda": "numba-cuda"}
    if not SIMULATED:
        wanted |= {"cuda.core": "cuda-core", "cuda.bindings": "cuda-bindings"}
    return [name for module, name in wanted.items() if not _found(module)]


def _found(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def require(what: str) -> None:
    """DeviceError, saying what is missing and how to get it, unless the packages are there. what: who asks, as "build"."""
    missing = missing_parts()
    if missing:
        raise DeviceError(
            f"{what}: device 'cuda' needs the packages {', '.join(missing)}, which are not installed; {REMEDY}"
        )


@cache
def numba_cuda() -> Any:
    """The module numba.cuda. DeviceError where the packages are not there."""
    require("cuda")
    from numba import cuda

    return cuda


def versions() -> dict[str, str]:
    """{distribution: version} of what is installed, for reports."""
    return {name: _version(name) or "not installed" for name in _PARTS}


def toolchain() -> dict[str, str]:
    """{distribution: version} of all that has a part in compiling, as far as it is installed: for the names of cached code."""
    compilers = ("nvidia-nvvm", "nvidia-nvjitlink", "nvidia-cuda-nvcc", "nvidia-cuda-nvrtc", "nvidia-cuda-cccl")
    names = (*_PARTS, *compilers, *(f"{name}-cu12" for name in compilers))
    return {name: found for name in names if (found := _version(name))}


def _version(name: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(name)
    except PackageNotFoundError:
        return None
