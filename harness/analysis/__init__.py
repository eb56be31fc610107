"""Where a model uses vision, and VisiPruner knobs derived from it."""
