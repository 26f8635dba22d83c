"""`tapeprop doctor`: what tapeprop runs on here, and whether it can compile and run a kernel."""

from __future__ import annotations

import argparse
import importlib.metadata
import platform
from typing import Any

import numpy as np

from tapeprop.cli.output import add_json, print_json, size_text

REQUIRED = ("numpy", "numba", "llvmlite")
OPTIONAL = ("tqdm", "scikit-learn", "safetensors", "onnx", "matplotlib", "numba-cuda", "mpi4py")


def add(commands: Any) -> None:
    """Adds the command to the parser."""
    command = commands.add_parser(
        "doctor",
        help="show versions, CPU and cache, and try a kernel",
        description="Shows what tapeprop runs on, then trains a network of two weights for one step and compares "
        "the result with that by hand. Exits with 1 where something is missing or wrong.",
    )
    add_json(command)
    command.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prints the report; 1 where a required package is missing or the trial fails."""
    report = examine()
    if args.json:
        print_json(report)
    else:
        print(text(report))
    return 0 if report["ok"] else 1


def examine() -> dict[str, Any]:
    """All that there is to tell."""
    import tapeprop
    from tapeprop.runtime import kernel_cache
    from tapeprop.targets.cpu import machine

    kept = kernel_cache.info()
    versions = {name: _version(name) for name in (*REQUIRED, *OPTIONAL)}
    problem = trial()
    missing = [name for name in REQUIRED if versions[name] is None]
    return {
        "tapeprop": tapeprop.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": versions,
        "cpu": machine.cpu_name(),
        "vector_bits": machine.vector_bits(),
        "usable_cpus": machine.usable_cpus(),
        "cache_folder": None if kept.path is None else str(kept.path),
        "cached_kernels": kept.entries,
        "cache_bytes": kept.bytes,
        "cuda": gpu(),
        "trial": problem or "passed",
        "ok": problem is None and not missing,
    }


def gpu() -> dict[str, Any]:
    """{"available": ..., and what the device says of itself, or the reason why there is none}."""
    from tapeprop.errors import DeviceError
    from tapeprop.runtime.cuda_cache import open_device

    try:
        return {"available": True, **open_device("doctor").describe()}
    except DeviceError as error:
        return {"available": False, "reason": str(error)}


def trial() -> str | None:
    """Trains y = w x + b for one step and compares the result with that by hand; what is wrong, or None."""
    try:
        from tapeprop import LayerGraph, LayerNode
        from tapeprop.layers import Dense
        from tapeprop.losses import MSE
        from tapeprop.optimizers import SGD

        line = LayerNode(Dense(1, 1), name="line")
        graph = LayerGraph({line: []}, root=line, term=line)
        graph.build((2, 1), dtype="float64")
        graph.load_state_dict({"line.weight": np.array([[2.0]]), "line.bias": np.array([1.0])})
        graph.set_optimizer(SGD(0.5))
        loss = graph.train_step(np.array([[1.0], [3.0]]), np.array([[2.0], [5.0]]), MSE())
        state = graph.state_dict()
        found = (loss, state["line.weight"].item(), state["line.bias"].item())
    except Exception as error:  # whatever it is, it is what the command is there to tell
        return f"{type(error).__name__}: {error}"
    expected = (2.5, -1.5, -0.5)  # errors 1 and 2: loss (1 + 4)/2, gradients 1*1 + 2*3 = 7 and 1 + 2 = 3, steps of 0.5
    if max(abs(a - b) for a, b in zip(found, expected, strict=True)) > 1e-12:
        return f"expected loss, weight and bias {expected}, received {found}"
    return None


def text(report: dict[str, Any]) -> str:
    """The report for people."""
    packages = ", ".join(f"{name} {report['packages'][name] or 'MISSING'}" for name in REQUIRED)
    extras = ", ".join(f"{name} {report['packages'][name]}" for name in OPTIONAL if report["packages"][name])
    folder = report["cache_folder"] or "none: kernels are kept in memory only"
    lines = [
        ("tapeprop", f"{report['tapeprop']} on Python {report['python']}, {report['platform']}"),
        ("packages", packages),
        ("extras", extras or "none"),
        ("cpu", f"{report['cpu']}, vectors of {report['vector_bits']} bits, {report['usable_cpus']} usable"),
        ("cache", folder),
        ("kernels", f"{report['cached_kernels']} cached, {size_text(report['cache_bytes'])}"),
        ("cuda", _gpu_text(report["cuda"])),
        ("trial", report["trial"]),
    ]
    return "\n".join(f"{name:<9} {value}" for name, value in lines)


def _gpu_text(found: dict[str, Any]) -> str:
    if not found["available"]:
        return f"none: {found['reason']}"
    capability = ".".join(map(str, found["capability"]))
    memory = size_text(found["memory_bytes"])
    numba_cuda = found["libraries"]["numba-cuda"]
    return f"{found['device']}, compute capability {capability}, {memory}, driver {found['driver']}, numba-cuda {numba_cuda}"


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


__all__ = ["add", "examine", "run", "text", "trial"]
