"""Training, on Lightning."""
