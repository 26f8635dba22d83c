"""Files that other programs read and write: safetensors, whole graphs in them, and weights under other names."""

from tapeprop.interchange import safetensors
from tapeprop.interchange.saved import load, save
from tapeprop.interchange.weights import load_weights, save_weights

__all__ = ["load", "load_weights", "safetensors", "save", "save_weights"]
