"""Minimax polynomials and split constants behind the elementary functions of `vector_math`.

Every polynomial is the Remez solution (Remez 1934) for the function, interval and error weight in its comment, rounded
to the working precision, lowest power first. `bench/fit_polynomials.py` derives the table again. The argument
reductions around them follow Muller, *Elementary Functions*, 3rd ed., and fdlibm (Sun Microsystems, 1993).
"""

from __future__ import annotations

__all__ = ["HALF_PI", "LN2", "LOG2_E", "POLYNOMIALS", "THIRD", "TWO_OVER_PI", "two_over_pi"]

POLYNOMIALS: dict[tuple[str, int], tuple[float, ...]] = {
    # (expm1(r) - r) / r^2 on |r| <= 0.3467, weight max(|r|, 0.01)
    ("exp", 32): (0.500000006, 0.166665429, 0.0416662817, 0.00836660142, 0.00139464736),
    ("exp", 64): (
        0.5,
        0.16666666666666677,
        0.041666666666666702,
        0.0083333333333215908,
        0.0013888888888866736,
        0.00019841269886230164,
        2.4801587360743406e-5,
        2.7557244102242666e-6,
        2.7557242609238168e-7,
        2.5109075086461719e-8,
        2.0924487374813332e-9,
    ),
    # (2 atanh(s) / s - 2) / z with z = s^2 on z <= 0.02944, weight z
    ("log", 32): (0.666667764, 0.399775373, 0.298718532),
    ("log", 64): (
        0.66666666666667345,
        0.39999999999414347,
        0.28571428742468078,
        0.222221985642726,
        0.1818356482203181,
        0.15314037058112202,
        0.14796092491524353,
    ),
    # (atanh(s) / s - 1 - z / 3) / z^2 with z = s^2 on z <= 0.02944, weight z^2: the tail of the double-double logarithm
    ("log_tail", 64): (
        0.199999999999999887,
        0.14285714285722555,
        0.111111111087684237,
        0.0909090943513422411,
        0.0769227843705518676,
        0.0666815865035827776,
        0.0583741043976343124,
        0.0599449682755163816,
    ),
    # (sin(r) / r - 1) / z with z = r^2 on z <= 0.617, weight z
    ("sin", 32): (-0.166666549, 0.00833217759, -0.000195172217),
    ("sin", 64): (
        -0.16666666666666632,
        0.0083333333333224115,
        -0.00019841269829806002,
        2.755731369125175e-6,
        -2.5050758005565694e-8,
        1.5896789018450346e-10,
    ),
    # (cos(r) - 1 + z / 2) / z^2 with z = r^2 on z <= 0.617, weight z^2
    ("cos", 32): (0.0416666469, -0.00138873668, 2.44383639e-5),
    ("cos", 64): (
        0.041666666666666599,
        -0.0013888888888874121,
        2.4801587289480215e-5,
        -2.7557314351732026e-7,
        2.087572318775245e-9,
        -1.1359643199484241e-11,
    ),
    # erf(x) / x - 1 in z = x^2 on z <= 1, weight 1
    ("erf_small", 32): (
        0.128379166,
        -0.376126271,
        0.112836002,
        -0.0268544444,
        0.00518953504,
        -0.000802083907,
        7.88911345e-5,
    ),
    ("erf_small", 64): (
        0.12837916709551257,
        -0.37612638903183748,
        0.11283791670954884,
        -0.026866170645077863,
        0.005223977624828333,
        -0.00085483269814207566,
        0.00012055331132807161,
        -1.4925595769145227e-5,
        1.6461008436559018e-6,
        -1.6350395854248447e-7,
        1.4660326645542339e-8,
        -1.1374949065695628e-9,
        5.9606760705303989e-11,
    ),
    # -log(erfc(x)) on 1 <= x <= 4 (float32), 6 (float64), weight erfc(x)
    ("erf_large", 32): (
        0.000353741803,
        1.12703995,
        0.638225828,
        0.103037238,
        -0.0218052554,
        0.00293959153,
        -0.000185572402,
    ),
    ("erf_large", 64): (
        1.8444223790613099e-7,
        1.1283772818329553,
        0.6366287063375437,
        0.10274663513134396,
        -0.01907694051021528,
        -0.00028225023943502688,
        0.0017709492692236466,
        -0.00064285415411397052,
        4.5969775364605895e-5,
        6.9743008345058572e-5,
        -4.4766722670230582e-5,
        1.6420383300222077e-5,
        -4.3014790537550875e-6,
        8.4512810464860893e-7,
        -1.2482013618378332e-7,
        1.3520916801878615e-8,
        -1.016935426532608e-9,
        4.751114948090568e-11,
        -1.0389032216971643e-12,
    ),
}

# ln 2 = high + low; high is so short that n * high is exact for every exponent n (Cody and Waite 1980).
LN2 = {32: (0.693145751953125, 1.428606765330187e-06), 64: (0.6931471805598903, 5.497923018708371e-14)}
# pi/2 in parts of full width: with fma, x - n * part keeps every bit that cancellation uncovers.
HALF_PI = {
    32: (1.5707963705062866, -4.371138828673793e-08, -1.7151245100058819e-15),
    64: (1.5707963267948966, 6.123233995736766e-17, -1.4973849048591833e-33),
}
LOG2_E = 1.4426950408889634
TWO_OVER_PI = 0.6366197723675814
THIRD = (0.3333333333333333, 1.850371707708594e-17)  # 1/3 as an unevaluated sum


def two_over_pi(bits: int) -> int:
    """floor(2/pi * 2^bits), with pi by Machin's formula (1706) in integers."""
    one = 1 << bits + 64  # 64 guard bits: each of the about bits / 4 truncated terms loses less than one unit

    def arctan_of_inverse(n: int) -> int:
        total, term, k = 0, one // n, 1
        while term:
            total, term, k = total + term // k, -(term // (n * n)), k + 2
        return total

    return 2 * one * one // (4 * (4 * arctan_of_inverse(5) - arctan_of_inverse(239))) >> 64
