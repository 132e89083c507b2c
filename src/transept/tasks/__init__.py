"""The tasks that a model is trained and judged for: loss, decoding and metric, without any trainer."""
