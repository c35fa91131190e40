"""What networks predict per step, beside the Student t and the Gaussian: one file per family, by name in :mod:`.names`."""
