"""Small modules that two families share and timm.layers lacks."""
