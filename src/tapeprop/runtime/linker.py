"""Kernels become addresses: from this process's memory, from the cache on disk, or compiled now.

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
    from tapeprop.runtime.kernel_cache import Claim, KernelCache
    from tapeprop.targets.cpu.object_code import ObjectCode

__all__ = ["compile_seconds", "link", "load", "load_text"]

# Up to this many kernels, starting children that import numba takes longer than compiling here.
_IN_PROCESS = 3
# Builders whose code no other process has: a script's own, and what stands around a class of the user's (`ops.own`).
_BUILT_HERE = ("__main__", "tapeprop.ops.own.cpu")
# Seconds of waiting for another process after which a line says so.
_PATIENCE = 2.0

_lock = threading.RLock()
_addresses: dict[Kernel, int] = {}
_text_addresses: dict[str, dict[str, int]] = {}
_engines: list[Any] = []  # the machine code lives as long as these do
_seconds = 0.0


def _after_fork() -> None:
    # Another thread of the parent may have held it. What is linked stays linked: the child has a copy of the code.
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def compile_seconds() -> float:
    """Seconds that this process has spent waiting for kernels to be compiled."""
    return _seconds


def load(kernels: Iterable[Kernel]) -> dict[Kernel, int]:
    """The address of each kernel's machine code; stays valid until the process ends.

    What is neither in memory nor in the cache is compiled, with a line to stderr before and after (none with
    TAPEPROP_QUIET=1). Safe to call from several threads. CompileError, a GraphError, naming the kernel, where a builder
    or a compilation fails; what was compiled before that is kept.
    """
    wanted = list(dict.fromkeys(kernels))
    if any(kernel not in _addresses for kernel in wanted):
        with _lock:
            _link_missing([kernel for kernel in wanted if kernel not in _addresses])
    return {kernel: _addresses[kernel] for kernel in wanted}


def load_text(text: str, symbols: Sequence[str], label: str) -> dict[str, int]:
    """The addresses of functions in LLVM IR text, by their names in it; compiled at level 2 and cached like kernels.

    Names are made unique, so texts may use the same ones. CompileError where the text is refused; `label` names it.
    """
    from tapeprop.targets.cpu.object_code import assemble

    with _lock:
        if text not in _text_addresses:
            key = kernel_cache.text_key(text)
            cache = kernel_cache.default_cache()
            names = {symbol: f"tapeprop_{key[:32]}_{symbol}" for symbol in symbols}
            entry = cache.load(key)
            if entry is None:
                entry = assemble([text], names, label=label)
                cache.store(key, entry)
            found = link([entry])
            _text_addresses[text] = {symbol: found[name] for symbol, name in names.items()}
        return _text_addresses[text]


def _link_missing(missing: list[Kernel]) -> None:
    if not missing:
        return
    cache = kernel_cache.default_cache()
    keys = {kernel: kernel_cache.entry_key(kernel) for kernel in missing}
    entries = {kernel: entry for kernel in missing if (entry := cache.load(keys[kernel]))}
    try:
        if len(entries) < len(missing):
            _compile_missing(cache, keys, entries)
    finally:
        found = link(entries.values())
        for kernel in entries:
            _addresses[kernel] = found[kernel.symbol]


# ---- compiling


def _compile_missing(cache: KernelCache, keys: dict[Kernel, str | None], entries: dict[Kernel, ObjectCode]) -> None:
    """Fills `entries`: compiles what no other process is compiling, and waits for the rest."""
    global _seconds
    start = time.perf_counter()
    told = False
    try:
        while absent := [kernel for kernel in keys if kernel not in entries]:
            waited = time.perf_counter() - start
            with cache.claim(key for kernel in absent if (key := keys[kernel])) as claim:
                # another process may have stored it since this one looked
                entries |= {k: entry for k in absent if (entry := cache.load(keys[k]))}
                late = waited > kernel_cache.WAIT_SECONDS
                mine = [k for k in absent if k not in entries and (late or keys[k] is None or keys[k] in claim)]
                if mine:
                    _compile_claimed(cache, keys, entries, mine, claim)
                    continue
            if not told and waited > _PATIENCE:
                _say("waiting for another process that compiles the same kernels ...")
                told = True
            time.sleep(kernel_cache.POLL_SECONDS)
    finally:
        _seconds += time.perf_counter() - start


def _compile_claimed(
    cache: KernelCache,
    keys: dict[Kernel, str | None],
    entries: dict[Kernel, ObjectCode],
    mine: list[Kernel],
    claim: Claim,
) -> None:
    """Compiles and stores `mine`, giving each back as it is done."""
    _say(f"compiling {_count(mine)} (first use on this machine) ...")
    begin = time.perf_counter()
    for kernel, entry in _compile_all(mine):
        entries[kernel] = entry
        key = keys[kernel]
        cache.store(key, entry)
        if key is not None:
            claim.release(key)
    _say(f"compiled {_count(mine)} in {time.perf_counter() - begin:.1f} s")


def _count(kernels: Sequence[Kernel]) -> str:
    return f"{len(kernels)} kernel{'s' if len(kernels) > 1 else ''}"


def _say(text: str) -> None:
    if not kernel_cache.quiet():
        print(f"tapeprop: {text}", file=sys.stderr, flush=True)


def _compile_all(kernels: list[Kernel]) -> Iterable[tuple[Kernel, ObjectCode]]:
    from tapeprop.targets.cpu.machine import usable_cpus

    here = kernels
    there = [kernel for kernel in kernels if not _builds_here(kernel)]
    processes = min(usable_cpus(), len(there))
    if len(there) > _IN_PROCESS and processes > 1 and sys.executable:
        here = [kernel for kernel in kernels if _builds_here(kernel)]
        yield from _Children(there, processes).results(here)
    from tapeprop.targets.cpu.kernel import compile_to_object

    for kernel in here:
        yield kernel, compile_to_object(kernel)


def _builds_here(kernel: Kernel) -> bool:
    """Whether no other process has the code that the kernel is made of."""
    return kernel.module in _BUILT_HERE


class _Children:
    """Child processes that compile, each fed one kernel at a time by a thread of its own."""

    def __init__(self, kernels: list[Kernel], processes: int):
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
                self._report(kernel, *_ask(child, kernel))
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


def _ask(child: subprocess.Popen, kernel: Kernel) -> tuple[str, Any]:
    from tapeprop.runtime.compile_worker import receive, send

    try:
        send(child.stdin, kernel)  # type: ignore[arg-type]
        return receive(child.stdout)  # type: ignore[arg-type, return-value]
    except (OSError, EOFError):
        child.wait()
        return "error", f"kernel {kernel.label}: the process that compiled it ended with status {child.returncode}"


def _end_child(child: subprocess.Popen) -> None:
    for stream in (child.stdin, child.stdout):
        with contextlib.suppress(OSError):  # it has died with a message on its way
            stream.close()  # type: ignore[union-attr]
    child.wait()


# ---- linking


def link(entries: Iterable[ObjectCode]) -> dict[str, int]:
    """Links object code into this process: {symbol: address}, valid until the process ends.

    CompileError where the process lacks a function that the code needs.
    """
    entries = list(entries)
    if not entries:
        return {}
    import llvmlite.binding as llvm

    from tapeprop.targets.cpu.machine import target_machine
    from tapeprop.targets.cpu.object_code import process_symbol

    for name in sorted({name for entry in entries for name in entry.needs}):
        address = process_symbol(name)
        if address is None:  # LLVM would end the process
            raise CompileError(
                f"cached kernels need {name}, which this process lacks; call tapeprop.runtime.kernel_cache.clear()"
            )
        llvm.add_symbol(name, address)
    machine = target_machine()
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
    for entry in entries:
        engine.add_object_file(llvm.ObjectFileRef.from_data(entry.code))
    engine.finalize_object()
    _engines.append(engine)
    return {symbol: engine.get_function_address(symbol) for entry in entries for symbol in entry.symbols}
