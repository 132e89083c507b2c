"""Several processes: their start, their devices, how a model is spread over them."""
