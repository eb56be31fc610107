"""Sealed cells to look at: a page, and one sample as a picture. No torch."""
