"""Trained tasks as graphs that run without this package: ONNX and torch.export, checked against eager."""
