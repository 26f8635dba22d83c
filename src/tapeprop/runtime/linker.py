"""Kernels become addresses: from this process's memory, from the cache on disk, or compiled now (`compiling`)."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from tapeprop.errors import CompileError
from tapeprop.ir.kernels import Kernel
from tapeprop.runtime import kernel_cache
from tapeprop.runtime.compiling import compile_seconds, obtain

if TYPE_CHECKING:
    from tapeprop.targets.cpu.object_code import ObjectCode

__all__ = ["compile_seconds", "link", "load", "load_text"]

_lock = threading.RLock()
_addresses: dict[Kernel, int] = {}
_text_addresses: dict[str, dict[str, int]] = {}
_engines: list[Any] = []  # the machine code lives as long as these do


def _after_fork() -> None:
    # Another thread of the parent may have held it. What is linked stays linked: the child has a copy of the code.
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


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
    entries: dict[Kernel, ObjectCode] = {}
    try:
        obtain(entries, missing)
    finally:
        found = link(entries.values())
        for kernel in entries:
            _addresses[kernel] = found[kernel.symbol]


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
