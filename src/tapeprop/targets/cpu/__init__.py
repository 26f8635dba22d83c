"""The CPU target: vector arithmetic and elementary functions as LLVM IR, cache and tile sizes, timers."""
