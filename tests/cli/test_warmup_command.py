"""`tapeprop warmup`: later processes compile nothing."""

import json
import os
import subprocess
import sys

import pytest

from tapeprop.cli import main
from tapeprop.runtime import kernel_cache

GRAPH = """
import numpy as np
import tapeprop as tp
from tapeprop.layers import Activation, Dense

first = tp.SequentialNode(Dense(5, 4), Activation.Tanh(), name="first")
last = tp.LayerNode(Dense(4, 3), name="last")
net = tp.LayerGraph({first: [last], last: []}, root=first, term=last, seed=0)

if __name__ == "__main__":
    X, y = np.ones((21, 5)), np.arange(21) % 3
    net.build((None, 5)).fit(X, y, loss=tp.losses.CrossEntropy(), optimizer=tp.optimizers.SGD(), batch_size=8, verbose=0)
    net.evaluate(X, y, loss=tp.losses.CrossEntropy())
    net.predict(X)
"""


@pytest.fixture
def program(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(GRAPH)
    return path


def start(tmp_path, *command):
    environment = {**os.environ, "TAPEPROP_CACHE_DIR": str(tmp_path / "cache"), "TAPEPROP_QUIET": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return done


def test_a_process_that_comes_later_compiles_nothing(program, tmp_path):
    command = (sys.executable, "-m", "tapeprop", "warmup", str(program), "--json")
    first, again = (json.loads(start(tmp_path, *command).stdout) for _ in range(2))
    assert first["compiled"] == first["kernels"] > 0
    assert (again["compiled"], again["kernels"]) == (0, first["kernels"])
    assert "compil" not in start(tmp_path, sys.executable, str(program)).stderr


def test_without_a_folder_it_says_so(program, monkeypatch, capsys):
    monkeypatch.setattr(kernel_cache, "info", lambda: kernel_cache.CacheInfo(0, 0, None))
    assert main(["warmup", str(program)]) == 1
    assert "no folder to keep kernels in" in capsys.readouterr().err


def test_what_is_no_graph(capsys):
    assert main(["warmup", "nowhere.safetensors"]) == 1
    assert "'nowhere.safetensors' is neither" in capsys.readouterr().err
