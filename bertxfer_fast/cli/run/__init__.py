"""One run: planned, then done, then reported."""
