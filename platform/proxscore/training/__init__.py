"""Training: one loop for every task and method, in a plain process or on the workers of a Ray cluster."""
