"""What a run must know of its task."""
