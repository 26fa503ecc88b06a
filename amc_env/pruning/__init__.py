"""Which channels belong together, which go first, and the surgery that removes them."""
