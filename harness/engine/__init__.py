"""Prune every prefill of a model by a method, and record what ran."""
