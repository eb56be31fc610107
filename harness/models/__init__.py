"""Model families, and how a model is found, loaded and prompted."""
