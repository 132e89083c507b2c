"""Parameters and multiply-accumulates: counted, kept, and as the papers printed them."""
