"""A fresh process up to the end of ResNet-20's first training step; prints where the time went, as JSON.

    python bench/first_step.py [seconds of the monotonic clock at which the process was started]

`infrastructure` runs this. The network is defined here as users define theirs; "plan" is what the first train_step()
does before it can run: tracing, differentiating, optimising, laying out memory and rows.
"""

import sys
import time

marks = [("start of the interpreter", float(sys.argv[1]) if len(sys.argv) > 1 else time.monotonic())]
marks.append(("import", time.monotonic()))

from networks import NETWORKS  # noqa: E402

from tapeprop.losses import CrossEntropy  # noqa: E402
from tapeprop.optimizers import SGD  # noqa: E402

marks.append(("data", time.monotonic()))
network, loss = NETWORKS["resnet20"], CrossEntropy()
x, y = network.data()
marks.append(("build", time.monotonic()))
graph = network.graph().build(network.shape)
graph.set_optimizer(SGD(0.01, momentum=0.9))
marks.append(("plan", time.monotonic()))
graph.synchronise_optimizers()
_, executable = graph._trainer.step_plan(*graph._step_arguments(x, y, loss, None))
marks.append(("link", time.monotonic()))
executable.prepare()
marks.append(("first step", time.monotonic()))
value = graph.train_step(x, y, loss)
marks.append(("", time.monotonic()))

if __name__ == "__main__":
    import json

    seconds = {name: after - before for (name, before), (_, after) in zip(marks, marks[1:])}  # noqa: RUF007
    loaded = [name for name in ("numba", "llvmlite") if name in sys.modules]
    print(json.dumps({"seconds": seconds, "total": marks[-1][1] - marks[0][1], "loaded": loaded, "loss": value}))
