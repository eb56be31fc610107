"""Costs before anything runs: of a method's plan, and by each paper's convention."""
