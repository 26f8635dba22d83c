"""How well CUDA kernels use memory: the sectors that each moves in a step of training, beside the fewest that could do.

    python tests/coalescing.py [NETWORK ...]

A warp reads and writes whole sectors of 32 bytes; where its threads ask for neighbours, it moves no more than they ask for. Counted
while the kernels' PTX runs on the host (`ptx.device`), so without a GPU: times are not told, and caches are left out.
"""

import argparse
import os
import sys

import numpy as np

sys.path.insert(0, os.path.dirname(__file__))

from on_device.test_networks_on_device import NETWORKS
from ptx.device import PtxCuda, open_ptx_device
from ptx.traffic import Traffic

from tapeprop.losses import CrossEntropy
from tapeprop.optimizers import Adam
from tapeprop.targets.cuda.driver import use_driver


def traffic_of(name: str) -> Traffic:
    """What a step of training of a network moves, with Adam, in float32."""
    make, shape = NETWORKS[name]
    random = np.random.default_rng(0)
    X, y = random.standard_normal(shape), random.integers(0, 10, shape[0])
    driver = open_ptx_device()
    cuda = driver._calls.bindings
    assert isinstance(cuda, PtxCuda)
    with use_driver(driver):
        graph = make(seed=0).build(device="cuda")
        graph.set_optimizer(Adam())
        cuda.machine.traffic = Traffic()
        graph.train_step(X, y, CrossEntropy())
    return cuda.machine.traffic


def main() -> None:
    """Prints a table for each network."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("networks", nargs="*", choices=[[], *NETWORKS], default=[], metavar="NETWORK")
    for name in parser.parse_args().networks or NETWORKS:
        rows = traffic_of(name).of_kernels()
        total = sum(sectors for sectors, _ in rows.values())
        fewest = sum(least for _, least in rows.values())
        print(f"{name} {NETWORKS[name][1]}: {total:,} sectors, {total / fewest:.2f} times the fewest")
        for kernel, (sectors, least) in sorted(rows.items(), key=lambda row: -row[1][0]):
            print(f"{sectors:>10,} {sectors / total:>6.1%} {sectors / least:>6.2f}  {kernel}")


if __name__ == "__main__":
    main()
