"""How the benchmarks measure: alternating bursts in one run, the peak of the machine, and what the figures were taken on."""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

from tapeprop.targets.cpu.machine import cpu_model, cpu_name, usable_cpus, vector_bits

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("numpy", "numba", "llvmlite", "torch", "jax", "jaxlib")
LEAST_CALLS = 3


@dataclass
class Contender:
    """Something to be timed. call: does `steps` steps. times: seconds per step, one for each burst."""

    name: str
    call: Callable[[], object]
    steps: int = 1
    times: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """Seconds per step, the median of the bursts."""
        return statistics.median(self.times)

    @property
    def least(self) -> float:
        """Seconds per step in the fastest burst: what other work on the machine disturbs least."""
        return min(self.times)


def burst(contender: Contender, seconds: float) -> None:
    """Calls again and again for `seconds`, at least three times; the first third of the calls warms up and is dropped."""
    clock, marks = time.perf_counter, [time.perf_counter()]
    end = marks[0] + seconds
    while marks[-1] < end or len(marks) <= LEAST_CALLS:
        contender.call()
        marks.append(clock())
    calls = len(marks) - 1
    dropped = -(-calls // 3)
    contender.times.append((marks[-1] - marks[dropped]) / ((calls - dropped) * contender.steps))


def alternate(contenders: list[Contender], seconds: float, length: float = 0.05, pause: float = 0.0) -> None:
    """Bursts of `length` seconds in turn, for about `seconds` and at least three rounds.

    pause: seconds of rest before each burst, in which the threads of the contender before stop spinning.
    """
    for contender in contenders:  # plans, thread teams, caches
        for _ in range(2):
            contender.call()
    stop, rounds = time.perf_counter() + seconds, 0
    while rounds < 3 or time.perf_counter() < stop:
        rounds += 1
        for contender in contenders:
            time.sleep(pause)
            burst(contender, length)


def peak_contender(threads: int, dtype: str = "float32") -> tuple[Contender, int]:
    """(a loop of nothing but fma on registers, on so many threads at once; the operations of a call)."""
    from kernels.gemm_conv import fma_peak  # loads a compiler, which would count as memory of a peer

    loops = [fma_peak(dtype) for _ in range(threads)]
    if threads == 1:
        return Contender("fma peak", loops[0][0]), loops[0][1]
    pool = ThreadPoolExecutor(threads)

    def call() -> None:
        for future in [pool.submit(run) for run, _ in loops]:
            future.result()

    return Contender("fma peak", call), sum(operations for _, operations in loops)


def machine() -> dict[str, Any]:
    """The processor and the versions that figures belong to."""
    return {
        "date": date.today().isoformat(),
        "cpu": cpu_model(),
        "llvm_cpu": cpu_name(),
        "vector_bits": vector_bits(),
        "usable_cpus": usable_cpus(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{name: _version(name) for name in PACKAGES},
    }


def machine_text(found: Mapping[str, Any]) -> str:
    """The same in two lines."""
    versions = ", ".join(f"{name} {found[name]}" for name in ("python", *PACKAGES) if found[name])
    return f"{found['cpu']} ({found['llvm_cpu']}, {found['vector_bits']} bits), {found['usable_cpus']} CPUs\n{versions}"


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def results_path(kind: str) -> Path:
    """bench/results/<kind>-<date>.json, beside what earlier days left."""
    return RESULTS / f"{kind}-{date.today().isoformat()}.json"


def write_results(path: Path, figures: Mapping[str, Any]) -> None:
    """Writes figures as JSON, and says where."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    print(f"written to {path.name}")
