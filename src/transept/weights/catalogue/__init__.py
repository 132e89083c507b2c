"""Every published checkpoint: where it lies, what it is of, which licence it has."""
