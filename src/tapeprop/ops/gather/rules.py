"""What the ops of rows and the counters share: the modules of their kernels, a check, and arrays as one axis."""

from __future__ import annotations

from tapeprop.errors import DTypeError
from tapeprop.ir import Tensor
from tapeprop.ops.op import Call, Ref

HERE = "tapeprop.ops.gather.cpu"
CUDA = "tapeprop.ops.gather.cuda"


def check_integers(name: str, what: str, x: Tensor) -> None:
    if x.dtype != "int64":
        raise DTypeError(f"{name}: expected {what} of dtype int64, got {x.dtype}")


def flat(call: Call) -> list[tuple[Ref, tuple[int, ...]]]:
    """Result 0 and the operands, each as one axis."""
    return [
        (Ref("result"), (call.results[0].size,)),
        *((Ref("operand", i), (x.size,)) for i, x in enumerate(call.operands)),
    ]
