"""The networks of the benchmarks are what their names say, here and in torch."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

BENCH = Path(__file__).parent.parent / "bench"
# (trained numbers, output): 61,706 is LeNet-5's; He et al. give 0.27 million for ResNet-20.
SIZES = {
    "digits": 21_882,
    "chain": 64 * (16 * 16 + 16) + 170,
    "mlp": 235_146,
    "lenet": 61_706,
    "branches": 13_078,
    "resnet20": 272_474,
    "vgg": 2_196_810,
}


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch):
    """Imports a module of bench/, as its programs do."""
    monkeypatch.syspath_prepend(str(BENCH))
    before = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if name in {path.stem for path in BENCH.glob("*.py")}:
            del sys.modules[name]


def test_networks_have_the_shapes_and_sizes_they_should(load) -> None:
    networks: ModuleType = load("networks")
    assert set(networks.NETWORKS) == set(SIZES)
    for name, network in networks.NETWORKS.items():
        graph = network.graph()
        assert sum(graph.param_size) == SIZES[name], name
        assert graph.out_shape(network.shape) == (network.batch, networks.CLASSES), name
        samples, labels = network.data(2)
        assert (samples.shape, labels.shape) == ((2 * network.batch, *network.shape[1:]), (2 * network.batch,))


def worst_loss_difference(name: str, jax: str = "None") -> float:
    """As a share of the tolerance; in a process of its own, which the peers' threads do not outlive."""
    program = (
        "import networks, peers\n"
        f"found = peers.check(networks.NETWORKS[{name!r}], {jax})\n"
        "print(max(found.values()) / peers.TOLERANCE)"
    )
    path = os.pathsep.join(map(str, (BENCH, BENCH.parent / "src")))
    environment = {**os.environ, "PYTHONPATH": path}
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=False)
    assert run.returncode == 0, run.stderr
    return float(run.stdout)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs torch")
@pytest.mark.parametrize("name", ["digits", "chain", "mlp", "lenet"])
def test_losses_agree_with_torch(name: str) -> None:
    assert worst_loss_difference(name) < 1


@pytest.mark.slow
@pytest.mark.skipif(None in map(importlib.util.find_spec, ("torch", "jax")), reason="needs torch and JAX")
@pytest.mark.parametrize("name", ["digits", "mlp", "lenet"])
def test_losses_agree_with_jax(name: str) -> None:
    assert worst_loss_difference(name, "__import__('jax_peers')") < 1


def test_every_op_is_timed_or_the_reason_is_told(load, monkeypatch: pytest.MonkeyPatch) -> None:
    import tapeprop.ops

    load("measure")
    # not by its name, which tests/ops has too
    spec = importlib.util.spec_from_file_location("bench_ops", BENCH / "ops.py")
    assert spec is not None
    assert spec.loader is not None
    cases = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, cases)
    spec.loader.exec_module(cases)
    known = {name for name, op in tapeprop.ops.registry.items() if type(op).__module__.startswith("tapeprop.")}
    assert not {name.split()[0] for name in cases.CASES} & set(cases.WITHOUT)
    timed = {name.split()[0] for name in cases.CASES}  # "conv2d depthwise" is of conv2d
    assert known == {*timed, *cases.WITHOUT}, "an op is new or gone: bench/ops.py says what is timed, and why not"


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs torch")
def test_ops_run_beside_torch() -> None:
    """Each op's results and gradients agree with torch's, or its measuring ends with an error."""
    path = os.pathsep.join(map(str, (BENCH, BENCH.parent / "src")))
    run = subprocess.run(
        [sys.executable, str(BENCH / "ops.py"), "--quick"],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
