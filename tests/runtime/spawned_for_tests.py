"""What a spawned child runs."""

import numpy as np
from runtime.test_executor import ring_expected, ring_tape

from tapeprop.runtime.team import run_team


def ring() -> bool:
    """Whether a tape gives the right result with three workers."""
    a, _, tape, control = ring_tape()
    return run_team(tape, control, workers=3) is None and np.array_equal(a, ring_expected(1))
