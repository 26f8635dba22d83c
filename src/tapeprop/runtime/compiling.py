"""Machine code of kernels, for this CPU or for a GPU: from the cache on disk, or compiled now.

Compiling goes to child processes where there are several kernels (threads would share Numba's lock), and numba is
imported here only to compile a few kernels in place: a process whose kernels are all cached never loads it.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tapeprop.errors import CompileError
from tapeprop.ir.kernels import Kernel
from tapeprop.runtime import kernel_cache

if TYPE_CHECKING:
    from tapeprop.runtime.kernel_cache import Capability, Claim, KernelCache
    from tapeprop.targets.cpu.object_code import ObjectCode

__all__ = ["compile_seconds", "obtain"]

# Up to this many kernels, starting children that import numba takes longer than compiling here.
_IN_PROCESS = 3
# Builders whose code no other process has: a script's own, and what stands around a class of the user's (`ops.own`).
_BUILT_HERE = ("__main__", "tapeprop.ops.own.cpu", "tapeprop.ops.own.cuda")
# Seconds of waiting for another process after which a line says so.
_PATIENCE = 2.0

_seconds = 0.0


def compile_seconds() -> float:
    """Seconds that this process has spent waiting for kernels to be compiled."""
    return _seconds


def obtain(entries: dict[Kernel, ObjectCode], kernels: Sequence[Kernel], capability: Capability | None = None) -> None:
    """Adds the machine code of kernels to `entries`: from the cache, else compiled, and then kept there.

    capability: of the GPU that it is for, as (9, 0, "a"); None: this CPU. Of several processes that want a kernel one
    compiles it. CompileError, naming the kernel, where one fails; what was compiled before that has been added.
    """
    cache = kernel_cache.default_cache()
    keys = {kernel: kernel_cache.entry_key(kernel, capability) for kernel in kernels}
    entries |= {kernel: entry for kernel in kernels if (entry := cache.load(keys[kernel]))}
    if any(kernel not in entries for kernel in kernels):
        _Compilation(cache, keys, entries, capability).run()


class _Compilation:
    """One call of `obtain`: the kernels' keys, and what there is of their machine code."""

    def __init__(
        self,
        cache: KernelCache,
        keys: dict[Kernel, str | None],
        entries: dict[Kernel, ObjectCode],
        capability: Capability | None,
    ):
        self.cache = cache
        self.keys = keys
        self.entries = entries
        self.capability = capability

    def run(self) -> None:
        """Fills `entries`: compiles what no other process is compiling, and waits for the rest."""
        global _seconds
        keys = self.keys
        start = time.perf_counter()
        told = False
        try:
            while absent := [kernel for kernel in keys if kernel not in self.entries]:
                waited = time.perf_counter() - start
                with self.cache.claim(key for kernel in absent if (key := keys[kernel])) as claim:
                    # another process may have stored it since this one looked
                    self.entries |= {k: entry for k in absent if (entry := self.cache.load(keys[k]))}
                    late = waited > kernel_cache.WAIT_SECONDS
                    mine = [
                        k for k in absent if k not in self.entries and (late or keys[k] is None or keys[k] in claim)
                    ]
                    if mine:
                        self._compile_claimed(mine, claim)
                        continue
                if not told and waited > _PATIENCE:
                    _say("waiting for another process that compiles the same kernels ...")
                    told = True
                time.sleep(kernel_cache.POLL_SECONDS)
        finally:
            _seconds += time.perf_counter() - start

    def _compile_claimed(self, mine: list[Kernel], claim: Claim) -> None:
        """Compiles and stores `mine`, giving each back as it is done."""
        target = "" if self.capability is None else " for sm_{}{}".format(*self.capability)
        _say(f"compiling {_count(mine)}{target} (first use on this machine) ...")
        begin = time.perf_counter()
        for kernel, entry in self._compile_all(mine):
            self.entries[kernel] = entry
            key = self.keys[kernel]
            self.cache.store(key, entry)
            if key is not None:
                claim.release(key)
        _say(f"compiled {_count(mine)} in {time.perf_counter() - begin:.1f} s")

    def _compile_all(self, kernels: list[Kernel]) -> Iterable[tuple[Kernel, ObjectCode]]:
        from tapeprop.runtime.compile_worker import compile_kernel
        from tapeprop.targets.cpu.machine import usable_cpus

        here = kernels
        there = [kernel for kernel in kernels if not _builds_here(kernel)]
        processes = min(usable_cpus(), len(there))
        if len(there) > _IN_PROCESS and processes > 1 and sys.executable:
            here = [kernel for kernel in kernels if _builds_here(kernel)]
            yield from _Children(there, processes, self.capability).results(here)
        for kernel in here:
            yield kernel, compile_kernel(kernel, self.capability)


