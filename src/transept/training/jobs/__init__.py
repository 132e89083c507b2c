"""One job for each task: its data, model, batches and meters."""
