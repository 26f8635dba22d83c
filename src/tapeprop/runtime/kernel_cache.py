"""Machine code of kernels on disk, for this CPU and for GPUs, so that no process compiles what an earlier one has compiled.

One file per kernel, in a folder of this user alone ($TAPEPROP_CACHE_DIR, or the user's cache folder). A file's name is
the hash of everything its content depends on: the kernel, what compiles it, the CPU or the kind of GPU, the sources. Files are written
whole and then renamed into place, and carry a checksum: whatever is cut short or damaged counts as absent. Of several
processes that want a kernel one compiles it, under a file lock that the system takes back when its holder dies.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import stat
import sys
import tempfile
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from tapeprop.ir.kernels import Kernel

if TYPE_CHECKING:
    from tapeprop.targets.cpu.object_code import ObjectCode

try:
    import fcntl
except ImportError:  # Windows: without a lock two processes may do the same work, and both get it right
    fcntl = None  # type: ignore[assignment]

__all__ = ["CacheInfo", "Claim", "KernelCache", "cache_folder", "clear", "default_cache", "entry_key", "info"]

#: Compute capability of a GPU, as (9, 0) or (9, 0, "a").
Capability = tuple

_MAGIC = b"tapeprop kernel 1\n"
_SUFFIX = ".kernel"
_PACKAGE = Path(__file__).parent.parent
_GATE_SECONDS = 5.0
#: How long to wait for another process that compiles the same kernels, and how often to look.
WAIT_SECONDS = 300.0
POLL_SECONDS = 0.02


@dataclass(frozen=True)
class CacheInfo:
    """What `info` tells: the number of kernels, the bytes they take, the folder (None: in memory only)."""

    entries: int
    bytes: int
    path: Path | None


def cache_folder() -> Path | None:
    """Where kernels are kept; None where there is no home to keep them in.

    The folder `kernels` in $TAPEPROP_CACHE_DIR, else in a folder `tapeprop` in $XDG_CACHE_HOME, in ~/.cache, or in what
    macOS and Windows have for it.
    """
    named = os.environ.get("TAPEPROP_CACHE_DIR")
    if named:
        return Path(named).absolute() / "kernels"
    try:
        home = Path.home()
    except RuntimeError:
        return None
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local") / "tapeprop" / "kernels"
    if sys.platform == "darwin":
        return home / "Library" / "Caches" / "tapeprop" / "kernels"
    xdg = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(xdg) if os.path.isabs(xdg) else home / ".cache") / "tapeprop" / "kernels"


# ---- keys


def entry_key(kernel: Kernel, capability: Capability | None = None) -> str | None:
    """The name under which a kernel is kept; None where its builder has no source file that would tell of a change.

    capability: of the GPU that its machine code is for; None: this CPU.
    """
    source = _builder_source(kernel.module)
    if source is None:
        return None
    environment = _environment() if capability is None else _gpu_environment(capability)
    return hashlib.sha256(repr((kernel.builder, kernel.parameters, environment, source)).encode()).hexdigest()


def text_key(text: str) -> str:
    """The name under which the object code of IR text is kept, for code that no builder makes."""
    return hashlib.sha256(repr((text, _environment(with_sources=False))).encode()).hexdigest()


def _builder_source(module: str) -> str | None:
    """A hash of the builder's module; "" where it is among the sources that are hashed as a whole."""
    if module.startswith(("tapeprop.ops.", "tapeprop.targets.")):
        return ""
    loaded = sys.modules.get(module)
    place = getattr(loaded, "__file__", None)
    if loaded is None:
        try:
            spec = importlib.util.find_spec(module)
        except (ImportError, ValueError):
            return None
        place = spec.origin if spec and spec.has_location else None
    try:
        return hashlib.sha256(Path(place).read_bytes()).hexdigest() if place else None
    except OSError:
        return None


@cache
def _environment(with_sources: bool = True) -> tuple[str, ...]:
    """What all machine code made in this process depends on."""
    import llvmlite

    from tapeprop.targets.cpu.machine import cpu_features, cpu_name

    python = ".".join(map(str, sys.version_info[:2]))
    sources = (_numba_version(), _sources_hash()) if with_sources else ()
    return (llvmlite.__version__, python, cpu_name(), cpu_features(), *sources)


