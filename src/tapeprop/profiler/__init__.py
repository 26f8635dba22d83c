"""The tape profiler: what ran, how long each instruction took, and what memory it held."""
