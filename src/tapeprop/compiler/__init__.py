"""The compiler: gradient, passes, memory plan, encoding, verification. Pure functions from IR to IR to tape."""
