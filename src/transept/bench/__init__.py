"""How fast a model is: timing beside peers, and the figure."""
