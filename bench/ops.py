"""Each op beside torch's, forward and backward, at three sizes.

    python bench/ops.py [--op NAME ...] [--size small medium large] [--workers 1] [--seconds 1] [--quick] [--json]

A case is a formula of one op, compiled by `tapeprop.function`, and torch's function of the same arrays. "forward" is a
call without anything for backward; "both" a forward and the gradients of all floating operands. Ours copies what goes in
and what comes out, as every call does, so that forwards of little arithmetic measure that. All contenders of a case
take turns in one run; a figure is the median of bursts, a ratio torch's median by ours, above 1 where ours is faster. Both
use --workers threads. --json writes bench/results/ops-<cpu>.json and a table, .md, beside it.

`CASES` says what is timed, by the name of the op and what is special; `WITHOUT` why another op is not. tests/test_bench.py
finds ops that stand in neither: what is added to the catalogue gets a line here.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from measure import RESULTS, Contender, alternate, machine, machine_text, write_results

import tapeprop as tp
from tapeprop import ops
from tapeprop.cli.output import seconds_text, table

if TYPE_CHECKING:
    import torch

SIZES = ("small", "medium", "large")
BURST, QUICK_SECONDS = 0.05, 0.01
#: Of results and gradients, relative to the largest: float32 in sums of up to some 10^5 terms, in another order.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Ids:
    """An operand of whole numbers from 0 to `below`."""

    shape: tuple[int, ...]
    below: int


Operand = tuple[int, ...] | Ids


@dataclass(frozen=True)
class Case:
    """ours(*tensors) and theirs(torch, *tensors): one formula. shapes: the operands, small, medium and large.

    alike: whether results can be compared; random ones cannot.
    """

    ours: Callable[..., Any]
    theirs: Callable[..., Any]
    shapes: tuple[Sequence[Operand], Sequence[Operand], Sequence[Operand]]
    alike: bool = True


def _images(*sizes: tuple[int, int, int]) -> tuple[list[Operand], list[Operand], list[Operand]]:
    """Batches of images (N, C, H, H), of (N, C, H)."""
    small, medium, large = ([(n, c, h, h)] for n, c, h in sizes)
    return small, medium, large


def _convolutions(*sizes: tuple[int, int, int, int]) -> tuple[list[Operand], list[Operand], list[Operand]]:
    """Images and 3x3 filters, of (N, C, H, O)."""
    small, medium, large = ([(n, c, h, h), (o, c, 3, 3), (o,)] for n, c, h, o in sizes)
    return small, medium, large


def _depthwise(*sizes: tuple[int, int, int]) -> tuple[list[Operand], list[Operand], list[Operand]]:
    """Images and a 3x3 filter for each channel, of (N, C, H)."""
    small, medium, large = ([(n, c, h, h), (c, 1, 3, 3), (c,)] for n, c, h in sizes)
    return small, medium, large


def _batch_norm(x: Any, gamma: Any, beta: Any) -> Any:
    channels = x.shape[1]
    return ops.batch_norm(x, gamma, beta, np.zeros(channels), np.ones(channels))[0]


def _normed(*sizes: tuple[int, int, int]) -> tuple[list[Operand], list[Operand], list[Operand]]:
    small, medium, large = ([(n, c, h, h), (c,), (c,)] for n, c, h in sizes)
    return small, medium, large


# Small is a layer of LeNet on a batch of 8 or less, medium one of ResNet-20 on a batch of 32, large one of VGG or an
# embedding of some 10^6 numbers. New ops go beside their family.
DENSE: tuple = ([(8, 84), (10, 84), (10,)], [(32, 784), (256, 784), (256,)], [(64, 1024), (1024, 1024), (1024,)])
CLASSES: tuple = ([(8, 10)], [(128, 100)], [(256, 1000)])
LABELLED: tuple = (
    [(8, 10), Ids((8,), 10)], [(128, 100), Ids((128,), 100)], [(256, 1000), Ids((256,), 1000)],
)  # fmt: skip
MAPS = _images((8, 6, 28), (32, 16, 32), (16, 64, 64))
CASES: dict[str, Case] = {
    # element by element
    "elementwise": Case(lambda x: ops.tanh(x) * x, lambda torch, x: torch.tanh(x) * x, MAPS),
    "cast": Case(lambda x: ops.cast(x, "float64"), lambda torch, x: x.double(), MAPS),
    # matrices
    "matmul": Case(
        ops.matmul,
        lambda torch, a, b: a @ b,
        ([(8, 84), (84, 10)], [(128, 256), (256, 128)], [(512, 512), (512, 512)]),
    ),
    "dense": Case(ops.dense, lambda torch, x, w, b: torch.nn.functional.linear(x, w, b), DENSE),
    # convolutions
    "conv2d": Case(
        lambda x, w, b: ops.conv2d(x, w, b, padding=1),
        lambda torch, x, w, b: torch.nn.functional.conv2d(x, w, b, padding=1),
        _convolutions((4, 6, 14, 16), (32, 16, 32, 16), (8, 64, 56, 64)),
    ),
    "conv2d depthwise": Case(
        lambda x, w, b: ops.conv2d(x, w, b, padding=1, groups=x.shape[1]),
        lambda torch, x, w, b: torch.nn.functional.conv2d(x, w, b, padding=1, groups=x.shape[1]),
        _depthwise((4, 16, 14), (32, 64, 28), (32, 96, 56)),
    ),
    "conv2d transposed": Case(
        lambda x, w, b: ops.conv_transpose(x, w, b, stride=2),
        lambda torch, x, w, b: torch.nn.functional.conv_transpose2d(x, w, b, stride=2),
        (
            [(4, 6, 7, 7), (6, 16, 2, 2), (16,)],
            [(32, 32, 16, 16), (32, 16, 2, 2), (16,)],
            [(8, 128, 28, 28), (128, 64, 2, 2), (64,)],
        ),
    ),
    "conv3d": Case(
        lambda x, w, b: ops.conv3d(x, w, b, padding=1),
        lambda torch, x, w, b: torch.nn.functional.conv3d(x, w, b, padding=1),
        (
            [(2, 3, 6, 14, 14), (8, 3, 3, 3, 3), (8,)],
            [(8, 16, 8, 16, 16), (16, 16, 3, 3, 3), (16,)],
            [(2, 32, 16, 28, 28), (32, 32, 3, 3, 3), (32,)],
        ),
    ),
    # pools, resampling
    "max_pool2d": Case(lambda x: ops.max_pool2d(x, 2), lambda torch, x: torch.nn.functional.max_pool2d(x, 2), MAPS),
    "avg_pool2d": Case(lambda x: ops.avg_pool2d(x, 2), lambda torch, x: torch.nn.functional.avg_pool2d(x, 2), MAPS),
    "max_pool2d 3x3": Case(
        lambda x: ops.max_pool2d(x, 3, 2, 1), lambda torch, x: torch.nn.functional.max_pool2d(x, 3, 2, 1), MAPS
    ),
    "resample": Case(
        lambda x: ops.resize(x, scale=(2, 2), mode="linear"),
        lambda torch, x: torch.nn.functional.interpolate(x, scale_factor=2, mode="bilinear"),
        _images((8, 6, 14), (32, 16, 16), (16, 64, 28)),
    ),
    # norms and softmax
    "batch_norm": Case(
        _batch_norm,
        lambda torch, x, g, b: torch.nn.functional.batch_norm(x, None, None, g, b, training=True),
        _normed((8, 6, 28), (32, 16, 32), (16, 64, 64)),
    ),
    "row_norm": Case(
        lambda x, g, b: ops.layer_norm(x, g.shape, g, b),
        lambda torch, x, g, b: torch.nn.functional.layer_norm(x, g.shape, g, b),
        ([(8, 64), (64,), (64,)], [(32, 16, 128), (128,), (128,)], [(64, 128, 512), (512,), (512,)]),
    ),
    "row_norm in groups": Case(
        lambda x, g, b: ops.group_norm(x, 4, g, b),
        lambda torch, x, g, b: torch.nn.functional.group_norm(x, 4, g, b),
        _normed((8, 8, 28), (32, 16, 32), (32, 64, 28)),
    ),
    "softmax": Case(ops.softmax, lambda torch, x: torch.softmax(x, -1), CLASSES),
    "log_softmax": Case(ops.log_softmax, lambda torch, x: torch.log_softmax(x, -1), CLASSES),
    # sums, shapes, indices
    "reduce": Case(lambda x: ops.sum(x, (0, 2, 3)), lambda torch, x: x.sum((0, 2, 3)), MAPS),
    "square_sums": Case(ops.square_sum, lambda torch, x: (x * x).sum(), MAPS),
    "transpose": Case(
        lambda x: ops.transpose(x, (0, 2, 3, 1)), lambda torch, x: x.permute(0, 2, 3, 1).contiguous(), MAPS
    ),
    "concat": Case(
        lambda a, b: ops.concat([a, b], 1),
        lambda torch, a, b: torch.cat([a, b], 1),
        tuple([shape, shape] for (shape,) in MAPS),  # type: ignore[arg-type]
    ),
    "slice": Case(lambda x: x[:, :, 1:-1, 1:-1], lambda torch, x: x[:, :, 1:-1, 1:-1].contiguous(), MAPS),
    "place": Case(
        lambda x: ops.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1))),
        lambda torch, x: torch.nn.functional.pad(x, (1, 1, 1, 1)),
        MAPS,
    ),
    "expand": Case(
        lambda x: ops.expand(x, (64, *x.shape[1:])),
        lambda torch, x: x.expand(64, *x.shape[1:]).contiguous(),
        ([(1, 10)], [(1, 1024)], [(1, 65536)]),
    ),
    "take": Case(
        ops.take,
        lambda torch, x, i: x[i],
        (
            [(10, 16), Ids((8,), 10)],
            [(1000, 64), Ids((256,), 1000)],
            [(20_000, 128), Ids((8192,), 20_000)],
        ),
    ),
    # losses
    "softmax_cross_entropy": Case(
        ops.softmax_cross_entropy, lambda torch, x, y: torch.nn.functional.cross_entropy(x, y), LABELLED
    ),
    "weighted_cross_entropy": Case(
        lambda x, y: ops.softmax_cross_entropy(x, y, label_smoothing=0.1),
        lambda torch, x, y: torch.nn.functional.cross_entropy(x, y, label_smoothing=0.1),
        LABELLED,
    ),
    "nll": Case(ops.nll, lambda torch, x, y: torch.nn.functional.nll_loss(x, y), LABELLED),
    "weighted_nll": Case(
        lambda x, y: ops.nll(x, y, ignore_index=0),
        lambda torch, x, y: torch.nn.functional.nll_loss(x, y, ignore_index=0),
        LABELLED,
    ),
}

_LANES = "a layout of the compiler's own, which torch has not: bench/train.py times it in networks"
_FIT = "gathers or counts inside fit's tape; bench/infrastructure.py times it"
#: {op: why it is not timed by itself}.
WITHOUT: dict[str, str] = {
    **{
        f"{name}_grad": f"timed as the backward of {name}"
        for name in ("avg_pool2d", "batch_norm", "log_softmax", "max_pool2d", "nll", "row_norm", "softmax", "weighted_nll")
    },
    "conv2d_input_grad": "timed as the backward of conv2d",
    "conv2d_weight_grad": "timed as the backward of conv2d",
    "conv3d_input_grad": "timed as the backward of conv3d",
    "conv3d_weight_grad": "timed as the backward of conv3d",
    "whole_numbers": "a cast and a look at what was cast, before take",
    "scatter_rows": "timed as the backward of take",
    "mean_loss": "timed as a part of the losses",
    "mean_loss_grad": "timed as a part of the losses",
    "scaled_class_weights": "timed as a part of weighted_cross_entropy",
    "max_pool2d_pick": "of second derivatives alone",
    **dict.fromkeys(
        ("avg_pool2d_lanes", "avg_pool2d_lanes_grad", "conv2d_lanes", "conv2d_lanes_input_grad",
         "conv2d_lanes_weight_grad", "conv2d_winograd", "from_lanes", "max_pool2d_lanes", "max_pool2d_lanes_grad",
         "to_lanes", "winograd_filters"),
        _LANES,
    ),
    **dict.fromkeys(("accumulate", "advance", "count_correct", "take_rows"), _FIT),
    "copy": "put in by the compiler; as fast as memory",
    "reshape": "computes nothing: the same memory under another shape",
    "stop_gradient": "computes nothing: the same memory",
    "dropout": "draws by a counter, for the same masks with any number of workers, which torch's generator does not",
    "next_random": "one number a step",
    "python": "is Python",
    "python_grad": "is Python",
    "scalar_block": "formulas written out scalar by scalar; bench/formula.py times them",
}  # fmt: skip

_CALL = "a call costs some 15 us of Python here, where arrays are checked and results copied, and some 5 us in torch; none inside a tape"
_COPY = (
    "memory alone: results are copied out into arrays of the caller's own, which touches fresh pages; torch hands out memory that it "
    "keeps"
)
_VIEW = "torch gives a view as the gradient, which writes nothing; ours is an array"
#: {op: why it may fall below half of torch's speed here}.
SLOWER: dict[str, str] = {
    **dict.fromkeys(
        ("dense", "log_softmax", "matmul", "nll", "row_norm", "row_norm in groups", "softmax", "square_sums", "take"), _CALL
    ),
    **dict.fromkeys(("cast", "expand", "place", "slice"), f"{_COPY}. Small: {_CALL}"),
    "concat": f"{_COPY}. Backward: {_VIEW}",
    "reduce": f"{_VIEW}. Small: {_CALL}",
    "softmax_cross_entropy": _CALL,
    "weighted_cross_entropy": "a third walk over each row adds up what smoothing gives every class, behind those for maximum and sum",
    "weighted_nll": f"{_CALL}. Backward writes the whole gradient, zeros too; torch takes zeroed pages from the system",
}  # fmt: skip


def arrays_of(operands: Sequence[Operand]) -> list[np.ndarray]:
    """Normal numbers in float32, and ids."""
    random = np.random.default_rng(0)
    return [
        random.integers(0, o.below, o.shape) if isinstance(o, Ids) else random.standard_normal(o, dtype=np.float32)
        for o in operands
    ]


def contenders(torch: Any, case: Case, arrays: Sequence[np.ndarray], workers: int) -> dict[str, list[Contender]]:
    """{"forward": [ours, torch], "both": ...} of one case. ArithmeticError where they do not agree."""
    inputs = [tp.placeholder(a.shape, dtype=str(a.dtype)) for a in arrays]
    function = tp.function(case.ours(*inputs), inputs, workers=workers)
    tensors = [torch.from_numpy(a).requires_grad_(a.dtype.kind == "f") for a in arrays]
    floating = [t for t in tensors if t.requires_grad]
    feed = dict(zip(inputs, arrays, strict=True))
    flow = np.random.default_rng(1).standard_normal(np.shape(function(*arrays)))
    flow = flow.astype(function(*arrays).dtype)
    their_flow = torch.from_numpy(flow)

    def forward() -> np.ndarray:
        return function(*arrays)

    def their_forward() -> torch.Tensor:
        with torch.inference_mode():
            return case.theirs(torch, *tensors)

    def both() -> Any:
        function.forward(feed)
        return function.backward(flow)

    def their_both() -> Any:
        return torch.autograd.grad(case.theirs(torch, *tensors), floating, their_flow)

    if case.alike:
        gradients = both()
        given = gradients.values() if isinstance(gradients, dict) else gradients
        mine = [g for g, a in zip(given, arrays, strict=False) if a.dtype.kind == "f"]
        pairs = [(forward(), their_forward()), *zip(mine, their_both(), strict=True)]
        for found, expected in pairs:
            wanted = expected.detach().numpy()
            error = float(np.abs(found - wanted).max() / max(1.0, np.abs(wanted).max()))
            if not error <= TOLERANCE:
                raise ArithmeticError(f"results differ by {error:.1e} of the largest, more than {TOLERANCE:g}")
    return {
        "forward": [Contender("tapeprop", forward), Contender("torch", their_forward)],
        "both": [Contender("tapeprop", both), Contender("torch", their_both)],
    }


def measure(torch: Any, name: str, size: str, workers: int, seconds: float) -> list[dict[str, Any]]:
    """The figures of one op at one size: of the forward and of forward and backward."""
    operands = CASES[name].shapes[SIZES.index(size)]
    found = []
    for what, pair in contenders(torch, CASES[name], arrays_of(operands), workers).items():
        alternate(pair, seconds, min(BURST, seconds))
        ours, theirs = pair
        found.append(
            {
                "op": name,
                "size": size,
                "operands": [list(o.shape if isinstance(o, Ids) else o) for o in operands],
                "what": what,
                "seconds": ours.median,
                "torch_seconds": theirs.median,
                "ratio": theirs.median / ours.median,
                "bursts": len(ours.times),
            }
        )
    return found


HEADER = ("op", "size", "what", "tapeprop", "torch", "ratio")


def line(found: dict[str, Any]) -> tuple[str, ...]:
    """The cells of a table's line."""
    times = seconds_text(found["seconds"]), seconds_text(found["torch_seconds"])
    return found["op"], found["size"], found["what"], *times, f"{found['ratio']:.2f}"


