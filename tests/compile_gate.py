"""The compile gate: every CUDA kernel of the catalogue to machine code, without a GPU or a driver.

    python tests/compile_gate.py [--ops NAME ...] [--processes N] [--json FILE]

Kernels are those that the ops' samples ask for, with every tile of the device, and those of steps of training, whose formulas
are fused. Each is compiled for sm_90a in float32 and float64, and for sm_80 and sm_90 in float32. Prints registers, stack and
spills; ends with status 1 where a kernel does not compile, spills, keeps an unexpected stack, or takes more registers or
shared memory than its block can have. The PTX for sm_90a is left in the cache of kernels for the tests that run it (`tests/ptx`).
"""

import argparse
import dataclasses
import json
import os
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor

import numpy as np

sys.path.insert(0, os.path.dirname(__file__))

from tapeprop import optimizers
from tapeprop.errors import CompileError
from tapeprop.ir.kernels import Kernel
from tapeprop.losses import CrossEntropy
from tapeprop.ops import registry
from tapeprop.ops.op import Device, Launch

TARGETS = {"float32": ((9, 0, "a"), (8, 0), (9, 0)), "float64": ((9, 0, "a"),)}
#: Local arrays that a body has on purpose: {builder: bytes of stack}.
STACK: dict[str, int] = {
    "tapeprop.ops.elementwise.cuda:loop": 40,  # the digits of pi by which libdevice's sin and cos reduce huge arguments
}
REGISTERS_PER_BLOCK, SHARED_PER_BLOCK = 65536, 48 * 1024


def devices(whole: Device) -> list[Device]:
    """A device, and one for each of its tiles alone, so that samples too small for it meet it as well."""
    return [whole, *(dataclasses.replace(whole, tiles=(tile,)) for tile in whole.tiles)]


def kernels_of(names: list[str], dtype: str) -> dict[Kernel, int]:
    """{kernel: the most threads that a block of it has}, of the samples of these ops in a dtype."""
    from ops.test_catalogue import has_kernel, make_call

    launches: list[Launch] = []
    for name in names:
        op = registry[name]
        if not has_kernel(op) or op.cpu_only:
            continue
        for number in range(len(op.samples())):
            call = make_call(op, number, dtype)[0]
            for device in devices(Device()):
                launches += op.cuda_rows(call, device)
    return _kernels(launches)


def kernels_of_plans(dtype: str) -> dict[Kernel, int]:
    """As `kernels_of`, of steps of training in a dtype: fused formulas, optimizers, the gathering of batches and labels."""
    from dry_networks import NETWORKS, executables

    from tapeprop.targets.cuda.driver import use_driver
    from tapeprop.targets.cuda.dry import DryDriver

    steps = [("digits", optimizers.Adam()), ("digits", optimizers.AdamW()), ("digits", optimizers.SGD(momentum=0.9))]
    launches: list[Launch] = []
    for name, optimizer in [*steps, ("digits", optimizers.SGD()), ("branches", optimizers.Adam())]:
        make, shape = NETWORKS[name]
        X, y = np.zeros(shape, dtype), np.zeros(shape[0], np.int64)
        with use_driver(DryDriver()):
            graph = make().build(device="cuda", clip_norm=1.0, dtype=dtype)
            graph.set_optimizer(optimizer)
            graph.fit_session([X], [y], [CrossEntropy()], [1.0], shape[0])
            launches += [row.launch for made in executables(graph) for row in made.tape.rows]
    return _kernels(launches)


def _kernels(launches: Iterable[Launch]) -> dict[Kernel, int]:
    found: dict[Kernel, int] = {}
    for launch in launches:
        threads = launch.block[0] * launch.block[1] * launch.block[2]
        for kernel in (launch.kernel, _wide(launch.kernel)):
            found[kernel] = max(threads, found.get(kernel, 0))
    return found


def _wide(kernel: Kernel) -> Kernel:
    """The form for indices of 2^31 and more, which no sample reaches; the kernel itself where it has no such form."""
    parameters = dict(kernel.parameters)
    wide = {name: value for name, value in (("wide", True), ("narrow", False)) if name in parameters}
    return Kernel.of(kernel.builder, **parameters | wide) if wide else kernel


def check(job: tuple[Kernel, int, tuple]) -> dict:
    """A row of the table: one kernel for one compute capability; "fault" says what is wrong, or is empty."""
    from ptx.device import CAPABILITY, ptx_of

    from tapeprop.targets.cuda.object_code import compile_to_cubin

    kernel, threads, capability = job
    row = {"kernel": kernel.label, "sm": "".join(map(str, capability)), "threads": threads}
    try:
        usage = compile_to_cubin(kernel, capability, report=True).usage
        if capability == CAPABILITY:
            ptx_of(kernel)
    except CompileError as error:
        return row | {"fault": str(error)}
    row |= dataclasses.asdict(usage)
    faults = []
    if usage.spills:
        faults.append(f"spills {usage.spills} bytes")
    if usage.stack > STACK.get(kernel.builder, 0):
        faults.append(f"keeps {usage.stack} bytes on the stack")
    if usage.registers * threads > REGISTERS_PER_BLOCK:
        faults.append(f"{usage.registers} registers for each of {threads} threads")
    if usage.shared > SHARED_PER_BLOCK:
        faults.append(f"{usage.shared} bytes of shared memory")
    return row | {"fault": ", ".join(faults)}


def main() -> int:
    """Compiles, prints the table, and says whether all is well."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--ops", nargs="+", metavar="NAME", help="these ops alone, and no steps of training")
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", metavar="FILE", help="write the table there")
    given = parser.parse_args()
    jobs = []
    for dtype, capabilities in TARGETS.items():
        found = kernels_of(given.ops or sorted(registry), dtype)
        if not given.ops:
            for kernel, threads in kernels_of_plans(dtype).items():
                found[kernel] = max(threads, found.get(kernel, 0))
        jobs += [(kernel, threads, capability) for kernel, threads in found.items() for capability in capabilities]
    begin = time.perf_counter()
    with ProcessPoolExecutor(given.processes) as pool:
        rows = list(
            pool.map(check, jobs, chunksize=len(TARGETS["float32"]))
        )  # of one kernel: it is compiled once, linked for each
    print(f"{'sm':>4} {'regs':>5} {'stack':>6} {'spills':>7} {'shared':>7} {'threads':>8}  kernel")
    for row in sorted(rows, key=lambda row: (row["kernel"], row["sm"])):
        figures = [row.get(name, "-") for name in ("registers", "stack", "spills", "shared", "threads")]
        print("{:>4} {:>5} {:>6} {:>7} {:>7} {:>8}  {}".format(row["sm"], *figures, row["kernel"]))
    faults = [row for row in rows if row["fault"]]
    for row in faults:
        print(f"FAULT sm_{row['sm']} {row['kernel']}: {row['fault']}", file=sys.stderr)
    if given.json:
        with open(given.json, "w", encoding="utf-8") as file:
            json.dump(rows, file, indent=1)
    count = len({(row["kernel"]) for row in rows})
    print(f"{len(rows)} compilations of {count} kernels in {time.perf_counter() - begin:.0f} s, {len(faults)} faults")
    return 1 if faults or not rows else 0


if __name__ == "__main__":
    sys.exit(main())
