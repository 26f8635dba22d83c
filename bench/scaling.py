"""How a training step grows with batch and depth, and what its workers wait for.

    python bench/scaling.py [--network resnet20] [--seconds 0.3] [--plot]

Seconds per step, the least, on one worker for batches from 1 to 512 and for chains of 8 to 1,000 nodes, each beside the line that
fits best: the one with the least squares of residuals relative to what was measured, since sizes span some decades.
Then for every network the rows and barriers of a step and its serial share: of the time that the busiest of two workers
needs, row by row and without waits, the part in rows where the other one did less than a tenth of its work. Last a check
that 1, 2 and 8 workers, more than there are CPUs, give the same bits. --plot draws the lines (needs matplotlib, the
extra `viz`). A default run takes one to two minutes.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from executor import least
from measure import Contender, alternate, machine, machine_text, results_path, write_results
from networks import NETWORKS, Network, chain

from tapeprop.cli.output import seconds_text, table
from tapeprop.losses import CrossEntropy
from tapeprop.optimizers import SGD
from tapeprop.runtime.executable import Executable
from tapeprop.runtime.recorder import Recorder, recording_runs

BATCHES = tuple(2**k for k in range(10))
DEPTHS = (8, 16, 32, 64, 125, 250, 500, 1000)
WORKERS = (1, 2, 8)
STEPS = 3
#: A row is serial where the others do less than this part of what the busiest worker does: about what it costs them to
#: find nothing to do in a row of a microsecond.
IDLE = 0.1
#: Small, since a chain of 1,000 nodes multiplies what a step changes.
RATE = 1e-6
PICTURE = Path(__file__).parents[1] / "docs" / "images" / "scaling.svg"


class Trained:
    """A graph that is built, and a training step on one batch; `executable`: its tape, bound to that batch."""

    def __init__(self, network: Network, workers: int):
        self.loss, self.data = CrossEntropy(), network.data()
        self.graph = network.graph().build(network.shape, workers=workers)
        self.graph.set_optimizer(SGD(RATE, momentum=0.9))

    def step(self) -> float:
        """One step; the loss."""
        return self.graph.train_step(*self.data, self.loss)

    @property
    def executable(self) -> Executable:
        """For use after the first step, which binds the batch."""
        _, found = self.graph._trainer.step_plan(*self.graph._step_arguments(*self.data, self.loss, None))
        return found


def seconds_of(networks: dict[int, Network], seconds: float) -> dict[int, float]:
    """{size: seconds per step on one worker}: the least call in rounds over all sizes, `seconds` for each, at least three.

    What other work on the machine disturbs for some seconds is so made up for in another round.
    """
    everyone = {size: Trained(network, 1) for size, network in networks.items()}
    for size, trained in everyone.items():
        if not np.isfinite([trained.step() for _ in range(2)]).all():
            raise ArithmeticError(
                f"size {size}: the loss is not finite, and such numbers may have a speed of their own"
            )
    found = dict.fromkeys(everyone, float("inf"))
    stop, rounds = time.perf_counter() + seconds * len(everyone), 0
    while rounds < 3 or time.perf_counter() < stop:
        rounds += 1
        for size, trained in everyone.items():
            found[size] = min(found[size], least(trained.step, seconds / 6))
    return found


def by_batch(network: Network, seconds: float) -> dict[int, float]:
    """{batch: seconds per step}. All plans stand side by side: about 2 GB for ResNet-20."""
    return seconds_of({n: replace(network, shape=(n, *network.shape[1:])) for n in BATCHES}, seconds)


def by_depth(seconds: float) -> dict[int, float]:
    """{nodes of a chain: seconds per step}."""
    return seconds_of({n: replace(NETWORKS["chain"], graph=partial(chain, n)) for n in DEPTHS}, seconds)


def line_through(times: dict[int, float]) -> tuple[float, float, list[float]]:
    """(seconds at 0, seconds per unit, residuals relative to the times) of the line that fits best."""
    sizes, seconds = np.array(list(times), float), np.array(list(times.values()))
    slope, start = np.polyfit(sizes, seconds, 1, w=1 / seconds)
    return float(start), float(slope), (((start + slope * sizes) - seconds) / seconds).tolist()


def fitted(what: str, times: dict[int, float]) -> tuple[str, dict[str, Any]]:
    """(a table and the line as text, the figures)."""
    start, slope, residuals = line_through(times)
    rows = [
        (str(n), seconds_text(t), seconds_text(start + slope * n), f"{r:+.1%}")
        for (n, t), r in zip(times.items(), residuals)
    ]
    equation = f"{start * 1e6:.1f} us + {slope * 1e6:.2f} us per {what}"
    summary = f"{equation}; largest residual {max(map(abs, residuals)):.1%}"
    figures = {"seconds": times, "start": start, "slope": slope, "residuals": residuals}
    return f"{table((what, 'step', 'line', 'residual'), rows)}\n{summary}", figures


def shares(executable: Executable, steps: int) -> tuple[float, float]:
    """(serial share, how much faster all workers are than one if barriers cost nothing), from `steps` timed steps."""
    with recording_runs(Recorder(only=executable)) as recorder:
        executable.run(steps=steps)
    ticks = np.concatenate([run.ticks for run in recorder.runs])
    spent = np.median(ticks[..., 1] - ticks[..., 0], axis=0)  # (workers, rows), in ticks
    busiest, total = spent.max(axis=0), spent.sum(axis=0)
    serial = total - busiest < IDLE * busiest
    return float(busiest[serial].sum() / busiest.sum()), float(total.sum() / busiest.sum())


def structure(network: Network, seconds: float) -> dict[str, Any]:
    """Rows, barriers and serial share of a step with two workers, or with one where the step is not worth two."""
    trained = Trained(network, 2)
    trial = Contender(network.name, trained.step)
    alternate([trial], 0.0, 0.01)
    executable = trained.executable
    serial, faster = shares(executable, max(5, min(200, int(seconds / trial.least))))
    return {
        "network": network.name,
        "rows": len(executable.tape.rows),
        "barriers": sum(row.barrier for row in executable.tape.rows),
        "workers": executable.workers,
        "seconds": trial.least,
        "serial_share": serial,
        "bound": faster,
    }


def structure_table(found: Sequence[dict[str, Any]]) -> str:
    """One line for each network."""
    return table(
        ("network", "rows", "barriers", "workers", "step", "serial share", "at most faster by"),
        [
            (
                f["network"], str(f["rows"]), str(f["barriers"]), str(f["workers"]), seconds_text(f["seconds"]),
                f"{f['serial_share']:.1%}", f"{f['bound']:.2f}",
            )
            for f in found
        ],
        left=(0,),
    )  # fmt: skip


def bits(network: Network, workers: int) -> list[bytes]:
    """The losses of the first steps and every parameter after them."""
    trained = Trained(network, workers)
    losses = np.array([trained.step() for _ in range(STEPS)])
    return [losses.tobytes(), *(np.array(p.value).tobytes() for _, p in trained.graph.named_parameters())]


def same_bits(network: Network) -> dict[int, bool]:
    """{workers: whether they give the bits that one worker gives}."""
    one = bits(network, 1)
    return {workers: bits(network, workers) == one for workers in WORKERS}


def plot(batches: dict[str, Any], depths: dict[str, Any], title: str, path: Path) -> None:
    """Both curves with their lines, on logarithmic axes."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams |= {"svg.hashsalt": "scaling", "svg.fonttype": "none"}  # the same picture, the same bytes
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for axis, found, what in ((axes[0], batches, f"batch of {title}"), (axes[1], depths, "nodes of a chain, batch 8")):
        sizes, seconds = list(found["seconds"]), list(found["seconds"].values())
        line = [found["start"] + found["slope"] * n for n in sizes]
        axis.loglog(sizes, [t * 1e3 for t in line], color="tab:gray", linewidth=1, label="best line")
        axis.loglog(sizes, [t * 1e3 for t in seconds], "o", color="tab:blue", label="measured")
        axis.set(xlabel=what, ylabel="ms per training step")
        axis.grid(alpha=0.3)
        axis.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    print(f"drawn to {path.name}")


