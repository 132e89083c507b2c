"""A trained model made fast, or applied to large pictures: fused forms, packed weights, sliding windows."""
