"""A formula as a tape: placeholders, scalar by scalar or as arrays, and gradients of gradients.

    y = (sin(x1 + 1) + cos 2 x2) tan(log x3) + (sin(x2 + 1) + cos 2 x1) exp(1 + sin x3)

Then a spring is fitted to noisy measurements, its variables trained by Adam: python examples/formula.py
"""

import numpy as np

import tapeprop as tp
from tapeprop import ops


def published() -> tuple[float, list[float]]:
    """The value and the gradient of y at (0.5, 0.25, 0.75), by one native call."""
    x1, x2, x3 = (tp.placeholder((), name=name, dtype="float64") for name in ("x1", "x2", "x3"))
    y = (ops.sin(x1 + 1) + ops.cos(2 * x2)) * ops.tan(ops.log(x3))
    y = y + (ops.sin(x2 + 1) + ops.cos(2 * x1)) * ops.exp(1 + ops.sin(x3))
    f = tp.function(outputs=y, inputs=[x1, x2, x3])
    value, gradient = f.value_and_grad(0.5, 0.25, 0.75)
    print(f"y = {value:.12f}, gradient {', '.join(f'{slope:.6f}' for slope in gradient)}")

    # A gradient is a formula too: its own gradient is a row of the matrix of second derivatives.
    slopes = tp.gradients(y, [x1, x2, x3])
    second = tp.function(outputs=tp.gradients(slopes[0], [x1, x2, x3]), inputs=[x1, x2, x3])
    print("second derivatives by x1:", ", ".join(f"{value:.6f}" for value in second(0.5, 0.25, 0.75)))
    return value, gradient


def spring(steps: int) -> dict[str, float]:
    """Fits amplitude, frequency and damping of x(t) = a e^(-d t) cos(w t) to 200 measurements; what it finds."""
    t, measured = (tp.placeholder((None,), name=name, dtype="float64") for name in ("t", "measured"))
    a, w, d = (tp.variable(start, name=name, dtype="float64") for name, start in (("a", 1), ("w", 1.8), ("d", 0)))
    position = a * ops.exp(-d * t) * ops.cos(w * t)
    loss = tp.function(outputs=ops.mean(ops.square(position - measured)), inputs=[t, measured])

    rng = np.random.default_rng(0)
    times = rng.uniform(0, 6, 200)
    data = 1.5 * np.exp(-0.3 * times) * np.cos(2 * times) + 0.01 * rng.standard_normal(200)
    loss.set_optimizer(tp.optimizers.Adam(lr=0.05))
    for _ in range(steps):
        error, _ = loss.value_and_grad(times, data)
        loss.update()
    found = {variable.name: float(variable.value) for variable in (a, w, d)}
    print(f"spring: {', '.join(f'{name} = {value:.3f}' for name, value in found.items())}, mean square {error:.2e}")
    return found


def main(steps: int = 300) -> tuple[float, dict[str, float]]:
    """Both; the value of y, and what was found of the spring (made with a = 1.5, w = 2, d = 0.3)."""
    value, _ = published()
    return value, spring(steps)


if __name__ == "__main__":
    main()