def main() -> None:
    """Prints the tables, writes the figures and, if asked to, draws them; exit code 1 where workers differ in a bit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    images = [name for name in NETWORKS if name != "chain"]
    parser.add_argument("--network", choices=images, default="resnet20", help="whose batch grows")
    parser.add_argument("--seconds", type=float, default=0.3, help="for each size; large ones take longer")
    parser.add_argument("--plot", nargs="?", type=Path, const=PICTURE, metavar="PATH", help="draw an SVG")
    parser.add_argument("--output", type=Path, default=results_path("scaling"), metavar="PATH")
    args = parser.parse_args()
    host, network = machine(), NETWORKS[args.network]
    print(machine_text(host), flush=True)
    text, batches = fitted("sample", by_batch(network, args.seconds))
    print(f"\n{network.title.rpartition(',')[0]}, 1 worker, by batch\n{text}", flush=True)
    text, depths = fitted("node", by_depth(args.seconds))
    print(f"\nchain of residual nodes, batch 8, 1 worker, by depth\n{text}", flush=True)
    structures = [structure(each, args.seconds) for each in NETWORKS.values()]
    print(f"\n{structure_table(structures)}", flush=True)
    same = same_bits(NETWORKS["resnet20"])
    print(
        f"\n{STEPS} steps of ResNet-20: "
        + ", ".join(f"{n} worker{'s' * (n > 1)} {_verdict(ok)}" for n, ok in same.items())
    )
    figures = {"network": network.name, "batch": batches, "depth": depths, "structure": structures, "same_bits": same}
    write_results(args.output, {"machine": host, **figures})
    if args.plot is not None:
        plot(batches, depths, network.title.rpartition(",")[0], args.plot)
    if not all(same.values()):
        sys.exit(1)


def _verdict(ok: bool) -> str:
    return "the same bits" if ok else "OTHER BITS"


if __name__ == "__main__":
    main()
