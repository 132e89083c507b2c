"""One file per family, and the registry."""
