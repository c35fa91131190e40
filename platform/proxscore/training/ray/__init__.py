"""Ray: the connection to a cluster, what it must be able to hold, and the workers of Ray Train."""
