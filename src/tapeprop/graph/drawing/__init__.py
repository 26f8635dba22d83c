"""Drawings of graphs and tapes: `layered` places them, `svg` and `text` write them down."""
