import os

import pytest
from runtime.tapes_for_tests import run_program

from tapeprop.targets.cpu import machine
from tapeprop.targets.cpu.machine import data_caches, quota_cpus, usable_cpus


@pytest.fixture
def groups(tmp_path):
    """Makes a tree of control groups: groups(membership, {file: content}) gives `quota_cpus` of it."""

    def make(membership: str, files: dict[str, str]) -> int | None:
        for name, content in files.items():
            file = tmp_path / "cgroup" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(content)
        (tmp_path / "membership").write_text(membership)
        return quota_cpus(str(tmp_path / "cgroup"), str(tmp_path / "membership"))

    return make


V1 = "4:memory:/\n3:cpu,cpuacct:/pod/one\n"


@pytest.mark.parametrize(
    ("membership", "files", "expected"),
    [
        ("0::/\n", {"cpu.max": "400000 100000\n"}, 4),
        ("0::/\n", {"cpu.max": "max 100000\n"}, None),
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "50000 100000\n"}, 1),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "300000 100000\n"}, 3),
        ("0::/a/b\n", {"a/b/cpu.max": "200000 100000\n", "a/cpu.max": "300000 100000\n"}, 2),
        ("0::/host/path\n", {"cpu.max": "200000 100000\n"}, 2),
        ("0::/a\n", {"unified/a/cpu.max": "200000 100000\n"}, 2),
        (V1, {"cpu,cpuacct/pod/one/cpu.cfs_quota_us": "250000", "cpu,cpuacct/pod/one/cpu.cfs_period_us": "100000"}, 2),
        (V1, {"cpu/pod/cpu.cfs_quota_us": "300000", "cpu/pod/cpu.cfs_period_us": "100000"}, 3),
        (V1, {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ("0::/\n", {"cpu.max": "nonsense"}, None),
        ("", {}, None),
    ],
)
def test_quota(groups, membership, files, expected):
    assert groups(membership, files) == expected


def test_no_control_groups(tmp_path):
    assert quota_cpus(str(tmp_path), str(tmp_path / "absent")) is None


def test_usable_cpus_is_the_least(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    for quota, expected in ((None, 8), (3, 3), (100, 8)):
        monkeypatch.setattr(machine, "quota_cpus", lambda quota=quota: quota)
        assert usable_cpus() == expected


def test_vectors_fit_together():
    assert machine.vector_bits() in (128, 256, 512)
    assert machine.vector_registers() in (16, 32)
    assert machine.lanes("float32") == 2 * machine.lanes("float64") == machine.lanes("uint8") // 4
    assert machine.cache_line() in (32, 64, 128, 256)
    assert machine.cpu_name()


@pytest.mark.skipif(not machine.is_x86(), reason="x86's widths")
@pytest.mark.parametrize("bits", ["256", "128"])
def test_a_wide_machine_can_be_held_to_less(bits):
    if machine.vector_bits() < int(bits):
        pytest.skip("this machine is narrower")
    program = """
        from tapeprop.targets.cpu import machine
        text = "define <16 x float> @f(<16 x float> %x) {\\n  %y = fadd <16 x float> %x, %x\\n  ret <16 x float> %y\\n}"
        import llvmlite.binding as llvm
        target = machine.target_machine()
        module = llvm.parse_assembly(text)
        assembly = target.emit_assembly(module)
        print(machine.vector_bits(), machine.vector_registers(), "zmm" in assembly, "ymm" in assembly)
    """
    out, _ = run_program(program, TAPEPROP_VECTOR_BITS=bits)
    assert out.split() == [bits, "16", "False", str(bits == "256")]


# ---- caches


def write_cache(root, index, level, kind, size, shared):
    folder = root / f"index{index}"
    folder.mkdir()
    for name, text in (("level", level), ("type", kind), ("size", size), ("shared_cpu_list", shared)):
        (folder / name).write_text(f"{text}\n")


def test_data_caches(tmp_path):
    write_cache(tmp_path, 0, 1, "Data", "48K", "0,64")
    write_cache(tmp_path, 1, 1, "Instruction", "32K", "0,64")
    write_cache(tmp_path, 2, 2, "Unified", "2048K", "0")
    write_cache(tmp_path, 3, 3, "Unified", "105M", "0-31,64-95")
    assert data_caches(str(tmp_path)) == ((48 << 10, 2), (2 << 20, 1), (105 << 20, 64))


def test_caches_that_the_system_does_not_tell(tmp_path):
    assert data_caches(str(tmp_path / "absent")) == ((32 << 10, 1), (1 << 20, 1))
    write_cache(tmp_path, 0, 1, "Data", "unknown", "0")
    write_cache(tmp_path, 1, "two", "Unified", "1M", "0")
    write_cache(tmp_path, 2, 3, "Unified", "0K", "0")
    (tmp_path / "index9").mkdir()
    assert data_caches(str(tmp_path)) == ((32 << 10, 1), (1 << 20, 1))
    write_cache(tmp_path, 3, 2, "Unified", "1024", "")
    assert data_caches(str(tmp_path)) == ((1024, 1),)


def test_caches_of_this_machine_grow():
    sizes = [size for size, _ in data_caches()]
    assert sizes == sorted(sizes)
    assert all(sharing >= 1 for _, sharing in data_caches())
