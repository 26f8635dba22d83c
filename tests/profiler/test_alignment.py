"""What belongs together in two profiles; the rest is tested where profiles are compared."""

import pytest

from tapeprop.profiler.alignment import numbers


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ("abc", "abc", [0, 1, 2]),
        ("abc", "xyz", [0, 1, 2]),  # as many: in order, whatever their shapes
        ("abc", "abxc", [0, 1, 3, 2]),
        ("abc", "ac", [0, 2]),
        ("abc", "xy", [0, 1]),  # nothing agrees: another batch size
        ("", "ab", [0, 1]),
        ("ab", "", []),
    ],
)
def test_numbers_of_what_is_alike(a: str, b: str, expected: list[int]) -> None:
    assert numbers(a, b) == (list(range(len(a))), expected)
