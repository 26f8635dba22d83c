"""What `train` and `infer` share: their options, a process for each number of threads, the ratios and the table.

A process that is to use N threads may use just N CPUs, and is started with them: JAX sizes its threads by that once for
all, and nobody's helpers run beside what is timed. The parent only collects what its children found.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from measure import Contender, alternate, machine, machine_text, peak_contender, results_path, write_results
from networks import NETWORKS, Network

from tapeprop.cli.output import seconds_text, table

BURST = 0.05
#: In which the threads of torch's OpenMP, of JAX and of our team stop spinning.
PAUSE = 0.03
PEERS = ("torch", "torch channels_last", "torch.compile", "jax")

Measure = Callable[[Network, int, argparse.Namespace], dict[str, Any]]


def parser(description: str | None, networks: Sequence[str], seconds: float) -> argparse.ArgumentParser:
    """The options of both programs. networks: those of a run that names none."""
    made = argparse.ArgumentParser(description=description.splitlines()[0] if description else None)
    made.add_argument("--network", nargs="+", choices=list(NETWORKS), default=list(networks), metavar="NAME")
    made.add_argument("--threads", nargs="+", type=int, default=[1, 2], metavar="N")
    made.add_argument("--seconds", type=float, default=seconds, help="for each network and number of threads")
    made.add_argument("--no-compile", dest="compile", action="store_false", help="leave torch.compile out: it is slow")
    made.add_argument("--no-jax", dest="jax", action="store_false", help="leave JAX out")
    made.add_argument("--output", type=Path, metavar="PATH", help="of the figures (default: bench/results/...)")
    made.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    return made


def figures(
    network: Network,
    threads: int,
    seconds: float,
    ours: Sequence[Contender],
    torch: Sequence[Contender],
    others: Sequence[Contender],
    flops: int,
) -> dict[str, Any]:
    """Times all in the same bursts. Ratios are those of torch's best median, or least, to each of ours.

    flops: operations of a step; the share of the peak is theirs in what the fma units do on so many threads.
    """
    peak, operations = peak_contender(threads)
    everyone = [*ours, *torch, *others]
    alternate([*everyone, peak], seconds, BURST, PAUSE)
    limit = operations / peak.least
    best = min(torch, key=lambda contender: contender.median)
    found: dict[str, Any] = {
        "network": network.name,
        "batch": network.batch,
        "threads": threads,
        "seconds": {contender.name: contender.median for contender in everyone},
        "least_seconds": {contender.name: contender.least for contender in everyone},
        "bursts": len(peak.times),
        "best_peer": best.name,
        "flops": flops,
        "peak_flops": limit,
    }
    for contender in ours:
        found[f"{contender.name}_ratio"] = best.median / contender.median
        found[f"{contender.name}_least_ratio"] = min(c.least for c in torch) / contender.least
        found[f"{contender.name}_share"] = flops / contender.median / limit
    return found


def run(kind: str, args: argparse.Namespace, measure: Measure, ours: Sequence[str]) -> list[dict[str, Any]]:
    """Measures what the options name, each number of threads in a process of its own; prints and writes the figures.

    kind: of the results file. ours: the names of our contenders; GFLOP/s and share of the peak are the last one's.
    Gives nothing in a child.
    """
    if args.child is not None:
        results = []
        for name in args.network:
            results.append(measure(NETWORKS[name], args.threads[0], args))
            cells = zip(_header(ours), _line(results[-1], ours))
            print("  ".join(f"{column} {cell}" for column, cell in cells), file=sys.stderr, flush=True)
        args.child.write_text(json.dumps(results), encoding="utf-8")
        return []
    host = machine()
    print(machine_text(host), flush=True)
    found = [figures for threads in args.threads for figures in _in_child(threads)]
    found.sort(key=lambda figures: args.network.index(figures["network"]))
    print(table(_header(ours), [_line(figures, ours) for figures in found], left=(0,)))
    write_results(args.output or results_path(kind), {"machine": host, "results": found})
    return found


def _in_child(threads: int) -> list[dict[str, Any]]:
    """What this program, called as it was but for one number of threads, measures on as many CPUs."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "figures.json"
        # of options that come twice the later counts
        command = [sys.executable, *sys.argv, "--threads", str(threads), "--child", str(path)]
        if code := start_on(threads, command).wait():
            sys.exit(code)
        return json.loads(path.read_text(encoding="utf-8"))


def start_on(cpus: int, command: Sequence[str]) -> subprocess.Popen:
    """Starts a process that may use so many of our CPUs, the last ones: the first serve most interrupts.

    All of them where there are fewer, and where the system (macOS) pins nothing.
    """
    if not hasattr(os, "sched_setaffinity"):
        return subprocess.Popen(command)
    usable = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(usable)[-cpus:])  # a child inherits it
    try:
        return subprocess.Popen(command)
    finally:
        os.sched_setaffinity(0, usable)


def pinned_to(threads: int) -> bool:
    """Whether this process may use just so many CPUs."""
    return hasattr(os, "sched_getaffinity") and len(os.sched_getaffinity(0)) == threads


def _header(ours: Sequence[str]) -> tuple[str, ...]:
    ratios = [f"ratio: {ours[0]}", *ours[1:], f"{ours[-1]}, least"]
    return (
        "network",
        "threads",
        *ours,
        *(name.removeprefix("torch ") for name in PEERS),
        *ratios,
        "GFLOP/s",
        "of peak",
    )


def _line(found: dict[str, Any], ours: Sequence[str]) -> tuple[str, ...]:
    seconds = found["seconds"]
    times = [seconds_text(seconds[name]) if name in seconds else "-" for name in (*ours, *PEERS)]
    ratios = [f"{found[f'{name}_ratio']:.2f}" for name in ours]
    rate, share = f"{found['flops'] / seconds[ours[-1]] / 1e9:.0f}", f"{found[f'{ours[-1]}_share']:.0%}"
    least = f"{found[f'{ours[-1]}_least_ratio']:.2f}"
    return (found["network"], str(found["threads"]), *times, *ratios, least, rate, share)
