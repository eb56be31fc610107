"""The Python interface: prune a model inside a block, and read results as data frames."""
