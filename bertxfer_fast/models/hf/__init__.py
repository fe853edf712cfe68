"""transformers models, run packed."""
