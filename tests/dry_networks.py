"""Networks whose plans for a GPU are looked at without one: see `test_dry_plans` and the compile gate."""

import tapeprop as tp
from tapeprop.cli.digits import digits_network
from tapeprop.layers import BatchNorm1D, Conv2D, Dense, Flatten, Lambda, MaxPool2D
from tapeprop.runtime.device_executable import DeviceExecutable


def branches():
    first = tp.SequentialNode(Conv2D(3, 4, 3), name="first")
    sides = [tp.SequentialNode(Conv2D(4, n, 3), Lambda(lambda x: x * 2.0), name=f"side{n}") for n in (2, 5)]
    joined = tp.LayerNode(MaxPool2D(2), tp.MergeMode.CHCAT, name="joined")
    head = tp.SequentialNode(Flatten(), Dense(7 * 9, 10), BatchNorm1D(10), name="head")
    edges = {first: sides, sides[0]: [joined], sides[1]: [joined], joined: [head], head: []}
    return tp.LayerGraph(edges, root=first, term=head, seed=0)


NETWORKS = {"digits": (digits_network, (4, 1, 8, 8)), "branches": (branches, (4, 3, 6, 6))}


def executables(graph):
    """Every plan that the graph has made so far."""
    found = []
    for plan in graph._network.plans.values():
        if isinstance(plan, DeviceExecutable):
            found.append(plan)
        elif isinstance(plan, tuple):
            found += [part for part in plan if isinstance(part, DeviceExecutable)]
        else:
            found += [plan.executable, *(backward[0] for backward in plan.backward.values())]
    return found
