"""Functions on tensors, without parameters.

Axes, everywhere in transept: b batch, n tokens, c channels (`c = m * d`), m attention heads,
d channels per head, h w a map, H W an image in pixels.
"""