@cache
def _gpu_environment(capability: Capability) -> tuple[str, ...]:
    """What all machine code made in this process for a kind of GPU depends on."""
    from tapeprop.targets.cuda.library import toolchain

    python = ".".join(map(str, sys.version_info[:2]))
    return ("cuda", repr(capability), repr(toolchain()), python, _sources_hash())


def _numba_version() -> str:
    """Numba's version, read from its files: importing it would cost what the cache is there to save."""
    spec = importlib.util.find_spec("numba")
    if spec is None or spec.origin is None:
        return "none"
    try:
        return hashlib.sha256((Path(spec.origin).parent / "_version.py").read_bytes()).hexdigest()
    except OSError:
        from importlib.metadata import version

        return version("numba")


def _sources_hash() -> str:
    """A hash of every source that a kernel of this package can be made from."""
    files = [_PACKAGE / "ir" / "kernels.py"]
    for folder in ("targets", "ops"):
        files += sorted((_PACKAGE / folder).rglob("*.py"))
    total = hashlib.sha256()
    for file in files:
        content = file.read_bytes()
        total.update(f"{file.relative_to(_PACKAGE).as_posix()} {len(content)}\n".encode())
        total.update(content)
    return total.hexdigest()


# ---- the store


class KernelCache:
    """A folder of object code; in memory alone where the folder cannot be had.

    folder: made with mode 0700 if absent; None for memory alone. A folder that others may write to, or that belongs to
    neither this user nor root, is not used: what lies in it is run. One that may only be read is read.
    """

    def __init__(self, folder: Path | None):
        self.folder = folder
        self.readable = self.writable = False
        self.memory: dict[str, ObjectCode] = {}
        self.why_not = "there is no home folder"
        self._told = False
        if folder is not None:
            self._open(folder)

    def _open(self, folder: Path) -> None:
        self.why_not = f"{folder} cannot be written"
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileExistsError):
                folder.mkdir(mode=0o700)
            found = folder.stat()
        except OSError:
            return
        if os.name == "posix" and (found.st_uid not in (os.geteuid(), 0) or found.st_mode & 0o022):
            self.why_not = f"{folder} belongs to or may be written by others"
            return
        self.readable = stat.S_ISDIR(found.st_mode)
        self.writable = self.readable and os.access(folder, os.W_OK | os.X_OK)

    def _path(self, key: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{key}{_SUFFIX}"

    def load(self, key: str | None) -> ObjectCode | None:
        """The object code kept under `key`; None where there is none, or it is damaged."""
        if key is None:
            return None
        if key in self.memory:
            return self.memory[key]
        if not self.readable:
            return None
        try:
            content = self._path(key).read_bytes()
        except OSError:
            return None
        return _decode(content)

    def store(self, key: str | None, entry: ObjectCode) -> None:
        """Keeps object code: the file appears whole or not at all, and what cannot be written stays in memory."""
        if key is None:
            return
        if self.folder is not None and self.writable and not self.folder.exists():
            self._open(self.folder)  # someone has removed it: made anew
        if self.writable:
            try:
                self._write(key, entry)
                return
            except OSError as error:
                self.writable = False
                self.why_not = f"{self.folder} cannot be written ({error.strerror})"
        self.memory[key] = entry
        self._tell()

    def _write(self, key: str, entry: ObjectCode) -> None:
        handle, name = tempfile.mkstemp(prefix=".", suffix=".part", dir=self.folder)  # mode 0600
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(_encode(entry))
            os.replace(name, self._path(key))
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise

    def _tell(self) -> None:
        if not self._told and not quiet():
            print(
                f"tapeprop: {self.why_not}, so kernels are compiled anew in every process; set TAPEPROP_CACHE_DIR",
                file=sys.stderr,
                flush=True,
            )
        self._told = True

    def claim(self, keys: Iterable[str]) -> Claim:
        """Claims what is to be compiled: the keys that no other process is at. Does not wait for the others.

        Who has claimed a key looks once more whether it is stored by now. Claims are the system's locks (flock), so they
        end with their process, however that ends. Without locks or a folder to write to every key is claimed: work may
        be done twice, never wrongly.
        """
        if fcntl is None or not self.writable or self.folder is None:
            return Claim(dict.fromkeys(keys))
        # One at a time through here, so that of two processes with the same wants one gets all of them.
        gate = _open_lock(self.folder / "gate")
        try:
            if gate is not None:
                _try_for(gate, _GATE_SECONDS)
            return Claim({key: held for key in keys if (held := _hold(self.folder / f"{key}.lock")) is not _ELSEWHERE})
        finally:
            if gate is not None:
                _let_go(gate)

    def files(self) -> list[Path]:
        """The kernels in the folder."""
        try:
            return sorted(self.folder.glob(f"*{_SUFFIX}")) if self.folder and self.readable else []
        except OSError:
            return []

    def clear(self) -> int:
        """Removes every kernel, and what dead processes have left half written; gives how many kernels there were."""
        files = self.files()
        removed = len(files) + len(self.memory)
        self.memory.clear()
        leftovers = [*self.folder.glob(".*.part"), *self.folder.glob("*.lock")] if self.folder and self.readable else []
        for file in (*files, *leftovers):
            with contextlib.suppress(OSError):
                file.unlink()
        return removed

    def info(self) -> CacheInfo:
        """How many kernels there are, their bytes, and the folder."""
        sizes = [len(entry.code) for entry in self.memory.values()]
        for file in self.files():
            with contextlib.suppress(OSError):
                sizes.append(file.stat().st_size)
        return CacheInfo(len(sizes), sum(sizes), self.folder if self.readable else None)


class Claim:
    """Keys that this process is to compile; `key in claim`. Ends with its `with` block."""

    def __init__(self, held: dict[str, _Lock | None]):
        self._held = held

    def __contains__(self, key: object) -> bool:
        return key in self._held

    def release(self, key: str) -> None:
        """Lets others have one key: after its code has been stored, or has failed to compile."""
        lock = self._held.pop(key, None)
        if lock is not None:
            # Whoever locks the removed file finds the key stored when it looks.
            with contextlib.suppress(OSError):
                lock.path.unlink()
            _let_go(lock.handle)

    def __enter__(self) -> Claim:
        return self

    def __exit__(self, *_: object) -> None:
        for key in list(self._held):
            self.release(key)


@dataclass(frozen=True)
class _Lock:
    path: Path
    handle: int


_ELSEWHERE = _Lock(Path(), -1)  # another process holds it


def _hold(path: Path) -> _Lock | None:
    """The lock on a file; None where the system has none to give; `_ELSEWHERE`."""
    handle = _open_lock(path)
    if handle is None:
        return None
    got = _try_for(handle, 0.0)
    if got:
        return _Lock(path, handle)
    os.close(handle)
    return _ELSEWHERE if got is False else None


def _open_lock(path: Path) -> int | None:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:
        return None


def _try_for(handle: int, seconds: float) -> bool | None:
    """Whether the lock was got within the time; None on a file system without locks."""
    end = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= end:
                return False
            time.sleep(POLL_SECONDS)
        except OSError:
            return None


def _let_go(handle: int) -> None:
    with contextlib.suppress(OSError):
        # Closing alone would not do where the process has forked meanwhile: the child holds the same open file.
        fcntl.flock(handle, fcntl.LOCK_UN)
    os.close(handle)


def _encode(entry: ObjectCode) -> bytes:
    header = json.dumps({"symbols": entry.symbols, "needs": entry.needs}).encode() + b"\n"
    body = header + entry.code
    return _MAGIC + hashlib.sha256(body).digest() + body


def _decode(content: bytes) -> ObjectCode | None:
    from tapeprop.targets.cpu.object_code import ObjectCode

    start = len(_MAGIC) + 32
    body = content[start:]
    if not content.startswith(_MAGIC) or content[len(_MAGIC) : start] != hashlib.sha256(body).digest():
        return None
    header, _, code = body.partition(b"\n")
    fields = json.loads(header)
    return ObjectCode(tuple(fields["symbols"]), code, tuple(fields["needs"]))


def quiet() -> bool:
    """Whether TAPEPROP_QUIET silences the lines about compiling."""
    return os.environ.get("TAPEPROP_QUIET", "") not in ("", "0")


# ---- the process's own


_lock = threading.Lock()
_caches: dict[Path | None, KernelCache] = {}


def default_cache() -> KernelCache:
    """The cache in the folder that the environment names now."""
    folder = cache_folder()
    with _lock:
        if folder not in _caches:
            _caches[folder] = KernelCache(folder)
        return _caches[folder]


def clear() -> int:
    """Empties the kernel cache; gives how many kernels it held. Code that this process has linked stays linked."""
    return default_cache().clear()


def info() -> CacheInfo:
    """How many kernels are cached, how many bytes they take, and where."""
    return default_cache().info()
