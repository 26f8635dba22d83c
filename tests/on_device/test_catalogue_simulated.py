"""Every op's CUDA kernels in the simulator, or on a GPU, against the NumPy reference, on the op's samples.

On a GPU with every tile of products. In the simulator these would take too long: see `test_tiles`.
The bounds are those of `ops.test_catalogue`; sums run in the working precision here, which a random walk of rounding errors
covers as well.
"""

import numpy as np
import pytest
from compile_gate import devices
from on_device.launches import driver, run_launches
from ops.test_catalogue import CASES, _in_float64, compare, has_kernel, make_call

from tapeprop.targets.cuda.library import SIMULATED

pytestmark = pytest.mark.cuda


@pytest.mark.parametrize(("op", "number"), CASES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_cuda_equals_reference(op, number, dtype):
    if not has_kernel(op) or op.cpu_only:
        return
    call, arrays, sample, _, _ = make_call(op, number, dtype)
    with np.errstate(all="ignore"):
        exact = [a.astype(np.float64) if a.dtype == np.float32 else a for a in arrays]
        expected = op.reference(_in_float64(call), *exact)
    limits = driver().limits
    wanted = [limits] if SIMULATED else devices(limits)
    for launches in dict.fromkeys(tuple(op.cuda_rows(call, device)) for device in wanted):
        check(run_launches(launches, call, arrays), expected, exact, call, sample.depth, dtype)


def check(found, expected, exact, call, depth, dtype):
    """Asserts that the results are those expected; exact: the operands in float64."""
    for value, wanted, kind in zip(found, expected, call.results, strict=True):
        wanted = np.asarray(wanted).reshape(kind.shape)
        if value.dtype.kind != "f":
            np.testing.assert_array_equal(value, wanted)
        else:
            compare(value, wanted, exact, str(value.dtype), depth, dtype)
