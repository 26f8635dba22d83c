"""Tests of CUDA kernels in Numba's simulator: run by `make cuda-check`, with NUMBA_ENABLE_CUDASIM=1 and the extra `cuda`."""

import os
import sys

import pytest

SIMULATED = os.environ.get("NUMBA_ENABLE_CUDASIM", "0") not in ("", "0")


def pytest_collection_modifyitems(config, items):
    """What needs the simulator is skipped without it."""
    if SIMULATED:
        sys.setswitchinterval(1e-4)  # the simulator polls its threads: they get the processor sooner
        return
    for item in items:
        if item.get_closest_marker("simulator"):
            item.add_marker(pytest.mark.skip(reason="needs NUMBA_ENABLE_CUDASIM=1: make cuda-check"))
