"""Necks and heads for dense prediction: each a file, told channels and strides, and never a backbone's name."""
