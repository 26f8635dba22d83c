import errno
import os
import signal
import stat
import sys
import textwrap
import time

import pytest
from runtime.kernels_for_tests import HOLD, kernel
from runtime.tapes_for_tests import finish, run_program, start

from tapeprop.ir.kernels import Kernel
from tapeprop.runtime import kernel_cache
from tapeprop.runtime.kernel_cache import KernelCache, entry_key
from tapeprop.runtime.linker import load
from tapeprop.targets.cpu.kernel import compile_to_object

LOAD = """
    import ctypes, sys
    import numpy as np
    from runtime.kernels_for_tests import kernel
    from runtime.tapes_for_tests import make_tape
    from tapeprop.runtime import kernel_cache, linker
    from tapeprop.runtime.executor import run
    x, y, z = (np.ones(100, np.float32) for _ in range(3))
    number = np.zeros(1, np.int64)
    rows = [(kernel("scaled_sum", scale=2.5), (x, y, z), ()), (kernel("constant", value=7), (number,), ())]
    tape, control = make_tape(rows)
    assert run(tape, control) is None
    assert (z == 3.5).all() and number[0] == 7
    print("numba" in sys.modules, linker.compile_seconds() > 0, kernel_cache.info().entries)
"""


ASSEMBLY = """
    from runtime.kernels_for_tests import kernel
    from tapeprop.runtime import kernel_cache, linker
    linker.load([kernel("constant", value=1), kernel("nothing")])
    print(linker.compile_seconds() > 0, kernel_cache.info().entries)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty cache folder, this process's own until the test ends."""
    monkeypatch.setenv("TAPEPROP_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def entry(value: int = 1):
    return compile_to_object(kernel("constant", value=value))


# ---- processes


def test_warm_process_never_imports_numba(folder):
    cold, cold_said = run_program(LOAD)
    warm, warm_said = run_program(LOAD)
    assert cold.split() == ["True", "True", "3"]  # two kernels and the executor
    assert warm.split() == ["False", "False", "3"]
    assert cold_said.splitlines()[0] == "tapeprop: compiling 2 kernels (first use on this machine) ..."
    assert cold_said.splitlines()[1].startswith("tapeprop: compiled 2 kernels in ")
    assert warm_said == ""


def test_four_cold_processes_at_once_compile_once(folder):
    children = [start(LOAD) for _ in range(4)]
    results = [finish(child) for child in children]
    assert [out.split()[2] for out, _ in results] == ["3"] * 4
    assert sum("compiled 2 kernels" in err for _, err in results) == 1
    assert sum("compiled" in err for _, err in results) == 1
    assert sum(out.split()[0] == "True" for out, _ in results) == 1  # only one has imported numba
    assert not list(folder.rglob("*.lock"))
    assert not list(folder.rglob("*.part"))


def wait_for_builders(child, folder, count):
    """The processes that hang in a builder."""
    while len(found := [int(file.name) for file in folder.iterdir()]) < count:
        assert child.poll() is None, child.communicate()
        time.sleep(0.01)
    return found


def test_kill_during_a_compile_leaves_nothing_in_the_way(folder, tmp_path):
    program = """
        from runtime.kernels_for_tests import kernel
        from tapeprop.runtime.linker import load
        print(len(load([kernel("held", value=3)])))
    """
    (tmp_path / "hold").mkdir()
    holder = start(program, **{HOLD: str(tmp_path / "hold")})
    assert wait_for_builders(holder, tmp_path / "hold", 1) == [holder.pid]
    waiter = start("from tapeprop.runtime import compiling\ncompiling._PATIENCE = -1\n" + textwrap.dedent(program))
    assert "waiting for another process" in waiter.stderr.readline()
    assert waiter.poll() is None
    holder.kill()
    holder.communicate()
    assert finish(waiter)[0].strip() == "1"


def test_children_of_a_killed_process_hold_no_lock(folder, tmp_path):
    program = """
        from runtime.kernels_for_tests import kernel
        from tapeprop.runtime.linker import load
        from tapeprop.targets.cpu import machine
        machine.usable_cpus = lambda: 2
        load([kernel("held", value=i) for i in range(6)])
    """
    (tmp_path / "hold").mkdir()
    parent = start(program, **{HOLD: str(tmp_path / "hold")})
    children = wait_for_builders(parent, tmp_path / "hold", 2)
    assert parent.pid not in children
    parent.kill()
    parent.wait()
    keys = [entry_key(kernel("held", value=i)) for i in range(6)]
    with KernelCache(folder / "kernels").claim(keys) as claim:
        assert all(key in claim for key in keys)
    for child in children:  # each hangs in its builder; else it would see its input end
        os.kill(child, signal.SIGKILL)
    parent.communicate()


@pytest.mark.parametrize("home", ["file", "none"])
def test_without_a_writable_folder_kernels_stay_in_memory(home, tmp_path):
    (tmp_path / "file").write_text("")
    variables = {"TAPEPROP_CACHE_DIR": str(tmp_path / "file" / "cache")}
    if home == "none":
        variables = {"TAPEPROP_CACHE_DIR": None, "XDG_CACHE_HOME": None, "HOME": str(tmp_path / "file")}
    out, err = run_program(ASSEMBLY, **variables)
    assert out.split() == ["True", "2"]
    lines = err.splitlines()
    assert len(lines) == 3
    assert sum("set TAPEPROP_CACHE_DIR" in line for line in lines) == 1
    assert run_program(ASSEMBLY, TAPEPROP_QUIET="1", **variables)[1] == ""


# ---- the store


def test_entries_come_back_as_they_were(tmp_path):
    cache = KernelCache(tmp_path / "cache")
    made = entry()
    cache.store("key", made)
    assert KernelCache(tmp_path / "cache").load("key") == made
    assert cache.load("other") is None
    assert cache.load(None) is None
    assert made.symbols == (kernel("constant", value=1).symbol,)


def damage_flip(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


def damage_header(content: bytes) -> bytes:
    return b"x" + content[1:]


@pytest.mark.parametrize(
    "damage", [damage_flip, damage_header, lambda c: c[: len(c) // 2], lambda c: c[:20], lambda c: b""]
)
def test_damaged_entry_counts_as_absent(tmp_path, damage):
    cache = KernelCache(tmp_path / "cache")
    cache.store("key", entry())
    (file,) = cache.files()
    file.write_bytes(damage(file.read_bytes()))
    assert cache.load("key") is None
    cache.store("key", entry())
    assert cache.load("key") == entry()


def test_damaged_entry_is_compiled_again(folder):
    run_program(ASSEMBLY)
    for file in (folder / "kernels").glob("*.kernel"):
        file.write_bytes(file.read_bytes()[:-5])
    assert run_program(ASSEMBLY)[0].split() == ["True", "2"]
    assert run_program(ASSEMBLY)[0].split() == ["False", "2"]


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")
def test_folder_is_the_users_alone(tmp_path):
    cache = KernelCache(tmp_path / "cache")
    cache.store("key", entry())
    (file,) = cache.files()
    assert stat.S_IMODE(cache.folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    cache.folder.chmod(0o777)
    open_to_all = KernelCache(cache.folder)
    assert open_to_all.load("key") is None
    open_to_all.store("key", entry())
    assert open_to_all.load("key") == entry()
    assert open_to_all.info().path is None


def test_folder_that_may_only_be_read_is_read(tmp_path, monkeypatch):
    cache = KernelCache(tmp_path / "cache")
    cache.store("key", entry())
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anywhere, so the mode would not do
    reader = KernelCache(cache.folder)
    assert reader.load("key") == entry()
    reader.store("other", entry(2))
    assert reader.load("other") == entry(2)
    assert len(cache.files()) == 1


def test_full_disk_leaves_kernels_in_memory(tmp_path, monkeypatch, capsys):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    cache = KernelCache(tmp_path / "cache")
    monkeypatch.setattr(os, "replace", full)
    for key in ("one", "two"):
        cache.store(key, entry())
        assert cache.load(key) == entry()
    assert not list(cache.folder.iterdir())
    (line,) = capsys.readouterr().err.splitlines()
    assert "No space left on device" in line


def test_removed_folder_is_made_again(tmp_path):
    cache = KernelCache(tmp_path / "cache")
    cache.folder.rmdir()
    cache.store("key", entry())
    assert KernelCache(tmp_path / "cache").load("key") == entry()


def test_info_and_clear(folder):
    assert kernel_cache.info().entries == 0
    cache = kernel_cache.default_cache()
    cache.store("one", entry(1))
    cache.store("two", entry(2))
    (folder / "kernels" / ".abc.part").write_bytes(b"left by a dead process")
    told = kernel_cache.info()
    assert told.path == folder / "kernels"
    assert told.entries == 2
    assert told.bytes == sum(file.stat().st_size for file in cache.files())
    assert kernel_cache.clear() == 2
    assert kernel_cache.info().entries == 0
    assert not list(folder.rglob("*.part"))


@pytest.mark.skipif(kernel_cache.fcntl is None, reason="no file locks here")
def test_a_claim_keeps_others_off(tmp_path):
    first, second = KernelCache(tmp_path / "cache"), KernelCache(tmp_path / "cache")
    with first.claim(["a", "b"]) as mine:
        assert "a" in mine
        with second.claim(["a", "b", "c"]) as theirs:
            assert [key in theirs for key in "abc"] == [False, False, True]
        mine.release("a")
        with second.claim(["a", "b"]) as theirs:
            assert [key in theirs for key in "ab"] == [True, False]
    with second.claim(["a", "b"]) as theirs:
        assert [key in theirs for key in "ab"] == [True, True]
    assert [file.name for file in (tmp_path / "cache").iterdir()] == ["gate"]
    with KernelCache(None).claim(["a"]) as claim, KernelCache(None).claim(["a"]) as other:
        assert "a" in claim
        assert "a" in other


@pytest.mark.skipif(kernel_cache.fcntl is None, reason="no file locks here")
def test_waiting_for_others_is_bounded(folder, monkeypatch):
    monkeypatch.setattr(kernel_cache, "WAIT_SECONDS", 0.2)
    wanted = kernel("constant", value=6000)
    start = time.monotonic()
    with kernel_cache.default_cache().claim([entry_key(wanted)]):  # as another process would, and hang
        assert wanted in load([wanted])
    assert time.monotonic() - start > 0.2


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="XDG's rules")
def test_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.delenv("TAPEPROP_CACHE_DIR", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert kernel_cache.cache_folder() == tmp_path / ".cache" / "tapeprop" / "kernels"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert kernel_cache.cache_folder() == tmp_path / "xdg" / "tapeprop" / "kernels"
    monkeypatch.setenv("XDG_CACHE_HOME", "not/absolute")
    assert kernel_cache.cache_folder() == tmp_path / ".cache" / "tapeprop" / "kernels"
    monkeypatch.setenv("TAPEPROP_CACHE_DIR", str(tmp_path / "named"))
    assert kernel_cache.cache_folder() == tmp_path / "named" / "kernels"


# ---- keys


def test_key_tells_kernels_apart():
    alike = [1, 1.0, True, 2, -0.0, 0.0, 0, None, "1", (1,), ((1,),)]
    kernels = [Kernel.of("tapeprop.ops.any:thing", value=value) for value in alike]
    assert len({entry_key(k) for k in kernels}) == len(alike)
    assert len(set(kernels)) == len(alike)
    assert len({k.symbol for k in kernels}) == len(alike)
    assert Kernel.of("a:b", x=1, y=2) == Kernel.of("a:b", y=2, x=1)
    assert entry_key(Kernel.of("tapeprop.ops.any:other", value=1)) != entry_key(kernels[0])


def test_key_follows_the_source_of_a_builder_outside_the_package(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    module = tmp_path / "builder_of_a_user.py"
    module.write_text("# one\n")
    named = Kernel.of("builder_of_a_user:make")
    first = entry_key(named)
    module.write_text("# two\n")
    assert first != entry_key(named)
    assert "builder_of_a_user" not in sys.modules
    assert entry_key(Kernel.of("no_such_module_anywhere:make")) is None


def test_key_follows_the_machine(monkeypatch):
    named = kernel("nothing")
    monkeypatch.setattr(kernel_cache, "_sources_hash", lambda: "as they are")
    kernel_cache._environment.cache_clear()
    first = entry_key(named)
    kernel_cache._environment.cache_clear()
    monkeypatch.setattr("tapeprop.targets.cpu.machine.cpu_features", lambda: "+none")
    second = entry_key(named)
    monkeypatch.undo()
    kernel_cache._environment.cache_clear()
    assert first != second
