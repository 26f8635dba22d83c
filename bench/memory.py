"""What training ResNet-20 at batch 64 holds in memory: the arena of its plan, and the processes of each peer.

    python bench/memory.py [--steps 5] [--threads 1] [--seconds 1.5]

The arena is compared with what its values would take side by side. Then the same network with `checkpoint=True` on the
nodes inside its blocks, whose values backward computes again: what that saves, and what it costs in time. Then the most
that a process of its own holds during the same steps: ours, ours with checkpoints, torch eager in NCHW and in
channels_last. torch is left out where it is not installed. Needs Linux.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from measure import Contender, alternate, machine, machine_text, results_path, write_results
from networks import NETWORKS, resnet20

from tapeprop.cli.output import seconds_text, size_text, table
from tapeprop.losses import CrossEntropy
from tapeprop.optimizers import SGD

OURS = {"plain": False, "checkpoint": True}
PEERS = ("ours", "ours, checkpoint", "torch", "torch channels_last")
CHILD = Path(__file__).parent / "peer_memory.py"


def tapes(threads: int, seconds: float) -> dict[str, dict[str, Any]]:
    """{variant of ours: its arena, rows, barriers, losses and seconds per step}, the steps timed in the same bursts."""
    network, loss = NETWORKS["resnet20"], CrossEntropy()
    x, y = network.data()
    found: dict[str, dict[str, Any]] = {}
    contenders = []
    for name, checkpoint in OURS.items():
        graph = resnet20(checkpoint).build(network.shape, workers=threads)
        graph.set_optimizer(SGD(0.01, momentum=0.9))
        losses = [graph.train_step(x, y, loss) for _ in range(3)]
        _, executable = graph._trainer.step_plan(*graph._step_arguments(x, y, loss, None))
        tape = executable.tape
        found[name] = {
            "arena_bytes": tape.arena_bytes,
            "unshared_bytes": tape.plan.unshared_bytes,
            "rows": len(tape.rows),
            "barriers": sum(row.barrier for row in tape.rows),
            "losses": losses,
        }
        contenders.append(Contender(name, lambda graph=graph: graph.train_step(x, y, loss)))
    alternate(contenders, seconds)
    for contender in contenders:
        found[contender.name] |= {"seconds": contender.median, "least_seconds": contender.least}
    return found


def process(peer: str, steps: int, threads: int) -> dict[str, Any]:
    """What a process of that peer reports."""
    source = str(Path(__file__).parents[1] / "src")
    environment = {**os.environ, "TAPEPROP_QUIET": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [source, environment.get("PYTHONPATH")]))
    command = [sys.executable, str(CHILD), peer, str(steps), str(threads)]
    return json.loads(subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout)


def arena_table(found: dict[str, dict[str, Any]]) -> str:
    """Arena and time of our variants; the goal is an arena of at most half the unplanned size."""
    return table(
        ("ResNet-20, batch 64", "arena", "unplanned", "share", "rows", "barriers", "step"),
        [
            (
                name, size_text(f["arena_bytes"]), size_text(f["unshared_bytes"]),
                f"{f['arena_bytes'] / f['unshared_bytes']:.1%}", str(f["rows"]), str(f["barriers"]),
                seconds_text(f["seconds"]),
            )
            for name, f in found.items()
        ],
        left=(0,),
    )  # fmt: skip


def trade(found: dict[str, dict[str, Any]]) -> str:
    """What checkpoints save and cost, in a line."""
    plain, marked = found["plain"], found["checkpoint"]
    saved = 1 - marked["arena_bytes"] / plain["arena_bytes"]
    cost = marked["seconds"] / plain["seconds"] - 1
    same = "the same" if marked["losses"] == plain["losses"] else "OTHER"
    return f"checkpoint=True inside the blocks: arena {saved:.1%} smaller, step {cost:+.1%}, {same} losses"


def process_table(found: dict[str, dict[str, Any]]) -> str:
    """Resident memory of the processes."""
    rows = [
        (peer, size_text(f["before"]), size_text(f["peak"]), size_text(f["peak"] - f["before"]), " ".join(f["loaded"]))
        for peer, f in found.items()
    ]
    return table(("process", "before building", "peak", "difference", "loaded"), rows, left=(0, 4))


def main() -> None:
    """Prints the tables and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--steps", type=int, default=5, metavar="K", help="of each process")
    parser.add_argument("--threads", type=int, default=1, metavar="N")
    parser.add_argument("--seconds", type=float, default=1.5, help="of timing our variants")
    parser.add_argument("--output", type=Path, default=results_path("memory"), metavar="PATH")
    args = parser.parse_args()
    host = machine()
    print(machine_text(host), flush=True)
    ours = tapes(args.threads, args.seconds)
    print(f"{arena_table(ours)}\n{trade(ours)}\n", flush=True)
    peers = PEERS
    if importlib.util.find_spec("torch") is None:
        print("torch is left out: it is not installed", file=sys.stderr)
        peers = tuple(peer for peer in PEERS if not peer.startswith("torch"))
    processes = {peer: process(peer, args.steps, args.threads) for peer in peers}
    print(process_table(processes))
    figures = {"steps": args.steps, "threads": args.threads, "tapes": ours, "processes": processes}
    write_results(args.output, {"machine": host, **figures})


if __name__ == "__main__":
    main()
