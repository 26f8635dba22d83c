"""Memory for kernels in PTX."""

import pytest
from ptx.memory import Arena


@pytest.fixture(scope="module")
def arena():
    return Arena(1 << 20)
