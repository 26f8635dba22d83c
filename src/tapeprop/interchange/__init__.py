"""Files that other programs read and write: safetensors, and whole graphs in them."""

from tapeprop.interchange import safetensors
from tapeprop.interchange.saved import load, save

__all__ = ["load", "safetensors", "save"]
