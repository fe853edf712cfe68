"""How good, how large and how fast a model is, and how that is told."""
