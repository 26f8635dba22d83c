"""The host CPU: its name and features, vector width, cache line, and how many of its cores this process may use."""

from __future__ import annotations

import os
import platform
import re
from functools import cache
from pathlib import Path
from typing import Any

__all__ = [
    "cache_line",
    "cpu_features",
    "cpu_model",
    "cpu_name",
    "data_caches",
    "is_arm",
    "is_x86",
    "lanes",
    "target_machine",
    "usable_cpus",
    "vector_bits",
    "vector_registers",
]

_BITS = {"float32": 32, "float64": 64, "int64": 64, "int32": 32, "uint8": 8}
# What is switched off to hold a wider x86 machine to 256 or 128 bits.
_ABOVE_256 = re.compile(r"avx512|avx10|amx")
_ABOVE_128 = re.compile(r"avx|fma|f16c|xop|amx|vaes|vpclmulqdq")


@cache
def cpu_name() -> str:
    """LLVM's name of the host CPU, such as "znver4"."""
    import llvmlite.binding as llvm

    return llvm.get_host_cpu_name()


@cache
def cpu_model() -> str:
    """The vendor's name of the processor, as the system knows it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


@cache
def cpu_features() -> str:
    """LLVM's feature string of the host CPU, "+avx2,-avx512f,...".

    TAPEPROP_VECTOR_BITS=256 or 128 holds a wider x86 machine to that width, so that tests and measurements reach the
    code that narrower machines run.
    """
    import llvmlite.binding as llvm

    features = llvm.get_host_cpu_features().flatten()
    wanted = os.environ.get("TAPEPROP_VECTOR_BITS", "")
    off = {"256": _ABOVE_256, "128": _ABOVE_128}.get(wanted)
    if off is None or not is_x86():
        return features
    return ",".join("-" + item[1:] if off.match(item[1:]) else item for item in features.split(","))


@cache
def is_x86() -> bool:
    """Whether the host is an x86 machine."""
    return platform.machine().lower() in ("x86_64", "amd64", "i386", "i686")


@cache
def is_arm() -> bool:
    """Whether the host is a 64-bit ARM machine."""
    return platform.machine().lower() in ("aarch64", "arm64")


@cache
def vector_bits() -> int:
    """Bits in a vector register: 512, 256 or 128."""
    features = set(cpu_features().split(","))
    if "+avx512f" in features and "+avx512vl" in features:
        return 512
    return 256 if "+avx2" in features and "+fma" in features else 128


@cache
def vector_registers() -> int:
    """How many vector registers there are: 32 with AVX-512 or on ARM, 16 on other x86 machines."""
    return 16 if is_x86() and vector_bits() < 512 else 32


def lanes(dtype: str) -> int:
    """Elements of `dtype` ("float32", "float64", "int64", "int32" or "uint8") in one vector register."""
    return vector_bits() // _BITS[dtype]


@cache
def cache_line() -> int:
    """Bytes in a cache line of the first core; 64 where the system does not say."""
    try:
        size = int(Path("/sys/devices/system/cpu/cpu0/cache/index0/coherency_line_size").read_text())
    except (OSError, ValueError):
        return 128 if platform.system() == "Darwin" and platform.machine() == "arm64" else 64
    return size if size > 0 else 64


_CACHES = ((32 << 10, 1), (1 << 20, 1))


def data_caches(root: str = "/sys/devices/system/cpu/cpu0/cache") -> tuple[tuple[int, int], ...]:
    """(bytes, how many CPUs share it) of each cache for data of the first core, nearest first.

    Where the system does not say: 32 KB and 1 MB that no other core shares.
    """
    found: dict[int, tuple[int, int]] = {}
    for folder in sorted(Path(root).glob("index*")):
        try:
            kind, level, size, shared = (
                (folder / name).read_text().strip() for name in ("type", "level", "size", "shared_cpu_list")
            )
            if kind in ("Data", "Unified"):
                found[int(level)] = _bytes_of(size), _count_of(shared)
        except (OSError, ValueError):
            continue
    sizes = tuple(found[level] for level in sorted(found) if found[level][0] > 0)
    return sizes or _CACHES


def _bytes_of(text: str) -> int:
    """ "32K" as bytes."""
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    return int(text[:-1]) * units[text[-1]] if text[-1:] in units else int(text)


def _count_of(text: str) -> int:
    """How many CPUs a list such as "0-3,8" names; 1 for an empty one."""
    ends = [part.split("-") for part in text.split(",") if part]
    return max(1, sum(int(pair[-1]) - int(pair[0]) + 1 for pair in ends))


def target_machine(level: int = 3) -> Any:
    """A new LLVM target machine for the host, generating code at `level` 0 to 3. An engine takes it over."""
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    target = llvm.Target.from_default_triple()
    return target.create_target_machine(cpu=cpu_name(), features=cpu_features(), opt=level, jit=True)


def usable_cpus() -> int:
    """The number of cores this process may keep busy: the least of its affinity mask and its control group's quota."""
    try:
        allowed = len(os.sched_getaffinity(0))
    except AttributeError:  # not on Linux
        allowed = os.cpu_count() or 1
    return max(1, min(allowed, quota_cpus() or allowed))


def quota_cpus(root: str = "/sys/fs/cgroup", membership: str = "/proc/self/cgroup") -> int | None:
    """Whole cores that the control groups of this process grant, at least 1; None where nothing limits it.

    Reads cgroup v2 (cpu.max) and v1 (cpu.cfs_quota_us) of the process's group and of every group above it. A quota of
    1.5 cores counts as 1: a team that spins on two would be stopped by the scheduler for a third of each period.
    """
    try:
        lines = Path(membership).read_text().splitlines()
    except OSError:
        return None
    found: list[int] = []
    for line in lines:
        _, controllers, group = [*line.split(":", 2), "", ""][:3]
        names = controllers.split(",")
        if controllers and "cpu" not in names:
            continue
        mounts = (
            [Path(root), Path(root, "unified")] if not controllers else [Path(root, "cpu"), Path(root, controllers)]
        )
        for mount in mounts:
            # Inside a container the path may be the host's and not exist here: the mount's root holds then.
            folder = mount / group.strip("/")
            for place in (folder, *folder.parents):
                found += _quota_of(place)
                if place == mount:
                    break
    return max(1, min(found)) if found else None


def _quota_of(folder: Path) -> list[int]:
    """The quota in whole cores of one group, as a list of none or one."""
    try:
        quota, period = (folder / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota = (folder / "cpu.cfs_quota_us").read_text()
            period = (folder / "cpu.cfs_period_us").read_text()
        except OSError:
            return []
    try:
        return [int(quota) // int(period)] if int(quota) > 0 and int(period) > 0 else []
    except ValueError:  # "max"
        return []
