"""What a machine is: its arithmetic, its vector width, its timers. The floor under the kernels of every op."""
