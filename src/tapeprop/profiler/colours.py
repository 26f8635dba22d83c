"""The colours of phases, one list for all pictures."""

from __future__ import annotations

__all__ = ["phase_colour"]

# Told apart by most people with a colour vision deficiency: after Okabe and Ito, "Color Universal Design" (2008), lightened.
_COLOURS = {
    "fold": "#9aa5b1",
    "gather": "#c9b458",
    "forward": "#56a3d9",
    "loss": "#cc79a7",
    "backward": "#e08a3c",
    "update": "#3fae83",
}
_OTHER = "#b0b0b0"


def phase_colour(phase: str) -> str:
    """ "#rrggbb" of a phase; grey for one that is not known."""
    return _COLOURS.get(phase, _OTHER)
