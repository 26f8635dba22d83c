"""What runs a tape: state, binding, the executor and its worker team, kernels linked from a cache on disk."""
