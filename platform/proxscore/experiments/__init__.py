"""One engine for many runs: comparisons and sweeps are two users of it."""
