"""`--device cuda`: graphs that a test builds without naming a device run on that one: a GPU, or Numba's simulator."""

import functools
import os

import pytest
from hypothesis import HealthCheck, settings

from tapeprop.graph.graph import CompiledGraph


def _asked(name):
    return os.environ.get(name, "0") not in ("", "0")


SIMULATED = _asked("NUMBA_ENABLE_CUDASIM")
PTX = _asked("TAPEPROP_TEST_PTX")
DEVICE_THERE = SIMULATED or PTX or _asked("TAPEPROP_TEST_GPU")
#: More than a thousand tests that would all be skipped without a device: see `make cuda-check`.
collect_ignore = [] if DEVICE_THERE else ["on_device"]
#: How long an example takes tells of the machine: some compile. All else stays as it is, what hypothesis changes in CI included.
settings.register_profile("tapeprop", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tapeprop")


def pytest_addoption(parser):
    parser.addoption("--device", default="cpu", choices=("cpu", "cuda"), help="where graphs are built by default")


def pytest_collection_modifyitems(config, items):
    """What is about the CPU alone is left out on a device; what needs a device is left out without one."""
    for item in items:
        if item.get_closest_marker("cuda") and not DEVICE_THERE:
            item.add_marker(pytest.mark.skip(reason="needs Numba's simulator or a GPU: make cuda-check, make gpu-test"))
        if item.get_closest_marker("gpu") and (SIMULATED or PTX or not DEVICE_THERE):
            item.add_marker(pytest.mark.skip(reason="needs a GPU: make gpu-test"))
        if item.get_closest_marker("host") and config.getoption("--device") != "cpu":
            item.add_marker(pytest.mark.skip(reason="is about the CPU"))


@pytest.fixture(scope="session", autouse=True)
def made_up_gpu():
    """With TAPEPROP_TEST_PTX=1: a device that runs the kernels' PTX on the host."""
    if not PTX:
        yield
        return
    from ptx.device import open_ptx_device

    from tapeprop.targets.cuda.driver import use_driver

    with use_driver(open_ptx_device()):
        yield


@pytest.fixture(scope="session", autouse=True)
def built_on_the_device(request):
    """Makes the device of `--device` the default of build()."""
    device = request.config.getoption("--device")
    if device == "cpu":
        yield
        return
    original = CompiledGraph.build

    @functools.wraps(original)
    def build(self, *arguments, **options):
        return original(self, *arguments, **{"device": device, **options})

    CompiledGraph.build = build
    yield
    CompiledGraph.build = original


def pytest_terminal_summary(terminalreporter, config):
    """How many of ONNX' cases pass; on a GPU the outcome is written to bench/results/, with what it was found on."""
    if not hasattr(config, "workerinput"):
        _count_onnx_cases(terminalreporter)
    if config.getoption("--device") != "cuda" or SIMULATED or PTX or hasattr(config, "workerinput"):
        return
    import json
    from datetime import date
    from pathlib import Path

    from tapeprop.runtime.cuda_cache import open_device

    counts = {kind: len(terminalreporter.stats.get(kind, ())) for kind in ("passed", "failed", "error", "skipped")}
    failed = [report.nodeid for kind in ("failed", "error") for report in terminalreporter.stats.get(kind, ())]
    found = {"date": date.today().isoformat(), "gpu": open_device("tests").describe(), **counts, "failures": failed}
    path = Path(__file__).parent.parent / "bench" / "results" / f"gpu-test-{found['date']}.json"
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    terminalreporter.write_line(f"written to {path.name}")


def _count_onnx_cases(terminalreporter):
    """tests/interchange/onnx/test_conformance.py: N of M pass, K excluded."""
    counts = dict.fromkeys(["test_case", "passed", "test_excluded_case"], 0)
    for kind in ("passed", "failed", "error"):
        for report in terminalreporter.stats.get(kind, ()):
            file, _, test = report.nodeid.partition("::")
            name = test.partition("[")[0]
            if file.endswith("onnx/test_conformance.py") and name in counts:
                counts[name] += 1
                counts["passed"] += name == "test_case" and kind == "passed"
    total = counts["test_case"] + counts["test_excluded_case"]
    if total:
        excluded = counts["test_excluded_case"]
        terminalreporter.write_line(
            f"ONNX cases: {counts['passed']} of {total} pass, {excluded} excluded (tests/onnx_cases.py says why)"
        )
