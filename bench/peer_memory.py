"""A fresh process that makes training steps of ResNet-20; prints what it held at most, as JSON.

    python bench/peer_memory.py PEER STEPS THREADS

PEER: "ours", "ours, checkpoint", "torch" or "torch channels_last". `memory` runs this. Resident bytes are those of
Linux: "before" stands when everything is imported and nothing built, "peak" is the most since then.
"""

import sys
from pathlib import Path


def resident(field: str) -> int:
    """Bytes of VmRSS, resident now, or of VmHWM, resident at most."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith(f"{field}:")) * 1024


def forget_peak() -> None:
    """Lets VmHWM count from now on: what an import needed in passing is not the network's."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def run(peer: str, steps: int, threads: int) -> dict[str, object]:
    """What the peer's steps held, and the loss of the last, which is None for torch: it starts from other weights."""
    from networks import NETWORKS, resnet20

    from tapeprop.losses import CrossEntropy
    from tapeprop.optimizers import SGD

    network = NETWORKS["resnet20"]
    x, y = network.data()
    if peer.startswith("torch"):
        import peers  # loads torch
        import torch

        torch.set_num_threads(threads)
    forget_peak()
    before, last = resident("VmRSS"), None
    if peer.startswith("torch"):
        step = peers.step_of(peers.MODULES["resnet20"]().train(), x, y, channels_last=peer.endswith("channels_last"))
        for _ in range(steps):
            step()
    else:
        graph = resnet20(checkpoint=peer.endswith("checkpoint")).build(network.shape, workers=threads)
        graph.set_optimizer(SGD(0.01, momentum=0.9))
        loss = CrossEntropy()
        for _ in range(steps):
            last = graph.train_step(x, y, loss)
    loaded = [name for name in ("numba", "llvmlite", "torch") if name in sys.modules]
    return {"before": before, "peak": resident("VmHWM"), "loss": last, "loaded": loaded}


if __name__ == "__main__":
    import json

    print(json.dumps(run(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))