def markdown(host: dict[str, Any], workers: int, results: Sequence[dict[str, Any]]) -> str:
    """A page with the table, the ops without one, and what it was measured on."""
    rows = [HEADER, ("---",) * len(HEADER), *map(line, results)]
    lines = [f"# Ops beside torch, {workers} threads each", "", *machine_text(host).splitlines(), ""]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    slow = dict.fromkeys(found["op"] for found in results if found["ratio"] < 0.5)
    lines += [
        "",
        "Below half of torch's speed somewhere:",
        "",
        *(f"* `{name}`: {SLOWER.get(name, 'no reason is known yet')}" for name in slow),
    ]
    lines += ["", "Not timed by themselves:", "", *(f"* `{name}`: {why}" for name, why in sorted(WITHOUT.items()))]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--op", nargs="+", choices=list(CASES), default=list(CASES), metavar="NAME")
    parser.add_argument("--size", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="threads of either side (default: 1)")
    parser.add_argument("--seconds", type=float, default=1.0, help="for each op, size and direction")
    parser.add_argument(
        "--quick", action="store_true", help="the small size, for an instant each: whether all of it runs"
    )
    parser.add_argument("--json", action="store_true", help="write bench/results/ops-<cpu>.json and .md")
    args = parser.parse_args()
    import torch

    torch.set_num_threads(args.workers)
    sizes, seconds = (["small"], QUICK_SECONDS) if args.quick else (args.size, args.seconds)
    host, results = machine(), []
    print(machine_text(host), flush=True)
    for name in args.op:
        for size in sizes:
            results += measure(torch, name, size, args.workers, seconds)
    print(table(HEADER, [line(found) for found in results], left=(0, 1, 2)))
    if args.json:
        path = RESULTS / f"ops-{re.sub(r'[^a-z0-9]+', '-', host['cpu'].lower()).strip('-')}.json"
        write_results(path, {"machine": host, "workers": args.workers, "results": results})
        path.with_suffix(".md").write_text(markdown(host, args.workers, results), encoding="utf-8")


if __name__ == "__main__":
    main()
