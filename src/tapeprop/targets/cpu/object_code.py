"""From LLVM IR text to an object file with one visible symbol per entry point.

Everything else in the module becomes internal. That matters beyond size: two kernels from one factory, compiled in two
processes, hold functions of the same mangled name and different constants, and a linker that met both as weak symbols
would quietly keep one.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import struct
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, NamedTuple

from tapeprop.errors import CompileError
from tapeprop.targets.cpu.machine import target_machine

__all__ = ["ObjectCode", "assemble", "process_symbol", "undefined_symbols"]

# Needs the GIL, or lives in numba alone: a kernel that calls it could not run in a process without numba.
_FORBIDDEN = ("Py", "_Py", "numba_", "NRT_")


class ObjectCode(NamedTuple):
    """Machine code ready to be linked.

    symbols: the entry points. code: the object file. needs: the symbols that the process must provide.
    """

    symbols: tuple[str, ...]
    code: bytes
    needs: tuple[str, ...]


def assemble(
    texts: Iterable[str], entries: Mapping[str, str], *, label: str, inline: str | None = None, optimize: bool = True
) -> ObjectCode:
    """Object code of LLVM IR modules linked into one.

    texts: the modules. entries: {function in a text: symbol it gets}. inline: a function to inline into its caller (for
    text that is optimised already). optimize: run LLVM's passes at level 2 without loop and SLP vectorisation or
    unrolling: generated kernels say themselves how wide and how often. label: names the kernel in errors.
    CompileError where the text does not parse, defines no such function, or calls what no process provides.
    """
    import llvmlite.binding as llvm

    machine = target_machine()
    try:
        module, *others = [llvm.parse_assembly(text) for text in texts]
        module.triple, module.data_layout = machine.triple, str(machine.target_data)
        for other in others:
            other.triple, other.data_layout = module.triple, module.data_layout
            module.link_in(other)
        module.verify()
    except RuntimeError as error:
        raise CompileError(f"{label}: LLVM refuses the IR: {error}") from error
    _expose(module, entries, label)
    if inline is not None:
        module.get_function(inline).add_function_attribute("alwaysinline")
    _run_passes(llvm, module, machine, optimize)
    declared = {f.name for f in module.functions if f.is_declaration and not f.name.startswith("llvm.")}
    declared |= {g.name for g in module.global_variables if g.is_declaration and not g.name.startswith("llvm.")}
    code = bytes(machine.emit_object(module))
    needs = tuple(sorted(undefined_symbols(code) if code.startswith(b"\x7fELF") else declared))
    forbidden = [name for name in needs if name.startswith(_FORBIDDEN)]
    if forbidden:
        raise CompileError(
            f"{label}: a kernel neither allocates nor touches Python objects, "
            f"but this one calls {', '.join(forbidden)}; "
            "take memory as scratch, declare arrays with the rank the body needs, copy elements in loops, print nothing"
        )
    missing = [name for name in needs if process_symbol(name) is None]
    if missing:
        raise CompileError(f"{label}: calls {', '.join(missing)}, which no library of this process provides")
    return ObjectCode(tuple(entries.values()), code, needs)


def _expose(module: Any, entries: Mapping[str, str], label: str) -> None:
    """Renames the entry points and makes everything else that is defined internal."""
    defined = {f.name: f for f in module.functions if not f.is_declaration}
    for name, symbol in entries.items():
        if name not in defined:
            raise CompileError(f"{label}: expected a function {name!r} in the IR, got {', '.join(defined) or 'none'}")
        defined[name].name = symbol
        defined[name].linkage = "external"
    for function in (f for name, f in defined.items() if name not in entries):
        function.linkage = "internal"
    for variable in module.global_variables:
        if not variable.is_declaration and not variable.name.startswith("llvm."):
            variable.linkage = "internal"


def _run_passes(llvm: Any, module: Any, machine: Any, optimize: bool) -> None:
    options = llvm.create_pipeline_tuning_options(speed_level=2)
    options.loop_unrolling = options.loop_vectorization = options.slp_vectorization = False
    builder = llvm.create_pass_builder(machine, options)
    if optimize:
        builder.getModulePassManager().run(module, builder)
        return
    # numba has optimised the text: what is left is to drop what internal linkage has made dead
    passes = llvm.create_new_module_pass_manager()
    passes.add_global_dead_code_eliminate_pass()
    passes.add_always_inliner_pass()
    passes.add_ipsccp_pass()
    passes.add_simplify_cfg_pass()
    passes.add_instruction_combine_pass()
    passes.add_global_opt_pass()
    passes.add_global_dead_code_eliminate_pass()
    passes.add_strip_dead_prototype_pass()
    passes.run(module, builder)


def undefined_symbols(code: bytes) -> set[str]:
    """The names that a 64-bit little-endian ELF object wants from outside, with calls that code generation added."""
    (section_table,) = struct.unpack_from("<Q", code, 0x28)
    entry_size, count = struct.unpack_from("<HH", code, 0x3A)
    headers = [struct.unpack_from("<IIQQQQIIQQ", code, section_table + i * entry_size) for i in range(count)]
    found: set[str] = set()
    for _, kind, _, _, offset, size, link, *_ in headers:
        if kind != 2:  # SHT_SYMTAB
            continue
        strings = headers[link][4]
        for name, _, _, section, _, _ in struct.iter_unpack("<IBBHQQ", code[offset : offset + size]):
            if name and section == 0:
                start = strings + name
                found.add(code[start : code.index(b"\0", start)].decode())
    return found


@cache
def process_symbol(name: str) -> int | None:
    """The address of a C function of this process, or None."""
    for library in _process_libraries():
        try:
            return ctypes.cast(getattr(library, name), ctypes.c_void_p).value
        except AttributeError:
            continue
    return None


def _process_libraries() -> Iterable[ctypes.CDLL]:
    """The process itself, and libm only where that is not enough: finding it starts a process."""
    yield ctypes.CDLL(None)
    yield from _libm()


@cache
def _libm() -> tuple[ctypes.CDLL, ...]:
    """libm, for an interpreter that is linked statically and does not hold all of it."""
    name = ctypes.util.find_library("m")
    return (ctypes.CDLL(name),) if name else ()
