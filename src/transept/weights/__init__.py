"""Published weights: what exists, how to get it, how to read it."""
