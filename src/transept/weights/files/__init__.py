"""Checkpoint files to names and tensors, and back; nothing in a file is executed."""
