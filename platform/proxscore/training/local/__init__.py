"""Without Ray: a plain process, or those that torchrun started."""
