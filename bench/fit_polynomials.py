"""Derives the polynomials of `tapeprop.targets.cpu.polynomials` again: python bench/fit_polynomials.py (needs mpmath).

Remez exchange on a Chebyshev grid in 45 digits; prints each polynomial and the weighted error it leaves. The results
equal the table up to the last digits, where the exchange stops.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import mpmath as mp

Function = Callable[[Any], Any]


def atanh_series(z):
    """2 atanh(s) / s with s = sqrt(z)."""
    return 2 * mp.atanh(mp.sqrt(z)) / mp.sqrt(z)


class Fit(NamedTuple):
    """What P(t) follows, the weight of its error, the interval, and by bits its upper end and the degree."""

    function: Function
    weight: Function
    low: float
    high: dict[int, float]
    degree: dict[int, int]


FITS = {
    "exp": Fit(
        lambda r: (mp.expm1(r) - r) / r**2,
        lambda r: max(abs(r), 0.01),
        -0.3467,
        {32: 0.3467, 64: 0.3467},
        {32: 4, 64: 10},
    ),
    "log": Fit(lambda z: (atanh_series(z) - 2) / z, lambda z: z, 1e-9, {32: 0.02944, 64: 0.02944}, {32: 2, 64: 6}),
    "log_tail": Fit(lambda z: (atanh_series(z) / 2 - 1 - z / 3) / z**2, lambda z: z**2, 1e-7, {64: 0.02944}, {64: 7}),
    "sin": Fit(
        lambda z: (mp.sin(mp.sqrt(z)) / mp.sqrt(z) - 1) / z, lambda z: z, 1e-8, {32: 0.617, 64: 0.617}, {32: 2, 64: 5}
    ),
    "cos": Fit(
        lambda z: (mp.cos(mp.sqrt(z)) - 1 + z / 2) / z**2, lambda z: z**2, 1e-6, {32: 0.617, 64: 0.617}, {32: 2, 64: 5}
    ),
    "erf_small": Fit(lambda z: mp.erf(mp.sqrt(z)) / mp.sqrt(z) - 1, lambda z: 1, 1e-9, {32: 1, 64: 1}, {32: 6, 64: 12}),
    "erf_large": Fit(lambda t: -mp.log(mp.erfc(t)), lambda t: mp.erfc(t), 1, {32: 4, 64: 6}, {32: 6, 64: 18}),
}


def exchanged(errors: list, size: int) -> list[int]:
    """The `size` alternating extrema of the errors, by place."""
    extrema: list[int] = []
    for i, error in enumerate(errors):
        if not extrema or mp.sign(error) != mp.sign(errors[extrema[-1]]):
            extrema.append(i)
        elif abs(error) > abs(errors[extrema[-1]]):
            extrema[-1] = i
    while len(extrema) > size:
        extrema.pop(0 if abs(errors[extrema[0]]) < abs(errors[extrema[-1]]) else -1)
    return extrema


def remez(fit: Fit, bits: int, grid: int = 600) -> tuple[list, Any]:
    """(coefficients of the polynomial with the least max |weight (P - function)| on the interval, that maximum)."""
    degree = fit.degree[bits]
    size = degree + 2
    middle, half = (mp.mpf(fit.low) + fit.high[bits]) / 2, (mp.mpf(fit.high[bits]) - fit.low) / 2
    units = [-mp.cos(mp.pi * (i + mp.mpf(0.5)) / grid) for i in range(grid)]  # t = middle + half * unit
    values = [fit.function(middle + half * u) for u in units]
    weights = [fit.weight(middle + half * u) for u in units]
    picked = [i * (grid - 1) // (size - 1) for i in range(size)]
    found: list = []
    errors: list = []
    for _ in range(12):
        rows = [
            [units[i] ** c for c in range(degree + 1)] + [(-1) ** r / mp.mpf(weights[i])] for r, i in enumerate(picked)
        ]
        solution = mp.lu_solve(mp.matrix(rows), mp.matrix([values[i] for i in picked]))
        found = [solution[k] for k in range(degree, -1, -1)]
        errors = [w * (mp.polyval(found, u) - v) for u, v, w in zip(units, values, weights)]
        extrema = exchanged(errors, size)
        if len(extrema) < size or extrema == picked:
            break
        picked = extrema
    powers = [mp.mpf(0)]
    for c in found:  # Horner on polynomials: from powers of the unit to powers of t
        powers = [(b - a * middle) / half for a, b in zip([*powers, 0], [0, *powers])]
        powers[0] += c
    return powers[: degree + 1], max(map(abs, errors))


def main() -> None:
    mp.mp.dps = 45
    for name, fit in FITS.items():
        for bits in fit.degree:
            coefficients, error = remez(fit, bits)
            text = ", ".join(mp.nstr(c, 9 if bits == 32 else 17) for c in coefficients)
            print(f'("{name}", {bits}): ({text}),  # error 2^{float(mp.log(error, 2)):.1f}', flush=True)


if __name__ == "__main__":
    main()
