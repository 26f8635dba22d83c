"""A child process that compiles kernels: `python -m tapeprop.runtime.compile_worker`, driven by `compiling`.

It says `READY`. Then messages, both ways, are a length (8 bytes, little-endian) and a pickle. In: (`Kernel`, capability of
the GPU as (9, 0, "a"), or None for this CPU). Out, for each: ("code", ObjectCode), ("absent", message) where the builder's
module cannot be imported here, or ("error", message). It ends when its input ends, so it does not outlive the process that
started it.
"""

from __future__ import annotations

import importlib
import os
import pickle
import signal
import struct
import sys
from typing import TYPE_CHECKING, BinaryIO

from tapeprop.ir.kernels import Kernel

if TYPE_CHECKING:
    from tapeprop.runtime.kernel_cache import Capability
    from tapeprop.targets.cpu.object_code import ObjectCode

__all__ = ["READY", "answer", "compile_kernel", "main", "receive", "send"]

#: What a worker says before anything else; tells it from other programs.
READY = b"tapeprop compile worker"


def send(stream: BinaryIO, message: object) -> None:
    """Writes one message."""
    content = pickle.dumps(message)
    stream.write(struct.pack("<Q", len(content)) + content)
    stream.flush()


def receive(stream: BinaryIO) -> object:
    """The next message. EOFError where the stream ends."""
    header = stream.read(8)
    if len(header) < 8:
        raise EOFError
    (length,) = struct.unpack("<Q", header)
    content = stream.read(length)
    if len(content) < length:
        raise EOFError
    return pickle.loads(content)


def compile_kernel(kernel: Kernel, capability: Capability | None) -> ObjectCode:
    """Compiles a kernel here and now. A GPU's machine code is a cubin, with one symbol and no needs.

    CompileError, naming the kernel, where it cannot be; DeviceError where packages are missing.
    """
    if capability is None:
        from tapeprop.targets.cpu.kernel import compile_to_object

        return compile_to_object(kernel)
    from tapeprop.targets.cpu.object_code import ObjectCode
    from tapeprop.targets.cuda.object_code import compile_to_cubin

    cubin = compile_to_cubin(kernel, capability)
    return ObjectCode((cubin.symbol,), cubin.code, ())


def answer(kernel: Kernel, capability: Capability | None = None) -> tuple[str, object]:
    """What is sent back for a kernel."""
    from tapeprop.errors import CompileError, DeviceError

    try:
        importlib.import_module(kernel.module)
    except ImportError as error:
        return "absent", str(error)
    except Exception:  # the compilation meets it again and reports it
        pass
    try:
        return "code", compile_kernel(kernel, capability)
    except (CompileError, DeviceError) as error:
        return "error", str(error)


def main() -> None:
    """Answers kernels until the input ends."""
    # An interrupt reaches the whole group; the parent ends its input then.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # What a builder or a library prints must not get between the messages.
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    replies.write(READY)
    replies.flush()
    while True:
        try:
            message = receive(sys.stdin.buffer)
        except EOFError:
            return
        assert isinstance(message, tuple)
        send(replies, answer(*message))


if __name__ == "__main__":
    main()
