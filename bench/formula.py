"""A small ResNet written out scalar by scalar: how long it takes to build, in the tape, and with Python floats in and out.

    python bench/formula.py [--output results.json]

Image 16 x 16, convolution 3 x 3, ReLU, convolution 3 x 3, sum with the image, ReLU, dense 256 -> 32, ReLU, dense 32 -> 10, softmax,
cross-entropy of label 1: 8,574 parameters, each a placeholder of its own. Goals: built in 10 s, the tape in 0.3 ms, a call in 2 ms.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from measure import machine, machine_text, results_path, write_results

import tapeprop as tp
from tapeprop import ops
from tapeprop.cli.output import seconds_text, table
from tapeprop.ir import reachable

SIDE, HIDDEN, CLASSES, LABEL = 16, 32, 10, 1
GOALS = {"build": 10.0, "tape": 0.3e-3, "call": 2e-3}


def total(terms: Sequence[Any]) -> Any:
    """The sum from left to right."""
    found = terms[0]
    for term in terms[1:]:
        found = found + term
    return found


def convolution(image: list[list[Any]], weights: Sequence[Any], bias: Any) -> list[list[Any]]:
    """3 x 3, padded by zeros, which are left out of the sums."""

    def pixel(i: int, j: int) -> Any:
        places = [(di, dj) for di in range(3) for dj in range(3)]
        inside = [(di, dj) for di, dj in places if 0 <= i + di - 1 < SIDE and 0 <= j + dj - 1 < SIDE]
        return total([weights[3 * di + dj] * image[i + di - 1][j + dj - 1] for di, dj in inside]) + bias

    return [[pixel(i, j) for j in range(SIDE)] for i in range(SIDE)]


def dense(values: Sequence[Any], weights: Sequence[Any], biases: Sequence[Any]) -> list[Any]:
    """One sum of products for each bias."""
    n = len(values)
    rows = [weights[k * n : (k + 1) * n] for k in range(len(biases))]
    return [total([w * v for w, v in zip(row, values, strict=True)]) + b for row, b in zip(rows, biases, strict=True)]


def network(dtype: str = "float32") -> tuple[list[Any], Any]:
    """(the parameters, the loss)."""
    parameters: list[Any] = []

    def take(count: int) -> list[Any]:
        made = [tp.placeholder((), dtype=dtype) for _ in range(count)]
        parameters.extend(made)
        return made

    image: list[list[Any]] = np.random.default_rng(0).uniform(0, 1, (SIDE, SIDE)).tolist()
    w1, b1, w2, b2 = take(9), take(1)[0], take(9), take(1)[0]
    first = [[ops.relu(x) for x in row] for row in convolution(image, w1, b1)]
    second = convolution(first, w2, b2)
    joined = [ops.relu(a + b) for rows in zip(second, image, strict=True) for a, b in zip(*rows, strict=True)]
    hidden = [ops.relu(x) for x in dense(joined, take(SIDE * SIDE * HIDDEN), take(HIDDEN))]
    logits = dense(hidden, take(HIDDEN * CLASSES), take(CLASSES))
    powers = [ops.exp(z) for z in logits]
    return parameters, -ops.log(powers[LABEL] / total(powers))


def main() -> None:
    """Prints the table and writes the figures, in seconds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--output", type=Path, default=results_path("formula"), metavar="PATH")
    arguments = parser.parse_args()
    start = time.perf_counter()
    parameters, loss = network()
    recorded = time.perf_counter() - start
    numbers = np.random.default_rng(1).normal(0, 0.1, len(parameters)).tolist()
    f = tp.function(outputs=loss, inputs=parameters)
    f.value_and_grad(*numbers)
    built = time.perf_counter() - start
    again = time.perf_counter()
    tp.function(outputs=loss, inputs=parameters).value_and_grad(*numbers)
    again = time.perf_counter() - again
    calls = [_timed(lambda: f.value_and_grad(*numbers)) for _ in range(arguments.repeats)]
    rows = f.profile(*numbers, repeats=arguments.repeats).figures()
    found = {
        "nodes": len(reachable([loss])) + len(parameters) + SIDE * SIDE,
        "parameters": len(parameters),
        "rows": len(rows),
        "record": recorded,
        "build": built,
        "build_again": again,
        "tape": sum(row.seconds for row in rows),
        "call": float(np.median(calls)),
    }
    print(machine_text(machine()))
    print(f"{found['nodes']:,} nodes, {found['parameters']:,} of them parameters, become {found['rows']} rows")
    names = {
        "record": "writing the formula down",
        "build": "that, and the first call, kernels not yet in the cache compiled",
        "build_again": "another function of it, kernels linked",
        "tape": "value and gradient in the tape",
        "call": "a call, Python floats in and out",
    }
    lines = [
        [text, seconds_text(found[name]), seconds_text(GOALS[name]) if name in GOALS else ""]
        for name, text in names.items()
    ]
    print(table(("what", "measured", "goal"), lines, left=(0,)))
    write_results(arguments.output, {"machine": machine(), "figures": found})


def _timed(call: Any) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
