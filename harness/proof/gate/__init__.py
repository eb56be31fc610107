"""The regression gate: a small sweep, compared sample by sample with a committed baseline."""