def _count(kernels: Sequence[Kernel]) -> str:
    return f"{len(kernels)} kernel{'s' if len(kernels) > 1 else ''}"


def _say(text: str) -> None:
    if not kernel_cache.quiet():
        print(f"tapeprop: {text}", file=sys.stderr, flush=True)


def _builds_here(kernel: Kernel) -> bool:
    """Whether no other process has the code that the kernel is made of."""
    return kernel.module in _BUILT_HERE


class _Children:
    """Child processes that compile, each fed one kernel at a time by a thread of its own."""

    def __init__(self, kernels: list[Kernel], processes: int, capability: Capability | None):
        self.capability = capability
        self.todo = list(reversed(kernels))
        self.processes = processes
        self.done: list[tuple[Kernel, str, Any]] = []
        self.news = threading.Condition()
        self.running = 0
        self.stopped = False

    def results(self, leftover: list[Kernel]) -> Iterable[tuple[Kernel, ObjectCode]]:
        """Each kernel with its code, as they come. Kernels that no child can import are added to `leftover`.

        CompileError for the first that fails, once the children have ended.
        """
        threads = [threading.Thread(target=self._feed, daemon=True) for _ in range(self.processes)]
        self.running = len(threads)
        for thread in threads:
            thread.start()
        failure = None
        try:
            while True:
                with self.news:
                    while not self.done and self.running:
                        self.news.wait()
                    if not self.done:
                        break
                    kernel, kind, content = self.done.pop()
                if kind == "code":
                    yield kernel, content
                elif kind == "absent":
                    leftover.append(kernel)
                else:
                    failure = failure or content
                    self.stopped = True
        finally:
            self.stopped = True  # an interrupt ends the children after the kernel they are at
        if failure:
            raise CompileError(failure)
        leftover += reversed(self.todo)  # no child could be started

    def _feed(self) -> None:
        child = None
        try:
            child = _start_child()
            while child is not None and not self.stopped:
                with self.news:
                    if not self.todo:
                        break
                    kernel = self.todo.pop()
                self._report(kernel, *_ask(child, kernel, self.capability))
        finally:
            if child is not None:
                _end_child(child)
            with self.news:
                self.running -= 1
                self.news.notify()

    def _report(self, kernel: Kernel, kind: str, content: Any) -> None:
        with self.news:
            self.done.append((kernel, kind, content))
            self.news.notify()


def _start_child() -> subprocess.Popen | None:
    """A compile worker that finds the same modules as this process does; None where there can be none.

    That is so in a program that embeds Python: its executable is no interpreter.
    """
    from tapeprop.runtime.compile_worker import READY

    root = str(Path(kernel_cache.__file__).parents[2])
    path = [root, *(os.path.abspath(folder or os.getcwd()) for folder in sys.path)]
    try:
        child = subprocess.Popen(
            # -P: the current folder must not come first, as it may hold files named like modules
            [sys.executable, "-P", "-m", "tapeprop.runtime.compile_worker"],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(dict.fromkeys(path))},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
    except OSError:
        return None
    if child.stdout.read(len(READY)) == READY:  # type: ignore[union-attr]
        return child
    child.kill()
    _end_child(child)
    return None


def _ask(child: subprocess.Popen, kernel: Kernel, capability: Capability | None) -> tuple[str, Any]:
    from tapeprop.runtime.compile_worker import receive, send

    try:
        send(child.stdin, (kernel, capability))  # type: ignore[arg-type]
        return receive(child.stdout)  # type: ignore[arg-type, return-value]
    except (OSError, EOFError):
        child.wait()
        return "error", f"kernel {kernel.label}: the process that compiled it ended with status {child.returncode}"


def _end_child(child: subprocess.Popen) -> None:
    for stream in (child.stdin, child.stdout):
        with contextlib.suppress(OSError):  # it has died with a message on its way
            stream.close()  # type: ignore[union-attr]
    child.wait()
