"""What profiling costs: steps without it, with clock reads, and with all that is noted, in alternating bursts.

    python bench/profiler.py [network ...] [--threads 1 2] [--seconds 6] [--output figures.json]

timed: the compiled loop that reads the clock, nothing else. recorded: what `tapeprop.profiling()` does around any code, totals
included. Of each the least burst counts, and in brackets the median of the ratios of bursts beside each other.
agreement: instruction spans and waits of a profile over the wall time of its runs.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

import numpy as np
from measure import Contender, alternate, machine, machine_text, results_path, write_results
from networks import NETWORKS, Network

from tapeprop.cli.output import seconds_text, table
from tapeprop.losses import CrossEntropy
from tapeprop.optimizers import SGD
from tapeprop.runtime.recorder import Recorder, run_recorded

DEFAULT = ("resnet20", "chain", "lenet", "mlp")
BURST = 0.05


def measure(network: Network, threads: int, seconds: float) -> dict[str, Any]:
    """The figures of one network on so many threads."""
    graph = network.graph().build(network.shape, workers=threads)
    graph.set_optimizer(SGD(0.001))
    X, y = network.data()
    with graph.trial_step(graph._step_arguments(X, y, CrossEntropy(), None)) as trial:
        executable = trial.executable
        executable.run()
        once = Contender("once", executable.run)
        alternate([once], 0.0, 0.01)
        steps = max(1, int(BURST / 4 / once.least))  # as many per native call as in a fit
        rows = len(executable.tape.rows)
        buffer = np.zeros((steps, executable.workers, rows, 2), np.int64)
        recorder = (Recorder(),)
        contenders = [
            Contender("untimed", lambda: executable.run(steps=steps), steps),
            Contender("timed", lambda: executable.walk(0, rows, steps, buffer), steps),
            Contender("recorded", lambda: run_recorded(executable, 0, rows, steps, recorder), steps),
        ]
        alternate(contenders, seconds, BURST)
        plain, *others = contenders
        costs = {c.name: c.least - plain.least for c in others}
        medians = {
            c.name: statistics.median(a / b for a, b in zip(c.times, plain.times, strict=True)) - 1 for c in others
        }
    profile = graph.profile(X, y, CrossEntropy(), repeats=max(20, min(steps, 200)))
    (tape,) = profile.tapes
    told = float((tape.busy + tape.waits).sum(axis=0).mean())
    return {
        "network": network.name,
        "threads": threads,
        "workers": executable.workers,
        "rows": rows,
        "step": plain.median,
        "timed": costs["timed"] / plain.least,
        "recorded": costs["recorded"] / plain.least,
        "timed_median": medians["timed"],
        "recorded_median": medians["recorded"],
        "timed_ns": 1e9 * costs["timed"] / rows,
        "recorded_ns": 1e9 * costs["recorded"] / rows,
        "agreement": told / tape.wall,
    }


def main() -> None:
    """Prints the table and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", nargs="*", help=", ".join(NETWORKS))
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seconds", type=float, default=6.0, help="for each network and number of threads")
    parser.add_argument("--output", type=Path, default=results_path("profiler"))
    args = parser.parse_args()
    if unknown := set(args.network) - set(NETWORKS):
        parser.error(f"expected networks of {', '.join(NETWORKS)}, got {', '.join(sorted(unknown))}")
    found = [
        measure(NETWORKS[name], threads, args.seconds) for name in args.network or DEFAULT for threads in args.threads
    ]
    print(machine_text(machine()))
    headings = (
        "network",
        "threads",
        "workers",
        "rows",
        "step",
        "timed",
        "recorded",
        "per row",
        "per row, recorded",
        "agreement",
    )
    lines = [
        (
            f["network"],
            str(f["threads"]),
            str(f["workers"]),
            str(f["rows"]),
            seconds_text(f["step"]),
            *(f"{f[kind]:+.2%} ({f[f'{kind}_median']:+.1%})" for kind in ("timed", "recorded")),
            *(f"{f[kind]:.1f} ns" for kind in ("timed_ns", "recorded_ns")),
            f"{f['agreement']:.1%}",
        )
        for f in found
    ]
    print(table(headings, lines, left=(0,)))
    write_results(args.output, {"machine": machine(), "profiler": found})


if __name__ == "__main__":
    main()
