"""Where a model looks: attention maps, rollout, Grad-CAM, and the page that shows them."""
